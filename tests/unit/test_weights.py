"""Model files: canonical bytes, and refusal of everything that is not exactly what this version writes."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import OPTIONAL, GlobalMeta, Input, LocalMeta, Rejection
from fl_node.errors import WeightsError

PLAN = cid.of_bytes(b"plan")
PARENT = cid.of_bytes(b"parent")
OTHER = cid.of_bytes(b"other")
LOCAL = LocalMeta(plan=PLAN, node_id=1, round=3, parent=PARENT, samples=700, accuracy=0.875, loss=0.25)
GLOBAL = GlobalMeta(
    plan=PLAN,
    round=4,
    parent=PARENT,
    rule="fedavg",
    inputs=(Input(1, OTHER, 700, 0.7), Input(3, PARENT, 300, 0.3)),
    refused=(Rejection(2, OTHER, "tensor b has values that are not finite"),),
    absent=(4, 5),
)
INITIAL = GlobalMeta(plan=PLAN, round=0, parent=None, rule="initial")
TENSORS = {
    "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "dense/bias": np.array([0.5, -1.5, 2.0, 0.0], np.float32),
}
SHAPES = {"dense/kernel": (3, 4), "dense/bias": (4,)}


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return a file's header, decoded, and what follows it."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def rebuild(header: Any, data: bytes, *, padding: str = " ", space: str = "") -> bytes:
    """Return a file with another header, laid out canonically unless told otherwise."""
    text = json.dumps(header, sort_keys=True, separators=("," + space, ":")).encode()
    text += padding.encode() * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file of local weights."""
    return model_file.write(tmp_path / "local.safetensors", LOCAL, TENSORS).path


def refusal(path: Path, expected: model_file.Shapes | None = SHAPES) -> str:
    with pytest.raises(WeightsError) as caught:
        model_file.read(path, expected)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is written


CIDS = st.binary(min_size=32, max_size=32).map(cid.from_digest)
COUNTS = st.integers(1, model_file.MAX_COUNT)
LOCAL_METAS = st.builds(
    LocalMeta,
    plan=CIDS,
    node_id=COUNTS,
    round=st.integers(0, model_file.MAX_COUNT),
    parent=CIDS,
    samples=COUNTS,
    accuracy=st.floats(0, 1),
    loss=st.floats(0, model_file.MAX_LOSS),
)
TEXTS = st.text(max_size=20).filter(str.isprintable)
GLOBAL_METAS = st.builds(
    GlobalMeta,
    plan=CIDS,
    round=st.integers(0, model_file.MAX_COUNT),
    parent=st.none() | CIDS,
    rule=TEXTS,
    inputs=st.lists(st.builds(Input, COUNTS, CIDS, COUNTS, st.floats(0, 1)), max_size=3).map(tuple),
    refused=st.lists(st.builds(Rejection, COUNTS, CIDS, TEXTS), max_size=3).map(tuple),
    absent=st.lists(COUNTS, max_size=3).map(tuple),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(
    lambda name: name != "__metadata__"
)
ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
ALL_TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=4)


@settings(max_examples=60)
@given(meta=LOCAL_METAS | GLOBAL_METAS, tensors=ALL_TENSORS)
def test_a_file_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, meta: LocalMeta | GlobalMeta, tensors: dict[str, model_file.Tensor]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    written = model_file.write(path, meta, tensors)
    found = model_file.read(path, {name: tensor.shape for name, tensor in tensors.items()})
    assert found == written
    assert found.meta == meta
    assert found.cid == cid.of_file(path)
    back = found.tensors()
    assert list(back) == sorted(tensors)
    assert all(back[name].tobytes() == tensors[name].tobytes() for name in tensors)

    reordered = model_file.write(path.with_name("reordered"), meta, dict(reversed(tensors.items())))
    assert reordered.cid == written.cid


