"""Reads and writes model files, which are canonical and contain their metadata.

A model file is in the safetensors format (https://github.com/huggingface/safetensors): float32 tensors, and metadata
as a map of strings. The same tensors and metadata always give the same bytes and hence the same CID: tensors are in
the order of their names, JSON has sorted keys and no spaces, and nothing depends on clock or host.
A received file is rejected unless this module would have written exactly these bytes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from safetensors import SafetensorError, safe_open

from fl_node.artifacts import cid
from fl_node.artifacts.distance import Distance, Ruler
from fl_node.compression import KINDS as COMPRESSIONS
from fl_node.compression import Compression
from fl_node.compression.compression import name_of, part_of
from fl_node.errors import JsonError, WeightsError
from fl_node.privacy import dealing
from fl_node.runtime import files, strict_json
from fl_node.runtime.tensors import Shapes as Shapes
from fl_node.runtime.tensors import Sliceable, blocks_of, flat, shape_of
from fl_node.runtime.tensors import Tensor as Tensor
from fl_node.runtime.tensors import Tensors as Tensors

FORMAT = "fl-node/1"
MAX_METADATA_BYTES = 1024 * 1024
"""Maximum size of a file's metadata with their frame; what the header says of tensors comes in addition."""
MAX_UNKNOWN_HEADER_BYTES = 16 * 1024**2
"""Maximum size of a header while the model is unknown, in bytes."""
MAX_GLOBAL_BYTES = 2 * 1024**3
"""Maximum size of a global file while the model is unknown, in bytes."""
MAX_COUNT = 1_000_000_000
"""Maximum of whole numbers in metadata: nodeIds, rounds, samples."""
MAX_LOSS = 1e6
"""Maximum loss, far above an honest one: probabilities are clipped to at least 1e-12, so that is at most 27.7."""
MAX_ENTRIES = 10_000
"""Maximum number of entries of a list in metadata; a plan has at most 1,000 learners."""
MAX_REASON = 1000
"""Maximum length of the reason of a rejection, and of other strings in metadata, in characters."""
MAX_NAME = 512
"""Maximum length of a tensor's name, in characters."""
MAX_DIMENSIONS = 32
PRIVATE = "privacy/"
"""Prefix of the tensors in a masked file that are not part of the model."""
SCORES = f"{PRIVATE}scores"
"""Name of the tensor with masked accuracy and loss in a masked file."""
OPTIONAL = frozenset({"taken", "spent", "epsilon", "keys", "scores", "compression"})
"""Optional fields in the metadata of a file."""

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""The types of single values are strict; JSON lists and objects still become tuples and dataclasses."""


@dataclass(frozen=True)
class Should:
    """What a value in metadata should be, such as "a CIDv0"; every error of the value says this."""

    be: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema with this error message."""
        return core_schema.custom_error_schema(
            handler(source), "should_be", custom_error_message="{be}", custom_error_context={"be": self.be}
        )


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


def _cid(text: str) -> str:
    cid.to_digest(text)
    return text


def _float(value: object) -> object:
    if not isinstance(value, float):
        raise ValueError("not a float")  # the canonical form of an integer differs
    return value


def _not_null(value: object) -> object:
    if value is None:
        raise ValueError("null")  # the canonical form leaves the field out
    return value


def _compression(kind: str | None) -> str | None:
    if kind is not None and kind not in COMPRESSIONS:
        raise ValueError("unknown")
    return kind


def _list(value: object) -> object:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise ValueError("no list, or too long")
    return value


