"""Whole runs on one machine, with faults and checks."""