@settings(max_examples=30)
@given(tensors=ALL_TENSORS)
def test_a_file_is_loaded_by_safetensors_own_loader(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, model_file.Tensor]
) -> None:
    path = tmp_path_factory.getbasetemp() / "theirs.safetensors"
    model_file.write(path, GLOBAL, tensors)
    theirs = safetensors.numpy.load_file(path)
    assert set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        assert theirs[name].dtype == np.float32
        assert theirs[name].shape == tensor.shape
        assert theirs[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    ("meta", "name"),
    [
        (LOCAL, "QmZV1s58kazYfr3SJ9LrPEFB3L36JjeP8CnEcPLyQ8h6pR"),
        (GLOBAL, "QmQR27RCTWy5KLBNhWS5MyTygm3Yet2zbdiAbTvptwvTwu"),
        (INITIAL, "QmQpCxd7PoXkACxNKiUQrAPNdpYFQpetVvFk9eY8oiiaBT"),
    ],
    ids=["local", "global", "initial"],
)
def test_the_bytes_of_a_file_are_the_same_for_ever(tmp_path: Path, meta: LocalMeta | GlobalMeta, name: str) -> None:
    assert model_file.write(tmp_path / "file", meta, TENSORS).cid == name


def test_layout_and_byte_order_in_memory_do_not_count(tmp_path: Path, path: Path) -> None:
    other = {
        "dense/kernel": np.asfortranarray(TENSORS["dense/kernel"]),
        "dense/bias": TENSORS["dense/bias"].astype(">f4"),
    }
    assert model_file.write(tmp_path / "other", LOCAL, other).path.read_bytes() == path.read_bytes()


