"""``fl-node attack``: what the published files of a run reveal about its training images."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_node.cli.common import console, errors, never_lost, open_run, plan_of, print_note
from fl_node.cli.options import DataOption, JsonOption
from fl_node.errors import ConfigError
from fl_node.runtime import files, scratch
from fl_node.runtime.terminal import Numbers
from fl_node.wording import counted

if TYPE_CHECKING:
    from fl_node.data.datasets import DataSet
    from fl_node.models.keras_trainer import KerasTrainer
    from fl_node.plan.schema import Plan
    from fl_node.protocol.history import History
    from fl_node.protocol.reader import Reader

MASKED = "local weights are masked; their words are attacked as if they were an update"
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a lab, such as runs/inversion.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for the results; by default attacks in the run's folder."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the attacker's own randomness.")]


@dataclass(frozen=True)
class _View:
    """What an attacker reads (chain, files and plan), and the data set, which tells the truth about its claims."""

    past: History
    reader: Reader
    plan: Plan
    dataset: DataSet
    trainer: KerasTrainer


def membership(
    run: RunFolder,
    learners: Annotated[
        list[int] | None,
        typer.Option("--learner", help="Attack only this learner; may be repeated. By default all that published."),
    ] = None,
    round_: Annotated[
        int | None,
        typer.Option(
            "--round", min=0, help="Round of the attacked files; by default the last closed round that has any."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option("--shadows", help="Shadow models per learner for the lira attack, an even number; 0 skips it."),
    ] = 16,
    output: OutputOption = None,
    seed: SeedOption = 1,
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Guess which images a learner trained on, from its published weights (membership inference).

    The attack loss takes images with a small loss for members. The attack lira (likelihood ratio) also trains shadow
    models with and without each image; it is stronger, and takes as long as --shadows local trainings per learner.
    The global weights are attacked too: they reveal members of the whole run, though not whose they are.

    The result is the area under the ROC curve (AUC): 0.5 is guessing, 1 is certainty. The attack reads only chain and
    store, as every member of the swarm can. Plan and data set then tell which guesses are right.

        fl-node plan new members.toml --from membership
        fl-node lab members.toml
        fl-node attack membership runs/members
    """
    from fl_node.lab import run_folder
    from fl_node.leakage import membership as work
    from fl_node.leakage import page
    from fl_node.leakage.published import attackable, read_update

    work.check_shadows(shadows)
    folder = output or run_folder.folder_of(run) / "attacks"
    with _open(run, folder, output, data_dir) as view:
        plan, dataset, trainer = view.plan, view.dataset, view.trainer
        number, nodes = attackable(plan, view.past, learners or (), round_)
        updates = {node: read_update(view.reader, view.past, plan, node, number) for node in nodes}
        candidates = {node: work.candidates(plan, dataset, node, seed) for node in nodes}
        figures, by_attack = [], dict[str, list[Any]]()
        for node, update in updates.items():
            scores = {"loss": work.loss_scores(trainer, update.local, candidates[node])}
            if shadows:
                with _progress(f"learner {node}: shadow models") as show:
                    scores["lira"] = work.lira_scores(plan, dataset, update, candidates[node], shadows, seed, show)
            for attack, values in scores.items():
                figures.append(work.figure(f"learner {node}", attack, values, candidates[node].member))
                by_attack.setdefault(attack, []).append((values, candidates[node].member))
        if len(nodes) > 1:
            figures += [
                work.figure("all learners", attack, *work.together(parts)) for attack, parts in by_attack.items()
            ]
        if number + 1 < len(view.past.rounds):
            weights = view.reader.read(str(view.past.rounds[number + 1].started.cid)).tensors()
            parts = [(work.loss_scores(trainer, weights, tried), tried.member) for tried in candidates.values()]
            figures.append(work.figure(f"global weights {number + 1}", "loss", *work.together(parts)))
    facts = {"round": number, "seed": seed, "shadows": shadows, "files": {str(n): u.cid for n, u in updates.items()}}
    with _kept(folder, lambda folder: page.write_membership(folder, plan.name, figures, facts)) as path:
        if as_json:
            typer.echo(json.dumps(page.membership_content(figures, facts), indent=2))
            return
        rows = [["attacked", "attack", "members", "others", "AUC", "95 %", "recognized, %"]]
        rows += [
            [
                figure.target,
                figure.attack,
                str(figure.members),
                str(figure.others),
                f"{figure.auc:.3f}",
                f"{figure.low:.3f} to {figure.high:.3f}",
                f"{100 * figure.recognized:.1f}",
            ]
            for figure in figures
        ]
        if any(update.is_masked for update in updates.values()):
            console.print(f"note: {MASKED}")
        console.print(Numbers(rows, f"membership inference in round {number}; an AUC of 0.5 is guessing"))
        if path is not None:
            console.print(f"Page: {path}")


