"""Whatever the reader of model files accepts, all that shows or checks a run can handle."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import MAX_COUNT, MAX_LOSS, MAX_REASON, GlobalMeta, Input, Rejection
from fl_node.errors import FLNodeError
from fl_node.lab.show import rounds_table
from fl_node.monitor import metrics, server, state
from fl_node.monitor.state import FileFacts, MonitorState, RunView
from fl_node.protocol import history
from fl_node.report import collect, writer
from fl_node.report.contribution import contributions
from fl_node.runtime import strict_json
from tests.helpers.runs import Run, World, plan
from tests.helpers.stub import StubTrainer

ROUNDS = 2
SMALLEST = 5e-324

OTHER = st.sampled_from([cid.of_bytes(b"%d" % number) for number in range(3)])
LEAST_ONE = st.sampled_from([1, 2, 3, 1000, MAX_COUNT]) | st.integers(1, MAX_COUNT)
COUNT = st.just(0) | LEAST_ONE
FRACTION = st.sampled_from([0.0, -0.0, 1.0, SMALLEST, 1 - 2**-53]) | st.floats(0, 1)
LOSS = st.sampled_from([0.0, SMALLEST, MAX_LOSS]) | st.floats(0, MAX_LOSS)
TEXT = st.sampled_from(
    ["", "x" * MAX_REASON, "<script>alert(1)</script>", "[bold]![x](y)|`", "{{ 7 * 7 }}{% if %}", "\u0301\U0001f600"]
) | st.text(max_size=40).filter(str.isprintable)
LOCAL = st.fixed_dictionaries(
    {},
    optional={
        "plan": OTHER,
        "node_id": LEAST_ONE,
        "round": COUNT,
        "parent": OTHER,
        "samples": LEAST_ONE,
        "accuracy": FRACTION,
        "loss": LOSS,
    },
)
VALUE = st.sampled_from([0.0, 3.4e38, -3.4e38, 1e-45]) | st.floats(width=32, allow_nan=False, allow_infinity=False)


def meta_of(name: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return changes to a global file's metadata, in which local files are called so."""
    return st.fixed_dictionaries(
        {},
        optional={
            "plan": OTHER,
            "round": COUNT,
            "parent": st.none() | OTHER,
            "rule": TEXT,
            "inputs": st.lists(
                st.builds(Input, LEAST_ONE, name, LEAST_ONE, FRACTION, st.none() | COUNT), max_size=4
            ).map(tuple),
            "refused": st.lists(st.builds(Rejection, LEAST_ONE, name, TEXT), max_size=4).map(tuple),
            "absent": st.lists(LEAST_ONE, max_size=4).map(tuple),
            "taken": st.none() | st.lists(st.tuples(LEAST_ONE, COUNT), max_size=3).map(tuple),
        },
    )


@pytest.mark.parametrize("mode", [None, "async"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_report_audit_page_status_and_metrics_handle_every_file_that_is_accepted(
    world: World, mode: str | None, data: st.DataObject
) -> None:
    check(world, mode, data)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [None, "async"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_report_audit_page_status_and_metrics_handle_every_file_that_is_accepted_at_length(
    world: World, mode: str | None, data: st.DataObject
) -> None:
    check(world, mode, data)


def check(world: World, mode: str | None, data: st.DataObject) -> None:
    settings_ = {"mode": mode} if mode else {"min_learners": 1, "round_timeout": 1.0}
    run = world.deploy(plan(rounds=ROUNDS, **settings_))
    for _ in range(ROUNDS):
        names = []
        for node_id in data.draw(
            st.lists(st.sampled_from([1, 2]), min_size=0 if mode else 1, max_size=3), "learners"
        ):
            if run.contract.state().closed:
                break
            value = data.draw(VALUE, "value")
            tensors = {name: np.full(shape, value, np.float32) for name, shape in StubTrainer.SHAPES.items()}
            names.append(run.publish_local(node_id, run.local(node_id, tensors, **data.draw(LOCAL, "local file"))))
        if not mode and not run.contract.state().closed:
            run.time_out()
        meta = GlobalMeta(
            plan=run.plan_cid, round=run.contract.state().round + 1, parent=names_of(run), rule="fedavg"
        )
        changes = data.draw(meta_of(st.sampled_from(names) | OTHER if names else OTHER), "global file")
        value = data.draw(VALUE, "value")
        tensors = {name: np.full(shape, value, np.float32) for name, shape in StubTrainer.SHAPES.items()}
        run.publish_global(model_file.write(run.path(), replace(meta, **changes), tensors))
    handle(run)


def names_of(run: Run) -> str:
    return str(run.contract.state().global_cid)


def handle(run: Run) -> None:
    """Show and check a run in all ways that there are."""
    files: dict[str, FileFacts] = {}
    for path in run.files.iterdir():
        if path.name != run.plan_cid:
            files[path.name] = FileFacts("read", model_file.read(path, StubTrainer.SHAPES).meta)  # each is accepted

    audited = run.audit()
    result = run.collect()
    traced = collect.collect(
        run.contract,
        run.store,
        run.files.parent,
        evaluate=run.trainer.evaluate,
        model=StubTrainer.SHAPES,
        traced=True,
    )
    for one in (result, traced):
        writer.write(run.folder, "any", one, audited, {})
        content = strict_json.read(run.folder / "report.json")
        assert len(content["rounds"]) == ROUNDS
        assert "<script>alert" not in (run.folder / "report.html").read_text(encoding="utf-8")
    screen = Console(file=io.StringIO(), width=100)
    screen.print(rounds_table(collect.table(traced)))
    screen.print(rounds_table(collect.table(traced, loss=True)))

    past = history.read(run.contract)
    rounds = state.rounds(past, files, {}, run.plan.mode)
    seen = MonitorState(RunView(run.contract.address, run.plan_cid, ROUNDS, True, rounds=ROUNDS), rounds=rounds)
    json.dumps(server.content(seen), allow_nan=False).encode()
    assert metrics.exposition(lambda: seen)

    folder = run.folder / "contribution"
    folder.mkdir()
    try:
        contributions(run.contract, run.store, folder, run.plan, StubTrainer.SHAPES, lambda _tensors: 5)
    except FLNodeError as error:
        assert str(error).isprintable()
