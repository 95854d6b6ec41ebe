"""The plan of a run: its settings, and what is wrong with them."""
