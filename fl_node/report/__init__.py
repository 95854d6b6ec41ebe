"""What came out of a run, as tables, pictures and pages."""
