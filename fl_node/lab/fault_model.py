"""What a scenario is: a fault at a chosen event of a run, and what must hold nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fl_node import events
from fl_node.artifacts.model_file import Shapes
from fl_node.artifacts.store import Store
from fl_node.audit.result import Audit
from fl_node.chain.contract import Contract
from fl_node.nodes.ipfs import IpfsNode
from fl_node.nodes.process import Child
from fl_node.plan.schema import Plan
from fl_node.report.collect import Result

ROUND = 1
"""The round in which the fault is injected."""


@dataclass(frozen=True)
class Outcome:
    """What a lab ended with."""

    folder: Path
    result: Result
    audit: Audit
    report: Path
    model: Path
    seconds: float
    """From the start of the roles to the last global weights."""


@dataclass(frozen=True)
class Check:
    """An expectation of a scenario, whether it passed, and what was seen."""

    what: str
    passed: bool
    seen: str


@dataclass
class Trace:
    """What happened in a run, as far as its roles said it; times in seconds from the start of the roles."""

    events: list[tuple[float, str, Mapping[str, Any]]] = field(default_factory=list)
    fault: float | None = None
    """When the fault was injected."""
    notes: list[str] = field(default_factory=list)
    prepared: str = ""
    """CID of what was stored before the roles started, because that takes its time."""
    back: bool = False
    """Whether a daemon that was killed runs again, as another process."""
    got: list[str] = field(default_factory=list)
    """What somebody got who should get nothing."""

    def matching(self, node: str, kind: str, **fields: object) -> Iterator[tuple[float, Mapping[str, Any]]]:
        """Yield each matching event of a node, with its time.

        Parameters
        ----------
        node
            The node that logged the event.
        kind
            The event's name.
        **fields
            Values that fields of the event must have.
        """
        for when, who, event in self.events:
            if who == node and events.matches(event, {"event": kind, **fields}):
                yield when, event


class Controls(Protocol):
    """What a scenario may see of a lab, and do to it."""

    folder: Path
    roles: dict[str, Child]
    shapes: Shapes

    @property
    def plan(self) -> Plan:
        """The run's plan."""

    @property
    def nodes(self) -> list[str]:
        """The names of header and learners."""

    def hold(self, node: str) -> None:
        """End a role and don't start it again until it is released; before the start: don't start it."""

    def release(self, node: str) -> None:
        """Start a role that was held."""

    def later(self, seconds: float, deed: Callable[[], None]) -> None:
        """Do something after some seconds; the lab does not end before."""

    def when(
        self, node: str, event: type[events.Event], deed: Callable[[], None], what: str, **fields: object
    ) -> None:
        """Do something when a role has logged an event; the lab fails if nobody logs anything for long before that.

        Parameters
        ----------
        node
            The role.
        event
            The event; it may have been logged already.
        deed
            What is done, once.
        what
            What did not happen if the lab fails, such as "round 1 did not close".
        **fields
            Values that fields of the event must have.
        """

    def daemons(self) -> Mapping[str, Child]:
        """Return the processes of the nodes, by names such as ``learner-1 geth``."""

    def swarm(self) -> Mapping[str, IpfsNode]:
        """Return the nodes of the swarm, by the names of their nodes."""

    def split(self, alone: str | None) -> None:
        """Connect a node's Geth to no other, or all to one another if None."""

    def date_back(self, seconds: float) -> None:
        """Put the clock of the embedded chain back by so many seconds."""

    def as_node(self, node: str) -> tuple[Contract, Store]:
        """Return contract and store as a node sees them, with its role's account."""


Fault = Callable[[Controls, Trace], None]
Expectation = Callable[[Trace, Outcome], Check]


@dataclass(frozen=True)
class Scenario:
    """One scenario: when the fault is injected and what it is, and what must hold at the end."""

    name: str
    text: str
    """What a student should look at."""
    trigger: tuple[str, str]
    """The node and the kind of its event, in round :data:`ROUND`, at which the fault is injected."""
    fault: Fault
    expectations: tuple[Expectation, ...]
    same_bits: bool
    """Whether the final weights must be those of the undisturbed run, bit for bit."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the plan."""
    backends: tuple[str, ...] = ("embedded", "processes")
    begin: Fault = lambda _lab, _trace: None
    """Done before the roles start."""
    standby: bool = False
    """Whether each learner has a standby header."""


def first_message(matches: list[Mapping[str, Any]]) -> str:
    """Return the sentence of the first of these events."""
    return str(matches[0]["message"]) if matches else "no such event"
