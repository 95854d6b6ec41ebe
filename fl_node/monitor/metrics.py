"""What is seen of a run, for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from fl_node.monitor.state import MonitorState, Part
from fl_node.protocol.names import HEADER, learner_name

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(see: Callable[[], MonitorState]) -> bytes:
    """Return the metrics of what is seen now, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Seen(see))
    return generate_latest(registry)


class _Seen(Collector):
    def __init__(self, see: Callable[[], MonitorState]) -> None:
        self._see = see

    def collect(self) -> Iterator[Metric]:
        now = self._see()
        yield from _run(now)
        yield from _nodes(now)
        yield from _accuracy(now)


def _run(now: MonitorState) -> Iterator[Metric]:
    labels = ["contract", "plan", "name", "mode"]
    info = GaugeMetricFamily("fl_run_info", "The monitored run; always 1", labels=labels)
    number = GaugeMetricFamily("fl_round", "The current round")
    planned = GaugeMetricFamily("fl_rounds_planned", "Number of rounds in the plan")
    ended = GaugeMetricFamily("fl_run_ended", "1 if all rounds are closed")
    if (run := now.run) is not None:
        info.add_metric([run.contract, run.plan_cid, run.name, run.mode], 1)
        if run.started:
            number.add_metric([], run.round)
        if run.rounds is not None:
            planned.add_metric([], run.rounds)
            ended.add_metric([], run.ended)
    yield from (info, number, planned, ended)
    newest = GaugeMetricFamily("fl_last_block_timestamp_seconds", "Timestamp of the latest block")
    if now.blocks:
        newest.add_metric([], now.blocks[0].time)
    yield newest


def _nodes(now: MonitorState) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "fl_node_up", "1 if a node's Geth (chain) or IPFS (files) answers", labels=["node", "part"]
    )
    height = GaugeMetricFamily("fl_chain_height", "Latest block number of a node", labels=["node"])
    peers = GaugeMetricFamily("fl_node_peers", "Peers of a node's Geth or IPFS", labels=["node", "part"])
    waiting = GaugeMetricFamily(
        "fl_node_waiting", "1 if a learner has published its local weights of this round", labels=["node"]
    )
    total = CounterMetricFamily("fl_publications", "Model files published by a node", labels=["node"])
    for node in now.nodes:
        parts: list[tuple[str, Part | None]] = [("chain", node.chain), ("files", node.files)]
        for name, part in parts:
            if part is None:
                continue
            up.add_metric([node.name, name], part.up)
            if part.up and part.peers is not None:
                peers.add_metric([node.name, name], part.peers)
        if node.chain and node.chain.height is not None:
            height.add_metric([node.name], node.chain.height)
        if node.account is not None:
            total.add_metric([node.name], node.published)
            if node.name != HEADER and now.run and not now.run.ended:
                done = node.last is not None and node.last.round == now.run.round
                waiting.add_metric([node.name], done)
    yield from (up, height, peers, waiting, total)


def _accuracy(now: MonitorState) -> Iterator[Metric]:
    accuracy = GaugeMetricFamily(
        "fl_accuracy_ratio",
        "Test accuracy of the latest weights; node is global or a learner",
        labels=["node"],
    )
    loss = GaugeMetricFamily("fl_loss", "Test cross-entropy, as reported by the learner", labels=["node"])
    scores: dict[str, tuple[float, float | None]] = {}
    for round_ in now.rounds:
        for node_id, file in round_.local.items():
            if file.accuracy is not None and node_id not in round_.rejected:
                scores[learner_name(node_id)] = file.accuracy, file.loss
        if round_.result is not None and round_.result.accuracy is not None:
            scores["global"] = round_.result.accuracy, None
    for name, (share, nats) in sorted(scores.items()):
        accuracy.add_metric([name], share)
        if nats is not None:
            loss.add_metric([name], nats)
    yield from (accuracy, loss)