def test_tensors_begin_at_a_multiple_of_eight_bytes(path: Path) -> None:
    (size,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert size % 8 == 0


def test_the_largest_file_that_a_model_can_have_is_larger_than_its_files(path: Path) -> None:
    assert path.stat().st_size <= model_file.size_of(SHAPES)
    assert model_file.size_of(SHAPES) < model_file.MAX_METADATA_BYTES + 1000


@pytest.mark.parametrize("name", ["{}", "layer-{}/" + "k" * 400, "{}/" + "é" * 400, '{}"\\'])
def test_a_model_may_have_as_many_tensors_as_it_likes(tmp_path: Path, name: str) -> None:
    shapes = {name.format(number): (1,) * (number % 5) for number in range(4000)}
    file = model_file.write_blocks(tmp_path / "file", LOCAL, shapes, lambda n: [np.zeros(shapes[n], np.float32)])
    (size,) = struct.unpack("<Q", file.path.read_bytes()[:8])
    tensors = size - len(model_file._header(LOCAL, {}))
    assert tensors < model_file.header_size_of(shapes) - model_file.MAX_METADATA_BYTES < 2 * tensors + 150_000
    assert model_file.read(file.path, shapes) == model_file.read(file.path) == file


def test_metadata_that_readers_would_refuse_are_not_written(tmp_path: Path) -> None:
    refused = tuple(Rejection(n, PARENT, "é" * model_file.MAX_REASON) for n in range(1, 201))
    with pytest.raises(WeightsError, match="its metadata list too many learners"):
        model_file.write(tmp_path / "file", GlobalMeta(PLAN, 1, PARENT, "fedavg", (), refused), TENSORS)
    assert not list(tmp_path.iterdir())


def test_a_tensor_with_too_few_values_is_not_written_and_nothing_is_left_in_its_place(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with pytest.raises(WeightsError, match="tensor a has 2 values, not 3"):
        model_file.write_blocks(target, LOCAL, {"a": (3,)}, lambda _: [np.zeros(2, np.float32)])
    assert not target.exists()


def test_a_writer_that_fails_leaves_the_file_that_was_there(path: Path) -> None:
    before = path.read_bytes()

    def fail(name: str) -> list[model_file.Tensor]:
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full"):
        model_file.write_blocks(path, LOCAL, SHAPES, fail)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_tensors_are_asked_for_one_at_a_time_in_the_order_of_their_names(tmp_path: Path) -> None:
    asked: list[str] = []

    def blocks(name: str) -> list[model_file.Tensor]:
        asked.append(name)
        return [TENSORS[name]]

    model_file.write_blocks(tmp_path / "file", LOCAL, SHAPES, blocks)
    assert asked == ["dense/bias", "dense/kernel"]


# What is rejected


def test_a_file_that_is_too_large_is_refused_before_it_is_read(path: Path) -> None:
    limit = model_file.size_of(SHAPES)
    with path.open("r+b") as file:
        file.truncate(limit + 1)
    assert refusal(path) == f"{limit + 1} bytes, more than the {limit} that this model can have"


def test_a_file_of_an_unknown_model_has_a_bound_too(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(model_file, "MAX_GLOBAL_BYTES", path.stat().st_size - 1)
    assert "more than the" in refusal(path, None)


HEADER_LIMIT = model_file.header_size_of(SHAPES)


@pytest.mark.parametrize("size", [HEADER_LIMIT + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_says_it_is_huge_is_refused_before_it_is_read(path: Path, size: int) -> None:
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    assert refusal(path) == f"a header of {size} bytes, more than the {HEADER_LIMIT} that this model can have"


def test_a_header_of_an_unknown_model_has_a_bound_too(path: Path) -> None:
    size = model_file.MAX_UNKNOWN_HEADER_BYTES + 1
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    assert refusal(path, None).endswith(" allowed while the model is unknown")


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a pickle in a zip",
        b"\x80\x04\x95 a pickle of some length that is not safetensors",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b"\xff" * 8,
        struct.pack("<Q", 0),
    ],
)
@pytest.mark.parametrize("expected", [SHAPES, None], ids=["known", "unknown"])
def test_what_is_no_model_file_is_refused(tmp_path: Path, content: bytes, expected: model_file.Shapes | None) -> None:
    path = tmp_path / "junk"
    path.write_bytes(content)
    refusal(path, expected)


def test_bytes_after_the_last_tensor_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4))
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({**SHAPES, "more": (1,)}, "tensor more is missing"),
        ({"dense/bias": (4,)}, "tensor 'dense/kernel' is not part of this model"),
        ({"dense/kernel": (3, 4), "dense/bios": (4,)}, "tensor dense/bios is missing"),
        ({"dense/kernel": (4, 3), "dense/bias": (4,)}, "tensor dense/kernel has shape (3, 4), not (4, 3)"),
        ({"dense/kernel": (12,), "dense/bias": (4,)}, "tensor dense/kernel has shape (3, 4), not (12,)"),
        ({"dense/kernel": (3, 4), "dense/bias": (4, 1)}, "tensor dense/bias has shape (4,), not (4, 1)"),
    ],
)
def test_tensors_of_another_model_are_refused(path: Path, expected: model_file.Shapes, message: str) -> None:
    assert refusal(path, expected) == message


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_tensors_of_another_type_are_refused(path: Path, dtype: type) -> None:
    header, _ = parts(path)
    other = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    path.write_bytes(safetensors.numpy.save(other, header["__metadata__"]))
    assert "has dtype" in refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", TENSORS)
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    bad = {key: tensor.copy() for key, tensor in TENSORS.items()}
    bad[name].flat[-1] = value
    path = model_file.write(tmp_path / "file", LOCAL, bad).path
    assert refusal(path) == f"tensor {name} has values that are not finite"


@pytest.mark.parametrize(
    "change",
    [
        lambda header, data: rebuild(header, data, space=" "),
        lambda header, data: rebuild(header, data, padding="\n"),
        lambda header, data: rebuild(dict(header), data).replace(b'"F32"', b'"F32" ', 1),
        lambda header, data: (
            struct.pack("<Q", len(t := json.dumps(dict(reversed(header.items()))).encode())) + t + data
        ),
    ],
    ids=["spaces", "padding", "longer than it says", "order of keys"],
)
def test_a_header_in_another_form_is_refused(path: Path, change: Callable[[Any, bytes], bytes]) -> None:
    header, data = parts(path)
    assert rebuild(header, data) == path.read_bytes()
    path.write_bytes(change(header, data))
    refusal(path)


