"""The metrics of what is seen, as Prometheus reads them."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from fl_node.monitor import metrics
from fl_node.monitor.state import (
    BlockView,
    FileView,
    LastPublication,
    MonitorState,
    NodeView,
    Part,
    RoundView,
    RunView,
)

SEEN = MonitorState(
    run=RunView("0xc", "QmPlan", 2, True, name='a "small" run', mode="sync", rounds=5),
    nodes=(
        NodeView("header", "0xh", Part(True, 1.0, 9, 2), Part(True, 1.0, peers=2), LastPublication(2, "Qm", 9), 3),
        NodeView("learner-1", "0x1", Part(False, 1.0, 7), None, LastPublication(2, "Qm", 9), 3),
        NodeView("learner-2", "0x2", None, None, LastPublication(1, "Qm", 8), 2),
    ),
    rounds=(
        RoundView(0, {1: FileView("Qm", 3, accuracy=0.5, loss=2.0)}, FileView("Qm", 4, accuracy=0.6)),
        RoundView(
            1,
            {1: FileView("Qm", 3, accuracy=0.7, loss=1.0), 2: FileView("Qm", 3, accuracy=1.0, loss=0.0)},
            FileView("Qm", 4),
            rejected={2: "too good"},
        ),
        RoundView(2),
    ),
    blocks=(BlockView(9, "0xb", 1234, 21_000),),
)


def samples(seen: MonitorState) -> dict[tuple[str, ...], float]:
    """All samples by their name and the values of their labels."""
    families = text_string_to_metric_families(metrics.exposition(lambda: seen).decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_round_and_run_are_named() -> None:
    metrics = samples(SEEN)
    assert metrics["fl_round",] == 2
    assert metrics["fl_rounds_planned",] == 5
    assert metrics["fl_run_ended",] == 0
    assert metrics["fl_run_info", "0xc", "sync", 'a "small" run', "QmPlan"] == 1
    assert metrics["fl_last_block_timestamp_seconds",] == 1234


def test_nodes_that_are_not_seen_have_no_state_rather_than_a_made_up_one() -> None:
    metrics = samples(SEEN)
    assert metrics["fl_node_up", "header", "chain"] == 1
    assert metrics["fl_node_up", "learner-1", "chain"] == 0
    assert not [key for key in metrics if key[:2] == ("fl_node_up", "learner-2")]
    assert ("fl_node_up", "learner-1", "files") not in metrics


def test_a_node_that_is_down_keeps_its_height_and_has_no_peers() -> None:
    metrics = samples(SEEN)
    assert metrics["fl_chain_height", "learner-1"] == 7
    assert ("fl_node_peers", "learner-1", "chain") not in metrics
    assert metrics["fl_node_peers", "header", "chain"] == 2


def test_accuracy_is_that_of_the_newest_weights_that_were_taken() -> None:
    metrics = samples(SEEN)
    assert metrics["fl_accuracy_ratio", "learner-1"] == 0.7
    assert metrics["fl_loss", "learner-1"] == 1.0
    assert metrics["fl_accuracy_ratio", "global"] == 0.6
    assert ("fl_accuracy_ratio", "learner-2") not in metrics


def test_a_learner_that_has_published_in_this_round_waits() -> None:
    metrics = samples(SEEN)
    assert metrics["fl_node_waiting", "learner-1"] == 1
    assert metrics["fl_node_waiting", "learner-2"] == 0
    assert metrics["fl_publications_total", "header"] == 3
    ended = replace(SEEN, run=RunView("0xc", "QmPlan", 2, True, rounds=2))
    assert not [key for key in samples(ended) if key[0] == "fl_node_waiting"]


def test_where_nothing_is_seen_there_are_no_samples() -> None:
    assert samples(MonitorState()) == {}
