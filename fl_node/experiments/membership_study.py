"""Membership inference on runs with several seeds, and a control: what chance and the choice of images give.

    python -m fl_node.experiments.membership_study PLAN --set privacy.dp.epsilon=3 --seeds 1 2 3

simulates one run for each seed, attacks the files of its first round, and prints the AUC of each seed and of all
together. The control attacks the first-round weights of *another* learner, which saw neither the members nor the
others: an AUC away from 0.5 there comes from the images and not from the training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.store import Store
from fl_node.data import loading
from fl_node.data.datasets import DataSet
from fl_node.data.sampling import sampling_of
from fl_node.errors import ConfigError, FLNodeError
from fl_node.lab.simulate import simulate
from fl_node.leakage import membership
from fl_node.leakage.published import read_update
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.privacy import accounting
from fl_node.protocol.history import History
from fl_node.protocol.reader import Reader
from fl_node.runtime import scratch
from fl_node.runtime.tensors import Tensors, Wide

Scored = tuple[str, str, Wide, npt.NDArray[np.bool_]]
"""What was attacked, by which attack, the scores of all learners' candidates, and which are members."""


def attacked(plan: Plan, data: Path | None, shadows: int) -> list[Scored]:
    """Simulate a run and attack the files of its first round.

    Parameters
    ----------
    plan
        The run's plan; it leaves as many training images out as it uses.
    data
        The folder of the data set, if not the default.
    shadows
        The number of shadow models for each learner; 0 skips the likelihood ratio.

    Raises
    ------
    ConfigError
        Members and others would not come from the same set of images.
    """
    dataset = loading.load_images(plan, data)
    plan = loading.complete(plan, dataset)  # the noise that a target ε needs
    unseen = len(membership.outsiders(plan, dataset, plan.seed))
    if unseen < plan.data.train:
        most = (unseen + plan.data.train) // 2
        raise ConfigError(f"data.train = {plan.data.train}: should be at most {most}, to compare with as many others")
    if plan.learners < 2 or plan.mode != "sync":
        raise ConfigError(f"plan {plan.name}: the study needs a synchronous run with two learners or more")
    trainer = KerasTrainer(plan, dataset)
    found: list[Scored] = []
    with scratch.folder() as folder:

        def attack(past: History, store: Store) -> None:
            reader = Reader(store, folder / "attacker", plan, trainer.shapes())
            found.extend(_attacks(plan, dataset, trainer, reader, past, shadows))

        (folder / "attacker").mkdir()
        simulate(plan, folder, trainer, on_audited=attack)
    return found


def _attacks(
    plan: Plan,
    dataset: DataSet,
    trainer: KerasTrainer,
    reader: Reader,
    past: History,
    shadows: int,
) -> Iterator[Scored]:
    nodes = range(1, plan.learners + 1)
    updates = {node: read_update(reader, past, plan, node, 0) for node in nodes}
    some = {node: membership.candidates(plan, dataset, node, plan.seed) for node in nodes}
    member = np.concatenate([one.member for one in some.values()])

    def loss(target: str, weights: dict[int, Tensors]) -> Scored:
        scores = [membership.loss_scores(trainer, weights[node], some[node]) for node in nodes]
        return target, "loss", np.concatenate(scores), member

    yield loss("local weights", {node: updates[node].local for node in nodes})
    yield loss("another learner's (control)", {node: updates[node % plan.learners + 1].local for node in nodes})
    if shadows:
        scores = [
            membership.lira_scores(plan, dataset, updates[node], some[node], shadows, plan.seed) for node in nodes
        ]
        yield "local weights", "lira", np.concatenate(scores), member
    after = reader.read(str(past.rounds[1].started.cid)).tensors()
    yield loss("global weights 1", dict.fromkeys(nodes, after))


def main() -> None:
    """Run the study that the command line names; an error is one line and the exit code of ``fl-node``."""
    parser = argparse.ArgumentParser(prog="python -m fl_node.experiments.membership_study", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shadows", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    pooled: dict[tuple[str, str], list[tuple[Wide, npt.NDArray[np.bool_]]]] = {}
    try:
        membership.check_shadows(options.shadows)
        _check_seeds(options.seeds)
        for seed in options.seeds:
            plan = plans.load(options.plan, [*options.settings, f"seed={seed}"])
            for target, attack, scores, member in attacked(plan, options.data_dir, options.shadows):
                pooled.setdefault((target, attack), []).append((scores, member))
                _print(f"seed {seed}", membership.figure(target, attack, scores, member))
        if len(options.seeds) > 1:
            for (target, attack), parts in pooled.items():
                _print("together", membership.figure(target, attack, *membership.together(parts)))
        plan = loading.complete(plan, loading.load_images(plan, options.data_dir))
        if plan.dp_sgd is not None and plan.dp_sgd.noise_multiplier is not None:
            steps = sampling_of(plan, 1)
            most = accounting.largest_auc(plan.dp_sgd.noise_multiplier, steps.rate, steps.steps)
            print(
                f"noise multiplier {plan.dp_sgd.noise_multiplier:g}: "
                f"the AUC of any attack on local weights is at most {most:.3f}"
            )
    except FLNodeError as error:
        print(f"fl-node: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _check_seeds(seeds: Sequence[int]) -> None:
    """Check that no run counts twice.

    Raises
    ------
    ConfigError
        A seed is given twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: should name each seed once")


def _print(name: str, found: membership.Figure) -> None:
    print(
        f"{name}: {found.target}, {found.attack}: AUC {found.auc:.3f} ({found.low:.3f} to {found.high:.3f}), "
        f"{found.members} members, {found.others} others",
        flush=True,
    )


if __name__ == "__main__":
    main()
