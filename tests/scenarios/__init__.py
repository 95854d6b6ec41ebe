"""The scenarios of a lab, one after the other, and their table in docs/scenarios.md."""