def test_padding_that_is_longer_than_needed_is_refused(path: Path) -> None:
    _, data = parts(path)
    text = path.read_bytes()[8 : -len(data)] + b" " * 8
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert "not in canonical form" in refusal(path)


def test_tensors_in_another_order_in_the_file_are_refused(path: Path) -> None:
    header, data = parts(path)
    header["dense/kernel"]["data_offsets"] = [0, 48]
    header["dense/bias"]["data_offsets"] = [48, 64]
    path.write_bytes(rebuild(header, data[16:] + data[:16]))
    assert np.array_equal(safetensors.numpy.load_file(path)["dense/bias"], TENSORS["dense/bias"])
    assert "not in canonical form" in refusal(path)


@pytest.mark.parametrize(
    "offsets",
    [([0, 16], [8, 56]), ([0, 16], [16, 60]), ([0, 16], [24, 72]), ([16, 0], [16, 64]), ([-1, 16], [16, 64])],
)
def test_tensors_that_overlap_or_leave_gaps_are_refused(path: Path, offsets: tuple[list[int], list[int]]) -> None:
    header, data = parts(path)
    header["dense/bias"]["data_offsets"], header["dense/kernel"]["data_offsets"] = offsets
    path.write_bytes(rebuild(header, data))
    assert "not a safetensors file" in refusal(path)


def with_metadata(path: Path, meta: LocalMeta | GlobalMeta, changes: dict[str, Any]) -> str:
    """Write a file whose metadata has these texts instead (None: has them not), and return its refusal."""
    model_file.write(path, meta, TENSORS)
    header, data = parts(path)
    for name, value in changes.items():
        header["__metadata__"].pop(name, None)
        if value is not None:
            header["__metadata__"][name] = value
    path.write_bytes(rebuild(header, data))
    return refusal(path)


@pytest.mark.parametrize("meta", [LOCAL, GLOBAL, INITIAL], ids=["local", "global", "initial"])
def test_metadata_that_lacks_any_one_field_are_refused(tmp_path: Path, meta: LocalMeta | GlobalMeta) -> None:
    names = ["format", "kind", *(field.name for field in dataclasses.fields(meta) if field.name not in OPTIONAL)]
    for name in names:
        assert with_metadata(tmp_path / "file", meta, {name: None}).startswith(f"metadata: {name} is")


@pytest.mark.parametrize("meta", [LOCAL, GLOBAL], ids=["local", "global"])
def test_metadata_with_a_field_too_many_are_refused(tmp_path: Path, meta: LocalMeta | GlobalMeta) -> None:
    assert "metadata: 'host' is unknown" in with_metadata(tmp_path / "file", meta, {"host": "alice"})
    assert "is unknown" in with_metadata(tmp_path / "file", meta, {"x" * 10_000: "1"})


NUMBERS = ["", "x", '"1"', "-1", "1.0", "true", "null", "[1]", "9223372036854775808", "01", " 1", "1 ", "+1", "1e0"]
SHARES = [
    "",
    "x",
    "1",
    "-0.5",
    "1.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    '"0.5"',
    "0.50",
    ".5",
    "[" * 9999,
    "[" * 70_000,
    '{"a":' * 70_000,
    "9" * 5000,
    "-" + "9" * 5000,
    "1e999",
    "-Infinity",
]
NO_CID = ["", "null", PLAN[:-1], PLAN + " ", PLAN.lower(), "Qm" + "1" * 44, "/ipfs/" + PLAN]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("format", ["", "fl-node/0", "fl-node/2", "pt"]),
        ("kind", ["", "Local", "both", "null"]),
        ("plan", NO_CID),
        ("parent", NO_CID),
        ("node_id", [*NUMBERS, "0"]),
        ("round", NUMBERS),
        ("samples", [*NUMBERS, "0"]),
        ("accuracy", SHARES),
        ("loss", [*(value for value in SHARES if value != "1.5"), "1000000.1", "1.7e+308"]),
    ],
)
def test_a_wrong_value_in_local_metadata_is_refused(tmp_path: Path, name: str, values: list[str]) -> None:
    for value in values:
        message = with_metadata(tmp_path / "file", LOCAL, {name: value})
        assert message.startswith(f"metadata: {name} is") or "not in canonical form" in message, value
        assert len(message) < 300


