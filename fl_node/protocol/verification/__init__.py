"""Verifies global weights; the audit and learners during a run use the same checks."""
