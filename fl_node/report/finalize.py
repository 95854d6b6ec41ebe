"""What is kept of a run: its audit, its report, its plan and its final model, all from chain and store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_node.artifacts.store import Store
from fl_node.audit.auditor import audit
from fl_node.audit.result import Audit
from fl_node.chain.contract import Contract
from fl_node.data import partition
from fl_node.data.datasets import DataSet
from fl_node.errors import ConfigError, FLNodeError, WeightsError
from fl_node.models.error_analysis import ErrorAnalysis, analyze_errors
from fl_node.models.trainer import Score, Trainer
from fl_node.protocol.reader import Reader
from fl_node.report import collect as report
from fl_node.report import writer
from fl_node.report.collect import Result
from fl_node.runtime import files, scratch


@dataclass(frozen=True)
class Conclusion:
    """What was found, and where it was written.

    ``model`` is None for a run that goes on, and where the final weights are not what the audit would have them be.
    """

    result: Result
    audit: Audit
    report: Path
    model: Path | None


def finalize(
    contract: Contract,
    store: Store,
    folder: Path,
    name: str,
    trainer: Trainer,
    versions: Mapping[str, str],
    *,
    scores: Mapping[str, Score] | None = None,
    evaluate: bool = True,
    journals: Sequence[Path] = (),
    statements: Sequence[Path] = (),
    step: Callable[[str], None] = lambda _text: None,
) -> Conclusion:
    """Audit a run and write its report, ``plan.json`` and, if it has ended, the final model.

    The report is ``report.html``, ``report.md`` and ``report.json``.

    Parameters
    ----------
    contract, store
        The run's contract and store, as some node sees them.
    folder
        Where the files are written.
    name
        What the report calls the run.
    trainer
        The plan's model; with a data set if global weights are to be measured.
    versions
        The versions of everything that the result depends on, by name.
    scores
        Scores of global weights that are known already, by CID.
    evaluate
        Whether to measure the other global weights.
    journals
        The files of the roles' journals that the audit compares with the chain.
    statements
        The files of signed results of earlier audits.
    step
        Called with one line of progress at a time.

    Raises
    ------
    ConfigError
        The folder can't be written; the message says where the files are instead.
    """
    with scratch.folder() as work:
        step("auditing")
        audited = audit(
            contract,
            store,
            work,
            lambda _plan: trainer,
            lambda done, every: step(f"auditing: {done} of {every} rounds"),
            journals=journals,
            statements=statements,
        )
        step("writing the report")
        measure = trainer.evaluate if evaluate else None
        result = report.collect(contract, store, work, scores, measure, model=trainer.shapes(), traced=True)
        # Of a module's samples nothing is known but that a model takes them.
        data = trainer.data if evaluate and isinstance(trainer.data, DataSet) else None
        split = partition.label_counts(result.plan, data.train_labels) if data else None
        error_analysis = (
            _analyze_errors(result, Reader(store, work, result.plan, trainer.shapes()), trainer) if data else None
        )

    def write(folder: Path) -> Conclusion:
        problem: FLNodeError | None = None
        with files.together(folder) as new:
            path = writer.write(new, name, result, audited, versions, error_analysis, split)
            files.write(new / "plan.json", result.plan.to_bytes())
            model = None
            # What is wrong with a file stands in the report, which is all that then can be had.
            newest = result.newest
            if result.ended and newest is not None and newest.problem is None:
                try:
                    model = folder / _save(result, newest.cid, store, new, trainer).name
                except FLNodeError as error:
                    if audited.passed or not isinstance(error, WeightsError):
                        problem = error
        if problem is not None:
            raise problem
        return Conclusion(result, audited, folder / path.name, model)

    def rescue(folder: Path) -> Path:
        write(folder)
        return folder

    try:
        return write(folder)
    except OSError as error:
        raise ConfigError(f"{files.described(error)}{files.elsewhere(rescue, 'the report')}") from error


def _analyze_errors(result: Result, reader: Reader, trainer: Trainer) -> ErrorAnalysis | None:
    """Analyze the errors of the newest global weights that are any good; they were read already."""
    newest = result.newest
    if newest is None or newest.problem is not None:
        return None
    try:
        tensors = reader.read(newest.cid).tensors()
    except WeightsError:
        return None  # of another model, which the audit says
    images, labels = trainer.tests()
    return analyze_errors(result.round, lambda batch: trainer.predict(tensors, batch), images, labels)


def _save(result: Result, name: str, store: Store, folder: Path, trainer: Trainer) -> Path:
    """Write the final weights as they are in the store and as a model, or neither.

    Parameters
    ----------
    result
        The run.
    name
        The CID of the weights.
    store, folder
        Where they are, and where they go.
    trainer
        The plan's model.

    Raises
    ------
    FLNodeError
        The weights can't be had, or are not what is wanted.
    """
    model, weights = folder / "final.keras", folder / "final.safetensors"
    reader = Reader(store, folder, result.plan, trainer.shapes())
    try:
        trainer.save(reader.read(name, path=weights).on_demand(), model)
    except FLNodeError:
        weights.unlink(missing_ok=True)
        raise
    return model
