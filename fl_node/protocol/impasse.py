"""Rounds with masks that can never end: why, and because of which learners.

What a learner published in a round is fixed as soon as it is closed, and what its files hold is fixed by their CIDs.
So invalid files stay invalid, and everybody comes to the same conclusion. Missing files may come back with their
learners, so they are waited for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fl_node.artifacts.model_file import WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol.masked import Fault, check_masked, needed_members, reveal, stuck_without
from fl_node.protocol.names import learner_label, learners_have, learners_label
from fl_node.protocol.opened import read_openings
from fl_node.protocol.reader import Reader

TRY = 2.0
"""Seconds without progress after which a file is missing once another is."""
NEW_RUN = "start a new run"


@dataclass(frozen=True)
class Impasse:
    """Why a round can never end, with the remedy, and the learners that caused it."""

    text: str
    learners: tuple[int, ...]


@dataclass(frozen=True)
class Files:
    """The masked files of a closed round by nodeId: the valid ones, and why others are invalid or missing."""

    good: dict[int, WeightsFile] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)


def read_files(reader: Reader, plan: Plan, plan_cid: str, parent: WeightsFile, published: Mapping[int, str]) -> Files:
    """Read the masked files of a closed round.

    Parameters
    ----------
    reader
        Reads the files.
    plan, plan_cid
        The run's plan and its CID.
    parent
        The global weights that the round started from.
    published
        The CIDs of the files, by nodeId.

    Raises
    ------
    StoreUnreachable
        The store does not answer.
    """
    files = Files()
    for node_id, name in sorted(published.items()):
        try:
            # All of them are missing if this host is cut off; then not each is waited for.
            if files.missing and not reader.is_available(name, TRY, node_id):
                files.missing[node_id] = f"{name} did not arrive in {TRY:g} s"
                continue
            file = reader.read(name, node_id)
            check_masked(file, plan, plan_cid, node_id, parent)
        except StoreUnreachable:
            raise
        except (TooLarge, WrongContent, WeightsError) as error:
            files.bad[node_id] = str(error)
        except StoreError as error:
            files.missing[node_id] = str(error)
        else:
            files.good[node_id] = file
    return files


def _of_keys(plan: Plan, round_: int, keyed: Collection[int]) -> Impasse | None:
    """Return why too few learners can publish a valid file in a round; None if enough can.

    Parameters
    ----------
    plan
        The run's plan.
    round_
        The round.
    keyed
        The learners whose keys are in the global weights that the round started from.
    """
    needed = needed_members(plan)
    if len(keyed) >= needed:
        return None
    without = tuple(node_id for node_id in range(1, plan.learners + 1) if node_id not in keyed)
    who = f"{learners_have(without)} none"
    text = f"round {round_} can't be opened: its sum needs {needed} learners with a usable key of the round; {who}"
    return Impasse(f"{text}; {NEW_RUN}", without)


def of_open_round(
    plan: Plan, round_: int, sitting_out: Collection[int], keyed: Collection[int] | None = None
) -> Impasse | None:
    """Return why an open round can never close, or nothing of it can ever be opened; None if neither is certain.

    Parameters
    ----------
    plan
        The run's plan.
    round_
        The round.
    sitting_out
        The learners that announced a key for the next round and published nothing in this one.
    keyed
        The learners whose keys are in the global weights that the round started from, if known.
    """
    if keyed is not None and (found := _of_keys(plan, round_, keyed)) is not None:
        return found
    if not (stuck := stuck_without(plan, sitting_out)):
        return None
    return Impasse(f"round {round_}: {stuck}", tuple(sorted(sitting_out)))


def of_files(
    plan: Plan, round_: int, good: Collection[int], bad: Mapping[int, str], missing: Collection[int]
) -> Impasse | None:
    """Return why nothing of a closed round can ever be opened; None if it can, perhaps once missing files are back.

    Parameters
    ----------
    plan
        The run's plan.
    round_
        The round.
    good
        The members with a valid file.
    bad
        Why the files of other members are invalid, by nodeId.
    missing
        The members whose files are missing.
    """
    needed = needed_members(plan)
    if len(good) + len(missing) >= needed:
        return None
    absent = set(range(1, plan.learners + 1)) - {*good, *bad, *missing}
    parts = [f"the file of {learner_label(node_id)} is invalid ({reason})" for node_id, reason in sorted(bad.items())]
    if absent:
        parts.append(f"{learners_label(absent)} published none")
    text = f"round {round_} can't be opened: its sum needs the valid masked files of {needed} learners"
    return Impasse(f"{text}; {'; '.join(parts)}; {NEW_RUN}", tuple(sorted({*bad, *absent})))


def of_openings(round_: int, lost: Collection[int], faults: Iterable[Fault]) -> Impasse | None:
    """Return why the masks of a closed round can never be removed; None if they can.

    Parameters
    ----------
    round_
        The round.
    lost
        The members whose seeds nobody can compute any more.
    faults
        What is wrong with what learners published.
    """
    if not lost:
        return None
    wrong = sorted(set(faults), key=lambda fault: fault.node_id)
    parts = [f"{learner_label(fault.node_id)} {fault.text}" for fault in wrong]
    whose = learners_label(lost)
    text = f"the masks of round {round_} can't be removed: too few valid shares of the seeds of {whose}"
    who = tuple(sorted({fault.node_id for fault in wrong})) or tuple(sorted(lost))
    return Impasse("; ".join([text, *parts, NEW_RUN]), who)


def of_closed_round(
    reader: Reader,
    plan: Plan,
    plan_cid: str,
    parent: WeightsFile,
    published: Mapping[int, str],
    opened: Mapping[int, str],
) -> Impasse | None:
    """Return why a closed round can never end; None if it can, as far as its files tell.

    Parameters
    ----------
    reader
        Reads the files.
    plan, plan_cid
        The run's plan and its CID.
    parent
        The global weights that the round started from.
    published, opened
        The CIDs of the masked files and of the openings of its members, by nodeId.

    Raises
    ------
    StoreUnreachable
        The store does not answer.
    """
    round_ = parent.global_meta.round
    files = read_files(reader, plan, plan_cid, parent, published)
    if files.missing or len(files.good) < needed_members(plan):
        return of_files(plan, round_, files.good, files.bad, files.missing)
    openings, faults = read_openings(reader, plan_cid, opened, TRY)
    revealed = reveal(plan, parent, files.good, openings, silent(files.good, opened, openings, faults))
    return of_openings(round_, revealed.lost, (*faults, *revealed.faults))


def silent(
    members: Collection[int], opened: Mapping[int, str], openings: Collection[int], faults: Iterable[Fault]
) -> tuple[int, ...]:
    """Return the members whose opening may still come: it is not published yet, or its file is missing.

    Parameters
    ----------
    members
        The members with a valid file.
    opened
        The CIDs of the openings that are published, by nodeId.
    openings
        The members whose opening could be read.
    faults
        What is wrong with others.
    """
    here = {*openings, *(fault.node_id for fault in faults)}
    return tuple(node_id for node_id in sorted(members) if node_id not in opened or node_id not in here)
