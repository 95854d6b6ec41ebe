"""The roles: header and learners."""