NotNull = BeforeValidator(_not_null)
List = BeforeValidator(_list)
Cid = Annotated[str, Strict(), AfterValidator(_cid), Should("a CIDv0")]
Count = Annotated[int, Strict(), Field(ge=0, le=MAX_COUNT), Should(f"a whole number from 0 to {MAX_COUNT}")]
Positive = Annotated[int, Strict(), Field(ge=1, le=MAX_COUNT), Should(f"a whole number from 1 to {MAX_COUNT}")]
Share = Annotated[float, BeforeValidator(_float), Field(ge=0, le=1), Should("a number from 0 to 1")]
Loss = Annotated[float, BeforeValidator(_float), Field(ge=0, le=MAX_LOSS), Should(f"a number from 0 to {MAX_LOSS:g}")]
Epsilon = Annotated[float, BeforeValidator(_float), Field(ge=0, le=1e9), Should("a number from 0 to 1e9")]
Key = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$"), Should("64 hexadecimal digits")]
Line = Annotated[
    str,
    Strict(),
    Field(max_length=MAX_REASON),
    AfterValidator(_printable),
    Should(f"a line of at most {MAX_REASON} characters"),
]


@dataclass(frozen=True)
class LocalMeta:
    """Metadata of a file of local weights.

    ``accuracy`` (a fraction, 0 to 1) and ``loss`` (cross-entropy, in nats) are the learner's measurements on the
    test images; anyone can evaluate the weights to check them.

    ``compression`` is the kind of compression of a file that has a compressed update instead of weights.
    """

    __pydantic_config__ = STRICT

    plan: Cid
    node_id: Positive
    round: Count
    parent: Cid
    samples: Positive
    accuracy: Share
    loss: Loss
    compression: Annotated[str | None, NotNull, AfterValidator(_compression), Should(" or ".join(COMPRESSIONS))] = (
        None
    )


@dataclass(frozen=True)
class MaskedMeta:
    """Metadata of a file of masked local weights.

    Its tensors are integers modulo 2 to the power ``modulus_bits``: the update of each tensor of the model, and
    accuracy and loss in :data:`SCORES`, each multiplied by the learner's weight in the average and masked. The other
    tensors are the public part of its seeds; see :class:`fl_node.privacy.dealing.Dealt`. ``next_key`` is the public
    key of its masks in the next round.
    """

    __pydantic_config__ = STRICT

    plan: Cid
    node_id: Positive
    round: Count
    parent: Cid
    samples: Positive
    neighbours: Annotated[tuple[Positive, ...], List]
    modulus_bits: Annotated[Literal[32, 64], Should("32 or 64")]
    next_key: Key


@dataclass(frozen=True)
class Input:
    """A file of local weights that a global file includes, and its share in the average.

    ``started`` is the round whose global weights it was trained from, in a run where this differs between files.
    """

    __pydantic_config__ = STRICT

    node_id: Positive
    cid: Cid
    samples: Positive
    share: Share
    started: Annotated[Count | None, NotNull, Should(f"a whole number from 0 to {MAX_COUNT}")] = None


@dataclass(frozen=True)
class Rejection:
    """A file of local weights that the header rejected, and why."""

    __pydantic_config__ = STRICT

    node_id: Positive
    cid: Cid
    reason: Line


@dataclass(frozen=True)
class GlobalMeta:
    """Metadata of a file of global weights.

    Each registered learner is in exactly one of ``inputs``, ``refused`` (rejected files) and ``absent`` (missing
    learners). The initial weights (round 0) have no parent and list no learners.

    In an asynchronous run no learner is missing. ``taken`` has, by nodeId, the number of a learner's publications
    that this file and all earlier ones accepted or rejected. Publications are in the order of the account's nonces,
    which a reorganisation does not change, so each publication counts exactly once.

    In a run with differential privacy ``spent`` has, by nodeId, the number of different local weights that a learner
    has published, and ``epsilon`` is the largest ε of a learner, for the plan's δ.

    In a run with masks ``keys`` has, by nodeId, the public keys of the masks in the round that starts from this file,
    and ``scores`` are the average accuracy and loss that the learners measured.
    """

    __pydantic_config__ = STRICT

    plan: Cid
    round: Count
    parent: Cid | None
    rule: Line
    inputs: Annotated[tuple[Input, ...], List] = ()
    refused: Annotated[tuple[Rejection, ...], List] = ()
    absent: Annotated[tuple[Positive, ...], List] = ()
    taken: Annotated[tuple[tuple[Positive, Count], ...] | None, List, NotNull] = None
    spent: Annotated[tuple[tuple[Positive, Count], ...] | None, List, NotNull] = None
    epsilon: Annotated[Epsilon | None, NotNull] = None
    keys: Annotated[tuple[tuple[Positive, Key], ...] | None, List, NotNull] = None
    scores: Annotated[tuple[Share, Loss] | None, List, NotNull] = None


