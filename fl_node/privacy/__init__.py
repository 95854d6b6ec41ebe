"""Privacy of a run: the host's secret, differential privacy and its accounting."""
