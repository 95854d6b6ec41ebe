"""Publications of learners in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fl_node.report.collect import Member, Result, RoundResult


@dataclass(frozen=True)
class Turn:
    """One publication of a learner in time, in seconds by the chain's clock since the first global weights.

    ``began`` is the round whose global weights it was trained from, ``round`` the one that accepted or rejected it.
    ``start`` is when the learner could begin, ``ready`` when its file was in a block, ``end`` when the next global
    weights were, ``free`` when it could begin its next; None where that is not known.
    """

    node_id: int
    round: int
    began: int | None
    start: int
    ready: int
    end: int | None
    free: int | None
    member: Member


def members(closed: RoundResult) -> tuple[Member, ...]:
    """Return the local files of a round that its global file speaks of; of an unreadable one, those published."""
    return closed.members or tuple(
        Member(node_id, entry, began=closed.round) for node_id, entry in closed.local.items()
    )


def turns(result: Result) -> list[Turn]:
    """Return each publication in time, in the order of learners and of what each published."""
    times = closings(result)
    begin = result.initial.time if result.initial else None
    if begin is None:
        return []
    asynchronous = result.plan.mode == "async"
    publications = [(closed.round, member) for closed in result.rounds for member in members(closed)]
    open_round = len(result.rounds)
    if not asynchronous:
        publications += [(open_round, Member(n, entry, began=open_round)) for n, entry in result.open_round.items()]
    timeline: list[Turn] = []
    for node_id in sorted({member.node_id for _, member in publications}):
        mine = sorted(
            (
                (entry.time, round_, member)
                for round_, member in publications
                if member.node_id == node_id and (entry := member.entry).time is not None
            ),
            key=lambda turn: turn[:2],
        )
        before = 0
        for position, (time, round_, member) in enumerate(mine):
            began = member.began if member.began is not None or asynchronous else round_
            ready = int(time or 0) - begin
            opened = times[began] if began is not None and began < len(times) else None
            start = min(max(before, ready if opened is None else opened), ready)
            end = times[round_ + 1] if round_ + 1 < len(times) else None
            following = mine[position + 1][2].began if position + 1 < len(mine) else None
            free = end
            if asynchronous:
                known = following is not None and following < len(times)
                free = max(ready, times[following] or 0) if known and following is not None else None
            timeline.append(Turn(node_id, round_, began, start, ready, end, free, member))
            before = ready
    return timeline


def newest(timeline: Sequence[Turn], most: int) -> list[Turn]:
    """Return the turns of the newest rounds, of whole rounds at most so many, and of the newest round in any case.

    Parameters
    ----------
    timeline
        Turns.
    most
        The number of turns.
    """
    count = Counter(turn.round for turn in timeline)
    first, total = max(count, default=0), 0
    for round_ in sorted(count, reverse=True):
        total += count[round_]
        if total > most:
            break
        first = round_
    return [turn for turn in timeline if turn.round >= first]


def closings(result: Result) -> list[int | None]:
    """Return when each global file came, in seconds since the first."""
    if result.initial is None or result.initial.time is None:
        return []
    times = [result.initial.time, *(closed.result.time for closed in result.rounds)]
    return [None if time is None else time - result.initial.time for time in times]