LISTS = ["", "{}", "null", "5", '"[]"', "[null]", "[[]]", "[{}]", '[{"node_id":1}]']
AN_INPUT = {"cid": OTHER, "node_id": 1, "samples": 700, "share": 0.7}
A_REJECTION = {"cid": OTHER, "node_id": 2, "reason": "missing"}


def entries(good: dict[str, Any], *changes: tuple[str, Any]) -> list[str]:
    return [json.dumps([good | {name: value}], sort_keys=True, separators=(",", ":")) for name, value in changes]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("plan", NO_CID),
        ("parent", [value for value in NO_CID if value != "null"]),
        ("round", NUMBERS),
        ("rule", ["two\nlines", "\x1b[2J"]),
        (
            "inputs",
            LISTS
            + entries(
                AN_INPUT,
                ("node_id", 0),
                ("node_id", "1"),
                ("node_id", 1.0),
                ("cid", None),
                ("cid", 5),
                ("cid", PLAN[:-1]),
                ("samples", 0),
                ("share", 1),
                ("share", 1.25),
                ("share", None),
                ("more", 1),
            ),
        ),
        (
            "refused",
            LISTS
            + entries(
                A_REJECTION,
                ("node_id", 0),
                ("cid", ""),
                ("reason", 5),
                ("reason", None),
                ("more", 1),
                ("reason", "x" * 1001),
            ),
        ),
        (
            "absent",
            [
                *LISTS,
                "[0]",
                "[1.0]",
                '["1"]',
                "[true]",
                "[1, 2]",
                "[" + "1," * 10_000 + "1]",
                f"[{model_file.MAX_COUNT + 1}]",
            ],
        ),
    ],
)
def test_a_wrong_value_in_global_metadata_is_refused(tmp_path: Path, name: str, values: list[str]) -> None:
    for value in values:
        message = with_metadata(tmp_path / "file", GLOBAL, {name: value})
        assert message.startswith("metadata: ") or "not in canonical form" in message, value
        assert len(message) < 300


