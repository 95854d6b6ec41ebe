"""The commands that use the model of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_node.cli.common import console, in_pixels, make_trainer, open_run, plan_of, print_note
from fl_node.cli.options import (
    ContractChoice,
    DataOption,
    JsonOption,
    ModulesOption,
    RoundOption,
    RpcChoice,
    RunArgument,
    StoreChoice,
)
from fl_node.errors import ConfigError
from fl_node.runtime import files, scratch
from fl_node.wording import counted

if TYPE_CHECKING:
    from fl_node.models.trainer import Trainer


def export(
    run: RunArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; its name ends in .keras.")] = Path(
        "model.keras"
    ),
    round_: RoundOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    modules: ModulesOption = None,
) -> None:
    """Export a round's global weights as a .keras model, which plain Keras can load."""
    if output.suffix != ".keras":
        raise ConfigError(f"--output {output}: should end in .keras")
    with files.output_file(output, "--output", regular=True):
        trainer, tensors, number = _global_weights(run, rpc, store, contract, round_, modules=modules)
        trainer.save(tensors, output)
    console.print(f"wrote global weights {number} to {output}")


def evaluate(
    run: RunArgument = None,
    round_: RoundOption = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a round's global weights on the test images."""
    trainer, tensors, number = _global_weights(
        run, rpc, store, contract, round_, measure=True, data_dir=data_dir, modules=modules
    )
    scores = {"global weights": trainer.evaluate(tensors)} | trainer.members(tensors)
    if as_json:
        whole, *members = (asdict(score) for score in scores.values())
        content = {"round": number, **whole}
        if members:
            content["members"] = dict(zip(list(scores)[1:], members, strict=True))
        typer.echo(json.dumps(content))
        return
    for name, score in scores.items():
        who = f"{name} {number}" if name == "global weights" else f"  {name}"
        console.print(
            f"{who}: {score.accuracy:.2%} of {score.count} test {trainer.plan.data.noun} correct, "
            f"loss {score.loss:.4f}, calibration error {score.calibration_error:.4f}",
        )


def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture of one digit, such as a photo or drawing.")],
    run: RunArgument = None,
    round_: RoundOption = None,
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert",
            help="Invert the picture (dark digit on light ground) or not; detected by default.",
        ),
    ] = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Classify the digit in an image with a round's global weights.

    fl-node predict seven.png runs/demo
    """
    from fl_node.data.images import read

    pixels = read(image, invert=invert)
    trainer, tensors, number = _global_weights(run, rpc, store, contract, round_, images=pixels.shape)
    (probabilities,) = trainer.predict(tensors, pixels[None])
    digit = int(probabilities.argmax())
    if as_json:
        typer.echo(json.dumps({"round": number, "digit": digit, "probabilities": [float(p) for p in probabilities]}))
    else:
        console.print(f"{digit} ({probabilities[digit]:.1%})")


def _global_weights(
    folder: Path | None,
    rpc: str | None,
    store: str | None,
    contract: str | None,
    round_: int | None,
    *,
    measure: bool = False,
    data_dir: Path | None = None,
    modules: Path | None = None,
    images: tuple[int, ...] | None = None,
) -> tuple[Trainer, dict[str, Any], int]:
    """Return a run's model, with data if it is to be measured, and the global weights of a round with its number.

    With ``images``, the model is one for images of this size.
    """
    from fl_node.protocol import history
    from fl_node.protocol.reader import Reader

    with open_run(folder, rpc, store, contract) as (run_contract, run_store), scratch.folder() as here:
        number = run_contract.state().round if round_ is None else round_
        file_cid = run_contract.global_weight_at(number)
        if file_cid is None:
            raise ConfigError(
                f"global weights {number} are not published; the run is in round {run_contract.state().round}"
            )
        plan = plan_of(run_contract, run_store)
        past = history.read(run_contract)
        if plan.is_verified and not past.is_finalized(number):
            print_note(
                f"global weights {number} are not finalized: {len(past.attested(number))} of "
                f"{counted(len(past.learners), 'learner')} attested them"
            )
        if images is not None and (plan.custom is not None or plan.data.image_size != images):
            takes = "the samples of its custom module" if plan.custom else in_pixels(plan.data.image_size)
            raise ConfigError(
                f"predict needs a model for images of {in_pixels(images)}; the run's model takes {takes}"
            )
        trainer = make_trainer(plan, data_dir, modules, with_data=measure)
        reader = Reader(run_store, here, plan, trainer.shapes())
        return trainer, reader.read(file_cid).tensors(), number
