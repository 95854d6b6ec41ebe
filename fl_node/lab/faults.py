"""Faults and lies that a lab can show on one machine: a fault in a chosen round, and what must hold nevertheless.

A scenario watches a real run, injects its fault when a role says that it has come to a certain point, and afterwards
checks its expectations. What needs hosts of their own (networks cut, disks full, clocks wrong) are playbooks in
``ansible/scenarios``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_node import events
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ConfigError, ContractError, ProcessError, StoreError
from fl_node.lab.asynchronous_faults import ASYNCHRONOUS_SCENARIOS
from fl_node.lab.chain_faults import CHAIN_SCENARIOS
from fl_node.lab.fault_model import (
    ROUND,
    Check,
    Controls,
    Expectation,
    Fault,
    Outcome,
    Scenario,
    Trace,
    first_message,
)
from fl_node.lab.hand import Hand
from fl_node.lab.header_faults import AWAY, HEADER_SCENARIOS, LIAR, VICTIM
from fl_node.lab.lies import PATIENCE
from fl_node.lab.mask_faults import MASK_SCENARIOS
from fl_node.nodes import binaries
from fl_node.nodes.backends import Ports
from fl_node.nodes.ipfs import IpfsNode
from fl_node.nodes.process import Child
from fl_node.plan.schema import Plan
from fl_node.protocol.names import HEADER
from fl_node.runtime import scratch
from fl_node.runtime.waiting import wait_until
from fl_node.seeds import derive
from fl_node.wording import counted

FINAL = "final.safetensors"
"""The final weights, in a run's folder."""
NEAR = 0.05
"""How much accuracy, as a fraction, a run without one learner's weights in one round may lose at most."""


# Fault


def _kill(node: str) -> Fault:
    return lambda lab, _trace: lab.roles[node].process.kill()


def _leave(lab: Controls, _trace: Trace) -> None:
    lab.hold(LIAR)


def _pause(lab: Controls, _trace: Trace) -> None:
    lab.hold(LIAR)
    lab.later(AWAY, lambda: lab.release(LIAR))


def _come_late(lab: Controls, _trace: Trace) -> None:
    lab.hold(LIAR)


def _come(lab: Controls, _trace: Trace) -> None:
    lab.release(LIAR)


def _kill_daemon(name: str) -> Fault:
    def fault(lab: Controls, trace: Trace) -> None:
        before = lab.daemons()[name].process
        before.kill()
        trace.notes.append(f"killed {name}, process {before.pid}")

        def look() -> None:
            now = lab.daemons()[name]
            trace.back = now.running and now.process.pid != before.pid

        lab.later(AWAY, look)

    return fault


