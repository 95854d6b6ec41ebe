"""A scenario with its defence taken away, so that its expectations must fail.

python -m tests.scenarios.undefended NAME PLAN [lab's options]

Each entry of :data:`WITHOUT` says what the defence is. It is taken away in the lab's own process and in those of the
roles, which the lab then starts through this module.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from fl_node.artifacts import model_file
from fl_node.cli import app
from fl_node.errors import ConfigError
from fl_node.lab import faults, header_faults, lab
from fl_node.nodes.backends import EmbeddedBackend, ProcessBackend
from fl_node.privacy import dealing
from fl_node.protocol.names import learner_name
from fl_node.roles import journal, local_training, synchronous

GIVES_UP = "gave up after"
PATIENCE = 20.0
"""Seconds after which a role gives up that waits for what does not come, where that is what is broken."""
HASTY = {"min_learners": 1, "round_timeout": 1.0, "fetch_timeout": 0.5}
EVERYBODY = {"min_learners": 0, "round_timeout": 0.0}


@dataclass(frozen=True)
class Without:
    """How a scenario's defence is taken away, and what is then broken."""

    defence: str
    broken: str
    """A part of an expectation that fails then, or of the error that the lab ends with."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the scenario's settings of the plan."""
    take_away: Callable[[], None] = lambda: None
    """Called in each process."""
    unit: str = ""
    """On the hosts: what the roles' units say beside their own; ROLE is header or learner."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """On the hosts: variables of the playbook."""


def _replace(owner: Any, name: str, value: object) -> None:
    """Give a module or class another value for a name that it has; one that it lacks would take nothing away."""
    getattr(owner, name)
    setattr(owner, name, value)


def _never_again() -> None:
    _replace(lab, "RESTARTS", 0)


def _daemons_stay_down() -> None:
    for backend in (EmbeddedBackend, ProcessBackend):
        _replace(backend, "check", lambda _self: None)


def _unseeded() -> None:
    _replace(local_training, "derive", lambda *_: secrets.randbits(63))


def _trusting() -> None:
    _replace(model_file, "check_local", lambda *_, **__: None)


def _unlimited() -> None:
    _replace(model_file, "size_of", lambda _shapes: 2**40)


def _any_number() -> None:
    _replace(model_file, "np", SimpleNamespace(**{**vars(np), "isfinite": lambda array: np.ones_like(array, bool)}))


def _unprepared() -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("a file that is no model file")

    _replace(synchronous.Synchronous, "_reject", refuse)


def _no_standby() -> None:
    for name, scenario in faults.SCENARIOS.items():
        faults.SCENARIOS[name] = dataclasses.replace(scenario, standby=False)


def _majority_rejects() -> None:
    _replace(header_faults, "SLANDERERS", tuple(map(learner_name, (2, 3))))


def _unhashed() -> None:
    _replace(dealing, "share_hash", lambda *_: bytes(dealing.HASH_BYTES))


def _no_clock() -> None:
    _replace(journal, "CLOCK_TOLERANCE", math.inf)


def _away_too_long() -> None:
    _replace(faults, "AWAY", 2 * PATIENCE)


def _open_swarm() -> None:
    _replace(faults, "strangers_key", lambda laboratory: (laboratory.folder / "nodes" / "swarm.key").read_text())


def _shared_key() -> None:
    known, load = lab.Lab.as_node, faults.load_key
    _replace(lab.Lab, "as_node", lambda self, _node: known(self, "header"))
    _replace(faults, "create_key", lambda _path: "")
    _replace(faults, "load_key", lambda path: load(path.parent / "header" / "role.key"))


WITHOUT = {
    "learner-killed": Without(
        "training follows from the plan's seed", "the undisturbed run's, bit for bit", take_away=_unseeded
    ),
    "header-killed": Without("a killed role is started again", "header was killed by", take_away=_never_again),
    "learner-away": Without("the plan wants every learner", "publishes in the same round", HASTY),
    "learner-leaves": Without("the plan is content with fewer", GIVES_UP, EVERYBODY),
    "learner-late": Without("the plan is content with fewer", GIVES_UP, EVERYBODY),
    "garbage": Without("a file is checked before it is read", "no model file", take_away=_unprepared),
    "nan": Without("numbers are checked", "values that are not finite", take_away=_any_number),
    "large-file": Without("no more is read than a model has", "learner 2's file is rejected", take_away=_unlimited),
    "missing-file": Without("a file is not waited for for ever", GIVES_UP, EVERYBODY),
    "others-file": Without("metadata is checked", "learner 2's file is rejected", take_away=_trusting),
    "yesterdays-file": Without("metadata is checked", "learner 2's file is rejected", take_away=_trusting),
    "trespass": Without("each account has its own key", GIVES_UP, take_away=_shared_key),
    "stranger": Without("each account has its own key", GIVES_UP, take_away=_shared_key),
    "stranger-daemon": Without(
        "the swarm has a key that members alone have", "neither a connection nor a file", take_away=_open_swarm
    ),
    **{
        f"header-{lie}": Without("learners verify", broken, {"verification": "none"})
        for lie, broken in (
            ("lies", "the audit passes"),
            ("omits", "the audit passes"),
            ("calls-missing", "withdraw the false weights"),
            ("wrong-parent", "the audit passes"),
            ("other-plan", "metadata: plan is"),
        )
    },
    "flood-async": Without(
        "a learner's share is capped", "successive updates are learner 2's", {"aggregation": {"rule": "fedasync"}}
    ),
    "header-early": Without(
        "the plan wants every learner", "refuses to end a round early", {"min_learners": 1, "round_timeout": 1.0}
    ),
    "header-gone": Without("a standby takes over", GIVES_UP, take_away=_no_standby),
    "header-gone-aggregating": Without("a standby takes over", GIVES_UP, take_away=_no_standby),
    "header-returns": Without("a standby takes over", "standby becomes the header", take_away=_no_standby),
    "learner-rejects": Without("two of three must reject", "nothing is withdrawn", take_away=_majority_rejects),
    "header-split": Without("a standby takes over", "nobody took the header's place", take_away=_no_standby),
    "masks-lost-before": Without("the plan accepts fewer learners", "close without learner 2", EVERYBODY),
    "masks-lost-for-good": Without("the plan accepts fewer learners", GIVES_UP, EVERYBODY),
    "masks-lost-after": Without(
        "three of four learners open a round",
        "end without learner 2's shares",
        {"privacy": {"secure_aggregation": True, "threshold": 4}, "min_learners": 4},
    ),
    "masks-wrong-shares": Without("shares are checked by their hashes", GIVES_UP, take_away=_unhashed),
    "header-asks-both": Without("a standby takes over", GIVES_UP, take_away=_no_standby),
    "sealer-dates-back": Without("roles compare the blocks' time with their own", "own clock", take_away=_no_clock),
    "geth-killed": Without("a daemon that ended is started again", GIVES_UP, take_away=_daemons_stay_down),
    "ipfs-killed": Without("a daemon that ended is started again", GIVES_UP, take_away=_daemons_stay_down),
    "sealers-gone": Without("a role waits as long as it takes", GIVES_UP, take_away=_away_too_long),
}

HOSTS_PATIENCE = 60
"""The same on the hosts: longer than a learner takes to start and to train, shorter than :data:`HOLD`."""
HOLD = 75
"""Seconds for which a fault lasts on hosts without their defence."""
_IMPATIENT = f"""[Service]
ExecStart=
ExecStart=/opt/fl-node/venv/bin/fl-node ROLE --patience {HOSTS_PATIENCE}
Restart=no
"""


def _hurried() -> Without:
    settings = {"min_learners": 1, "round_timeout": 8.0}
    return Without("the plan wants every learner", "the undisturbed run's, bit for bit", settings)


def _impatient(waiting: str) -> Without:
    return Without(
        "a role waits as long as it takes",
        f"was waiting: {waiting}",
        # Training that is over before a role gives up, and not before the fault.
        {"training.epochs": 20},
        unit=_IMPATIENT,
        variables={"fl_plan": "plans/scenario.toml", "fl_hold": HOLD},
    )


ON_HOSTS = {
    "chain-split": _hurried(),
    "disk-full": _hurried(),
    "geth-stopped": _impatient("chain at http://127.0.0.1:8545 can't be reached"),
    "header-cut-off": _impatient("round 1: learner"),
    **{
        f"header-{lie}": Without(
            "learners verify", "has not logged", {"verification": "none"}, variables={"fl_until": HOLD}
        )
        for lie in ("lies", "omits", "calls-missing", "wrong-parent", "other-plan")
    },
    **{
        f"header-{how}": Without(
            "learners vote", "has not logged", {"header_timeout": 3600.0}, variables={"fl_until": 2 * HOLD}
        )
        for how in ("gone", "gone-aggregating", "returns")
    },
    "learner-rejects": Without(
        "more than half must reject", "nobody takes the header's place", variables={"fl_rejecting": "learners"}
    ),
    "header-killed": Without(
        "systemd starts a killed role again", "fl-header.service failed on header", unit="[Service]\nRestart=no\n"
    ),
    "host-rebooted": _hurried(),
    "ipfs-stopped": _impatient("IPFS at /ip4/127.0.0.1/tcp/5001 can't be reached"),
    "learner-cut-off": _hurried(),
    "learner-killed": _hurried(),
    "sealers-gone": _impatient("chain at http://127.0.0.1:8545 can't be reached"),
    "slow-line": Without(
        "the plan gives a file time to come",
        "the learner's file gets through while the line is bad",
        {"min_learners": 1, "fetch_timeout": 1.0},
    ),
}
"""The playbooks without their defences; they say which of the plan's settings are others, or how units differ."""


class _Child(lab.Child):
    """A role that is started through this module."""

    without = ""

    def __init__(self, name: str, command: Sequence[str], *arguments: Any, **options: Any) -> None:
        rest = command[command.index("fl_node") + 1 :]  # python -P -m fl_node
        command = [command[0], "-P", "-m", __spec__.name, self.without, *rest]
        if WITHOUT[self.without].broken == GIVES_UP:
            command += ["--patience", str(PATIENCE)]
        super().__init__(name, command, *arguments, **options)


def main() -> None:
    """Take the defence away and go on as ``fl-node``: a role if one is named, else the lab."""
    name, what, *rest = sys.argv[1:]
    WITHOUT[name].take_away()
    if what in ("header", "learner"):
        sys.argv = ["fl-node", what, *rest]
    else:
        _Child.without, lab.Child = name, _Child  # type: ignore[misc]
        scenario = faults.SCENARIOS[name]
        settings = {**scenario.settings, **WITHOUT[name].settings}
        faults.SCENARIOS[name] = dataclasses.replace(scenario, settings=settings)
        sys.argv = ["fl-node", "lab", what, "--scenario", name, *rest]
    app.main()


if __name__ == "__main__":
    main()
