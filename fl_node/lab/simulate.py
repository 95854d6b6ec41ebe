"""A whole run in one process: header and learners take turns, on an embedded chain and a folder of files.

The roles are those of hosts, step by step; only that one of them acts at a time and that they share one compiled
model. So a run with many learners needs the memory of one, and can be audited like any other.

    python -m fl_node.lab.simulate PLAN --folder FOLDER [--data-dir FOLDER]

writes ``result.json`` there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.attacks.backdoor import Backdoor, patched
from fl_node.audit.auditor import audit
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ConfigError, FLNodeError, GaveUp, ProcessError
from fl_node.models.ensemble import trainer_for
from fl_node.models.trainer import Trainer
from fl_node.nodes.backends import EmbeddedBackend
from fl_node.plan.schema import Plan
from fl_node.privacy.secret import beside
from fl_node.protocol import history
from fl_node.protocol.global_files import global_shapes
from fl_node.protocol.history import History
from fl_node.protocol.names import HEADER, learner_name
from fl_node.roles.deploy import deploy
from fl_node.roles.factory import header_of, learner_of
from fl_node.roles.header import Header
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Site
from fl_node.runtime import files

PATIENCE = 60.0
"""Seconds without a deed of anybody after which a run is given up, beyond what the plan waits for."""
PAUSE = 0.02

OnRound = Callable[[int], None]
OnAudited = Callable[[History, FolderStore], None]


def simulate(
    plan: Plan,
    folder: Path,
    trainer: Trainer,
    on_round: OnRound = lambda _round: None,
    on_audited: OnAudited = lambda _past, _store: None,
) -> list[str]:
    """Carry a run out, audit it, and return the CID of the global weights of each round.

    Parameters
    ----------
    plan
        The run's plan.
    folder
        Where chain, files and keys are kept.
    trainer
        The plan's model and data, for all learners.
    on_round
        Called with the number of each round that begins.
    on_audited
        Called with the run's history and its store once the audit has passed.

    Raises
    ------
    ProcessError
        The audit found something.
    GaveUp
        Nobody can act.
    """
    names = [HEADER, *(learner_name(node_id) for node_id in range(1, plan.learners + 1))]
    keys = {name: folder / "keys" / f"{name}.key" for name in names}
    accounts = {name: create_key(path) for name, path in keys.items()}
    backend = EmbeddedBackend(folder / "nodes", accounts)
    try:
        rpc = backend.start()[HEADER].rpc
        chains = {name: Chain(rpc, load_key(keys[name])) for name in names}
        store = FolderStore(folder / "files")
        learners = {node_id: accounts[names[node_id]] for node_id in range(1, plan.learners + 1)}
        address = deploy(chains[HEADER], store, folder / "work", plan, learners, trainer).address

        def site(name: str) -> Site:
            work = folder / "work" / name
            work.mkdir(parents=True, exist_ok=True)
            return Site(
                chains[name], chains[name].contract(address), store, work, secret=folder / "keys" / f"{name}.secret"
            )

        header = header_of(site(HEADER), plan, trainer, evaluate=False)
        try:
            # A simulation is a laboratory: the user gave it this plan, and nobody here distrusts another.
            players = [learner_of(site(name), plan, trainer, allow_attacks=True, verify=False) for name in names[1:]]
            _take_turns(plan, header, players, on_round)
        finally:
            header.close()
        contract = Chain(rpc).contract(address)
        checked = folder / "audit"
        checked.mkdir(exist_ok=True)
        audited = audit(contract, store, checked, lambda _plan: trainer)
        if not audited.passed:
            raise ProcessError(f"the audit failed: {audited.findings[0]}")
        past = history.read(contract)
        on_audited(past, store)
        return [str(closed.started.cid) for closed in past.rounds]
    finally:
        backend.stop()


def take_keys(folder: Path, run: Path, learners: int) -> None:
    """Copy keys and secrets of a lab's run to where a simulation keeps its own.

    Noise follows from a host's secret and from the address of the contract, which follows from the header's account.
    So a simulation with the same of both has the same noise.

    Parameters
    ----------
    folder
        The simulation's folder.
    run
        The run's folder.
    learners
        Their number.
    """
    (folder / "keys").mkdir()
    for name in (HEADER, *(learner_name(node_id) for node_id in range(1, learners + 1))):
        key = run / "nodes" / name / "role.key"
        shutil.copy(key, folder / "keys" / f"{name}.key")  # with its mode, 0600
        if (secret := beside(key)).exists():
            shutil.copy(secret, folder / "keys" / f"{name}.secret")


def _take_turns(plan: Plan, header: Header, learners: list[Learner], on_round: OnRound) -> None:
    acted, seen = time.monotonic(), -1
    roles: list[Header | Learner] = [header, *learners]
    waits: dict[int, str] = {}
    while True:
        # A learner is looked at until it waits: it trains, then publishes.
        for number, role in enumerate(roles):
            while True:
                try:
                    waiting = role.step()
                except Done:
                    return
                if waiting is not None:
                    waits[number] = waiting.detail
                    break
                acted = time.monotonic()
            if role is header and header.round != seen:
                seen = header.round
                on_round(seen)
        if time.monotonic() - acted > PATIENCE + plan.round_timeout + plan.fetch_timeout:
            raise GaveUp(f"deadlock; waiting for: {'; '.join(dict.fromkeys(waits.values()))}")
        if time.monotonic() - acted > 1.0:
            time.sleep(PAUSE)


def measure(plan: Plan, folder: Path, trainer: Trainer, cids: list[str]) -> list[dict[str, Any]]:
    """Return what each round's global weights reach: accuracy, loss and, of a backdoor, how often it works.

    Parameters
    ----------
    plan, folder, trainer
        As for :func:`simulate`.
    cids
        What it returned.
    """
    return [_measured(plan, folder / "files" / name, trainer, number) for number, name in enumerate(cids)]


def _measured(plan: Plan, path: Path, trainer: Trainer, number: int) -> dict[str, Any]:
    file = model_file.read(path, global_shapes(plan, trainer.shapes()))
    tensors = file.tensors()
    entry: dict[str, Any] = {"round": number, "cid": file.cid, **dataclasses.asdict(trainer.evaluate(tensors))}
    if members := trainer.members(tensors):
        entry["members"] = {member: dataclasses.asdict(score) for member, score in members.items()}
    if plan.attack is not None and isinstance(plan.attack.on_data, Backdoor):
        entry["backdoor"] = backdoor_success(plan.attack.on_data, trainer, tensors)
    return entry


def backdoor_success(attack: Backdoor, trainer: Trainer, tensors: model_file.Tensors) -> float:
    """Return the success rate of a backdoor.

    It is the share of test images of other classes that the model assigns to the target class once they have the
    patch.

    Parameters
    ----------
    attack
        The attack, with its target class and patch.
    trainer
        The plan's model.
    tensors
        The weights by name, float32.

    Returns
    -------
    float
        0 to 1.
    """
    images, labels = trainer.tests()
    candidates = labels != attack.target
    labels_predicted = trainer.predict(tensors, patched(images[candidates])).argmax(axis=1)
    return float(np.mean(labels_predicted == attack.target))


def main() -> None:
    """Carry out the run that the command line names; an error is one line and the exit code of ``fl-node``."""
    try:
        _carry_out()
    except FLNodeError as error:
        print(f"fl-node: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"fl-node: {files.described(error)}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)


def _carry_out() -> None:
    import argparse

    from fl_node.data import loading
    from fl_node.lab import run_folder
    from fl_node.plan import loading as plan

    parser = argparse.ArgumentParser(prog="python -m fl_node.lab.simulate", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--modules", type=Path)
    parser.add_argument("--final", type=Path, help="evaluate these weights of the last round without a simulation")
    options = parser.parse_args()
    loaded, data = loading.load_complete(plan.load(options.plan), options.data_dir, options.modules)
    trainer = trainer_for(loaded, data, options.modules)
    start = time.monotonic()
    if options.final is not None:
        rounds = [_measured(loaded, options.final, trainer, loaded.rounds)]
    else:
        cids = simulate(loaded, options.folder, trainer, lambda number: print(f"round {number}", flush=True))
        rounds = measure(loaded, options.folder, trainer, cids)
    content = {
        "plan": loaded.model_dump(mode="json"),
        "rounds": rounds,
        "seconds": time.monotonic() - start,
        "versions": run_folder.versions(),
    }
    files.write(options.folder / "result.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