def _freeze_sealers(lab: Controls, _trace: Trace) -> None:
    """Stop so many Geth nodes that the others may not seal."""
    frozen = [child for name, child in sorted(lab.daemons().items()) if name.endswith(" geth")][1:]
    frozen = frozen[: len(lab.nodes) // 2]
    for child in frozen:
        child.process.send_signal(signal.SIGSTOP)
    for child in frozen:
        lab.later(2 * AWAY, functools.partial(child.process.send_signal, signal.SIGCONT))


def _lie(publish: Callable[[Hand], str]) -> Fault:
    """In place of the liar's work something else is published, by its account."""

    def fault(lab: Controls, trace: Trace) -> None:
        lab.hold(LIAR)
        with scratch.folder() as here:
            contract, store = lab.as_node(LIAR)
            hand = Hand(contract, store, here, lab.plan, lab.shapes, trace.prepared)
            file_cid = publish(hand)
            trace.notes.append(f"published {file_cid} in place of its work")
            contract.set_local_weight(2, file_cid, contract.chain.nonce())
        # Its process sees that something is published, and takes part again in the next round.
        lab.release(LIAR)

    return fault


def _garbage(hand: Hand) -> str:
    path = hand.folder / "garbage"
    path.write_bytes(np.random.default_rng(derive(hand.plan.seed, "garbage")).bytes(100_000))
    return hand.store.add(path)


def _not_a_number(hand: Hand) -> str:
    return hand.store.add(hand.local(2, lambda name: np.full(hand.shapes[name], np.nan, np.float32)).path)


def _store_large(lab: Controls, trace: Trace) -> None:
    with scratch.folder() as here:
        path = here / "large"
        with path.open("wb") as file:
            file.truncate(2**30)
        trace.prepared = lab.as_node(LIAR)[1].add(path)


def _too_large(hand: Hand) -> str:
    return hand.prepared


def _nothing(_hand: Hand) -> str:
    return cid.of_bytes(b"a file that nobody has")


def _of_another(hand: Hand) -> str:
    return hand.store.add(hand.local(1, lambda name: np.zeros(hand.shapes[name], np.float32)).path)


def _of_yesterday(hand: Hand) -> str:
    return str(hand.contract.local_weight_at(hand.contract.state().round - 1, 2))


def _trespass(who: Callable[[Controls], Contract]) -> Fault:
    """Let an account try what it may not do; what the contract answers goes into the trace."""

    def fault(lab: Controls, trace: Trace) -> None:
        contract = who(lab)
        lie, nonce = cid.of_bytes(b"a lie"), contract.chain.nonce()
        tries: dict[str, Callable[[], object]] = {
            "setLocalWeight for learner 1": lambda: contract.set_local_weight(1, lie, nonce),
            "setGlobalWeight": lambda: contract.set_global_weight(lie, nonce),
            "registerLearner": lambda: contract.register_learner(999, contract.chain.address, nonce),
        }
        for what, attempt in tries.items():
            try:
                attempt()
                trace.notes.append(f"{what}: accepted")
                trace.got.append(what)
            except ContractError as error:
                trace.notes.append(f"{what}: {error}")

    return fault


def _stranger(lab: Controls) -> Contract:
    key = lab.folder / "nodes" / "stranger.key"
    create_key(key)
    known, _ = lab.as_node(VICTIM)
    return Chain(known.chain.rpc, load_key(key)).contract(known.address)


def _join_swarm(lab: Controls, trace: Trace) -> None:
    """Start a daemon that knows the addresses of the swarm's nodes, and let it request the weights of the round.

    Raises
    ------
    ProcessError
        The daemon does not start.
    """
    with scratch.folder() as here:
        node = IpfsNode(here)
        log = lab.folder / "logs" / "stranger.log"
        binary = binaries.install(binaries.KUBO)
        Child("stranger's ipfs init", node.init_command(binary), log, node.environment).process.wait(PATIENCE)
        ports = Ports()
        node.swarm_port, node.api_port = ports.take(2)
        key = strangers_key(lab)
        command = node.command(binary, key, list(lab.swarm().values()))
        environment = dict(node.environment)
        if not key:
            (node.folder / "swarm.key").unlink()
            # With this in its environment it would not even start.
            environment["LIBP2P_FORCE_PNET"] = "0"
        daemon = Child("stranger's ipfs", command, log, environment)
        try:
            if not wait_until(lambda: "Daemon is ready" in log.read_text() or not daemon.running, PATIENCE):
                raise ProcessError(f"the stranger's daemon is not up:{daemon.tail()}")
            _ask_swarm(lab, trace, IpfsStore(node.api), here / "got")
        finally:
            daemon.stop()
            ports.close()


def _ask_swarm(lab: Controls, trace: Trace, store: IpfsStore, path: Path) -> None:
    wanted = str(lab.as_node(VICTIM)[0].state().global_cid)
    for name, node in lab.swarm().items():
        with contextlib.suppress(StoreError):
            store.connect_peer(node.address)
            trace.got.append(f"a connection to {name}")
    with contextlib.suppress(StoreError):
        store.fetch(wanted, path, model_file.size_of(lab.shapes), AWAY)
        trace.got.append(f"the file {wanted}")
    trace.notes.append(f"asked {len(lab.swarm())} nodes for {wanted}")


def strangers_key(_lab: Controls) -> str:
    """Return the swarm key that a stranger has: none."""
    return ""


def _flood(lab: Controls, trace: Trace) -> None:
    """Publish one hash after the other, each of a file that nobody has, until the contract takes no more."""
    contract, _ = lab.as_node(LIAR)
    # Its process would wait for numbers that the flood has used; it goes on when the flood is over.
    lab.hold(LIAR)
    refusal = "the round was closed"
    try:
        for count in range(FLOOD):
            lie = cid.of_bytes(f"flood {count}".encode())
            if contract.set_local_weight(2, lie, contract.chain.nonce()) is not None:
                trace.got.append(lie)
            elif contract.state().closed:
                break
    except ContractError as error:
        refusal = str(error)
    trace.notes.append(f"{counted(len(trace.got), 'publication')}, then: {refusal}")
    lab.release(LIAR)


MOST_PUBLICATIONS = 8
"""What the contract takes of a learner in one round."""
FLOOD = 50
"""How often a flood tries to publish, at most."""


# Promises


def _waited_for(node_id: int) -> Expectation:
    def expectation(trace: Trace, _outcome: Outcome) -> Check:
        waiting = [
            e
            for _, e in trace.matching(HEADER, events.Waiting.name, reason="updates", round=ROUND, learners=[node_id])
        ]
        return Check(f"the header reports that it waits for learner {node_id}", bool(waiting), first_message(waiting))

    return expectation


def _rejected(code: str) -> Expectation:
    def expectation(trace: Trace, outcome: Outcome) -> Check:
        rejections = [
            e for _, e in trace.matching(HEADER, events.UpdateRejected.name, round=ROUND, learner=2, reason=code)
        ]
        listed = outcome.result.rounds[ROUND].rejected.get(2, "")
        passed = bool(rejections and listed)
        return Check(
            "learner 2's file is rejected, and the global file has the reason",
            passed,
            listed or first_message(rejections),
        )

    return expectation


def _absent(rounds: Callable[[Plan], range]) -> Expectation:
    def expectation(_trace: Trace, outcome: Outcome) -> Check:
        wanted = list(rounds(outcome.result.plan))
        missing_in = [each.round for each in outcome.result.rounds if 2 in each.missing_learners]
        names = ", ".join(map(str, missing_in)) or "none"
        return Check(
            "the global files list learner 2 as missing in the rounds without it",
            missing_in == wanted,
            f"rounds {names}",
        )

    return expectation


def _contract_refused(trace: Trace, _outcome: Outcome) -> Check:
    passed = len(trace.notes) == 3 and not trace.got
    return Check("the contract reverts every call that the account may not make", passed, "; ".join(trace.notes))


def _taken(node: str) -> Expectation:
    def expectation(trace: Trace, _outcome: Outcome) -> Check:
        kind = events.GlobalWeightsPublished if node == HEADER else events.LocalWeightsPublished
        after = [when for when, _ in trace.matching(node, kind.name, round=ROUND + (node == HEADER))]
        fault = trace.fault if trace.fault is not None else math.inf
        seconds = next((when - fault for when in after if when > fault), None)
        seen = "never" if seconds is None else f"{seconds:.1f} s after the fault"
        return Check(f"{node} is back and publishes in the same round", seconds is not None, seen)

    return expectation


def _back(trace: Trace, _outcome: Outcome) -> Check:
    return Check("the killed daemon runs again", trace.back, "; ".join(trace.notes))


def _waited(trace: Trace, _outcome: Outcome) -> Check:
    after = [when for when, _ in trace.matching(HEADER, events.GlobalWeightsPublished.name, round=ROUND + 1)]
    seconds = (after[0] - (trace.fault or 0)) if after else 0.0
    return Check(
        "no block is sealed while half of the sealers are suspended",
        seconds > AWAY,
        f"the round's global weights are published after {seconds:.1f} s",
    )


def _flooded(_trace: Trace, outcome: Outcome) -> Check:
    accepted = [{n for n, entry in closed.local.items() if entry.problem is None} for closed in outcome.result.rounds]
    passed = all({1, 3} <= learners for learners in accepted)
    seen = f"from learners {', '.join(map(str, sorted(set.intersection(*accepted))))}"
    return Check("the other learners' weights are accepted in every round", passed, seen)


def _bounded(trace: Trace, _outcome: Outcome) -> Check:
    passed = 0 < len(trace.got) <= MOST_PUBLICATIONS
    return Check("the contract bounds the flood", passed, "; ".join(trace.notes))


def _kept_out(trace: Trace, _outcome: Outcome) -> Check:
    seen = "; ".join(trace.notes) + ": it got " + (", ".join(trace.got) or "nothing")
    return Check(
        "the stranger's daemon gets neither a connection nor a file", bool(trace.notes and not trace.got), seen
    )


_WITHOUT_ONE = {"min_learners": 2, "round_timeout": 15.0, "fetch_timeout": 3.0}
_TRAINS = (LIAR, events.TrainingStarted.name)


def _liar(
    name: str, text: str, publish: Callable[[Hand], str], code: str, begin: Fault = lambda _lab, _trace: None
) -> Scenario:
    return Scenario(
        name,
        text,
        _TRAINS,
        _lie(publish),
        (_rejected(code),),
        same_bits=False,
        settings=_WITHOUT_ONE,
        begin=begin,
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "learner-killed",
            "A learner is killed while it trains and loses its memory. After a restart it reads the chain and "
            "trains the same round from the same seed to the same bits.",
            (VICTIM, events.TrainingStarted.name),
            _kill(VICTIM),
            (_taken(VICTIM),),
            same_bits=True,
        ),
        Scenario(
            "header-killed",
            "The header is killed while it collects the learners' files. Only chain and store keep the round. After "
            "a restart the header fetches the files again and writes the same global file.",
            (HEADER, events.UpdateAccepted.name),
            _kill(HEADER),
            (_taken(HEADER),),
            same_bits=True,
        ),
        Scenario(
            "learner-away",
            "A learner is suspended for a few seconds. The plan requires every learner, so the round stays open, and "
            "the header reports the missing learner.",
            _TRAINS,
            _pause,
            (_waited_for(2), _taken(LIAR)),
            same_bits=True,
        ),
        Scenario(
            "learner-leaves",
            "A learner leaves permanently. The plan accepts min_learners after round_timeout, so each later round "
            "closes without it, and the global file lists it as missing.",
            _TRAINS,
            _leave,
            (_absent(lambda plan: range(ROUND, plan.rounds)),),
            same_bits=False,
            settings=_WITHOUT_ONE,
        ),
        Scenario(
            "learner-late",
            "A learner joins after the first round has closed without it and takes part in all later rounds.",
            (HEADER, events.RoundStarted.name),
            _come,
            (_absent(lambda _plan: range(ROUND)),),
            same_bits=False,
            settings=_WITHOUT_ONE,
            begin=_come_late,
        ),
        _liar("garbage", "A learner publishes random bytes.", _garbage, "too_large"),
        _liar("nan", "A learner publishes weights with NaN values.", _not_a_number, "not_finite"),
        _liar(
            "large-file",
            "A learner publishes a file of 1 GiB. The header reads at most the size of a model of this plan.",
            _too_large,
            "too_large",
            _store_large,
        ),
        _liar(
            "missing-file",
            "A learner publishes a hash without a file. The header retries until the plan's fetch_timeout.",
            _nothing,
            "missing",
        ),
        _liar(
            "others-file",
            "A learner publishes a file with the nodeId of another learner.",
            _of_another,
            "metadata.node_id",
        ),
        _liar(
            "yesterdays-file",
            "A learner publishes its file of the previous round again.",
            _of_yesterday,
            "metadata.round",
        ),
        Scenario(
            "trespass",
            "A learner's account calls the contract for others: to set another learner's weights, to set global "
            "weights, to register a learner. Each call reverts with a specific error.",
            _TRAINS,
            _trespass(lambda lab: lab.as_node(LIAR)[0]),
            (_contract_refused,),
            same_bits=True,
        ),
        Scenario(
            "stranger",
            "An account that has no role in the run calls the contract.",
            _TRAINS,
            _trespass(_stranger),
            (_contract_refused,),
            same_bits=True,
        ),
        Scenario(
            "stranger-daemon",
            "A stranger who knows the addresses of the swarm's nodes and a file's CID, but has no swarm key, starts "
            "an IPFS daemon. No node connects to it.",
            _TRAINS,
            _join_swarm,
            (_kept_out,),
            same_bits=True,
            backends=("processes",),
        ),
        Scenario(
            "flood",
            "A learner publishes hashes without files as fast as it can. The contract takes eight in a round, and "
            "the other learners' transactions get blocks too.",
            _TRAINS,
            _flood,
            (_bounded, _flooded),
            same_bits=False,
            settings=_WITHOUT_ONE,
        ),
        *ASYNCHRONOUS_SCENARIOS,
        *HEADER_SCENARIOS,
        *CHAIN_SCENARIOS,
        *MASK_SCENARIOS,
        Scenario(
            "geth-killed",
            "A learner's Geth node is killed. The other sealers continue; the learner waits for its own node and "
            "continues after the restart.",
            (VICTIM, events.TrainingStarted.name),
            _kill_daemon(f"{VICTIM} geth"),
            (_back, _taken(VICTIM)),
            same_bits=True,
            backends=("processes",),
        ),
        Scenario(
            "ipfs-killed",
            "A learner's IPFS node is killed while the learner trains, and restarts with its data.",
            (VICTIM, events.TrainingStarted.name),
            _kill_daemon(f"{VICTIM} ipfs"),
            (_back, _taken(VICTIM)),
            same_bits=True,
            backends=("processes",),
        ),
        Scenario(
            "sealers-gone",
            "Half of the sealers are suspended. Clique needs more than half, so no block is sealed and all roles "
            "wait. When the sealers resume, the run continues as if nothing had happened.",
            _TRAINS,
            _freeze_sealers,
            (_waited,),
            same_bits=True,
            backends=("processes",),
        ),
    )
}


