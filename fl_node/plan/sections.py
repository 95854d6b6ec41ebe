"""The sections of a plan and their settings.

The settings of a choice are in a class beside its code: rules in :mod:`fl_node.aggregation`, attacks in
:mod:`fl_node.attacks`, partitions in :mod:`fl_node.partitions`; data sets, models and modes in this package.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fl_node.aggregation import RULE_CHOICE, FedAvg, Rule
from fl_node.aggregation.asynchronous import AsynchronousRule
from fl_node.aggregation.fixed_point import FixedPoint
from fl_node.attacks import DATA_CHOICE, UPDATE_CHOICE, DataAttack, UpdateAttack
from fl_node.compression import COMPRESSION_CHOICE, Compression
from fl_node.errors import PlanError
from fl_node.partitions import PARTITION_CHOICE, Equal, Partition, Pool
from fl_node.plan.data_sets import SOURCE_CHOICE, Mnist, Sha256, Source
from fl_node.plan.models import MODEL_CHOICE, EnsembleModel, Model, SingleModel
from fl_node.plan.modes import MODE_CHOICE, Distillation, Ensemble, Mode, Synchronous
from fl_node.privacy.dp import DpPlan
from fl_node.privacy.learner_noise import LearnerNoise
from fl_node.runtime.settings import FILLED_IN, NodeIds, Positive, Settings

Images = Annotated[int, Field(ge=1, le=10_000_000)]
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MIN_SUMMED = 3
"""Minimum number of local weights in a masked sum: of two learners, each could subtract its own weights."""
Bound = Annotated[float, Field(gt=0, le=1e30)]


class DataPlan(Settings):
    """Which images are used, how many, and how they are divided among the learners."""

    if_given: ClassVar[frozenset[str]] = frozenset({"validation", "public_set"})

    source: Annotated[Source, SOURCE_CHOICE] = Mnist()
    train: Annotated[
        int,
        Field(ge=0, le=10_000_000, description="Number of training images divided among the learners; 0 means all."),
    ] = 0
    test: Annotated[int, Field(ge=0, le=10_000_000, description="Number of test images; 0 means all.")] = 0
    partitioner: Annotated[Partition, PARTITION_CHOICE] = Equal()
    validation: Annotated[
        Images,
        Field(description="Number of held-out training images to evaluate models during the run; none by default."),
    ] = 0
    public_set: Annotated[
        Images,
        Field(
            description="Number of unlabelled training images that all nodes have, for distillation; none by default."
        ),
    ] = 0
    validation_sha256: Annotated[
        Sha256 | None,
        FILLED_IN,
        Field(description="SHA-256 of the held-out images and their labels."),
    ] = None

    @model_validator(mode="after")
    def _resolve_all(self) -> Self:
        """Replace 0 ("all") by the number of images, so that readers of the plan need no data set."""
        train, test = self.available
        counts = {"train": max(train - self.reserved, 0), "test": test}
        for key, count in counts.items():
            if getattr(self, key) == 0:
                self.__dict__[key] = count
        return self

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.source.name

    @property
    def partition(self) -> str:
        """The partition's name."""
        return self.partitioner.partition

    @property
    def reserved(self) -> int:
        """Number of training images that are not divided among the learners."""
        return self.validation + self.public_set

    @property
    def available(self) -> tuple[int, int]:
        """The numbers of training and test images in the data set; the plan may use fewer."""
        return self.source.available

    @property
    def noun(self) -> str:
        """The noun for the samples in messages."""
        return self.source.noun

    @property
    def class_count(self) -> int:
        """The number of classes.

        Raises
        ------
        PlanError
            The number is unknown until the run is deployed.
        """
        count = self.source.class_count
        if count is None:
            raise PlanError("data.classes: not known before the run is deployed")
        return count

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images."""
        return self.source.image_size

    @property
    def samples(self) -> tuple[int, ...]:
        """The number of samples of each learner if the data set determines it; otherwise empty."""
        return self.source.shard_sizes

    @property
    def unknown(self) -> list[str]:
        """The settings that deployment still has to fill in from the data."""
        return self.source.unknown + [key for key in ("train", "test") if not getattr(self, key)]


class CustomPlan(Settings):
    """A Python module with your own data and model; see docs/custom.md."""

    module: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$",
            json_schema_extra={"pattern": r"^(.+\.py|[A-Za-z_][A-Za-z0-9_]{0,62})$"},
            description="Path of the module, relative to the plan file; its name in a published plan.",
        ),
    ]
    sha256: Annotated[Sha256, FILLED_IN, Field(description="SHA-256 of the module's source.")]


class TrainingPlan(Settings):
    """What a learner does in one round."""

    if_given: ClassVar[frozenset[str]] = frozenset({"proximal_mu"})

    optimizer: Annotated[
        Literal["adam", "sgd"], Field(description="The optimizer; its state is reset in each round.")
    ] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10, description="The optimizer's learning rate.")] = 0.001
    epochs: Annotated[int, Field(ge=1, le=1000, description="Local epochs per round.")] = 5
    batch_size: Annotated[int, Field(ge=1, le=65536, description="Images per training step.")] = 64
    threads: Annotated[
        int,
        Field(
            ge=1,
            le=256,
            description="Threads per learner. The result depends on it bit for bit.",
        ),
    ] = 1
    proximal_mu: Annotated[
        Positive,
        Field(
            description="FedProx (μ): half of this times the squared distance from the global weights is added to "
            "the loss; nothing is added by default."
        ),
    ] = 0.0


class BoundsPlan(Settings):
    """Bounds of local weights; files that exceed them are rejected, whatever the rule."""

    if_given: ClassVar[frozenset[str]] = frozenset({"value", "update"})

    value: Annotated[Bound, Field(description="Maximum absolute value of a weight.")] = 1e6
    # The norm of an honest learner's update on MNIST is about 3.
    update: Annotated[
        Bound, Field(description="Maximum Euclidean norm of an update (local minus global weights).")
    ] = 1e5


class PrivacyPlan(Settings):
    """What other participants can't learn about a learner's data; see docs/privacy.md."""

    if_given: ClassVar[frozenset[str]] = frozenset({"secure_aggregation", "threshold"})

    secure_aggregation: Annotated[
        bool,
        Field(description="Whether learners mask their local weights, so that only their sum can be read."),
    ] = False
    threshold: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Members of a closed round that must publish shares before its sum can be read; 0 means "
            "more than two thirds of the learners.",
        ),
    ] = 0
    dp: Annotated[DpPlan | None, Field(description="Differential privacy, if given.")] = None


class AttackPlan(Settings):
    """Attacks by some learners, for laboratory use only."""

    learners: Annotated[NodeIds, Field(description="The nodeIds of the learners that attack.")]
    on_data: Annotated[DataAttack | None, DATA_CHOICE] = None
    on_update: Annotated[UpdateAttack | None, UPDATE_CHOICE] = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the attacks."""
        data = () if self.on_data is None else (self.on_data.data,)
        return data if self.on_update is None else (*data, self.on_update.update)


