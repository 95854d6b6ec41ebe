"""A run of a thousand rounds, and one of a hundred learners: what a call costs in them, and that nothing is lost."""

from dataclasses import dataclass, field

import pytest
from deployment import ALICE, BOB, CLASS, HEADER, MALLORY, ZERO_HASH, Deployment, Terms, sha
from eth_account.signers.local import LocalAccount
from web3 import Web3

# Thousands of blocks say no more on Geth than on py-evm, whose blocks are quicker.
pytestmark = pytest.mark.parametrize("w3", ["py-evm"], indirect=True)

LIMIT = 90_000
VERDICT_LIMIT = 80_000
LAST = 1_000
MORE_DATA = 64
"""Gas that bytes other than zero cost more in the data of a call: those of a larger round or nodeId."""
CODE = b"\xff" * 32
"""As long as a code can be."""


@dataclass(frozen=True)
class LongRun:
    """A run, and the gas of its calls: of the global and of one learner's local weights, round by round."""

    contract: Deployment
    global_gas: list[int] = field(default_factory=list)
    local_gas: list[int] = field(default_factory=list)
    newcomer_gas: list[int] = field(default_factory=list)

    def set_global(self, number: int) -> int:
        return self.contract.write(HEADER, "setGlobalWeight", sha(f"global {number}"))["gasUsed"]

    def set_local(self, number: int, node: int, account: LocalAccount) -> int:
        weights, parent = sha(f"local {number} {node}"), sha(f"global {number}")
        return self.contract.write(account, "setLocalWeight", node, weights, number, parent, True)["gasUsed"]


@pytest.fixture(scope="module")
def long_run(w3: Web3) -> LongRun:
    """Alice takes part in rounds 0 to 1,000, bob in the first of them and mallory, a newcomer, in the last."""
    run = LongRun(Deployment(w3))
    run.contract.write(HEADER, "registerLearner", 1, ALICE.address)
    for number in range(LAST + 1):
        run.global_gas.append(run.set_global(number))
        run.local_gas.append(run.set_local(number, 1, ALICE))
        for node, account, joins in [(2, BOB, 0), (3, MALLORY, LAST)]:
            if number == joins:
                run.contract.write(HEADER, "registerLearner", node, account.address)
                run.newcomer_gas.append(run.set_local(number, node, account))
    return run


def test_weights_never_cost_more_than_90_000_gas(long_run: LongRun) -> None:
    assert max(long_run.global_gas) <= LIMIT
    assert max(long_run.local_gas) <= LIMIT


def test_global_weights_cost_in_round_1000_what_they_cost_in_round_2(long_run: LongRun) -> None:
    assert long_run.global_gas[LAST] == long_run.global_gas[2]
    assert len(set(long_run.global_gas[1:])) == 1


def test_local_weights_cost_in_round_1000_what_they_cost_in_round_2(long_run: LongRun) -> None:
    assert abs(long_run.local_gas[LAST] - long_run.local_gas[2]) <= MORE_DATA
    assert max(long_run.local_gas[1:]) - min(long_run.local_gas[1:]) <= MORE_DATA


def test_a_learner_that_comes_in_round_1000_pays_what_one_in_round_0_paid(long_run: LongRun) -> None:
    first, last = long_run.newcomer_gas
    assert abs(first - last) <= MORE_DATA
    assert max(first, last) <= LIMIT


def test_local_weights_published_again_in_a_round_cost_less(registered: Deployment) -> None:
    registered.write(HEADER, "setGlobalWeight", sha("global"))
    first = registered.write(ALICE, "setLocalWeight", 1, sha("first"))
    again = registered.write(ALICE, "setLocalWeight", 1, sha("again"))
    assert again["gasUsed"] < first["gasUsed"]


@pytest.mark.parametrize("number", [0, 1, 255, 256, 257, LAST])
def test_after_a_thousand_rounds_each_round_is_still_there(long_run: LongRun, number: int) -> None:
    contract = long_run.contract
    assert contract.read("globalWeightAt", number) == sha(f"global {number}")
    assert contract.read("localWeightAt", number, 1) == sha(f"local {number} 1")