Meta = LocalMeta | MaskedMeta | GlobalMeta


@dataclass(frozen=True)
class WeightsFile:
    """A checked model file on disk; its tensors are read on demand.

    ``distance`` is what was measured of local weights while the file was checked, if the global weights that they
    were trained from were at hand.
    """

    path: Path
    cid: str
    meta: Meta
    shapes: Shapes
    distance: Distance | None = field(default=None, compare=False, kw_only=True)

    @property
    def global_meta(self) -> GlobalMeta:
        """The metadata of a global file."""
        if not isinstance(self.meta, GlobalMeta):
            _refuse("kind", f"is {_KINDS[type(self.meta)]}", "global")
        return self.meta

    @property
    def local_meta(self) -> LocalMeta:
        """The metadata of a local file."""
        if not isinstance(self.meta, LocalMeta):
            _refuse("kind", f"is {_KINDS[type(self.meta)]}", "local")
        return self.meta

    @property
    def masked_meta(self) -> MaskedMeta:
        """The metadata of a file of masked local weights."""
        if not isinstance(self.meta, MaskedMeta):
            _refuse("kind", f"is {_KINDS[type(self.meta)]}", "masked")
        return self.meta

    @property
    def published_meta(self) -> LocalMeta | MaskedMeta:
        """The metadata of a learner's file, masked or not."""
        return self.masked_meta if isinstance(self.meta, MaskedMeta) else self.local_meta

    def tensor(self, name: str) -> Tensor:
        """Return one tensor by its name."""
        shape = self.shapes[name]
        return self.flat(name, 0, math.prod(shape)).reshape(shape)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return some values of a tensor, in row-major order; reads only these.

        Parameters
        ----------
        name
            The tensor's name.
        start, stop
            The first value, and the value after the last.

        Raises
        ------
        OSError
            The file can't be read, or has become shorter since it was checked.
        """
        offset, dtype = self._places[name]
        # Read, not mapped: what a process has mapped counts as its memory.
        values = np.fromfile(self.path, dtype, stop - start, offset=offset + start * dtype.itemsize)
        return _complete(values, stop - start, self.path)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names."""
        return {name: self.tensor(name) for name in self.shapes}

    def on_demand(self, names: Iterable[str] | None = None) -> Tensors:
        """Return the tensors with these names, or all; each is read whenever it is asked for, whole or in blocks."""
        return OnDemand(self, self.shapes if names is None else {name: self.shapes[name] for name in names})

    @cached_property
    def _places(self) -> Mapping[str, tuple[int, np.dtype[Any]]]:
        """Where each tensor begins in the file, and the type of its values."""
        places, offset = {}, len(_header(self.meta, self.shapes))
        for name in sorted(self.shapes):
            dtype = np.dtype(_TYPES[_dtype(self.meta, name)])
            places[name] = offset, dtype
            offset += dtype.itemsize * math.prod(self.shapes[name])
        return places


def _complete(values: Tensor, count: int, path: Path) -> Tensor:
    """Return values that were read, if these are all.

    Raises
    ------
    OSError
        The file ended before.
    """
    if len(values) != count:
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: the file became shorter after its check", str(path))
    return values


