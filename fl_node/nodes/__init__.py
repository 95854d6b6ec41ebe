"""The nodes that a run needs: Geth and IPFS as processes, or a chain inside Python."""

CHAIN_ID = 20240191
"""The chain's and the network's number, of a lab with Geth and of the chain inside Python alike."""
