"""What header and audit must agree on: names, history, publications, and how the files of a run are read."""
