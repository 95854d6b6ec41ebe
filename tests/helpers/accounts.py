"""Accounts for tests: the same for the same name."""

from __future__ import annotations

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils import keccak


def account(name: str) -> LocalAccount:
    """Return the account of a name."""
    created: LocalAccount = Account.from_key(keccak(text=f"fl-node unit test {name}"))
    return created


HEADER, ALICE, BOB, MALLORY = FUNDED = [account(name) for name in ("header", "alice", "bob", "mallory")]
POOR = account("poor")
