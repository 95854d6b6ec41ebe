"""The policy of a learner's owner; at the start of a run the learner trusts no statement of the header."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from fl_node.chain import deployment
from fl_node.chain.contract import Contract
from fl_node.data.partition import shard_size
from fl_node.errors import ConfigError
from fl_node.plan.schema import Plan
from fl_node.protocol import budget
from fl_node.protocol.terms import terms_of
from fl_node.runtime import numerals

Limit = tuple[str, Callable[[Plan], float], bool]
"""A limit: its description, its value in a plan, and whether it is a maximum (otherwise a minimum)."""


def _epsilon(plan: Plan) -> float:
    """Return the most ε that a plan foresees: that of its rounds, or what it allows if rounds are withdrawn."""
    if plan.dp is None:
        return math.inf  # there is no bound
    return max(*budget.planned(plan).values(), plan.dp.limit or 0.0)


LIMITS: Mapping[str, Limit] = {
    "min_samples": (
        "samples in the smallest shard",
        lambda plan: min(shard_size(plan, node_id) for node_id in range(1, plan.learners + 1)),
        False,
    ),
    "min_learners": ("learners", lambda plan: plan.learners, False),
    "max_epochs": ("epochs per round", lambda plan: plan.training.epochs, True),
    "max_rounds": ("rounds", lambda plan: plan.rounds, True),
    "max_epsilon": ("ε of differential privacy", _epsilon, True),
}
"""The limits of ``--accept NAME=NUMBER``."""


def parse(given: Iterable[str]) -> dict[str, float]:
    """Return limits by name from texts such as ``max_epochs=10``.

    Raises
    ------
    ConfigError
        A text is not a known limit and a number, or a limit is given twice; the message says what would be right.
    """
    limits: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            limit = numerals.real(number)
        except ValueError:
            limit = -1.0
        if name not in LIMITS or limit < 0:
            raise ConfigError(
                f"--accept {text}: should be NAME=NUMBER, such as max_epochs=10; names are {', '.join(LIMITS)}"
            )
        if name in limits:
            raise ConfigError(f"--accept {text}: {name} is given twice; give it once")
        limits[name] = limit
    return limits


def check_plan(plan: Plan, limits: Mapping[str, float]) -> None:
    """Check that the learner's owner accepts a plan.

    Parameters
    ----------
    plan
        The run's plan.
    limits
        What :func:`parse` returned.

    Raises
    ------
    ConfigError
        The plan is beyond a limit.
    """
    for name, limit in limits.items():
        what, measure, is_most = LIMITS[name]
        value = measure(plan)
        if (value > limit) if is_most else (value < limit):
            bound = "at most" if is_most else "at least"
            raise ConfigError(
                f"the plan {plan.name} has {value:g} {what}; this learner accepts {bound} {limit:g} (--accept {name})"
            )


def check_accounts(contract: Contract, accounts: Mapping[int, str]) -> dict[int, str]:
    """Check that the header registered the accounts that the learner's owner expects.

    Parameters
    ----------
    contract
        The run's contract.
    accounts
        The account of each learner, by nodeId.

    Returns
    -------
    dict
        Those of them that are not registered yet.

    Raises
    ------
    ConfigError
        Another account is registered for a learner.
    """
    registered = {node_id: contract.account_of(node_id) for node_id in sorted(accounts)}
    for node_id, account in registered.items():
        if account not in (None, accounts[node_id]):
            right = accounts[node_id]
            raise ConfigError(
                f"contract {contract.address}: learner {node_id} is {account}; should be {right} (--learner)"
            )
    return {node_id: accounts[node_id] for node_id, account in registered.items() if account is None}


def check_contract(contract: Contract, plan: Plan) -> None:
    """Check that a run's contract is this version's, deployed by its own constructor with the plan's terms.

    Then its rules and its first state are those promised.

    Parameters
    ----------
    contract
        The run's contract.
    plan
        The plan that it names.

    Raises
    ------
    ConfigError
        It is another contract, was deployed in another way, or enforces other terms.
    ChainError
        The node can't tell yet.
    """
    if problem := deployment.problem_of(contract):
        field, text = problem
        raise ConfigError(f"contract {contract.address} is refused ({field}): {text}")
    actual, right = asdict(contract.terms()), asdict(terms_of(plan))
    for name, value in actual.items():
        if value != right[name]:
            raise ConfigError(
                f"contract {contract.address} has {name} = {value}; the plan {plan.name} gives {right[name]}"
            )