def test_after_a_thousand_rounds_the_latest_weights_are_each_nodes_own_last(long_run: LongRun) -> None:
    contract = long_run.contract
    assert contract.read("round") == LAST
    assert contract.read("getGlobalWeight") == sha(f"global {LAST}")
    assert contract.read("globalWeightAt", LAST + 1) == ZERO_HASH
    assert contract.read("getLocalWeight", 1) == sha(f"local {LAST} 1")
    assert contract.read("getLocalWeight", 2) == sha("local 0 2")
    assert contract.read("getLocalWeight", 3) == sha(f"local {LAST} 3")


@dataclass(frozen=True)
class Costs:
    """What calls cost in a synchronous run: of each kind the gas of every call, in the order of the calls."""

    gas: dict[str, list[int]] = field(default_factory=dict)

    def add(self, kind: str, run: Deployment, account: LocalAccount, name: str, *args: object) -> None:
        """Send a call, and remember what it cost."""
        self.gas.setdefault(kind, []).append(run.write(account, name, *args)["gasUsed"])


def costs(w3: Web3, learners: int) -> Costs:
    """Return what each call costs in two rounds with so many learners, a withdrawal and a succession."""
    run, found = Deployment(w3, Terms(learners=learners)), Costs()
    members = dict(list(CLASS.items())[:learners])
    run.register(members)
    for number in range(2):
        parent = sha(f"global {number}")
        found.add("setGlobalWeight", run, HEADER, "setGlobalWeight", parent)
        for node, account in members.items():
            local = sha(f"local {number} {node}")
            found.add("setLocalWeight", run, account, "setLocalWeight", node, local, number, parent, True)
    found.add("setGlobalWeight", run, HEADER, "setGlobalWeight", sha("wrong"))
    majority = list(members.values())[: learners // 2 + 1]
    for account in majority:
        found.add("rejectGlobalWeight", run, account, "rejectGlobalWeight", 2, sha("wrong"), CODE, sha("evidence"))
    for account in majority:
        found.add("voteHeader", run, account, "voteHeader", 1)
    found.add("setGlobalWeight", run, members[2], "setGlobalWeight", sha("right"))
    for account in members.values():
        found.add("attestGlobalWeight", run, account, "attestGlobalWeight", 2, sha("right"))
    add_masked(found, w3, members)
    return found


def add_masked(found: Costs, w3: Web3, members: dict[int, LocalAccount]) -> None:
    """Add what calls cost in two rounds with masks."""
    count = len(members)
    run = Deployment(w3, Terms(learners=count, minimum=count, threshold=count))
    run.register(members)
    for node, account in members.items():
        found.add("announceKey", run, account, "announceKey", 0, sha(f"key {node}"))
    for number in range(2):
        found.add("setGlobalWeight", run, HEADER, "setGlobalWeight", sha(f"global {number}"))
        parent = sha(f"global {number}")
        for node, account in members.items():
            local = sha(f"local {number} {node}")
            found.add("setLocalWeight", run, account, "setLocalWeight", node, local, number, parent, True)
        for node, account in members.items():
            found.add("openMasks", run, account, "openMasks", number, sha(f"opening {number} {node}"))


@pytest.fixture(scope="module")
def of_two(w3: Web3) -> Costs:
    return costs(w3, 2)


@pytest.fixture(scope="module")
def of_a_hundred(w3: Web3) -> Costs:
    return costs(w3, 100)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("setGlobalWeight", LIMIT),
        ("setLocalWeight", LIMIT),
        ("attestGlobalWeight", VERDICT_LIMIT),
        ("rejectGlobalWeight", VERDICT_LIMIT),
        ("voteHeader", VERDICT_LIMIT),
        ("announceKey", LIMIT),
        ("openMasks", LIMIT),
    ],
)
def test_a_call_costs_no_more_with_a_hundred_learners_than_with_two(
    of_two: Costs, of_a_hundred: Costs, kind: str, limit: int
) -> None:
    print(
        kind, min(of_two.gas[kind]), max(of_two.gas[kind]), min(of_a_hundred.gas[kind]), max(of_a_hundred.gas[kind])
    )
    assert max(of_a_hundred.gas[kind]) <= max(of_two.gas[kind]) + MORE_DATA
    assert max(of_two.gas[kind] + of_a_hundred.gas[kind]) <= limit
