"""Privacy of a run: the host's secret, masks and their keys, differential privacy and its accounting."""
