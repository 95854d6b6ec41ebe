"""Whether global weights are what they should be: one set of checks for the audit and for learners during a run."""
