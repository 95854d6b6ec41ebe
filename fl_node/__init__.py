"""Federated learning on a private Ethereum chain and a private IPFS swarm."""

from fl_node.runtime import without_bls

__version__ = "0.1.0"

without_bls.install()
