"""Computes the CID of a file without IPFS.

A file is split into chunks of 1 MiB. Each chunk becomes a UnixFS leaf; a node links up to 174 leaves or nodes, until
one root remains. The CIDv0 is the SHA-256 multihash of the root in base58. It equals that of
``ipfs add --chunker=size-1048576``. (IPFS's default, 256 KiB, gives four times as many blocks to write, request and
check.) Specifications: UnixFS and DAG-PB (https://specs.ipfs.tech/unixfs/,
https://ipld.io/specs/codecs/dag-pb/spec/).

The chain stores the 32 bytes of the digest (``bytes32``); :func:`from_digest` returns the CID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fl_node.errors import FLNodeError

CHUNK_BYTES = 1024 * 1024
LINKS_PER_NODE = 174
EMPTY_DIGEST = bytes(32)

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_MULTIHASH_SHA2_256 = b"\x12\x20"
_UNIXFS_FILE = b"\x08\x02"


class CidError(FLNodeError, ValueError):
    """A string is not a CIDv0."""


@dataclass(frozen=True)
class _Node:
    digest: bytes
    dag_bytes: int
    file_bytes: int


def of_bytes(content: bytes) -> str:
    """Return the CIDv0 of ``content``."""
    chunks = (content[i : i + CHUNK_BYTES] for i in range(0, len(content), CHUNK_BYTES))
    return from_digest(_root(chunks).digest)


def of_file(path: Path) -> str:
    """Return the CIDv0 of the file at ``path``; reads one chunk at a time."""
    with path.open("rb") as file:
        return from_digest(_root(_chunks(file)).digest)


def from_digest(digest: bytes) -> str:
    """Return the CIDv0 for the digest that the chain stores.

    Raises
    ------
    CidError
        The digest does not have 32 bytes.
    """
    if len(digest) != len(EMPTY_DIGEST):
        raise CidError(f"a SHA-256 digest has 32 bytes, not {len(digest)}")
    number = int.from_bytes(_MULTIHASH_SHA2_256 + digest, "big")
    text = ""
    while number:
        number, remainder = divmod(number, 58)
        text = _ALPHABET[remainder] + text
    return text


def to_digest(cid: str) -> bytes:
    """Return the digest (32 bytes) that the chain stores for a CIDv0.

    Raises
    ------
    CidError
        The string is not a CIDv0 (46 base58 characters that start with ``Qm``).
    """
    if len(cid) != 46 or not cid.startswith("Qm") or any(c not in _ALPHABET for c in cid):
        raise CidError(f"{cid!r} is not a CIDv0; should be 46 base58 characters that start with Qm")
    number = 0
    for character in cid:
        number = number * 58 + _ALPHABET.index(character)
    multihash = number.to_bytes(34, "big")
    if not multihash.startswith(_MULTIHASH_SHA2_256):
        raise CidError(f"{cid!r} does not contain a SHA-256 multihash")
    return multihash[2:]


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _root(chunks: Iterable[bytes]) -> _Node:
    level = [_leaf(chunk) for chunk in chunks] or [_leaf(b"")]
    while len(level) > 1:
        level = [_parent(level[i : i + LINKS_PER_NODE]) for i in range(0, len(level), LINKS_PER_NODE)]
    return level[0]


def _leaf(chunk: bytes) -> _Node:
    data = _field(2, chunk) if chunk else b""
    unixfs = _UNIXFS_FILE + data + _number(3, len(chunk))
    return _node(_field(1, unixfs), 0, len(chunk))


def _parent(children: list[_Node]) -> _Node:
    links = b"".join(
        _field(2, _field(1, _MULTIHASH_SHA2_256 + c.digest) + _field(2, b"") + _number(3, c.dag_bytes))
        for c in children
    )
    size = sum(c.file_bytes for c in children)
    unixfs = _UNIXFS_FILE + _number(3, size) + b"".join(_number(4, c.file_bytes) for c in children)
    return _node(links + _field(1, unixfs), sum(c.dag_bytes for c in children), size)


def _node(block: bytes, below: int, file_bytes: int) -> _Node:
    return _Node(hashlib.sha256(block).digest(), len(block) + below, file_bytes)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
