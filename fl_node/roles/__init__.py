"""What header and learners do."""
