"""Data sets: where they come from, and who has which part."""
