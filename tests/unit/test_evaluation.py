"""A header evaluates global weights in the background, from their file, which by then may be of an earlier round."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_node.artifacts import model_file
from fl_node.models.trainer import Score
from fl_node.plan.schema import Plan
from fl_node.roles.factory import header_of
from fl_node.roles.header import Header
from fl_node.roles.loop import Done, Site
from fl_node.runtime.tensors import Sliceable, Tensors
from tests.helpers.network import Network
from tests.helpers.stub import StubTrainer

PLAN = Plan.model_validate({"name": "evaluated", "learners": 1, "rounds": 2, "verification": "none"})
PATIENCE = 600.0
STEPS = 60


class Slow(StubTrainer):
    """Evaluates when it may, and keeps what it was given."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.may = threading.Event()
        self.given: list[Tensors] = []
        self.values: list[dict[str, bytes]] = []

    def evaluate(self, weights: Tensors) -> Score:
        assert self.may.wait(PATIENCE)
        self.given.append(weights)
        self.values.append({name: tensor.tobytes() for name, tensor in weights.items()})
        return super().evaluate(weights)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path, PLAN)
    yield network
    network.close()


def header(network: Network, trainer: Slow) -> Header:
    folder = network.folder / "header"
    folder.mkdir(exist_ok=True)
    contract = network.as_node("header")
    return header_of(Site(contract.chain, contract, network.store, folder), PLAN, trainer, evaluate=True)


def test_weights_are_evaluated_from_their_file_after_the_round_is_over(network: Network) -> None:
    trainer = Slow(PLAN)
    role = header(network, trainer)
    for _ in range(STEPS):
        if network.as_node("header").round() == PLAN.rounds:
            break
        network.step("learner-1")
        role.step()
    assert [path.name for path in role._site.folder.glob("global-*")] == [f"global-{PLAN.rounds}.safetensors"]
    trainer.may.set()
    with pytest.raises(Done):
        role.step()
    contract = network.as_node("header")
    names = [str(contract.global_weight_at(number)) for number in range(PLAN.rounds + 1)]
    stored = [model_file.read(network.folder / "store" / name) for name in names]
    assert trainer.values == [{n: t.tobytes() for n, t in file.tensors().items()} for file in stored]
    assert all(isinstance(weights, Sliceable) for weights in trainer.given)  # none of them was held
    assert not list(role._site.folder.glob("evaluation-*"))


def test_a_link_that_a_killed_header_left_is_removed(network: Network) -> None:
    left = network.folder / "header" / "evaluation-0.model"
    left.parent.mkdir()
    left.write_bytes(b"left")
    header(network, Slow(PLAN)).close()
    assert not left.exists()