@pytest.mark.parametrize(
    ("meta", "changes", "code"),
    [
        (LOCAL, {"node_id": "0"}, "metadata.node_id"),
        (LOCAL, {"plan": "null"}, "metadata.plan"),
        (LOCAL, {"accuracy": "1"}, "metadata.accuracy"),
        (LOCAL, {"round": "["}, "metadata.round"),
        (LOCAL, {"loss": None}, "metadata.loss"),
        (GLOBAL, {"inputs": "{}"}, "metadata.inputs"),
        (GLOBAL, {"inputs": "[" + "1," * 10_000 + "1]"}, "metadata.inputs"),
        (GLOBAL, {"inputs": entries(AN_INPUT, ("share", 1))[0]}, "metadata.inputs.share"),
        (GLOBAL, {"inputs": entries(AN_INPUT, ("started", None))[0]}, "metadata.inputs.started"),
        (GLOBAL, {"inputs": entries(AN_INPUT, ("more", 1))[0]}, "metadata.inputs or refused"),
        (GLOBAL, {"refused": entries(A_REJECTION, ("cid", ""))[0]}, "metadata.cid"),
        (GLOBAL, {"refused": entries(A_REJECTION, ("reason", 5))[0]}, "metadata.reason"),
        (GLOBAL, {"absent": "[true]"}, "metadata.absent"),
        (GLOBAL, {"taken": "null"}, "metadata.taken"),
        (GLOBAL, {"taken": "[[1]]"}, "metadata.taken"),
        (GLOBAL, {"taken": "[[0,1]]"}, "metadata.taken"),
        (GLOBAL, {"spent": "null"}, "metadata.spent"),
        (GLOBAL, {"spent": "[[1,2,3]]"}, "metadata.spent"),
        (GLOBAL, {"epsilon": "null"}, "metadata.epsilon"),
        (GLOBAL, {"epsilon": "-1.0"}, "metadata.epsilon"),
        (GLOBAL, {"epsilon": "1"}, "metadata.epsilon"),
    ],
)
def test_a_refusal_of_metadata_has_the_code_of_the_field(
    tmp_path: Path, meta: LocalMeta | GlobalMeta, changes: dict[str, Any], code: str
) -> None:
    with_metadata(tmp_path / "file", meta, changes)
    with pytest.raises(WeightsError) as caught:
        model_file.read(tmp_path / "file", SHAPES)
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["\ud800", "two\nlines", "\x1b[2J"])
def test_a_reason_that_no_terminal_or_report_can_show_is_refused(tmp_path: Path, text: str) -> None:
    (refused,) = entries(A_REJECTION, ("reason", text))
    message = with_metadata(tmp_path / "file", GLOBAL, {"refused": refused})
    assert message.startswith(("metadata: reason is", "metadata: refused is")), message


@pytest.mark.parametrize(
    "tensor",
    [
        {"b" * 900_000: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}},
        {"b\n\x1b[2J": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}},
        {"b" * 900_000: {"dtype": "F16", "shape": [1], "data_offsets": [1, 2]}},
        {"b": {"dtype": "x" * 900_000, "shape": [1], "data_offsets": [0, 2]}},
        {"b": {"dtype": "F16\n\x1b[2J", "shape": [1], "data_offsets": [0, 2]}},
    ],
    ids=["long name", "escape in name", "long name in an error", "long type", "escape in type"],
)
def test_a_refusal_is_one_short_line_whatever_the_file_says(tmp_path: Path, tensor: dict[str, Any]) -> None:
    # It stands in the global file, which nobody could read if it were longer than a header may be.
    path = tmp_path / "file"
    path.write_bytes(rebuild({"__metadata__": {"format": "fl-node/1"}, **tensor}, bytes(2)))
    message = refusal(path)
    assert message.isprintable()
    assert len(message) < 300
    refused = dataclasses.replace(GLOBAL, refused=(Rejection(2, OTHER, message),))
    assert model_file.read(model_file.write(path, refused, TENSORS).path).meta == refused


def test_metadata_that_are_not_texts_are_refused(path: Path) -> None:
    header, data = parts(path)
    for value in (1, None, ["fl-node/1"], {"a": "b"}):
        header["__metadata__"]["round"] = value
        path.write_bytes(rebuild(header, data))
        refusal(path)
    for whole in (None, [], "fl-node/1", {}):
        path.write_bytes(rebuild(header | {"__metadata__": whole}, data))
        refusal(path)


def test_a_file_without_metadata_is_refused(path: Path) -> None:
    path.write_bytes(safetensors.numpy.save(TENSORS))
    assert refusal(path) == "metadata: format is None; should be fl-node/1"