class OnDemand(Sliceable):
    """Tensors of a file, read whenever they are asked for, whole or in blocks."""

    def __init__(self, file: WeightsFile, shapes: Shapes) -> None:
        self._file = file
        self._shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self._file.tensor(name)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return values ``start`` to ``stop - 1`` of a tensor, in row-major order; reads only these."""
        return self._file.flat(name, start, stop)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True)
class MaskedSize:
    """The size of masked files: the bits of the modulus, and the maximum number of a learner's neighbours."""

    modulus_bits: int
    neighbours: int


def write(path: Path, meta: Meta, tensors: Tensors) -> WeightsFile:
    """Write a model file in canonical form.

    Parameters
    ----------
    path
        Where the file appears when it is complete.
    meta
        The file's metadata.
    tensors
        Arrays by name: float32, or integers in a masked file.
    """
    shapes = {name: shape_of(tensors, name) for name in tensors}

    def blocks(name: str) -> Iterator[Tensor]:
        return (flat(tensors, name, *block) for block in blocks_of(shapes[name]))

    def whole(name: str) -> list[Tensor]:
        return [tensors[name]]

    return write_blocks(path, meta, shapes, blocks if isinstance(tensors, Sliceable) else whole)


def write_blocks(path: Path, meta: Meta, shapes: Shapes, blocks: Callable[[str], Iterable[Tensor]]) -> WeightsFile:
    """Write a model file in canonical form, block by block, so that it may be far larger than the memory.

    Parameters
    ----------
    path
        Where the file appears when it is complete.
    meta
        The file's metadata.
    shapes
        The shape of each tensor, by name.
    blocks
        Returns the values of a tensor by its name, in row-major order, in arrays of any shape; called once for each
        name, in sorted order.

    Raises
    ------
    WeightsError
        A tensor does not have as many values as its shape.
    OSError
        The file can't be written.
    """
    partial, hasher = path.with_name(path.name + ".partial"), cid.Hasher()
    try:
        with files.named(path), partial.open("wb") as file:
            header = _header(meta, shapes)
            file.write(header)
            hasher.update(header)
            for name in sorted(shapes):
                size, written = math.prod(shapes[name]), 0
                for block in blocks(name):
                    values = np.asarray(block, dtype=_TYPES[_dtype(meta, name)], order="C").reshape(-1)
                    written += values.size
                    file.write(values.data)
                    hasher.update(values.data)
                if written != size:
                    raise WeightsError(f"tensor {name} has {written} values, not {size}")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return WeightsFile(path, hasher.cid(), meta, dict(sorted(shapes.items())))


def header_size_of(shapes: Shapes) -> int:
    """Return the maximum size of the header of a canonical file with these tensors, in bytes."""
    # A name, a type, two offsets, and the sizes of a shape.
    entries = sum(len(_json(name)) + 90 + 21 * len(shape) for name, shape in shapes.items())
    return MAX_METADATA_BYTES + entries


def size_of(shapes: Shapes) -> int:
    """Return the maximum size of a canonical file with these tensors, in bytes."""
    return 8 + header_size_of(shapes) + sum(4 * math.prod(shape) for shape in shapes.values())