def inversion(
    run: RunFolder,
    learner: Annotated[int, typer.Option("--learner", help="The learner that is attacked.")] = 1,
    round_: Annotated[int, typer.Option("--round", min=0, help="Round of the attacked file.")] = 0,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="exact: from the first dense layer; matching: by optimization; auto: the first that finds any.",
        ),
    ] = "auto",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the optimization.")] = 2000,
    output: OutputOption = None,
    seed: SeedOption = 1,
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct training images from one published update (model inversion).

    Local minus global weights are a sum of gradients. In a first dense layer, as the perceptron has, the gradient of
    one image is the image, times a number for each unit: with plain SGD and few images (up to about 8), some or all
    come out exactly. For other models the command searches for images whose gradient has the same direction, for
    learners with up to 8 images.

    The attack reads only chain and store. The true images serve to report the error, and stand beside the others.

        fl-node plan new one-image.toml --from inversion
        fl-node lab one-image.toml
        fl-node attack inversion runs/one-image --learner 2
    """
    from fl_node.lab import run_folder
    from fl_node.leakage import inversion as work
    from fl_node.leakage import page
    from fl_node.leakage.published import read_update

    if method not in work.METHODS:
        raise ConfigError(f"--method {method}: should be one of {', '.join(work.METHODS)}")
    folder = output or run_folder.folder_of(run) / "attacks"
    with _open(run, folder, output, data_dir) as view:
        update = read_update(view.reader, view.past, view.plan, learner, round_)
        with _progress("optimization: step") as show:
            inversion = work.invert(view.plan, view.dataset, view.trainer, update, method, steps, seed, show)
    facts = {"learner": learner, "round": round_, "seed": seed, "file": update.cid, "global_file": update.parent_cid}
    with _kept(folder, lambda folder: page.write_inversion(folder, view.plan.name, update, inversion, facts)) as path:
        if as_json:
            typer.echo(json.dumps(page.inversion_content(inversion, facts), indent=2))
            return
        console.print(f"read: global weights {update.round} ({update.parent_cid}) and")
        console.print(f"      learner {learner}'s local weights of round {round_} ({update.cid})")
        if update.is_masked:
            console.print(f"note: {MASKED}")
        if inversion.note:
            console.print(f"note: {inversion.note}")
        if inversion.images:
            rows = [["image", "label", "error", "largest", "guess", "verdict"]]
            rows += [
                [
                    str(number),
                    str(image.label),
                    f"{image.error:.1e}",
                    f"{image.largest:.1e}",
                    f"{image.guess:.2f}",
                    image.verdict,
                ]
                for number, image in enumerate(inversion.images, 1)
            ]
            console.print(Numbers(rows, "reconstructed images beside the true ones; pixels from 0 to 1"))
        revealed = sum(image.verdict != "nothing" for image in inversion.images)
        images = counted(inversion.samples, "image")
        console.print(f"{revealed} of {images} of learner {learner} revealed (method: {inversion.method})")
        if path is not None:
            console.print(f"Page: {path}")


@contextlib.contextmanager
def _open(run: Path, folder: Path, output: Path | None, data_dir: Path | None) -> Iterator[_View]:
    """Open a run as an attacker sees it, with the data set that tells the truth.

    Raises
    ------
    ConfigError
        There is no such run, or it trains an ensemble.
    DataError
        The data set is not available, or belongs to a custom module.
    """
    from fl_node.data import loading
    from fl_node.lab import run_folder
    from fl_node.models.keras_trainer import KerasTrainer
    from fl_node.protocol import history
    from fl_node.protocol.reader import Reader

    run_folder.load(run)
    with (
        files.output_folder(folder, "--output" if output else "the run's folder"),
        open_run(run, None, None, None) as (contract, store),
        scratch.folder() as here,
    ):
        plan = plan_of(contract, store)
        if plan.mode == "ensemble":
            raise ConfigError(f"plan {plan.name} trains an ensemble; the attacks need a run with a single model")
        dataset = loading.load_images(plan, data_dir, print_note)
        trainer = KerasTrainer(plan, dataset)
        reader = Reader(store, here, plan, trainer.shapes())
        yield _View(history.read(contract), reader, plan, dataset, trainer)


@contextlib.contextmanager
def _kept(folder: Path, write: Callable[[Path], Path]) -> Iterator[Path | None]:
    """Write a result that took long to compute, and print it even if it can't be written there.

    Parameters
    ----------
    folder
        Where it should be.
    write
        Writes it to a folder and returns the path of its page, which the block gets; None if it could not.

    Raises
    ------
    ConfigError
        It can't be written, or standard output can't; the message says where the result is.
    """
    path: Path | None = None
    unwritten: ConfigError | None = None
    try:
        path = write(folder)
        where = f"; the result is in {path}"
    except OSError as error:
        where = files.elsewhere(write)
        unwritten = ConfigError(f"{files.described(error)}{where}")
    with never_lost(lambda: where):
        yield path
    if unwritten is not None:
        raise unwritten


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows on a terminal how far a computation is."""
    if not errors.is_terminal:
        yield lambda _done, _all: None
        return
    with errors.status(what, spinner="line") as status:
        yield lambda done, of: status.update(f"{what} {done} of {of}")
