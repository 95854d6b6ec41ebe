"""What header and audit must agree on."""
