"""The plan of a run: its settings, how it is read, and its checks."""
