"""Reads the openings of a closed round; header, learners and audit all use this."""

from __future__ import annotations

from collections.abc import Mapping

from fl_node.artifacts.store import TooLarge
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.protocol.masked import Fault
from fl_node.protocol.openings import Opening
from fl_node.protocol.reader import Reader


def read_openings(
    reader: Reader, plan_cid: str, names: Mapping[int, str], timeout: float | None = None
) -> tuple[dict[int, Opening], list[Fault]]:
    """Return the available openings by nodeId, and the faults of invalid ones.

    Parameters
    ----------
    reader
        Reads the files.
    plan_cid
        The CID of the run's plan.
    names
        The CIDs of the openings, by nodeId.
    timeout
        Seconds without progress after which a file is missing; by default the reader's.

    Raises
    ------
    StoreUnreachable
        The store does not answer.
    """
    openings: dict[int, Opening] = {}
    faults: list[Fault] = []
    for node_id, name in sorted(names.items()):
        try:
            opening = reader.opening(name, timeout)
        except StoreUnreachable:
            raise
        except (TooLarge, WeightsError) as error:
            faults.append(Fault(node_id, f"published {name} to remove masks: {error}"))
        except StoreError:
            continue
        else:
            if (opening.node_id, opening.plan) == (node_id, plan_cid):
                openings[node_id] = opening
            elif opening.plan != plan_cid:
                faults.append(Fault(node_id, f"published {name}, an opening of a run with plan {opening.plan}"))
            else:
                faults.append(Fault(node_id, f"published {name}, an opening of learner {opening.node_id}"))
    return openings, faults
