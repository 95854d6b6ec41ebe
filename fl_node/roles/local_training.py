"""A learner's local weights: trained, attacked if the plan says so, compressed or masked, checked, and stored."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import LocalMeta, Tensors, WeightsFile
from fl_node.data import partition
from fl_node.errors import ConfigError, WeightsError
from fl_node.models.trainer import OnEpoch, Score, Trainer
from fl_node.plan.schema import Plan
from fl_node.privacy.secret import load_or_create
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import Compressed, compress, decoded
from fl_node.protocol.global_files import local_shapes
from fl_node.protocol.reader import Reader
from fl_node.roles.attack import poison, tamper
from fl_node.roles.loop import Site
from fl_node.roles.masking import Masking
from fl_node.roles.residuals import Residuals
from fl_node.runtime.logs import emit
from fl_node.runtime.tensors import blocks_of, flat, shape_of
from fl_node.seeds import derive

Record = Callable[[int, str, float, int], None]
"""Records a value of a learning curve: the learner's nodeId, the curve's name, the value, and its step."""


class Untrainable(Exception):
    """No local weights that others accept can be trained from these global weights, however often it is tried."""


class LocalTraining:
    """Makes the local weights of one learner, and finds those that a killed process left.

    Parameters
    ----------
    site
        The learner's node; files are in its folder.
    plan
        The run's plan.
    plan_cid
        Its CID.
    trainer
        The model.
    reader
        Checks files as the header does.
    masking
        Writes masked files; None in a run without masks.
    record
        Called with each figure of the learning curves.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        plan_cid: str,
        trainer: Trainer,
        reader: Reader,
        masking: Masking | None,
        record: Record,
    ) -> None:
        self._site = site
        self._plan = plan
        self._plan_cid = plan_cid
        self._trainer = trainer
        self._reader = reader
        self._masking = masking
        self._record = record
        self._newest: WeightsFile | None = None
        self._residuals = Residuals(site.folder)
        self._shard = functools.cache(lambda node_id: partition.shard(plan, node_id, trainer.labels))

    def finished(self, round_: int, node_id: int, parent: str) -> WeightsFile | None:
        """Return a round's local weights if they are on disk, perhaps from an earlier process that was killed.

        Parameters
        ----------
        round_
            The round.
        node_id
            The learner.
        parent
            The CID of the global weights that they have to be trained from.
        """
        path = self._path("local", round_)
        if not path.exists():
            return None
        if self._newest is not None:
            known = self._newest.published_meta
            if (known.round, known.parent) == (round_, parent):
                return self._newest  # this very process has just written it
        try:
            file = self._reader.check(path, node_id=node_id)
            model_file.check_local(file, plan=self._plan_cid, node_id=node_id, round_=round_, parent=parent)
        except WeightsError as error:
            emit(events.LocalWeightsDiscarded(round=round_, file=path.name, detail=str(error)))
            path.unlink()
            return None
        self._newest = file
        return file

    def train(self, round_: int, node_id: int, parent: WeightsFile) -> None:
        """Train from global weights, and write the local weights, which :meth:`finished` returns then.

        Parameters
        ----------
        round_
            The round.
        node_id
            The learner.
        parent
            The global weights of the round.

        Raises
        ------
        Untrainable
            The result is not finite, or others would reject it.
        """
        plan, trainer = self._plan, self._trainer
        samples = self._shard(node_id)
        # Nothing can be learned from models that know nothing yet.
        teacher = parent.on_demand() if plan.distillation is not None and round_ > 0 else None
        emit(
            events.TrainingStarted(
                round=round_,
                epochs=plan.training.epochs,
                samples=len(samples),
                noun=plan.data.noun,
                distilled=plan.data.public_set if teacher is not None else None,
            )
        )
        start = time.monotonic()

        def on_epoch(epoch: int, accuracy: float, loss: float) -> None:
            step = round_ * plan.training.epochs + epoch
            self._record(node_id, "training/accuracy", accuracy, step)
            self._record(node_id, "training/loss", loss, step)
            emit(events.EpochEnded(round=round_, epoch=epoch, epochs=plan.training.epochs, accuracy=accuracy))

        # Of a global file the weights of this learner's model alone, not what else is in it.
        weights = parent.on_demand(local_shapes(plan, trainer.shapes(), node_id))
        trained = self._trained(weights, node_id, round_, on_epoch, teacher, self._secret(round_, parent.cid))
        if plan.stragglers is not None and node_id in plan.stragglers.learners:
            time.sleep((plan.stragglers.factor - 1) * (time.monotonic() - start))
        emit(events.TrainingEnded(round=round_, seconds=time.monotonic() - start))
        compressed = None
        if plan.compression is not None and _are_finite(trained):
            residual = self._residuals.load(round_, {name: tensor.shape for name, tensor in trained.items()})
            compressed = compress(plan.compression, trained, weights, residual)
            trained = compressed.weights  # what others decode
        score = self._evaluate(trained, round_, node_id, parent.cid)
        written = self._write(round_, node_id, parent, trained, compressed, score)
        if not self._attacks(node_id):
            self._check(written, node_id, parent)
        if compressed is not None:
            self._residuals.save(round_, compressed.residual)
        self._newest = local = replace(written, path=written.path.replace(self._path("local", round_)))
        emit(events.LocalWeightsWritten(round=round_, cid=local.cid, file=local.path.name))
        self._forget(round_)

    def _evaluate(self, trained: Tensors, round_: int, node_id: int, parent: str) -> Score:
        """Evaluate local weights on the test images.

        Raises
        ------
        Untrainable
            They are not finite.
        """
        start = time.monotonic()
        score = self._trainer.evaluate(trained)
        if not math.isfinite(score.loss) or not _are_finite(trained):
            # Trained again it would come out the same, and nobody would take it.
            diverged = f"training from global weights {round_} ({parent}) diverged to values that are not finite"
            raise Untrainable(f"{diverged}; in round 0, lower the learning rate")
        emit(
            events.LocalWeightsEvaluated(
                round=round_,
                accuracy=score.accuracy,
                loss=score.loss,
                count=score.count,
                noun=self._plan.data.noun,
                seconds=time.monotonic() - start,
            )
        )
        self._record(node_id, "test/accuracy", score.accuracy, round_)
        self._record(node_id, "test/loss", score.loss, round_)
        return score

    def _write(
        self,
        round_: int,
        node_id: int,
        parent: WeightsFile,
        trained: Tensors,
        compressed: Compressed | None,
        score: Score,
    ) -> WeightsFile:
        """Write local weights, masked or compressed if the plan says so."""
        path = self._path("trained", round_)
        if self._masking is not None:
            return self._masking.write(path, parent, node_id, trained, score)
        meta = LocalMeta(
            plan=self._plan_cid,
            node_id=node_id,
            round=round_,
            parent=parent.cid,
            samples=len(self._shard(node_id)),
            accuracy=score.accuracy,
            loss=score.loss,
            compression=None if self._plan.compression is None else self._plan.compression.kind,
        )
        return model_file.write(path, meta, trained if compressed is None else compressed.tensors)

    def _check(self, written: WeightsFile, node_id: int, parent: WeightsFile) -> None:
        """Check local weights as the header will; delete them if they are invalid.

        Raises
        ------
        Untrainable
            They are invalid.
        """
        try:
            checked = self._reader.check(written.path, written.cid, node_id)
            if not self._plan.is_masked:
                check_bounds(decoded(checked, parent, self._plan), parent, self._plan)
        except WeightsError as error:
            written.path.unlink()
            origin = f"global weights {parent.global_meta.round} ({parent.cid})"
            raise Untrainable(f"the weights trained from {origin} are invalid: {error}") from error

    def _secret(self, round_: int, parent: str) -> bytes | None:
        """Return the source of sampling and noise of DP-SGD; None without it.

        It goes by the global weights too: of a withdrawn round others come, and with the same noise the difference
        of what is trained from the two would show the gradients.

        Raises
        ------
        ConfigError
            The host has no secret, or the file is not its own alone.
        """
        if self._plan.dp_sgd is None:
            return None
        if self._site.secret is None:
            raise ConfigError("differential privacy needs the secret of a host")
        host = load_or_create(self._site.secret)
        return host.derive(self._site.contract.address, round_, "dp-sgd", parent)

    def _attacks(self, node_id: int) -> bool:
        return self._plan.attack is not None and node_id in self._plan.attack.learners

    def _trained(
        self,
        parent: Tensors,
        node_id: int,
        round_: int,
        on_epoch: OnEpoch,
        teacher: Tensors | None,
        secret: bytes | None,
    ) -> Tensors:
        """Train, and apply the attack that the plan gives this learner."""
        attack, seed = self._plan.attack, derive(self._plan.seed, node_id, round_)
        shard, train = self._shard(node_id), functools.partial(self._trainer.train, secret=secret)
        if attack is None or not self._attacks(node_id):
            return train(parent, shard, seed, on_epoch, teacher=teacher)
        emit(events.AttackStarted(round=round_, kinds=attack.kinds))
        dirty = poison(attack, seed, self._plan.data.class_count)
        trained = train(parent, shard, seed, on_epoch, poison=dirty, teacher=teacher)
        return tamper(attack, parent, trained, seed)

    def _forget(self, round_: int) -> None:
        for path in self._site.folder.glob("*-*.safetensors"):
            kind, _, number = path.stem.rpartition("-")
            if kind != "residual" and number.isdigit() and int(number) < round_:
                path.unlink(missing_ok=True)

    def _path(self, kind: str, round_: int) -> Path:
        return self._site.folder / f"{kind}-{round_}.safetensors"


def _are_finite(tensors: Tensors) -> bool:
    return all(
        np.isfinite(flat(tensors, name, *block)).all()
        for name in tensors
        for block in blocks_of(shape_of(tensors, name))
    )
