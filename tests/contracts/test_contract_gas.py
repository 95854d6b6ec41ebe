"""What a call costs, and that it costs the same however long a run is."""

from dataclasses import dataclass

import pytest
from deployment import ALICE, BOB, HEADER, MALLORY, Deployment, sha
from eth_account.signers.local import LocalAccount
from web3 import Web3

LIMIT = 80_000
ROUNDS = 1_000


@dataclass(frozen=True)
class Costs:
    """Gas by round."""

    global_weights: list[int]
    local_weights: list[int]
    latecomer: list[int]


@pytest.fixture(scope="module")
def costs(w3: Web3) -> Costs:
    """A run of a thousand rounds, in all of which alice takes part; bob comes in the first, mallory in the last."""
    run = Deployment(w3)
    costs = Costs([], [], [])

    def late(node: int, account: LocalAccount, number: int) -> None:
        run.write(HEADER, "registerLearner", node, account.address)
        receipt = run.write(account, "setLocalWeight", node, sha(f"local {number} {node}"))
        costs.latecomer.append(receipt["gasUsed"])

    run.write(HEADER, "registerLearner", 1, ALICE.address)
    for number in range(ROUNDS + 1):
        receipt = run.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
        costs.global_weights.append(receipt["gasUsed"])
        receipt = run.write(ALICE, "setLocalWeight", 1, sha(f"local {number} 1"))
        costs.local_weights.append(receipt["gasUsed"])
        if number == 0:
            late(2, BOB, number)
    late(3, MALLORY, ROUNDS)
    assert run.read("round") == ROUNDS
    return costs


def test_a_call_never_costs_more_than_80_000_gas(costs: Costs) -> None:
    assert max(costs.global_weights) <= LIMIT
    assert max(costs.local_weights) <= LIMIT


def test_global_weights_cost_in_round_1000_what_they_cost_in_round_2(costs: Costs) -> None:
    assert costs.global_weights[ROUNDS] == costs.global_weights[2]
    assert len(set(costs.global_weights[1:])) == 1


def test_local_weights_cost_in_round_1000_what_they_cost_in_round_2(costs: Costs) -> None:
    assert costs.local_weights[ROUNDS] == costs.local_weights[2]
    assert len(set(costs.local_weights)) == 1


def test_a_learner_that_comes_in_round_1000_pays_what_one_in_round_0_paid(costs: Costs) -> None:
    first, last = costs.latecomer
    assert first == last <= LIMIT


def test_local_weights_published_again_in_a_round_cost_less(registered: Deployment) -> None:
    registered.write(HEADER, "setGlobalWeight", sha("global"))
    first = registered.write(ALICE, "setLocalWeight", 1, sha("first"))
    again = registered.write(ALICE, "setLocalWeight", 1, sha("again"))
    assert again["gasUsed"] < first["gasUsed"]
