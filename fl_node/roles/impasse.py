"""Ends the roles of a run with masks that can never go on, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fl_node import events
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import Contract, State
from fl_node.errors import RunStuck, StoreError, WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol import impasse
from fl_node.protocol.impasse import Impasse
from fl_node.protocol.masked import keys_of, wrong_keys
from fl_node.protocol.reader import Reader
from fl_node.roles.loop import Site, Waiting
from fl_node.runtime.logs import emit

SETTLE = 5.0
"""Seconds for which an impasse must persist: a block that is replaced may end it."""
LOOK_AGAIN = 30.0
"""Seconds between a standby's looks at the files of a round."""


class End:
    """Ends a role when its run has been in the same impasse for a while.

    Parameters
    ----------
    site
        The role's node.
    """

    def __init__(self, site: Site) -> None:
        self._clock = site.timing.clock
        self._seen: tuple[State, Impasse] | None = None
        self._since = 0.0

    def wait(self, state: State, impasse: Impasse, settle: float = SETTLE) -> Waiting:
        """Return the wait until it is certain that an impasse persists.

        Parameters
        ----------
        state
            What the contract says.
        impasse
            The impasse.
        settle
            Seconds for which it must persist.

        Raises
        ------
        RunStuck
            It persists.
        """
        now = self._clock.monotonic()
        if self._seen != (state, impasse):
            self._seen, self._since = (state, impasse), now
        if now - self._since >= settle:
            raise RunStuck(impasse.text, impasse.learners)
        return Waiting(
            "round_end", impasse.text, round=state.round, learners=impasse.learners, until=self._since + settle
        )


class Lookout:
    """Looks whether the round of another header can never end, once nothing has happened in it for a while.

    Parameters
    ----------
    site, plan
        The role's node and the run's plan.
    reader
        Reads the files of the round.
    """

    def __init__(self, site: Site, plan: Plan, reader: Reader) -> None:
        self._site = site
        self._plan = plan
        self._reader = reader
        self._end = End(site)
        self._seen: State | None = None
        self._next = 0.0

    def wait(self, state: State) -> Waiting | None:
        """Return the wait of a run in an impasse; None if it can go on, as far as is known.

        Parameters
        ----------
        state
            What the contract says now.

        Raises
        ------
        RunStuck
            The run can never go on.
        """
        if not self._plan.is_masked or state.global_cid is None:
            return None
        now = self._site.timing.clock.monotonic()
        if self._seen != state:
            self._seen, self._next = state, now + self._plan.header_timeout
        if now < self._next:
            return None
        contract, plan_cid = self._site.contract, self._site.contract.plan()
        if not state.closed and contract.round_at(state.round).rejections:
            return None  # other weights come
        try:
            parent = self._reader.read(state.global_cid)
            self._reader.expect_like(parent)
            impasse = find(contract, self._plan, plan_cid, self._reader, state, parent)
        except (StoreError, WeightsError):
            impasse = None  # a standby needs no files
        if impasse is None:
            self._next = self._site.timing.clock.monotonic() + LOOK_AGAIN
            return None
        waiting = self._end.wait(state, impasse)
        return replace(waiting, watch=contract.state, seen=state)


def name_wrong_keys(round_: int, keys: Mapping[int, str]) -> None:
    """Log what is wrong with the keys that learners announced.

    Parameters
    ----------
    round_
        The round that they are for.
    keys
        The keys in hexadecimal digits, by nodeId.
    """
    for fault in wrong_keys(keys):
        emit(events.WrongKey(round=round_, learner=fault.node_id, detail=fault.text))


def find(
    contract: Contract, plan: Plan, plan_cid: str, reader: Reader, state: State, parent: WeightsFile
) -> Impasse | None:
    """Return why the current round can never end, from chain and files; None if it can, as far as they tell.

    Parameters
    ----------
    contract
        The run's contract.
    plan, plan_cid
        The run's plan and its CID.
    reader
        Reads the files.
    state
        What the contract says.
    parent
        The global weights that the round started from.

    Raises
    ------
    StoreUnreachable
        The store does not answer.
    """
    round_ = state.round
    members = contract.members(round_) if state.closed else contract.learners()
    published = contract.local_weights(round_, members)
    if not state.closed:
        return find_open(contract, plan, round_, parent, [n for n in members if n not in published])
    opened, _ = contract.openings_and_next_keys(round_, members)
    return impasse.of_closed_round(reader, plan, plan_cid, parent, published, opened)


def find_open(
    contract: Contract,
    plan: Plan,
    round_: int,
    parent: WeightsFile,
    silent: Collection[int],
    block: str | None = None,
) -> Impasse | None:
    """Return why an open round can never end; None if it can, as far as the chain tells.

    Parameters
    ----------
    contract
        The run's contract.
    plan, round_
        The run's plan and the round.
    parent
        The global weights that the round started from.
    silent
        The registered learners that have not published in it.
    block
        The hash of the block whose state counts; the newest if None.
    """
    keyed = keys_of(parent).keys()
    if impasse.of_open_round(plan, round_, silent, keyed) is None:
        return None  # even if all of them sit out
    _, announced = contract.openings_and_next_keys(round_, list(silent), block)
    return impasse.of_open_round(plan, round_, announced.keys(), keyed)
