"""Recomputing a run from chain and store alone."""
