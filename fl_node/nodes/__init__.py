"""The nodes that a run needs: Geth and IPFS as processes, or a chain inside Python."""
