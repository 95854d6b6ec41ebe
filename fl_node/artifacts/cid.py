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
_MOST_FRAME = 32
"""More bytes than a leaf has beside its content."""


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


class Hasher:
    """Computes the CIDv0 of a file from its parts, in order."""

    def __init__(self) -> None:
        self._leaves: list[_Node] = []
        self._rest = bytearray()

    def update(self, part: bytes | memoryview) -> None:
        """Take the next part; parts of whole chunks are not copied."""
        view = memoryview(part).cast("B")
        while len(self._rest) + len(view) >= CHUNK_BYTES:
            taken = CHUNK_BYTES - len(self._rest)
            if self._rest:
                self._rest += view[:taken]
                self._leaves.append(_leaf(self._rest))
                self._rest = bytearray()
            else:
                self._leaves.append(_leaf(view[:taken]))
            view = view[taken:]
        self._rest += view

    def cid(self) -> str:
        """Return the CIDv0 of all parts so far."""
        rest = [_leaf(self._rest)] if self._rest or not self._leaves else []
        return from_digest(_joined([*self._leaves, *rest]).digest)


def content_of_leaf(block: bytes) -> memoryview | None:
    """Return the content of a file that is one block; None if the block is anything else.

    Whether the content has the CID that the block was asked by is still to be checked.
    """
    for size in range(max(len(block) - _MOST_FRAME, 0), len(block)):
        before, after = _framed(size)
        if len(before) + size + len(after) == len(block):
            is_leaf = block.startswith(before) and block.endswith(after)
            return memoryview(block)[len(before) : len(before) + size] if is_leaf else None
    return None


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
    return _joined([_leaf(chunk) for chunk in chunks] or [_leaf(b"")])


def _joined(level: list[_Node]) -> _Node:
    while len(level) > 1:
        level = [_parent(level[i : i + LINKS_PER_NODE]) for i in range(0, len(level), LINKS_PER_NODE)]
    return level[0]


def _leaf(chunk: bytes | bytearray | memoryview) -> _Node:
    # Not joined first: a copy of the chunk would take as long as its hash.
    before, after = _framed(len(chunk))
    digest = hashlib.sha256(before)
    digest.update(chunk)
    digest.update(after)
    return _Node(digest.digest(), len(before) + len(chunk) + len(after), len(chunk))


def _framed(size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after so many bytes of content in a leaf."""
    data = b"\x12" + _varint(size) if size else b""
    after = _number(3, size)
    unixfs = len(_UNIXFS_FILE) + len(data) + size + len(after)
    return b"\x0a" + _varint(unixfs) + _UNIXFS_FILE + data, after


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
