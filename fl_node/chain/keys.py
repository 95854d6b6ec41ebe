"""Accounts: each role has a key file that only its owner can read."""

from __future__ import annotations

from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from fl_node.errors import ConfigError
from fl_node.runtime import files, recursion

recursion.restore()


def create_key(path: Path) -> str:
    """Create a key file for a new account and return the account's address.

    Only the owner can read the file. An existing key file is kept.

    Raises
    ------
    ConfigError
        The key file can't be written, or an existing file is not a valid key file.
    """
    if not path.exists():
        account = Account.create()
        try:
            files.create_private(path, account.key.hex() + "\n")
        except OSError as error:
            raise ConfigError(f"key file {path}: {files.reason(error)}") from error
    return str(load_key(path).address)


def load_key(path: Path) -> LocalAccount:
    """Read an account from its key file: 64 hexadecimal digits, mode 0600.

    Raises
    ------
    ConfigError
        The file is missing, contains no key, or other users can read it.
    """
    text = files.private_text(path, "key file", files.KEY_DIGITS)
    try:
        account: LocalAccount = Account.from_key(bytes.fromhex(text.removeprefix("0x")))
    except ValueError as error:
        raise ConfigError(f"key file {path} should hold {files.KEY_DIGITS}") from error
    return account
