"""Compressed updates: what each kind keeps, what everybody decodes, and which files are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta, WeightsFile
from fl_node.compression import Compression, Float16, Int8, TopK
from fl_node.compression.compression import VALUES
from fl_node.errors import PlanError, WeightsError
from fl_node.plan.loading import load
from fl_node.plan.schema import Plan
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import compress, decoded
from fl_node.runtime.tensors import Tensors, Wide

KINDS = [Float16(), Int8(), TopK(fraction=0.25), TopK(fraction=0.01)]
PARENT = "QmPK1s3pNYLi9ERiq3BDxKa4XosgWwFRQUydHUtz4YgpqB"
UPDATES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements=st.floats(-1e3, 1e3, width=32),
)
SHAPES = {"a": (3, 4), "b": (5,), "c": (), "empty": (0, 2)}


def plan_with(kind: str, **more: Any) -> Plan:
    return Plan.model_validate({"name": "test", "data": {"name": "digits"}, "compression": {"kind": kind}, **more})


def weights(seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.normal(0, 0.1, shape), np.float32) for name, shape in SHAPES.items()}


def start_file(path: Path) -> WeightsFile:
    return model_file.write(path, GlobalMeta(plan=PARENT, round=0, parent=None, rule="initial"), weights(1))


def meta_of(start: WeightsFile, kind: str | None) -> LocalMeta:
    return LocalMeta(
        plan=PARENT, node_id=1, round=0, parent=start.cid, samples=5, accuracy=0.5, loss=1.0, compression=kind
    )


def published(tmp_path: Path, compression: Compression) -> tuple[WeightsFile, WeightsFile, Tensors]:
    """Return a file that a learner published, the one that it started from, and what it should stand for."""
    start = start_file(tmp_path / "start.safetensors")
    result = compress(compression, weights(2), start.on_demand(), {})
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, compression.kind), result.tensors)
    return model_file.read(file.path, SHAPES, compressed=compression), start, result.weights


@settings(deadline=None)
@given(update=UPDATES, kind=st.sampled_from(KINDS))
def test_parts_have_the_types_and_shapes_that_are_announced_and_decode_to_the_tensor_s_shape(
    update: Wide, kind: Compression
) -> None:
    parts = kind.encode(update)
    assert {part: values.shape for part, values in parts.items()} == dict(kind.shapes(update.shape))
    assert set(parts) == set(kind.dtypes)
    again = kind.decode(parts, update.shape)
    assert (again.shape, again.dtype) == (update.shape, np.float64)
    # What is decoded is encoded again as it is, but for the rounding of a step.
    assert np.allclose(kind.decode(kind.encode(again), update.shape), again, rtol=1e-6)


@settings(deadline=None)
@given(update=UPDATES)
def test_half_precision_and_8_bits_are_off_by_half_a_step(update: Wide) -> None:
    largest = np.abs(update).max(initial=0.0)
    # A step is a float32 number, so the largest value is off by its rounding too.
    assert (
        np.abs(Int8().decode(Int8().encode(update), update.shape) - update).max(initial=0.0) <= largest / 253 + 1e-40
    )
    half = Float16().decode(Float16().encode(update), update.shape)
    assert (np.abs(half - update) <= np.abs(update) * 2**-11 + 2**-25).all()


def test_the_largest_values_are_kept_and_of_equal_ones_the_first() -> None:
    parts = TopK(fraction=0.5).encode(np.array([[1.0, -3.0], [1.0, 1.0], [0.0, 2.0]]))
    assert parts["indices"].tolist() == [0, 1, 5]
    assert parts[VALUES].tolist() == [1.0, -3.0, 2.0]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_what_is_left_out_of_one_update_comes_with_the_next(kind: Compression) -> None:
    start = weights(1)
    wanted, residual, total = weights(2), dict[str, npt.NDArray[np.float32]](), dict[str, Wide]()
    for _ in range(400):
        result = compress(kind, wanted, start, residual)
        residual = result.residual
        for name in SHAPES:
            total[name] = total.get(name, 0.0) + (result.weights[name] - start[name].astype(np.float64))
    for name in SHAPES:
        # Of 400 updates together the average is nearly exact, whatever one of them leaves out.
        assert np.abs(total[name] / 400 - (wanted[name] - start[name])).max(initial=0.0) < 2e-3


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_everybody_decodes_the_weights_that_the_learner_measured(tmp_path: Path, kind: Compression) -> None:
    file, start, right = published(tmp_path, kind)
    plan = plan_with(kind.kind).model_copy(update={"compression": kind})
    local = decoded(file, start, plan)
    assert local.cid == file.cid
    assert dict(local.shapes) == SHAPES
    for name in SHAPES:
        assert local.tensor(name).tobytes() == right[name].tobytes()
        assert local.on_demand()[name].tobytes() == right[name].tobytes()
    check_bounds(local, start, plan)
    assert decoded(local, start, plan) is local


def test_files_are_as_small_as_their_kind_says(tmp_path: Path) -> None:
    shapes = {"kernel": (200, 1000)}
    plain = 4 * 200 * 1000
    for kind, share in ((Float16(), 0.5), (Int8(), 0.25), (TopK(), 0.1)):
        header = model_file.header_size_of(model_file.compressed_shapes(shapes, kind))
        size = model_file.compressed_size_of(shapes, kind) - header - 8
        assert size == pytest.approx(share * plain, rel=1e-4)


@pytest.mark.parametrize(
    ("compression", "kind", "code"),
    [
        (Int8(), "float16", "metadata.compression"),
        (Int8(), None, "metadata.compression"),
        (None, "int8", "tensors"),
    ],
)
def test_a_file_of_another_kind_than_the_plan_s_is_refused(
    tmp_path: Path, compression: Compression | None, kind: str | None, code: str
) -> None:
    start = start_file(tmp_path / "start.safetensors")
    kinds = {one.kind: one for one in KINDS}
    tensors = weights(2) if kind is None else compress(kinds[kind], weights(2), start.on_demand(), {}).tensors
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, kind), tensors)
    with pytest.raises(WeightsError) as refused:
        model_file.read(file.path, SHAPES, compressed=compression)
    assert refused.value.code == code


@pytest.mark.parametrize("kind", [Int8(), TopK(fraction=0.25)], ids=repr)
def test_a_file_that_lacks_a_part_is_refused(tmp_path: Path, kind: Compression) -> None:
    start = start_file(tmp_path / "start.safetensors")
    tensors = dict(compress(kind, weights(2), start.on_demand(), {}).tensors)
    del tensors[next(name for name in tensors if name.endswith("/b"))]
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, kind.kind), tensors)
    with pytest.raises(WeightsError, match="is missing") as refused:
        model_file.read(file.path, SHAPES, compressed=kind)
    assert refused.value.code == "tensors"


@pytest.mark.parametrize("indices", [[0, 0, 1], [2, 1, 0], [0, 1, 12], [0, 1, 2**32 - 1]])
def test_indices_beyond_a_tensor_or_out_of_order_are_refused(tmp_path: Path, indices: list[int]) -> None:
    kind, start = TopK(fraction=0.25), start_file(tmp_path / "start.safetensors")
    tensors = dict(compress(kind, weights(2), start.on_demand(), {}).tensors)
    tensors["compression/indices/a"] = np.array(indices, np.uint32)
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, "topk"), tensors)
    checked = model_file.read(file.path, SHAPES, compressed=kind)
    plan = plan_with("topk").model_copy(update={"compression": kind})
    with pytest.raises(WeightsError, match="tensor a should have indices below 12 in ascending order"):
        decoded(checked, start, plan)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (Int8(), "compression/step/a", np.float32(np.nan)),
        (Float16(), "a", np.full((3, 4), np.inf, np.float16)),
        (TopK(fraction=0.25), "a", np.full(3, np.nan, np.float32)),
    ],
)
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, kind: Compression, name: str, values: npt.NDArray[Any]
) -> None:
    start = start_file(tmp_path / "start.safetensors")
    tensors = {**compress(kind, weights(2), start.on_demand(), {}).tensors, name: np.asarray(values)}
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, kind.kind), tensors)
    with pytest.raises(WeightsError) as refused:
        model_file.read(file.path, SHAPES, compressed=kind)
    assert refused.value.code == "not_finite"


def test_a_huge_update_is_refused_by_the_plan_s_bounds_not_by_a_crash(tmp_path: Path) -> None:
    start = start_file(tmp_path / "start.safetensors")
    tensors = dict(compress(Int8(), weights(2), start.on_demand(), {}).tensors)
    tensors["compression/step/a"] = np.asarray(np.float32(3e38))
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, "int8"), tensors)
    plan = plan_with("int8")
    local = decoded(model_file.read(file.path, SHAPES, compressed=Int8()), start, plan)
    with pytest.raises(WeightsError) as refused:
        check_bounds(local, start, plan)
    assert refused.value.code == "bounds"


def test_metadata_with_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    start = start_file(tmp_path / "start.safetensors")
    file = model_file.write(tmp_path / "local.safetensors", meta_of(start, None), weights(2))
    content = file.path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"__metadata__":{', b'"__metadata__":{"compression":"zip",').rstrip()
    header += b" " * (-len(header) % 8)
    file.path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(WeightsError, match="compression is 'zip'; should be float16 or int8 or topk"):
        model_file.read(file.path, SHAPES)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("[compression]\nkind = 'zip'", "compression.kind"),
        ("[compression]\nkind = 'int8'\nfraction = 0.1", "compression.fraction"),
        ("[compression]\nkind = 'topk'\nfraction = 0.6", "compression.fraction"),
        ("[compression]\nfraction = 0.6", "compression.kind"),
        (
            "learners = 3\n[aggregation]\narithmetic = 'fixed'\n[privacy]\nsecure_aggregation = true\n"
            "[compression]\nkind = 'int8'",
            "compression",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_its_key(tmp_path: Path, more: str, key: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(f"name = 'test'\n{more}\n")
    with pytest.raises(PlanError) as refused:
        load(path)
    assert key in re.findall(r"[a-z_.]+", str(refused.value))


def test_a_plan_without_compression_keeps_its_bytes() -> None:
    assert "compression" not in Plan.model_validate({"name": "test", "data": {"name": "digits"}}).model_dump()
