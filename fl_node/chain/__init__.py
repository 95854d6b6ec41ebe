"""The Ethereum chain: JSON-RPC, accounts, transactions, and the contract of a run."""
