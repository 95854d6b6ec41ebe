"""The journal of a role: what it saw of a run on its own chain, signed by its account.

The sealers of a chain can rewrite it; a journal that somebody else keeps shows that. It is a text file with one JSON
object per line. Each line has the SHA-256 of the line before, so that nothing can be cut out or put in, and the
signature of the role's account (EIP-191), so that only the role can write it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eth_account import Account
from eth_account.messages import SignableMessage, encode_defunct
from eth_account.signers.local import LocalAccount
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

from fl_node.errors import ConfigError, JournalError, JsonError
from fl_node.runtime import files, recursion, strict_json

recursion.restore()

FILE = "journal.jsonl"
MAX_BYTES = 64 * 1024**2
"""The largest journal that is read; that of a thousand rounds has a hundredth of it."""
MAX_LINE = 4096
MAX_COUNT = 2**63
MAX_TIME = 2**40
"""Times are below, in seconds since 1970: a role may write any number, and this one still has a date."""
CLOCK_TOLERANCE = 5.0
"""Seconds by which the clocks of two hosts may differ."""
FIRST = "0" * 64
"""What the first line has in place of the hash of the line before."""
Kind = Literal["opened", "closed", "pruned"]


@dataclass(frozen=True)
class Entry:
    """What a role saw or did: a round that is open, closed, or whose files it deleted; and the newest block then.

    Times are in seconds since 1970.
    """

    number: int
    """From 0, without gaps."""
    previous: str
    """SHA-256 of the line before."""
    contract: str
    role: str
    account: str
    kind: Kind
    round: int
    cid: str
    """The global weights that the round started from."""
    block: str
    """The hash of the newest block then."""
    height: int
    """Its number."""
    sealed: int
    """Its time, by its sealer's clock."""
    seen: float
    """When the role saw it, by the role's clock."""
    before: float | None
    """When the role last looked and saw something else; None if it had not looked since its start."""
    top: int
    """The highest block number that the role had seen before."""


@dataclass(frozen=True)
class Journal:
    """A journal that was read.

    ``entries`` are those before the first wrong line, and ``problem`` says what is wrong with that line; it is empty
    if all lines are right. ``head`` is the SHA-256 of the last right line.
    """

    path: Path
    entries: tuple[Entry, ...]
    head: str
    problem: str = ""

    @property
    def states(self) -> tuple[Entry, ...]:
        """What the role saw of the chain."""
        return tuple(entry for entry in self.entries if entry.kind != "pruned")

    @property
    def pruned(self) -> tuple[Entry, ...]:
        """The rounds whose files the role deleted, as the plan's ``retention`` says."""
        return tuple(entry for entry in self.entries if entry.kind == "pruned")

    @property
    def account(self) -> str:
        """The address of the account that signed it; empty if it has no entry."""
        return self.entries[0].account if self.entries else ""

    @property
    def name(self) -> str:
        """The name by which IPFS keeps it."""
        first = self.entries[0] if self.entries else None
        return name_of(first.contract, first.role, first.account) if first else ""


def name_of(contract: str, role: str, account: str) -> str:
    """Return the name by which IPFS keeps a journal.

    Parameters
    ----------
    contract
        The address of the run's contract.
    role
        ``header`` or ``learner``.
    account
        The address of the role's account.
    """
    return f"{contract}-{role}-{account}"


def digest(line: bytes) -> str:
    """Return the hash of a line, without its line break, that the next line has."""
    return hashlib.sha256(line).hexdigest()


def signed(entry: Entry, account: LocalAccount) -> bytes:
    """Return the line of an entry, without a line break.

    Parameters
    ----------
    entry
        What the role saw.
    account
        The role's account.
    """
    content = dataclasses.asdict(entry)
    signature = account.sign_message(_message(content)).signature
    return _canonical(content | {"signature": f"0x{bytes(signature).hex()}"})


def read(path: Path) -> Journal:
    """Read a journal and check its signatures and its hashes.

    Half a line at its end is ignored: the role was killed while it wrote it.

    Raises
    ------
    ConfigError
        The file can't be read, or is too large.
    """
    try:
        content = strict_json.read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"journal {path}: {files.reason(error)}") from error
    except JsonError as error:
        raise ConfigError(f"journal {path}: {error}") from error
    entries: list[Entry] = []
    head, problem = FIRST, ""
    for number, line in enumerate(content.split(b"\n")[:-1]):
        try:
            entry = _entry(line)
            _check_place(entry, number, head, entries)
        except JournalError as error:
            problem = f"line {number + 1} {error}"
            break
        entries.append(entry)
        head = digest(line)
    return Journal(path, tuple(entries), head, problem)


def find(path: Path) -> Iterator[Path]:
    """Yield the journals in a folder, or the file itself.

    Raises
    ------
    ConfigError
        There is no such file or folder.
    """
    if path.is_dir():
        yield from sorted(path.rglob(f"*{FILE}"))
    elif path.exists():
        yield path
    else:
        raise ConfigError(f"journal {path}: no such file or folder")


def _check_place(entry: Entry, number: int, previous: str, entries: list[Entry]) -> None:
    """Check that an entry follows those before it.

    Raises
    ------
    JournalError
        It doesn't.
    """
    if (entry.number, entry.previous) != (number, previous):
        raise JournalError("does not follow the line before; a line was changed or cut out")
    first = entries[0] if entries else entry
    if (entry.account, entry.contract, entry.role) != (first.account, first.contract, first.role):
        raise JournalError("is of another role or run than the first line")


def _entry(line: bytes) -> Entry:
    """Return a line's entry.

    Raises
    ------
    JournalError
        It is not an entry, or has no valid signature of its account.
    """
    try:
        content = strict_json.loads(line, max_bytes=MAX_LINE)
        signature = bytes.fromhex(content.pop("signature").removeprefix("0x"))
        entry = Entry(**content)
        _check_types(entry)
    except JsonError as error:
        raise JournalError(str(error)) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise JournalError(f"is not an entry: {error}") from error
    try:
        signer = Account.recover_message(_message(content), signature=signature)
    except (BadSignature, ValidationError, ValueError, TypeError) as error:
        raise JournalError("has an invalid signature") from error
    if signer != entry.account:
        raise JournalError(f"is signed by {signer}, should be {entry.account}")
    return entry


def _check_types(entry: Entry) -> None:
    """Check the types of an entry's fields, and its times.

    Raises
    ------
    ValueError
        One is wrong; the message names it.
    """
    times = ("seen", "before")
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.name in times:
            is_right = type(value) in (int, float) or (value is None and field.name == "before")
        elif field.name in ("number", "round", "height", "sealed", "top"):
            is_right = type(value) is int and 0 <= value < MAX_COUNT
        else:
            is_right = isinstance(value, str)
        if not is_right:
            raise ValueError(f"{field.name} has the wrong type")
        if field.name in times and value is not None and not 0 <= value < MAX_TIME:
            raise ValueError(f"{field.name} should be seconds since 1970")
    if entry.kind not in get_args(Kind):
        raise ValueError(f"kind should be one of {', '.join(get_args(Kind))}")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _message(content: dict[str, Any]) -> SignableMessage:
    return encode_defunct(_canonical(content))
