"""Files that travel: their content identifiers, the model file format, and the stores that hold them."""