@dataclass(frozen=True)
class Undisturbed:
    """The final weights of a run without a fault."""

    weights: str
    """What :func:`weights_of` returns for them."""
    accuracy: float


def weights_of(path: Path) -> str:
    """Return a hash of a model file's weights, without its metadata.

    In a run with masks metadata have the public keys of learners, which no two runs have in common.

    Parameters
    ----------
    path
        The model file.
    """
    file, digest = model_file.read(path), hashlib.sha256()
    for name in sorted(file.shapes):
        digest.update(name.encode() + b"\0" + file.tensor(name).tobytes())
    return digest.hexdigest()


def _published_once(scenario: Scenario, outcome: Outcome) -> Check:
    """Check what can be checked where no other run has the same bits.

    Keys of rounds are random, the global file names them, and noise follows from that file's CID. But a learner that
    is killed has the same keys and so the same bits; if it published others, its budget would say so.
    """
    spent = dict(model_file.read(outcome.folder / FINAL).global_meta.spent or ())
    rounds = outcome.result.plan.rounds
    passed = all(count == rounds if scenario.same_bits else count <= rounds for count in spent.values())
    seen = ", ".join(
        f"learner {node_id}: {count} in {counted(rounds, 'round')}" for node_id, count in sorted(spent.items())
    )
    return Check(
        "no learner published two different files in a round (no other run has the same noise with masks)",
        bool(spent) and passed,
        seen,
    )