def masked_size_of(shapes: Shapes, masked: MaskedSize) -> int:
    """Return the maximum size of a masked file for a model with these tensors, in bytes."""
    summed = {**shapes, SCORES: (2,)}
    dealt_bytes = sum(math.prod(shape) for shape in dealing.shapes(masked.neighbours).values())
    summed_bytes = sum(masked.modulus_bits // 8 * math.prod(shape) for shape in summed.values())
    return 8 + header_size_of(masked_shapes(shapes, masked.neighbours)) + summed_bytes + dealt_bytes


def compressed_size_of(shapes: Shapes, kind: Compression) -> int:
    """Return the maximum size of a compressed file for a model with these tensors, in bytes."""
    parts = compressed_shapes(shapes, kind)
    return 8 + header_size_of(parts) + sum(_bytes(kind.dtypes[part_of(name)], shape) for name, shape in parts.items())


def compressed_shapes(shapes: Shapes, kind: Compression) -> Shapes:
    """Return the shapes of all tensors in a compressed file of a model with these tensors."""
    return {
        name_of(part, name): parts for name, shape in shapes.items() for part, parts in kind.shapes(shape).items()
    }


def masked_shapes(shapes: Shapes, neighbours: int) -> Shapes:
    """Return the shapes of all tensors in the masked file of a learner with this number of neighbours."""
    dealt = {f"{PRIVATE}{name}": shape for name, shape in dealing.shapes(neighbours).items()}
    return {**shapes, SCORES: (2,), **dealt}


def read(
    path: Path,
    expected: Shapes | None = None,
    file_cid: str | None = None,
    masked: MaskedSize | None = None,
    compressed: Compression | None = None,
    start_of: Callable[[str], WeightsFile | None] = lambda _cid: None,
) -> WeightsFile:
    """Check a received model file and return it. The file is read once, block by block.

    Parameters
    ----------
    path
        The file.
    expected
        The required names and shapes of the tensors of its model; not checked if None.
    file_cid
        The file's CID if the caller has verified it, as a store does; computed if None.
    masked
        The size of masked files, if the file should be masked.
    compressed
        The compression of its update, if it should be compressed.
    start_of
        Returns the global file with a CID, if it is at hand; then the distance of local weights to it is measured.

    Raises
    ------
    WeightsError
        The file is not a canonical model file with finite float32 tensors of these names and shapes; the message
        names the first error.
    """
    limit, header_limit = _limits(expected, masked, compressed)
    why = "that this model can have" if expected is not None else "allowed while the model is unknown"
    size = path.stat().st_size
    if size > limit:
        raise WeightsError(f"{size} bytes, more than the {limit} {why}", "too_large")
    header = _read_header(path, header_limit, why)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            # Check names, shapes and dtypes before any tensor is read.
            meta = _parse(metadata) if expected is None or masked is not None or compressed is not None else None
            if meta is not None and expected is not None:
                expected = (
                    _as_compressed(meta, expected, compressed) if compressed else _as_masked(meta, expected, masked)
                )
            shapes = {name: _shape(file.get_slice(name), name, meta) for name in file.keys()}  # noqa: SIM118
            if expected is None:
                _check_any(shapes)
            else:
                _compare(shapes, expected)
            meta = meta or _parse(metadata)
            if header != _header(meta, shapes):
                raise WeightsError(
                    "not in canonical form (order, spaces or padding of the header differ)", "malformed"
                )
    except SafetensorError as error:
        raise WeightsError(f"not a safetensors file: {_line(str(error))}", "malformed") from error
    file = WeightsFile(path, file_cid or "", meta, dict(sorted(shapes.items())))
    hasher = None if file_cid else cid.Hasher()
    distance = _check_values(file, header, hasher, _ruler(file, start_of))
    return replace(file, cid=file.cid if hasher is None else hasher.cid(), distance=distance)


def _limits(expected: Shapes | None, masked: MaskedSize | None, compressed: Compression | None) -> tuple[int, int]:
    """Return the maximum size of a file and of its header, in bytes; see :func:`read`."""
    if expected is None:
        return MAX_GLOBAL_BYTES, MAX_UNKNOWN_HEADER_BYTES
    if masked is not None:
        return masked_size_of(expected, masked), header_size_of(masked_shapes(expected, masked.neighbours))
    if compressed is not None:
        return compressed_size_of(expected, compressed), header_size_of(compressed_shapes(expected, compressed))
    return size_of(expected), header_size_of(expected)


def _ruler(file: WeightsFile, start_of: Callable[[str], WeightsFile | None]) -> Ruler | None:
    """Return what measures local weights; None for other files, and if their global weights are not at hand."""
    meta = file.meta
    if not isinstance(meta, LocalMeta) or meta.compression is not None:
        return None
    start = start_of(meta.parent)
    if start is None or any(start.shapes.get(name) != shape for name, shape in file.shapes.items()):
        return None
    return Ruler(start.on_demand(), start.cid)


def _check_values(
    file: WeightsFile, header: bytes, hasher: cid.Hasher | None, ruler: Ruler | None
) -> Distance | None:
    """Read all tensors of a file once: check that their values are finite, and hash and measure them on the way.

    Parameters
    ----------
    file, header
        The file, and its header, which is checked.
    hasher, ruler
        What is given the file's bytes, and its values.

    Raises
    ------
    WeightsError
        A value is not finite.
    """
    with file.path.open("rb", buffering=0) as content:
        content.seek(len(header))
        if hasher is not None:
            hasher.update(header)
        for name, shape in file.shapes.items():
            dtype = np.dtype(_TYPES[_dtype(file.meta, name)])
            for first, stop in blocks_of(shape):
                values = _complete(np.fromfile(content, dtype, stop - first), stop - first, file.path)
                if dtype.kind == "f" and not np.isfinite(values).all():
                    raise WeightsError(f"tensor {name} has values that are not finite", "not_finite")
                if hasher is not None:
                    hasher.update(values.data)
                if ruler is not None:
                    ruler.take(name, values, first)
    return None if ruler is None else ruler.distance()


def _as_masked(meta: Meta, expected: Shapes, masked: MaskedSize | None) -> Shapes:
    """Return the shapes of a masked file of this model with these metadata."""
    if not isinstance(meta, MaskedMeta):
        _refuse("kind", f"is {_KINDS[type(meta)]}", "masked")
    if masked is not None:
        _check(("modulus_bits", meta.modulus_bits, masked.modulus_bits))
        if len(meta.neighbours) > masked.neighbours:
            _refuse("neighbours", f"has {len(meta.neighbours)} entries", f"at most {masked.neighbours}")
    return masked_shapes(expected, len(meta.neighbours))


def _as_compressed(meta: Meta, expected: Shapes, compressed: Compression) -> Shapes:
    """Return the shapes that a compressed file of this model has."""
    if not isinstance(meta, LocalMeta):
        _refuse("kind", f"is {_KINDS[type(meta)]}", "local")
    _check(("compression", meta.compression, compressed.kind))
    return compressed_shapes(expected, compressed)


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(_TYPES[dtype]).itemsize * math.prod(shape)


def _dtype(meta: Meta | None, name: str) -> str:
    if isinstance(meta, LocalMeta) and meta.compression is not None:
        return COMPRESSIONS[meta.compression].dtypes.get(part_of(name), "F32")
    if not isinstance(meta, MaskedMeta):
        return "F32"
    return "U8" if name.startswith(PRIVATE) and name != SCORES else f"U{meta.modulus_bits}"


def _header(meta: Meta, shapes: Shapes) -> bytes:
    entries: dict[str, Any] = {"__metadata__": _texts(meta)}
    offset = 0
    for name in sorted(shapes):
        dtype = _dtype(meta, name)
        end = offset + _bytes(dtype, shapes[name])
        entries[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = _json(entries).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > (limit := header_size_of(shapes)):
        raise WeightsError(
            f"a header of {len(text)} bytes, more than the {limit} that readers allow for this model; "
            "its metadata list too many learners"
        )
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path, limit: int, why: str) -> bytes:
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) < 8:
            raise WeightsError("not a safetensors file: shorter than 8 bytes", "malformed")
        (size,) = struct.unpack("<Q", length)
        if size > limit:
            raise WeightsError(f"a header of {size} bytes, more than the {limit} {why}", "too_large")
        return length + file.read(size)


