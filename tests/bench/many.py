"""What a run of many learners on three nodes costs: time, gas and the header's memory, and its audit."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from fl_node.artifacts.address import connect
from fl_node.audit.auditor import audit
from fl_node.chain.contract import Contract
from fl_node.errors import ProcessError
from fl_node.protocol.names import HEADER, learner_name
from tests.bench.nodes import Nodes, nodes, wait_for
from tests.bench.results import Part, Row, console, say, seconds
from tests.bench.role import TRANSACTION
from tests.bench.stub import trainer

MODEL = "small"
FEW, MANY = 2, 128
HOSTS = 2
ROUNDS = 10
WARM_UP = 2
VERIFICATIONS = ("none", "committee")
"""What is measured: no verification, and what is the default of many learners. With ``all`` each learner fetches the
files of all others, 15 GB in each round of 128 learners."""
START_PATIENCE, ROUND_PATIENCE = 10.0, 2.0
"""Seconds for each learner: until it has started, and in each round."""
LINEAR = 1.1
"""How many times the gas of one learner of few one of many may cost in a round."""


def measure(*, quick: bool, learners: int = MANY, verifications: tuple[str, ...] = VERIFICATIONS) -> Part:
    """Measure rounds, gas, the header's peak and the audit with 2 and with many learners."""
    learners, rounds = (16, 3) if quick else (learners, ROUNDS)
    part = Part(f"Many learners: {learners} on {1 + HOSTS} nodes")
    with nodes(learners, HOSTS) as network:
        for verification in verifications:
            peaks, gas = {}, {}
            for count in (FEW, learners):
                contract = _run(part, network, count, rounds, verification)
                peaks[count], gas[count] = network.peak(HEADER), _gas(contract)
            row = f"verification {verification}: the header's peak memory, {learners} learners"
            part.rows.append(Row(row, peaks[learners] / 1e6, "MB", 2 * peaks[FEW] / 1e6, {"few": peaks[FEW]}))
            row = f"verification {verification}: gas of a learner in a round, {learners} learners"
            part.rows.append(Row(row, gas[learners], "gas", LINEAR * gas[FEW]))
        _audit(part, network, contract, rounds)
    return part


def _run(part: Part, network: Nodes, learners: int, rounds: int, verification: str) -> Contract:
    say(f"{learners} learners, verification {verification}: {rounds} rounds after {WARM_UP}")
    start = time.monotonic()
    contract = network.deploy(MODEL, WARM_UP + rounds, verification, learners)
    deployed = time.monotonic() - start
    names = [HEADER, *(learner_name(node_id) for node_id in range(1, learners + 1))]
    before = {kind: network.cpu(kind) for kind in ("geth", "ipfs")}
    children = [network.role(name, contract, MODEL) for name in names]
    wait_for(children, 60 + learners * (START_PATIENCE + ROUND_PATIENCE * (WARM_UP + rounds)))
    spans, cpu = network.spans(HEADER)
    closed = [end for kind, _, end in spans if kind == TRANSACTION]
    times = [end - begin for begin, end in itertools.pairwise(closed)][WARM_UP:]
    each = [network.spans(name)[1] for name in names[1:]]
    shares = {
        "header": (cpu[-1] - cpu[WARM_UP]) / (len(cpu) - 1 - WARM_UP),
        "learners": sum((one[-1] - one[WARM_UP]) / (len(one) - 1 - WARM_UP) for one in each),
        **{kind: (network.cpu(kind) - known) / (WARM_UP + rounds) for kind, known in before.items()},
    }
    told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    console.print(
        f"{learners} learners, verification {verification}: CPU a round, s: {told}; deployed in {deployed:.1f} s"
    )
    target = 5.0 if learners > FEW else None
    part.rows.append(seconds(f"verification {verification}: a round, {learners} learners", times, target, cpu=shares))
    return contract


def _gas(contract: Contract) -> float:
    """Return the gas of the learners' transactions for each learner and round."""
    log = contract.log()
    senders = {entry.transaction: (entry.round, entry.node_id) for entry in log if entry.node_id and entry.round}
    sealed = contract.chain.sealed(senders)
    gas: Counter[tuple[int | None, int | None]] = Counter()
    for transaction, who in senders.items():
        gas[who] += sealed[transaction].gas
    return statistics.fmean(gas.values())


def _audit(part: Part, network: Nodes, contract: Contract, rounds: int) -> None:
    say("auditing")
    store = connect(network.endpoints[learner_name(1)].store)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.monotonic(), time.process_time()
        audited = audit(contract, store, Path(folder), lambda _plan: trainer(MODEL))
        took, cpu = time.monotonic() - start, time.process_time() - cpu
    if not audited.passed:
        raise ProcessError(f"the audit failed: {audited.findings[0]}")
    of = WARM_UP + rounds
    detail = {"files": audited.files, "cpu": cpu}
    part.rows.append(
        Row(f"audit of {of} rounds, {audited.files} files ({cpu:.1f} s of CPU)", took, "s", 6.0 * of, detail)
    )
