"""What an audit has recomputed, signed by whoever carried it out, so that it can be told when files are gone.

It is a file with one JSON object: the CIDs of global weights by their round, the time, and the signature of an
account (EIP-191). It is that account's word, as an attestation on chain is.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.messages import SignableMessage, encode_defunct
from eth_account.signers.local import LocalAccount
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

from fl_node.errors import ConfigError, JournalError, JsonError
from fl_node.protocol.journal import MAX_TIME
from fl_node.runtime import files, recursion, strict_json

recursion.restore()

SUFFIX = "audit.json"
MARK = "-audit"
"""The end of the name of a statement in IPFS."""
MAX_BYTES = 64 * 1024**2
"""The largest file that is read; that of a thousand rounds has a thousandth of it."""


@dataclass(frozen=True)
class Statement:
    """An account says that it recomputed these global weights from their files, and that they are correct."""

    contract: str
    plan: str
    """The CID of the plan."""
    account: str
    time: float
    """Seconds since 1970, by the signer's clock."""
    weights: Mapping[int, str]
    """The CIDs of the global weights, by the round that starts from them."""

    @property
    def name(self) -> str:
        """Its name in IPFS, and the start of the name of its file."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.time))
        return f"{self.contract}-{self.account}-{moment}{MARK}"


def signed(statement: Statement, account: LocalAccount) -> bytes:
    """Return the content of a statement's file.

    Parameters
    ----------
    statement
        What was recomputed.
    account
        The account that it names.
    """
    content = dataclasses.asdict(statement) | {"weights": {str(n): cid for n, cid in statement.weights.items()}}
    signature = account.sign_message(_message(content)).signature
    return _canonical(content | {"signature": f"0x{bytes(signature).hex()}"}) + b"\n"


def read(path: Path) -> Statement:
    """Read a statement and check its signature.

    Raises
    ------
    ConfigError
        The file can't be read, or is too large.
    JournalError
        It is not a statement, or its account did not sign it.
    """
    try:
        content = strict_json.loads(strict_json.read_bytes(path, MAX_BYTES))
        signature = bytes.fromhex(content.pop("signature").removeprefix("0x"))
        weights = {int(number): cid for number, cid in content["weights"].items()}
        statement = Statement(**content | {"weights": weights})
        _check_types(statement)
    except OSError as error:
        raise ConfigError(f"statement {path}: {files.reason(error)}") from error
    except JsonError as error:
        raise JournalError(f"statement {path}: {error}") from error
    except ValueError as error:
        raise JournalError(f"statement {path}: it is not the signed result of an audit: {error}") from error
    except (TypeError, AttributeError, KeyError) as error:
        problem = "it lacks fields, or has others"
        raise JournalError(f"statement {path}: it is not the signed result of an audit: {problem}") from error
    try:
        signer = Account.recover_message(_message(content), signature=signature)
    except (BadSignature, ValidationError, ValueError, TypeError) as error:
        raise JournalError(f"statement {path}: it has an invalid signature") from error
    if signer != statement.account:
        raise JournalError(f"statement {path}: it is signed by {signer}, should be {statement.account}")
    return statement


def find(path: Path) -> Iterator[Path]:
    """Yield the statements in a folder, or the file itself if it is named like one."""
    if path.is_dir():
        yield from sorted(path.rglob(f"*{SUFFIX}"))
    elif path.name.endswith(SUFFIX):
        yield path


def _check_types(statement: Statement) -> None:
    """Check the types of a statement's fields.

    Raises
    ------
    ValueError
        One is wrong; the message names it.
    """
    for field in ("contract", "plan", "account"):
        if not isinstance(getattr(statement, field), str):
            raise ValueError(f"{field} should be a text")
    if type(statement.time) not in (int, float) or not 0 <= statement.time < MAX_TIME:
        raise ValueError("time should be seconds since 1970")
    if not all(number >= 0 and isinstance(cid, str) for number, cid in statement.weights.items()):
        raise ValueError("weights should be CIDs by round")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _message(content: dict[str, Any]) -> SignableMessage:
    return encode_defunct(_canonical(content))