def get(name: str, backend: str) -> Scenario:
    """Return a scenario by its name.

    Raises
    ------
    ConfigError
        There is none of this name, or none in this backend.
    """
    if name not in SCENARIOS:
        raise ConfigError(f"--scenario {name}: should be one of {', '.join(SCENARIOS)}")
    if backend not in SCENARIOS[name].backends:
        raise ConfigError(f"--scenario {name} needs --backend {' or '.join(SCENARIOS[name].backends)}")
    return SCENARIOS[name]


def planned(scenario: Scenario, plan: Plan) -> Plan:
    """Return the plan as a scenario needs it: enough learners, and enough rounds around the fault.

    Raises
    ------
    ConfigError
        The plan is asynchronous, and the scenario is about rounds that close.
    """
    from fl_node.plan import loading as plans

    if plan.mode == "async" and scenario.settings.get("mode") != "async":
        raise ConfigError(
            f'--scenario {scenario.name} needs a plan without mode = "async"; only '
            f"{ASYNCHRONOUS_SCENARIOS[0].name} has asynchronous rounds"
        )
    content = plan.model_dump() | {"learners": 3, "rounds": max(plan.rounds, ROUND + 2)}
    for key, value in scenario.settings.items():
        known = content.get(key)
        if (
            isinstance(known, dict)
            and isinstance(value, dict)
            and value.get("rule", known.get("rule")) == known.get("rule")
        ):
            content[key] = known | value
        else:
            content[key] = value  # another rule has other settings
    return plans.validate(content, f"plan {plan.name} for scenario {scenario.name}")


