"""Files that nodes exchange: content identifiers, the model file format, and stores."""
