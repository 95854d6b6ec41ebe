"""What a header and a learner that wait take of a core."""

from __future__ import annotations

import time

import psutil

from fl_node.errors import ProcessError
from fl_node.nodes.process import stop_all
from fl_node.protocol.names import HEADER, learner_name
from tests.bench.nodes import nodes
from tests.bench.results import Part, Row, say

SETTLE = 10.0
"""Seconds that the roles have waited before they are looked at; local training takes longer than that."""


def measure(*, quick: bool) -> Part:
    """Let a header and a learner wait for a second learner that never comes."""
    part = Part("Idle: share of a core that a waiting role takes")
    span = 8.0 if quick else 30.0
    with nodes(2) as network:
        contract = network.deploy("small", 1)
        names = [HEADER, learner_name(1)]
        roles = [network.role(name, contract, "small") for name in names]
        try:
            deadline = time.monotonic() + 60
            while not contract.local_weights(0, [1]):
                if time.monotonic() > deadline or not all(role.running for role in roles):
                    raise ProcessError(f"the learner did not publish:{roles[1].tail()}")
                time.sleep(0.2)
            say(f"header and learner wait {SETTLE:g} s, then {span:g} s more")
            time.sleep(SETTLE)
            processes = {name: [psutil.Process(role.process.pid)] for name, role in zip(names, roles, strict=True)}
            processes["Geth and IPFS of three nodes together"] = [
                psutil.Process(child.process.pid) for child in network.backend.children.values()
            ]
            before = {name: _cpu(group) for name, group in processes.items()}
            start = time.monotonic()
            time.sleep(span)
            length = time.monotonic() - start
            for name, group in processes.items():
                share = 100 * (_cpu(group) - before[name]) / length
                part.rows.append(Row(name, share, "%", 1.0 if name in names else None))
        finally:
            stop_all(roles)
    return part


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