def checks(scenario: Scenario, trace: Trace, outcome: Outcome, undisturbed: Undisturbed | None) -> list[Check]:
    """Return a scenario's expectations and whether they passed.

    Parameters
    ----------
    scenario, trace, outcome
        The scenario, what the roles said, and what came out.
    undisturbed
        The final weights of the same plan without the fault, if known.
    """
    last = outcome.result.newest
    audit = outcome.audit
    checks = [
        Check(
            "the fault was injected",
            trace.fault is not None,
            "; ".join(trace.notes) or f"{trace.fault or 0:.1f} s after the start",
        ),
        Check(
            "the run ends", outcome.result.ended, f"{counted(outcome.result.round, 'round')}, {outcome.seconds:.1f} s"
        ),
        Check(
            "the audit passes",
            audit.passed,
            f"{counted(audit.files, 'file')}, {counted(audit.rounds, 'global file')} bit for bit"
            if audit.passed
            else str(audit.findings[0]),
        ),
        *(expectation(trace, outcome) for expectation in scenario.expectations),
    ]
    if outcome.result.plan.dp is not None and outcome.result.plan.is_masked:
        checks.append(_published_once(scenario, outcome))
    elif undisturbed is not None and last is not None and last.accuracy is not None:
        seen = f"{last.accuracy:.2%}, undisturbed {undisturbed.accuracy:.2%}"
        if scenario.same_bits:
            same = weights_of(outcome.folder / FINAL) == undisturbed.weights
            checks.append(Check("the final weights are the undisturbed run's, bit for bit", same, seen))
        else:
            near = last.accuracy >= undisturbed.accuracy - NEAR
            checks.append(Check(f"the final accuracy is at most {100 * NEAR:g} points lower", near, seen))
    return checks
