"""Checks that a global file belongs to its run and round, and compares it with the recomputed file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_node.artifacts.model_file import GlobalMeta, Input, Tensors, WeightsFile
from fl_node.errors import WeightsError
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.names import HEADER, learner_label
from fl_node.protocol.verification.case import Case
from fl_node.runtime.tensors import blocks_of


def again(case: Case) -> Path:
    """Return the path for a recomputed global file."""
    return case.reader.folder / "again.safetensors"


def check_initial(case: Case, name: str, initial: Tensors, keys: Mapping[int, str] = MappingProxyType({})) -> None:
    """Check that the run started from the weights that the plan's seed gives.

    Parameters
    ----------
    case
        The run.
    name
        The CID of the initial weights.
    initial
        The weights that the plan's seed gives.
    keys
        In a run with masks: the keys of round 0 that learners announced, in hexadecimal digits, by nodeId.
    """
    result = case.result
    try:
        file = case.file(name)
        meta = file.global_meta
    except WeightsError as error:
        case.unreadable(0, HEADER, name, error)
        return
    result.compare(0, HEADER, "plan", meta.plan, case.plan_cid)
    result.compare(0, HEADER, "round", meta.round, 0)
    expected = initial_file(again(case), case.plan, case.plan_cid, initial, keys)
    report_difference(case, 0, file, expected, "the plan's seed gives")


def closing_file(case: Case, number: int, parent: str, name: str) -> WeightsFile | None:
    """Return the global file that ended a round and check its metadata; None if it is not a valid model file.

    Parameters
    ----------
    case
        The run.
    number
        The round that starts from this file.
    parent
        The CID of the global weights that the round before started from.
    name
        The file's CID.
    """
    result = case.result
    try:
        file = case.file(name)
        meta = file.global_meta
    except WeightsError as error:
        case.unreadable(number, HEADER, name, error)
        return None
    result.compare(number, HEADER, "plan", meta.plan, case.plan_cid)
    result.compare(number, HEADER, "round", meta.round, number)
    result.compare(number, HEADER, "parent", meta.parent, parent)
    result.compare(number, HEADER, "rule", meta.rule, case.plan.aggregation.rule)
    return file


def report_difference(case: Case, number: int, file: WeightsFile, expected: WeightsFile, source: str) -> None:
    """Add a finding for each field in which a global file differs from the expected one.

    Parameters
    ----------
    case
        The run.
    number
        The round that starts from these global weights.
    file, expected
        The file on chain, and the one recomputed.
    source
        What gives the expected one, such as ``its local files give``.
    """
    if file.cid == expected.cid:
        return
    meta, right_meta = file.global_meta, expected.global_meta
    same = meta == right_meta
    _compare_meta(case, number, meta, right_meta)
    for name in file.shapes:
        count = 0
        for block in blocks_of(file.shapes[name]):
            actual, right = file.flat(name, *block), expected.flat(name, *block)
            count += int((actual.view(np.uint32) != right.view(np.uint32)).sum())
        if count:
            same = False
            text = f"differs in {count} of {math.prod(file.shapes[name])} values from what {source}"
            case.result.find(number, HEADER, f"tensor {name}", text)
    if same:
        case.result.find(number, HEADER, "file", f"is {file.cid}, {source} {expected.cid}")


def _compare_meta(case: Case, number: int, meta: GlobalMeta, right: GlobalMeta) -> None:
    fields = ("plan", "round", "parent", "rule", "refused", "absent", "taken", "spent", "epsilon", "keys", "scores")
    for name in fields:
        case.result.compare(number, HEADER, name, getattr(meta, name), getattr(right, name))
    _compare_shares(case, number, meta.inputs, right.inputs)


def _compare_shares(case: Case, number: int, actual: tuple[Input, ...], right: tuple[Input, ...]) -> None:
    learners, expected = ([input_.node_id for input_ in inputs] for inputs in (actual, right))
    if learners != expected:
        text = ", ".join(map(str, learners)), ", ".join(map(str, expected))
        case.result.find(
            number, HEADER, "inputs", f"are from learners {text[0]}, should be from {text[1]}, in this order"
        )
    entries = {input_.node_id: input_ for input_ in right}
    for input_ in actual:
        if (other := entries.get(input_.node_id)) is not None:
            for name in ("samples", "share", "started"):
                case.result.compare(
                    number, learner_label(input_.node_id), name, getattr(input_, name), getattr(other, name)
                )
