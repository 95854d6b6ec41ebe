"""The live view of a run: what is observed, the page, metrics."""
