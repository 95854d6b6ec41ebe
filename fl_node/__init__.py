"""Federated learning on a private Ethereum chain and a private IPFS swarm."""

__version__ = "0.1.0"
