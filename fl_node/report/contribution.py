"""What each learner's weights are worth: exact Shapley values, from the stored files, without training.

In a round every set of learners gets the value that the model made of its files alone reaches on the held-out images;
a learner's Shapley value (Shapley 1953) is what it adds to a set, averaged over all orders in which the set may grow.
The values of a round add up to what the round gained; those of all rounds to what the run did. Wang et al. 2020,
https://arxiv.org/abs/2009.06192, do the same round by round.

Values are counts of images, so they are exact fractions, the same for everybody who has the files and the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fl_node.aggregation.ensemble import Evidence
from fl_node.artifacts.model_file import GlobalMeta, Shapes, Tensors, WeightsFile
from fl_node.artifacts.store import Store
from fl_node.chain.contract import Contract
from fl_node.errors import ConfigError, WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.compressed import decoded
from fl_node.protocol.global_files import global_file, is_enough
from fl_node.protocol.reader import Reader
from fl_node.protocol.retention import first_kept, gone

MOST_LEARNERS = 8
"""Learners in one round for whom all sets are tried; the effort doubles with each."""

Value = Callable[[Tensors], int]
"""How many of the held-out images weights get right."""


@dataclass(frozen=True)
class RoundContribution:
    """The Shapley values of one round, in images, by nodeId."""

    round: int
    before: int
    after: int
    values: Mapping[int, Fraction]


def shapley(players: Sequence[int], value: Callable[[frozenset[int]], int]) -> dict[int, Fraction]:
    """Return each player's Shapley value in a game that gives every set of players a whole number.

    Shapley, "A Value for n-Person Games", Contributions to the Theory of Games II, 1953.
    """
    count = len(players)
    sets = [frozenset(player for bit, player in enumerate(players) if mask >> bit & 1) for mask in range(2**count)]
    worth = {members: value(members) for members in sets}
    orders = math.factorial(count)
    return {
        player: sum(
            (
                Fraction(math.factorial(len(members)) * math.factorial(count - len(members) - 1), orders)
                * (worth[members | {player}] - worth[members])
                for members in sets
                if player not in members
            ),
            Fraction(0),
        )
        for player in players
    }


def check(plan: Plan) -> None:
    """Check that the contribution of each learner is defined for the plan.

    Raises
    ------
    ConfigError
        The plan is asynchronous, or masks single local weights.
    """
    if plan.is_masked:
        raise ConfigError(f"plan {plan.name} masks local weights; contributions need the weights of each learner")
    if plan.mode == "async":
        raise ConfigError(f"plan {plan.name} is asynchronous; contributions need a synchronous or ensemble run")


def contributions(
    contract: Contract,
    store: Store,
    folder: Path,
    plan: Plan,
    shapes: Shapes,
    value: Value,
    evidence: Evidence | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[RoundContribution]:
    """Return what each learner contributed in each closed round.

    Parameters
    ----------
    contract, store
        The run's contract and store, as some node sees them.
    folder
        An empty folder for the files.
    plan, shapes
        The run's plan, and its model's tensors.
    value
        Counts the held-out images that weights get right.
    evidence
        Of an ensemble whose plan measures its members: what a member's weights say of the held-out images.
    progress
        Called after each round with the number of rounds done and of all.

    Raises
    ------
    ConfigError
        The run is asynchronous, a round has more than :data:`MOST_LEARNERS` inputs, or local files are deleted.
    WeightsError
        A file is not a valid model file of this run.
    """
    check(plan)
    past = history.read(contract)
    if kept := first_kept(plan, past):
        raise ConfigError(f"plan {plan.name}: {gone(plan, kept)}; contributions need the local weights of each round")
    reader = Reader(store, folder, plan, shapes)
    values_by_round = []
    rounds = list(zip(past.rounds, past.rounds[1:], strict=False))
    for closed, opened in rounds:
        parent, result = reader.read(str(closed.started.cid)), reader.read(str(opened.started.cid))
        meta = result.global_meta
        if len(meta.inputs) > MOST_LEARNERS:
            raise ConfigError(
                f"round {closed.number} has {len(meta.inputs)} files; exact values support up to {MOST_LEARNERS}"
            )
        files = {item.node_id: decoded(reader.read(item.cid, item.node_id), parent, plan) for item in meta.inputs}
        worth = {frozenset[int](): value(parent.on_demand())}

        def of(members: frozenset[int], number: int = closed.number) -> int:
            if members not in worth:  # noqa: B023 - called within this round alone
                mine = [files[n] for n in sorted(members)]  # noqa: B023
                aggregate = _made(folder, plan, past.plan_cid, number, parent, mine, meta, evidence)  # noqa: B023
                if len(members) == len(files) and aggregate.cid != result.cid:  # noqa: B023
                    raise WeightsError(
                        f"global weights {number + 1} differ from the aggregate of their files; see fl-node audit"
                    )
                worth[members] = value(aggregate.on_demand())  # noqa: B023
            return worth[members]  # noqa: B023

        values = shapley(sorted(files), of)
        values_by_round.append(RoundContribution(closed.number, worth[frozenset()], worth[frozenset(files)], values))
        reader.forget(result.path)
        progress(len(values_by_round), len(rounds))
    reader.forget()
    return values_by_round


def totals(rounds: Sequence[RoundContribution]) -> dict[int, Fraction]:
    """Return each learner's value in all rounds together, by nodeId."""
    known = sorted({node_id for contribution in rounds for node_id in contribution.values})
    return {
        node_id: sum((contribution.values.get(node_id, Fraction(0)) for contribution in rounds), Fraction(0))
        for node_id in known
    }


def as_content(rounds: Sequence[RoundContribution], images: int) -> dict[str, Any]:
    """Return contributions for JSON: shares of the held-out images as numbers, and the exact fractions of images."""

    def values(by_learner: Mapping[int, Fraction]) -> dict[str, dict[str, object]]:
        return {str(n): {"share": float(value / images), "images": str(value)} for n, value in by_learner.items()}

    return {
        "images": images,
        "rounds": [
            {
                "round": contribution.round,
                "accuracy_before": contribution.before / images,
                "accuracy_after": contribution.after / images,
                "learners": values(contribution.values),
            }
            for contribution in rounds
        ],
        "total": values(totals(rounds)),
    }


def _made(
    folder: Path,
    plan: Plan,
    plan_cid: str,
    number: int,
    parent: WeightsFile,
    inputs: Sequence[WeightsFile],
    meta: GlobalMeta,
    evidence: Evidence | None,
) -> WeightsFile:
    """Return the global file that the plan's rule makes of some of a round's files."""
    rule = plan.aggregation
    if is_enough(plan, len(meta.inputs)):
        # The round closed with enough files, so each of them counts, in smaller sets too.
        plan = plan.model_copy(update={"min_learners": 1})
    if len(inputs) < rule.least():
        plan = plan.model_copy(update={"aggregation": rule.for_fewer(len(inputs))})
    return global_file(
        folder / "made.safetensors",
        plan,
        plan_cid,
        round_=number + 1,
        parent=parent.cid,
        inputs=inputs,
        parent_file=parent,
        evidence=evidence,
        refused=meta.refused,
        absent=meta.absent,
    )