def _shape(tensor: Any, name: str, meta: Meta | None = None) -> tuple[int, ...]:
    if tensor.get_dtype() != (expected := _dtype(meta, name)):
        raise WeightsError(f"tensor {_short(name)} has dtype {tensor.get_dtype()}, not {expected}", "tensors")
    return tuple(tensor.get_shape())


def _check_any(shapes: Shapes) -> None:
    """Check names and shapes of an unknown model: messages print them, and NumPy must accept them.

    Raises
    ------
    WeightsError
        A name is too long or not printable, or a shape is too large.
    """
    for name, shape in shapes.items():
        if len(name) > MAX_NAME or not name.isprintable():
            raise WeightsError(
                f"tensor {_short(name)} is not named by at most {MAX_NAME} printable characters", "tensors"
            )
        # NumPy multiplies the sizes even if one of them is 0.
        if len(shape) > MAX_DIMENSIONS or 4 * math.prod(max(size, 1) for size in shape) > MAX_GLOBAL_BYTES:
            raise WeightsError(f"tensor {name} has shape {_short(shape)}, which is too large", "tensors")


def _compare(shapes: Shapes, expected: Shapes) -> None:
    if missing := sorted(set(expected) - set(shapes)):
        raise WeightsError(f"tensor {missing[0]} is missing", "tensors")
    if extra := sorted(set(shapes) - set(expected)):
        raise WeightsError(f"tensor {_short(extra[0])} is not part of this model", "tensors")
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise WeightsError(f"tensor {name} has shape {_short(shapes[name])}, not {tuple(shape)}", "tensors")