class StragglersPlan(Settings):
    """Learners that are slowed down, for laboratory use only."""

    learners: Annotated[NodeIds, Field(description="The nodeIds of the slow learners; unknown ids are ignored.")]
    factor: Annotated[
        float,
        Field(
            ge=1,
            le=1000,
            description="Slowdown: the learners wait after training until it has taken this many times as long.",
        ),
    ] = 4.0


class RetentionPlan(Settings):
    """How long hosts keep the files of learners; they keep all of them without this section."""

    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Closed rounds whose local files and openings hosts keep. They delete those of older rounds "
            "once more than half of the learners have attested the global weights; global files and the plan stay. "
            '`retention = "all"`, the default, keeps everything.',
        ),
    ]


MAX_ALL_VERIFY = 16
"""Number of learners up to which all of them verify by default."""


class PlanSettings(Settings):
    """The settings of a run; :class:`fl_node.plan.schema.Plan` checks that they don't contradict each other."""

    if_given: ClassVar[frozenset[str]] = frozenset(
        {"bounds", "verification", "committee", "header_timeout", "privacy", "compression", "retention"}
    )

    strategy: Annotated[Mode, MODE_CHOICE] = Synchronous()
    name: Annotated[
        str,
        Field(pattern=NAME_PATTERN, description="Name of the run and of its folder."),
    ]
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63, description="Seed of all randomness: initial weights, shards, order of images."),
    ] = 1
    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Number of rounds. A round of an asynchronous run takes one update (`fedasync`) or `buffer` "
            "updates (`fedbuff`).",
        ),
    ] = 5
    learners: Annotated[int, Field(ge=1, le=1000, description="Number of learners; nodeIds start at 1.")] = 2
    min_learners: Annotated[
        int,
        Field(ge=0, le=1000, description="Minimum number of local weights to close a round; 0 means all learners."),
    ] = 0
    round_timeout: Annotated[
        float,
        Field(
            ge=0, le=1_000_000, description="Seconds after which a round closes with `min_learners`; 0 means never."
        ),
    ] = 0.0
    fetch_timeout: Annotated[
        float,
        Field(
            gt=0,
            le=100_000,
            description="Seconds without new bytes after which a file counts as missing.",
        ),
    ] = 30.0
    verification: Annotated[
        Literal["all", "committee", "none"] | None,
        Field(
            description="Who recomputes global weights before local weights trained from them are published: `all` "
            "learners, a `committee` of them, drawn in each round, or `none`. Default: `all` up to 16 learners, "
            '`committee` beyond; `all` with `mode = "async"` or secure aggregation.'
        ),
    ] = None
    committee: Annotated[
        int,
        Field(ge=1, le=1000, description='Learners in the committee of a round, with `verification = "committee"`.'),
    ] = 5
    header_timeout: Annotated[
        float,
        Field(
            gt=0,
            le=1_000_000,
            description="Seconds after which learners vote to replace a header that does nothing in a closed round, "
            "in addition to the time that the round's files need at 10 MB/s. They wait as long for a committee.",
        ),
    ] = 60.0
    data: DataPlan = DataPlan()
    model: Annotated[Model, MODEL_CHOICE, Field(description="Architecture of all learners, or of each learner.")] = (
        SingleModel()
    )
    training: TrainingPlan = TrainingPlan()
    aggregation: Annotated[Rule, RULE_CHOICE, Field(description="How the header aggregates local weights.")] = (
        FedAvg()
    )
    bounds: BoundsPlan = BoundsPlan()
    privacy: PrivacyPlan = PrivacyPlan()
    compression: Annotated[
        Compression | None,
        COMPRESSION_CHOICE,
        Field(description="How learners publish their updates in fewer bytes; weights as they are by default."),
    ] = None
    retention: Annotated[RetentionPlan | None, Field(json_schema_extra={"word": "all"})] = None
    custom: CustomPlan | None = None
    attack: AttackPlan | None = None
    stragglers: StragglersPlan | None = None

    @classmethod
    def completed(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Drop defaults that have a name, and fill in the settings that the mode or a custom module implies."""
        for setting, default in (("mode", "sync"), ("retention", "all")):
            if content.get(setting) == default:
                del content[setting]
        mode = MODE_CHOICE.chosen_by(content)
        implied = dict(mode.implied) if mode is not None and issubclass(mode, Mode) else {}
        if isinstance(content.get("custom"), dict | CustomPlan):
            implied = {"data": {"name": "custom", "partition": "module"}, "model": {"name": "custom"}, **implied}
        for section, settings in implied.items():
            explicit = content.get(section, {})
            if isinstance(explicit, dict):
                content[section] = {**settings, **explicit}
        return content

    @property
    def mode(self) -> str:
        """The mode's name."""
        return self.strategy.mode

    @property
    def distillation(self) -> Distillation | None:
        """The settings of distillation, if learners of an ensemble use it."""
        return self.strategy.distillation if isinstance(self.strategy, Ensemble) else None

    @property
    def dp(self) -> DpPlan | None:
        """The settings of differential privacy, if the plan uses it."""
        return self.privacy.dp

    @property
    def dp_sgd(self) -> DpPlan | None:
        """Differential privacy of single examples, if the plan has it."""
        return self.dp if self.dp is not None and not self.dp.is_of_learners else None

    @property
    def learner_noise(self) -> LearnerNoise | None:
        """What each learner does to its update, if whole learners are protected and the noise is known."""
        dp, point = self.dp, self.fixed_point
        if dp is None or not dp.is_of_learners or dp.noise_multiplier is None or point is None:
            return None
        return LearnerNoise.sized(point, dp.clipping_norm, dp.noise_multiplier, self.noise_adders)

    @property
    def noise_adders(self) -> int:
        """How many learners add noise to each sum, at least; 0 if whole learners are not protected."""
        dp = self.dp
        return max(self.learners - dp.tolerated, 1) if dp is not None and dp.is_of_learners else 0

    @property
    def least_members(self) -> int:
        """Members that a round with masks must have before anything of it is opened."""
        return max(self.threshold, MIN_SUMMED, self.noise_adders)

    @property
    def unknown(self) -> list[str]:
        """The settings that deployment still has to fill in, by their keys."""
        noise = ["privacy.dp.noise_multiplier"] if self.dp is not None and self.dp.noise_multiplier is None else []
        return [f"data.{key}" for key in self.data.unknown] + noise

    @property
    def required_learners(self) -> int:
        """The minimum number of local weights to close a round."""
        return self.learners if self.min_learners == 0 else self.min_learners

    @property
    def is_verified(self) -> bool:
        """Whether learners recompute global weights and attest them."""
        return self.verifiers != "none"

    @property
    def verifiers(self) -> Literal["all", "committee", "none"]:
        """Who recomputes global weights before local weights trained from them are published."""
        if self.verification is not None:
            return self.verification
        is_large = self.learners > MAX_ALL_VERIFY and self.mode != "async" and not self.is_masked
        return "committee" if is_large else "all"

    @property
    def is_masked(self) -> bool:
        """Whether local weights are masked, so that only their sum can be read."""
        return self.privacy.secure_aggregation

    @property
    def threshold(self) -> int:
        """Members of a closed round that must publish shares before its sum can be read; 0 without masks."""
        if not self.is_masked:
            return 0
        return self.privacy.threshold or max(2 * self.learners // 3 + 1, MIN_SUMMED)

    @property
    def fixed_point(self) -> FixedPoint | None:
        """How updates become integers; None if the rule sums floating-point numbers."""
        return self.aggregation.fixed_point if isinstance(self.aggregation, FedAvg) else None

    @property
    def counts(self) -> tuple[int, ...]:
        """The weight of each learner's local weights in the average, in the order of nodeId; empty while unknown."""
        data = self.data
        if isinstance(self.aggregation, Rule) and self.aggregation.weighting == "uniform":
            return (1,) * self.learners
        if data.unknown or (data.partitioner.module and not data.samples):
            return ()

        def unknown() -> Any:
            raise PlanError(f"data.partition: {data.partition} needs the data to determine the sizes of shards")

        pool = Pool(data.train, self.learners, self.seed, unknown, unknown, data.samples)
        return tuple(map(int, data.partitioner.sizes(pool)))

    @property
    def asynchronous_rule(self) -> AsynchronousRule:
        """The rule of an asynchronous run.

        Raises
        ------
        PlanError
            The run is synchronous.
        """
        if not isinstance(self.aggregation, AsynchronousRule):
            raise PlanError(f'aggregation.rule: {self.aggregation.rule} is not for mode = "async"')
        return self.aggregation

    @property
    def ensemble_model(self) -> EnsembleModel:
        """The model of an ensemble.

        Raises
        ------
        PlanError
            The run trains a single model.
        """
        if not isinstance(self.model, EnsembleModel):
            raise PlanError(f'model.name: {self.model.name} is not for mode = "ensemble"')
        return self.model

    def architecture_of(self, node_id: int) -> str:
        """Return the architecture of a learner's model."""
        return self.model.architecture_of(node_id)

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures that learners use, sorted by name."""
        return tuple(sorted({self.architecture_of(node_id) for node_id in range(1, self.learners + 1)}))

    @property
    def measures_members(self) -> bool:
        """Whether the weights of the architectures are measured on the held-out images."""
        return isinstance(self.model, EnsembleModel) and self.model.measured
