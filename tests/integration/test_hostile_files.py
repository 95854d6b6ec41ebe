"""Nothing hostile gets in: the real header and the real learner, and a test that publishes what it should not."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import Rejection
from fl_node.artifacts.store import Progress, silent
from fl_node.errors import ContractError
from tests.helpers.runs import PATIENCE, Event, Role, Run, World, plan
from tests.helpers.stub import StubTrainer, noise
from tests.helpers.waiting import eventually

SHAPES = StubTrainer.SHAPES
LIMIT = model_file.size_of(SHAPES)
ABSENT = cid.of_bytes(b"a file that nobody has")
MAX_PUBLICATIONS = 8
"""Publications that the contract lets a learner make in one round."""

Published = Path | str
Make = Callable[[Run], Published]
"""Makes what a hostile learner 2 publishes: a file, or a hash for which there is none."""


# What a hostile learner makes


def raw(content: Callable[[bytes], bytes]) -> Make:
    """Other bytes, made of those of a good file."""

    def make(run: Run) -> Path:
        path = run.path()
        path.write_bytes(content(run.local(2).path.read_bytes()))
        return path

    return make


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a file's header, decoded, and what follows it."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def rebuilt(change: Callable[[dict[str, Any]], object], data: Callable[[bytes], bytes] = lambda d: d) -> Make:
    """A file with another header, laid out canonically, and perhaps with other data."""

    def content(good: bytes) -> bytes:
        header, rest = parts(good)
        change(header)
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data(rest)

    return raw(content)


def said(**texts: str | None) -> Make:
    """A file whose metadata say something else; None removes a field."""

    def change(header: dict[str, Any]) -> None:
        meta = header["__metadata__"]
        for name, text in texts.items():
            if text is None:
                del meta[name]
            else:
                meta[name] = text

    return rebuilt(change)


def tensors(change: Callable[[dict[str, model_file.Tensor]], object]) -> Make:
    """A good file with other tensors."""

    def make(run: Run) -> Path:
        values = {name: tensor.copy() for name, tensor in run.local(2).tensors().items()}
        change(values)
        return run.local(2, values).path

    return make


def value(number: float) -> Make:
    def change(values: dict[str, model_file.Tensor]) -> None:
        values["dense/kernel"][1, 2] = number

    return tensors(change)


def dtype(name: str, size: int) -> Make:
    """A file whose tensors all have another type, of so many bytes a value."""

    def change(header: dict[str, Any]) -> None:
        offset = 0
        for tensor, shape in sorted(SHAPES.items()):
            end = offset + size * int(np.prod(shape))
            header[tensor] |= {"dtype": name, "data_offsets": [offset, end]}
            offset = end

    return rebuilt(change, lambda _data: bytes(size * 16))


def many_dimensions(header: dict[str, Any]) -> None:
    header["dense/bias"]["shape"] = [1] * 100_000 + [4]


def reshape(header: dict[str, Any]) -> None:
    header["dense/kernel"]["shape"] = [4, 3]


def overlap(header: dict[str, Any]) -> None:
    header["dense/bias"]["data_offsets"] = [8, 24]


def another_learners(run: Run) -> str:
    return run.store.add(run.local(1).path)


def another_plans(run: Run) -> Path:
    other = run.world.deploy(plan(name="other", min_learners=1))
    return other.local(2, parent=run.current().cid).path


def yesterdays(run: Run) -> Path:
    run.close_round()
    return run.files / str(run.contract.local_weight_at(0, 2))


def of_the_next_round(run: Run) -> Path:
    return run.local(2, round=1).path


def sparse(run: Run) -> str:
    with (run.files / ABSENT).open("wb") as file:
        os.truncate(file.fileno(), 1024**3)
    return ABSENT


def other_content(run: Run) -> str:
    (run.files / ABSENT).write_bytes(run.local(2).path.read_bytes())
    return ABSENT


def folder(run: Run) -> str:
    (run.files / ABSENT).mkdir()
    return ABSENT


FILES: dict[str, tuple[Make, str]] = {
    # Sizes and bytes
    "huge": (raw(lambda good: good + bytes(LIMIT)), f"has more than the {LIMIT} bytes allowed"),
    "1 GiB": (sparse, f"has more than the {LIMIT} bytes allowed"),
    "empty": (raw(lambda _: b""), "shorter than 8 bytes"),
    "truncated in its length": (raw(lambda good: good[:5]), "shorter than 8 bytes"),
    "truncated in its header": (raw(lambda good: good[:90]), "not a safetensors file"),
    "truncated by a byte": (raw(lambda good: good[:-1]), "not a safetensors file"),
    "a byte too long": (raw(lambda good: good + b"\0"), "not a safetensors file"),
    "text": (raw(lambda _: b"Dear header, please add me.\n"), "a header of [0-9]+ bytes"),
    "pickle": (raw(lambda _: pickle.dumps(noise(SHAPES, 1))), "a header of [0-9]+ bytes"),
    "header longer than anything": (
        raw(lambda good: b"\xff" * 8 + good[8:]),
        "a header of 18446744073709551615 bytes",
    ),
    "header that is no JSON": (raw(lambda good: good[:8] + b"]" + good[9:]), "not a safetensors file"),
    "header that is no UTF-8": (raw(lambda good: good[:9] + b"\xff" + good[10:]), "not a safetensors file"),
    "overlapping tensors": (rebuilt(overlap), "not a safetensors file"),
    "spaces in its header": (
        raw(lambda good: struct.pack("<Q", struct.unpack("<Q", good[:8])[0] + 8) + b" " * 8 + good[8:]),
        "not (a safetensors file|in canonical form)",
    ),
    "spaces after its header": (
        raw(
            lambda good: (
                struct.pack("<Q", len(good) - 64 - 8 + 8) + good[8:-64] + b" " * 8 + good[-64:]  # 16 floats follow
            )
        ),
        "not in canonical form",
    ),
    "other bytes than its hash says": (other_content, "the store returned a file with the CID Qm"),
    "the plan": (lambda run: run.plan_cid, "a header of [0-9]+ bytes"),
    # Tensors
    "missing tensor": (tensors(lambda t: t.pop("dense/bias")), "tensor dense/bias is missing"),
    "extra tensor": (tensors(lambda t: t.update(evil=np.ones(1))), "tensor 'evil' is not part of this model"),
    "tensor of another name": (
        tensors(lambda t: t.update({"dense/kernel:0": t.pop("dense/kernel")})),
        "tensor dense/kernel is missing",
    ),
    "tensor with a long name": (
        tensors(lambda t: t.update({"x" * 100_000: np.ones(1)})),
        r"tensor 'x{1,60}\.\.\. is not part of this model",
    ),
    "shape": (rebuilt(reshape), r"tensor dense/kernel has shape \(4, 3\), not \(3, 4\)"),
    "shape of 100,001 dimensions": (rebuilt(many_dimensions), r"tensor dense/bias has shape .*, not \(4,\)"),
    "F64": (dtype("F64", 8), "has dtype F64, not F32"),
    "F16": (dtype("F16", 2), "has dtype F16, not F32"),
    "BF16": (dtype("BF16", 2), "has dtype BF16, not F32"),
    "I32": (dtype("I32", 4), "has dtype I32, not F32"),
    "NaN": (value(float("nan")), "tensor dense/kernel has values that are not finite"),
    "infinity": (value(float("inf")), "tensor dense/kernel has values that are not finite"),
    "minus infinity": (value(float("-inf")), "tensor dense/kernel has values that are not finite"),
    "float32's largest": (value(3e38), r"tensor dense/kernel has a value of size 3e\+38; should be at most"),
    "minus float32's largest": (value(-3e38), r"tensor dense/kernel has a value of size 3e\+38; should be at most"),
    "a huge value": (value(1e7), r"tensor dense/kernel has a value of size 1e\+07; should be at most"),
    "a huge update": (value(9e5), "the update has the norm 899999; should be at most 100000"),
    # Metadata
    "another plan": (another_plans, "metadata: plan is"),
    "another learner's file": (another_learners, "metadata: node_id is 1; should be 2"),
    "another learner's name": (lambda run: run.local(2, node_id=1).path, "metadata: node_id is 1; should be 2"),
    "nobody's name": (lambda run: run.local(2, node_id=99).path, "metadata: node_id is 99; should be 2"),
    "yesterday's": (yesterdays, "metadata: round is 0; should be 1"),
    "of the next round": (of_the_next_round, "metadata: round is 1; should be 0"),
    "wrong parent": (lambda run: run.local(2, parent=ABSENT).path, f"metadata: parent is '{ABSENT}'; should be"),
    "more samples than its shard": (
        lambda run: run.local(2, samples=10**9).path,
        "metadata: samples is 1000000000; should be 50",
    ),
    "no samples": (said(samples="0"), "metadata: samples is 0"),
    "samples that are no number": (said(samples='"50"'), "metadata: samples is '50'"),
    "more samples than JSON can have": (said(samples="9" * 5000), "metadata: samples is '9+"),
    "accuracy above 1": (said(accuracy="1.5"), "metadata: accuracy is 1.5"),
    "accuracy that is no number": (
        said(accuracy="NaN"),
        "metadata: accuracy is 'NaN'; it has NaN, which is not JSON",
    ),
    "negative loss": (said(loss="-0.5"), "metadata: loss is -0.5"),
    "infinite loss": (said(loss="1e999"), "metadata: loss is '1e999'; it has the number '1e999', which is too large"),
    "a loss that no report can draw": (
        said(loss="1.7e+308"),
        "metadata: loss is 1.7e.308; should be a number from 0",
    ),
    "70,000 brackets": (
        said(accuracy="[" * 70_000),
        "metadata: accuracy is '\\[+.*; it is nested more than 3 levels deep",
    ),
    "missing field": (said(loss=None), "metadata: loss is missing"),
    "unknown field": (said(note="hello"), "metadata: 'note' is unknown"),
    "another format": (said(format="fl-node/2"), "metadata: format is 'fl-node/2'"),
    "no format": (said(format=None), "metadata: format is None"),
    "another kind": (said(kind="universal"), "metadata: kind is 'universal'"),
    "a global file": (lambda run: run.current().cid, "metadata: kind is global; should be local"),
    # Nothing
    "hash without a file": (lambda _run: ABSENT, "^missing$"),
    "hash of a folder": (folder, "^missing$"),
}


def bytes_read() -> int:
    """Return how many bytes this process has read so far, where the system counts them."""
    counts = Path("/proc/self/io")
    return int(re.findall(r"rchar: (\d+)", counts.read_text())[0]) if counts.exists() else 0


def refusal(role: Role) -> Event:
    return role.wait_for(events.UpdateRejected)


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused_for_what_is_wrong_and_the_round_goes_on(world: World, kind: str) -> None:
    make, reason = FILES[kind]
    run = world.deploy(plan(min_learners=1))
    bad = run.publish_local(2, make(run))
    number = run.contract.state().round
    before = bytes_read()
    with run.header() as header:
        good = run.publish_locals(1)[0]
        event = refusal(header)
        header.wait_for(events.GlobalWeightsPublished, round=number + 1)
    assert (event.fields["learner"], event.fields["cid"], event.fields["round"]) == (2, bad, number)
    assert re.search(reason, event.fields["detail"]), event.fields["detail"]
    assert len(event.fields["detail"]) < 400

    meta = run.current().global_meta
    assert [(i.node_id, i.cid, i.share) for i in meta.inputs] == [(1, good.cid, 1.0)]
    assert meta.refused == (Rejection(2, bad, event.fields["detail"]),)
    assert meta.absent == ()
    assert not list((run.folder / "header").rglob(f"*{bad}*"))

    audited = run.audit()
    assert audited.passed, audited.findings
    assert any(f"learner 2's {bad} was rejected" in note for note in audited.notes)

    result = run.collect().rounds[number]
    assert result.rejected == {2: event.fields["detail"]}
    assert (result.local[1].accuracy, result.local[1].problem) == (0.5, None)
    assert bytes_read() - before < 100 * 1024**2


def test_a_hostile_learner_spoils_one_round_only(world: World) -> None:
    run = world.deploy(plan(min_learners=1))
    with run.header() as header:
        run.publish_local(2, value(float("nan"))(run))
        run.publish_locals(1)
        header.wait_for(events.GlobalWeightsPublished, round=1)
        run.publish_locals()
        run.finish(header)
    assert [i.node_id for i in run.current().global_meta.inputs] == [1, 2]
    assert run.audit().passed


def test_a_round_that_needs_all_and_has_a_bad_file_keeps_its_weights(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    start = run.current()
    with run.header() as header:
        bad = run.publish_local(2, FILES["NaN"][0](run))
        good = run.publish_locals(1)[0]
        run.finish(header)
    made = run.current()
    assert [(i.cid, i.share) for i in made.global_meta.inputs] == [(good.cid, 0.0)]
    assert [r.cid for r in made.global_meta.refused] == [bad]
    assert all(made.tensor(name).tobytes() == start.tensor(name).tobytes() for name in start.shapes)
    assert run.audit().passed


def test_a_bad_file_can_be_replaced_while_its_round_is_open(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    with run.header() as header:
        bad = run.publish_local(2, FILES["NaN"][0](run))
        header.wait_for(events.UpdateRejected, learner=2, cid=bad)
        header.wait_for(events.Waiting, reason="updates", round=0, learners=(1,))
        better, good = run.publish_locals(2, 1)
        run.finish(header)
    meta = run.current().global_meta
    assert [i.cid for i in meta.inputs] == [good.cid, better.cid]
    assert meta.refused == ()
    assert run.audit().passed


def test_a_file_that_was_refused_as_missing_is_taken_once_it_is_there(world: World) -> None:
    # Its learner was cut off, and trains the round to the same file whenever it is asked: no other hash will come.
    run = world.deploy(plan(rounds=1))
    with run.header() as header:
        late = run.local(2)
        run.publish_local(2, late.cid)
        run.publish_locals(1)
        assert refusal(header).fields["reason"] == "missing"
        header.wait_for(events.Waiting, reason="updates", round=0, learners=(2,))
        assert run.contract.state().round == 0
        run.store.add(late.path)
        run.finish(header)
    assert [i.node_id for i in run.current().global_meta.inputs] == [1, 2]
    assert run.audit().passed


def test_a_file_that_comes_within_its_time_is_no_refusal(world: World) -> None:
    run = world.deploy(plan(rounds=1, fetch_timeout=60.0))
    with run.header() as header:
        late = run.local(2)
        run.publish_local(2, late.cid)
        run.publish_locals(1)
        header.wait_for(events.UpdateMissing, learner=2)
        run.store.add(late.path)
        run.finish(header)
        assert not header.of(events.UpdateRejected)
    assert [i.node_id for i in run.current().global_meta.inputs] == [1, 2]


def test_a_file_that_arrives_slowly_is_waited_for_and_holds_up_nobody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.deploy(plan(rounds=1, fetch_timeout=0.3))
    slow, rest = run.local(2), threading.Event()
    with run.header() as header:
        fetch = header.store.fetch

        def slowly(name: str, path: Path, most: int, timeout: float, progress: Progress = silent) -> None:
            if name == slow.cid:
                progress(60, 100)
                rest.wait(60.0)
            fetch(name, path, most, timeout, progress)

        monkeypatch.setattr(header.store, "fetch", slowly)
        run.publish_local(2, slow)
        header.wait_for(events.Waiting, learners=(1,))
        run.publish_locals(1)
        header.wait_for(events.UpdateAccepted, learner=1)
        header.wait_for(events.Waiting, learners=(2,), arriving={"2": 0.6})
        assert not header.of(events.UpdateRejected)
        rest.set()
        run.finish(header)
    assert [i.node_id for i in run.current().global_meta.inputs] == [1, 2]
    assert not list((run.folder / "header").rglob("*.part"))


def test_of_a_learner_that_publishes_again_and_again_only_so_much_is_read_and_only_the_newest_kept(
    world: World,
) -> None:
    run = world.deploy(plan(rounds=1, min_learners=1))
    with run.header() as header:
        for number in range(MAX_PUBLICATIONS):
            last = run.publish_local(2, run.local(2, accuracy=number / 100))
            header.wait_for(events.UpdateAccepted, cid=last)
            assert [path.name for path in (run.folder / "header").rglob("learner-2-*")] == [
                f"learner-2-{last}.safetensors"
            ]
        with pytest.raises(ContractError, match="TooManyPublications"):
            run.publish_local(2, run.local(2, accuracy=0.9))
        good = run.publish_locals(1)[0]
        run.finish(header)
    meta = run.current().global_meta
    assert ([i.cid for i in meta.inputs], meta.refused) == ([good.cid, last], ())
    audited = run.audit()
    assert audited.passed, audited.findings


def test_a_round_closes_without_a_learner_that_stays_away_for_round_timeout(world: World) -> None:
    run = world.deploy(plan(rounds=1, min_learners=1, round_timeout=0.5))
    with run.header() as header:
        good = run.publish_locals(1)[0]
        run.finish(header)
    meta = run.current().global_meta
    assert ([i.cid for i in meta.inputs], meta.refused, meta.absent) == ([good.cid], (), (2,))
    audited = run.audit()
    assert audited.passed, audited.findings


def test_a_late_round_does_not_close_with_fewer_than_min_learners(world: World) -> None:
    run = world.deploy(plan(rounds=1, min_learners=1, round_timeout=0.3))
    with run.header() as header:
        text = "round 0: learners 1, 2 to publish; at least 1 publication (0 so far)"
        header.wait_for(events.Waiting, reason="updates", round=0, detail=text)
        assert not run.contract.state().closed
        good = run.publish_locals(2)[0]
        run.finish(header)
    meta = run.current().global_meta
    assert ([i.cid for i in meta.inputs], meta.absent) == ([good.cid], (1,))
    assert run.audit().passed


def test_a_late_round_with_bad_files_alone_keeps_its_weights(world: World) -> None:
    run = world.deploy(plan(rounds=1, min_learners=1, round_timeout=0.3))
    start = run.current()
    with run.header() as header:
        run.publish_local(1, value(float("nan"))(run))
        run.finish(header)
    made = run.current()
    meta = made.global_meta
    assert (meta.inputs, [r.node_id for r in meta.refused], meta.absent) == ((), [1], (2,))
    assert all(made.tensor(name).tobytes() == start.tensor(name).tobytes() for name in start.shapes)
    assert run.audit().passed


def test_a_learner_that_publishes_without_end_does_not_keep_a_round_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.deploy(plan(rounds=1, min_learners=1))
    spam = iter(cid.of_bytes(b"%d" % number) for number in range(1000))
    learner, taken = run.as_node("learner-2"), []
    for _ in range(MAX_PUBLICATIONS):
        run.publish_local(2, next(spam))
    add = run.store.add

    def add_and_be_late(path: Path) -> str:
        if path.suffix == ".safetensors":  # the plan is stored while the round is open
            taken.append(learner.set_local_weight(2, next(spam), learner.chain.nonce()))
        return add(path)

    with run.header() as header:
        # Whenever the header has stored what it averaged, there would be another hash.
        monkeypatch.setattr(header.store, "add", add_and_be_late)
        run.publish_locals(1)
        run.finish(header)
    assert taken
    assert set(taken) == {None}
    assert [i.node_id for i in run.current().global_meta.inputs] == [1]
    audited = run.audit()
    assert audited.passed, audited.findings


# A header that lies


def global_with(**changes: Any) -> Make:
    return lambda run: run.average([run.local(1), run.local(2)], **changes).path


def global_raw(content: Callable[[bytes], bytes]) -> Make:
    def make(run: Run) -> Path:
        path = run.path()
        path.write_bytes(content(run.average([run.local(1), run.local(2)]).path.read_bytes()))
        return path

    return make


def poisoned(given: dict[str, model_file.Tensor]) -> dict[str, model_file.Tensor]:
    given["dense/bias"][0] = np.nan
    return given


GLOBALS: dict[str, tuple[Make, str]] = {
    "huge": (global_raw(lambda good: good + bytes(LIMIT)), f"has more than the {LIMIT} bytes allowed"),
    "1 GiB": (sparse, f"has more than the {LIMIT} bytes allowed"),
    "truncated": (global_raw(lambda good: good[:-1]), "not a safetensors file"),
    "other bytes than its hash says": (other_content, "the store returned a file with the CID Qm"),
    "NaN": (global_with(tensors=poisoned), "tensor dense/bias has values that are not finite"),
    "another model": (global_with(tensors=lambda _: noise({"a": (2,)}, 1)), "tensor dense/bias is missing"),
    "wrong round": (global_with(round=7), "round: is 7, should be 1"),
    "another plan": (global_with(plan=ABSENT), f"plan: is {ABSENT}, should be Qm"),
    "a local file": (lambda run: run.local(1).path, "metadata: kind is local; should be global"),
    "hash without a file": (lambda _run: ABSENT, f"{ABSENT} is not in the store"),
}


@pytest.mark.parametrize("kind", GLOBALS)
def test_a_learner_refuses_bad_global_weights_and_says_why(world: World, kind: str) -> None:
    make, reason = GLOBALS[kind]
    run = world.deploy(plan())
    run.publish_locals()
    before = bytes_read()
    run.publish_global(make(run))

    def says_why() -> bool:
        return any(re.search(reason, event.fields["detail"]) for event in learner.of(events.Waiting))

    with run.learner(1) as learner:
        eventually(says_why, PATIENCE)
        assert bytes_read() - before < 100 * 1024**2
        assert not learner.of(events.TrainingStarted)
        assert run.contract.local_weight_at(1, 1) is None


def test_a_learner_goes_on_with_the_next_good_global_weights(world: World) -> None:
    run = world.deploy(plan())
    good = run.average(run.publish_locals())
    run.publish_global(run.average([run.local(1), run.local(2)], tensors=poisoned))
    with run.learner(1) as learner:
        learner.wait_for(events.GlobalWeightsRejected, round=1)
        learner.wait_for(events.Waiting, reason="valid_weights")
        run.reject(2, 1, "file")
        run.publish_global(good, "learner-1")
        learner.wait_for(events.LocalWeightsPublished, round=1)
    local = run.read(str(run.contract.local_weight_at(1, 1)))
    assert (local.local_meta.parent, local.local_meta.round) == (good.cid, 1)


def test_a_report_survives_what_a_learner_and_a_header_published(world: World) -> None:
    run = world.deploy(plan(rounds=3))
    other = world.deploy(plan(name="other"), lambda given: StubTrainer(given, {"a": (2,)}))
    other.close_round()
    # A whole global file of another model, in the place of local weights, and each kind in the other's place.
    junk = run.store.add(other.current().path)
    run.publish_local(2, junk)
    files = run.publish_locals(2, 1)
    run.publish_global(run.average(files))
    run.publish_local(1, run.current().cid)
    run.publish_local(2, junk)
    run.publish_global(files[0])
    first, second = run.collect().rounds
    assert [first.local[n].problem for n in (1, 2)] == [None, None]
    assert second.local[1].problem == "metadata: kind is global; should be local"
    assert second.result.problem == "metadata: kind is local; should be global"
    assert second.local[2].problem == "tensor dense/bias is missing"
    run.publish_local(2, junk)
    entry = run.collect().open_round[2]
    assert (entry.cid, entry.problem) == (junk, "tensor dense/bias is missing")