def _texts(meta: Meta) -> dict[str, str]:
    kind = _KINDS[type(meta)]
    values = {field.name: getattr(meta, field.name) for field in fields(meta)}
    for name, value in values.items():
        if name in {"inputs", "refused"}:
            values[name] = [{key: item for key, item in asdict(entry).items() if item is not None} for entry in value]
    values = {name: value for name, value in values.items() if value is not None or name not in OPTIONAL}
    return {"format": FORMAT, "kind": kind} | {
        name: value if isinstance(value, str) else _json(value) for name, value in values.items()
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


_KINDS: Mapping[type[Meta], str] = {LocalMeta: "local", MaskedMeta: "masked", GlobalMeta: "global"}
_ADAPTERS: Mapping[str, TypeAdapter[Any]] = {kind: TypeAdapter(meta) for meta, kind in _KINDS.items()}
_TYPES = {"F16": "<f2", "F32": "<f4", "I8": "|i1", "U8": "|u1", "U32": "<u4", "U64": "<u8"}
_TEXTS = frozenset({"plan", "parent", "rule", "next_key", "compression"})
"""Fields that are plain strings; all others are JSON."""


def _parse(texts: Mapping[str, str]) -> Meta:
    if texts.get("format") != FORMAT:
        _refuse("format", f"is {_short(texts.get('format'))}", FORMAT)
    kind = texts.get("kind")
    meta = next((meta for meta, name in _KINDS.items() if name == kind), None)
    if kind is None or meta is None:
        _refuse("kind", f"is {_short(kind)}", "local or global")
    _names(texts, meta)
    names = [field.name for field in fields(meta) if field.name in texts]
    values = {name: texts[name] if name in _TEXTS else _value(texts, name) for name in names}
    if kind == "global" and values["parent"] == "null":
        values["parent"] = None
    try:
        parsed: Meta = _ADAPTERS[kind].validate_python(values)
        return parsed
    except ValidationError as error:
        return _refuse_value(error, values)


def _names(texts: Mapping[str, str], meta: type[Meta]) -> None:
    allowed = {"format", "kind"} | {field.name for field in fields(meta)}
    if missing := sorted(allowed - OPTIONAL - set(texts)):
        _refuse(missing[0], "is missing", "present")
    if extra := sorted(set(texts) - allowed):
        _refuse(_short(extra[0]), "is unknown", f"one of {', '.join(sorted(allowed))}")


def _refuse_value(error: ValidationError, values: Mapping[str, Any]) -> NoReturn:
    """Refuse the first invalid value."""
    errors = error.errors(include_url=False, include_context=False)
    name, *path = errors[0]["loc"]
    # In an entry, report wrong keys before wrong values.
    same_entry = [problem for problem in errors if problem["loc"][:2] == errors[0]["loc"][:2]]
    first = next((problem for problem in same_entry if problem["type"] != "should_be"), same_entry[0])
    if first["type"] == "should_be":
        keys = [str(part) for part in first["loc"] if isinstance(part, str)]
        _refuse(
            keys[-1] if keys[-1] in {"cid", "reason"} else ".".join(keys),
            f"is {_short(first['input'])}",
            first["msg"],
        )
    if not path:
        _refuse(str(name), f"is {_short(first['input'])}", f"a list of at most {MAX_ENTRIES} entries")
    entry = _short(values[str(name)][path[0]])
    if name in {"taken", "spent"}:
        _refuse(str(name), f"has an entry {entry}", "pairs of a nodeId and a number")
    if name in {"keys", "neighbours", "scores"}:
        _refuse(str(name), f"has an entry {entry}", "entries of other kinds")
    allowed = ", ".join(sorted(field.name for field in fields(Input if name == "inputs" else Rejection)))
    _refuse("inputs or refused", f"has an entry {entry}", f"entries with {allowed}")


def _value(texts: Mapping[str, str], name: str) -> object:
    try:
        return strict_json.loads(texts[name], max_bytes=MAX_METADATA_BYTES, max_depth=3, max_text=MAX_REASON)
    except JsonError as error:
        raise WeightsError(f"metadata: {name} is {_short(texts[name])}; it {error}", f"metadata.{name}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(text: str, max_characters: int = 200) -> str:
    """Return the beginning of a string that may quote the file, printable, for logs, reports and global files."""
    return "".join(character if character.isprintable() else "?" for character in text[:max_characters])


def as_reason(text: str) -> str:
    """Return a string in the form in which a global file contains the reason of a rejection: short and in ASCII.

    It may quote a rejected file, and the header of the global file must have room for the reasons of all rejections.
    """
    return _line(text).encode("ascii", "replace").decode()


def _refuse(name: str, actual: str, expected: str) -> NoReturn:
    raise WeightsError(f"metadata: {name} {actual}; should be {expected}", f"metadata.{name}")


def check_local(
    file: WeightsFile, *, plan: str, node_id: int, round_: int, parent: str, samples: int | None = None
) -> LocalMeta | MaskedMeta:
    """Check that a file contains the local weights that a learner should publish in a round, masked or not.

    Parameters
    ----------
    file
        The file, as :func:`read` returned it.
    plan
        The CID of the run's plan.
    node_id
        The learner that trained the weights.
    round_
        The round in which it trained them.
    parent
        The CID of the global weights that it started from.
    samples
        The number of samples in the learner's shard, if known; its share in the average depends on it.

    Raises
    ------
    WeightsError
        The metadata differ; the message names the field.
    """
    meta = file.published_meta
    _check(
        ("plan", meta.plan, plan),
        ("node_id", meta.node_id, node_id),
        ("round", meta.round, round_),
        ("parent", meta.parent, parent),
        ("samples", meta.samples, meta.samples if samples is None else samples),
    )
    return meta


def check_global(file: WeightsFile, *, plan: str, round_: int) -> GlobalMeta:
    """Check that a file contains the global weights from which a round starts.

    Parameters
    ----------
    file
        The file, as :func:`read` returned it.
    plan
        The CID of the run's plan.
    round_
        The round that starts from these weights.

    Raises
    ------
    WeightsError
        The metadata differ; the message names the field.
    """
    meta = file.global_meta
    _check(("plan", meta.plan, plan), ("round", meta.round, round_))
    return meta


def _check(*fields_: tuple[str, object, object]) -> None:
    for name, actual, expected in fields_:
        if actual != expected:
            _refuse(name, f"is {_short(actual)}", _short(expected))