@settings(max_examples=300)
@given(data=st.data())
def test_a_file_with_changed_bytes_is_refused_or_whole(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    original = model_file.write(path, data.draw(st.sampled_from([LOCAL, GLOBAL, INITIAL])), TENSORS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = model_file.read(path, SHAPES)
    except WeightsError:
        return
    assert model_file.write(path.with_name("again"), found.meta, found.tensors()).cid == found.cid
    assert (found.cid == original.cid) == (
        (found.meta, found.tensor("dense/bias").tobytes(), found.tensor("dense/kernel").tobytes())
        == (original.meta, TENSORS["dense/bias"].tobytes(), TENSORS["dense/kernel"].tobytes())
    )


@given(content=st.binary(max_size=100), header=st.binary(max_size=60))
def test_junk_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.safetensors"
    for junk in (content, struct.pack("<Q", len(header)) + header + content):
        path.write_bytes(junk)
        refusal(path, None)


# What a round waits for


def test_local_weights_that_a_round_waits_for_pass(path: Path) -> None:
    file = model_file.read(path, SHAPES)
    assert model_file.check_local(file, plan=PLAN, node_id=1, round_=3, parent=PARENT, samples=700) == LOCAL
    assert model_file.check_local(file, plan=PLAN, node_id=1, round_=3, parent=PARENT) == LOCAL


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("plan", OTHER, f"metadata: plan is '{PLAN}'; should be '{OTHER}'"),
        ("node_id", 2, "metadata: node_id is 1; should be 2"),
        ("round_", 4, "metadata: round is 3; should be 4"),
        ("parent", OTHER, f"metadata: parent is '{PARENT}'; should be '{OTHER}'"),
        ("samples", 701, "metadata: samples is 700; should be 701"),
    ],
)
def test_local_weights_of_another_plan_node_round_parent_or_shard_are_refused(
    path: Path, field: str, value: Any, message: str
) -> None:
    wanted: dict[str, Any] = {"plan": PLAN, "node_id": 1, "round_": 3, "parent": PARENT, "samples": 700}
    with pytest.raises(WeightsError) as caught:
        model_file.check_local(model_file.read(path), **(wanted | {field: value}))
    assert str(caught.value) == message


@pytest.mark.parametrize(("field", "value", "name"), [("plan", OTHER, "plan"), ("round_", 0, "round")])
def test_global_weights_of_another_plan_or_round_are_refused(
    tmp_path: Path, field: str, value: Any, name: str
) -> None:
    file = model_file.write(tmp_path / "file", GLOBAL, TENSORS)
    wanted: dict[str, Any] = {"plan": PLAN, "round_": 4}
    assert model_file.check_global(file, **wanted) == GLOBAL
    with pytest.raises(WeightsError, match=f"metadata: {name} is"):
        model_file.check_global(file, **(wanted | {field: value}))


def test_local_weights_are_not_taken_for_global_ones_nor_the_other_way_round(tmp_path: Path, path: Path) -> None:
    with pytest.raises(WeightsError, match="kind is local; should be global"):
        model_file.check_global(model_file.read(path), plan=PLAN, round_=3)
    file = model_file.write(tmp_path / "global", GLOBAL, TENSORS)
    with pytest.raises(WeightsError, match="kind is global; should be local"):
        model_file.check_local(file, plan=PLAN, node_id=1, round_=4, parent=PARENT)


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("x" * 513, (4,), "is not named by at most 512 printable characters"),
        ("a\x1b[2J", (4,), "is not named by at most 512 printable characters"),
        ("two\nlines", (4,), "is not named by at most 512 printable characters"),
        ("deep", (1,) * 65 + (4,), "which is too large"),
        ("none", (0, 2**40), "which is too large"),
    ],
)
def test_a_tensor_that_could_not_be_named_or_loaded_is_refused_in_a_file_of_any_model(
    path: Path, name: str, shape: tuple[int, ...], what: str
) -> None:
    header, data = parts(path)
    header = {"__metadata__": header["__metadata__"]}
    size = 4 * math.prod(shape)
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    path.write_bytes(rebuild(header, data[:size]))
    assert what in refusal(path, None)


def test_a_reason_of_any_text_becomes_one_that_a_file_can_have(tmp_path: Path) -> None:
    reason = model_file.as_reason("store folder \x1b[2J\ud800\n" + "x" * 5000)
    meta = dataclasses.replace(GLOBAL, refused=(Rejection(2, OTHER, reason),))
    model_file.write(tmp_path / "file", meta, TENSORS)
    assert model_file.read(tmp_path / "file", SHAPES).meta == meta
