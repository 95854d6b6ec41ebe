"""A plan: all settings of one run, in one file.

People write plans in TOML. What is published in the store is the same plan with every default filled in, as
canonical JSON, so that an old run stays readable when a default changes. A setting that only some choice uses (such
as Krum's number of liars) stands in the plans that make this choice, and in no other.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fl_node.errors import JsonError, PlanError
from fl_node.runtime import strict_json

MAX_PLAN_BYTES = 64 * 1024
MAX_FILE_BYTES = 256 * 1024
"""The most that a person's file may have; it may be full of comments."""
MAX_BRACKETS = 200
"""Opening brackets of all kinds in a TOML file, in comments too; tomllib descends into each."""
MAX_DOTS = 64
"""Dots in a line of a TOML file; tomllib takes quadratic time for a key of many parts."""

SIDE = 28
CLASSES = 10
"""Of the data sets whose plan doesn't say otherwise."""
MAX_CLASSES = 100_000
DATA_SIZES = {"mnist": (60_000, 10_000), "digits": (1_437, 360)}
"""Training and test images of each data set that is the same everywhere."""

REQUIRED = None
"""In :attr:`_Section.CHOICES`: a setting that has no sensible default."""
LATER = object()
"""In :attr:`_Section.CHOICES`: a setting that is filled in where the data are at hand when a run is deployed."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
NodeIds = Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], BeforeValidator(lambda v: _tuple(v))]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(lambda v: _tuple(v))]
Side = Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], BeforeValidator(lambda v: _tuple(v))]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    CHOICES: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {}
    """By the key that chooses and its value: the keys that are used then, with their defaults."""
    COMMON: ClassVar[frozenset[str]] = frozenset()
    """Keys of the choices that the others use too, with another default."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, content: object) -> object:
        """Fill in the defaults of what is chosen."""
        if not isinstance(content, dict):
            return content
        filled = dict(content)
        for key, choices in cls.CHOICES.items():
            chosen = filled.get(key, cls.model_fields[key].default)
            settings = choices.get(chosen, {}) if isinstance(chosen, str) else {}
            filled |= {
                name: value
                for name, value in settings.items()
                if value is not REQUIRED and value is not LATER and name not in content
            }
        return filled

    @model_serializer(mode="wrap")
    def _used(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @classmethod
    def _chosen(cls, content: Mapping[str, Any]) -> dict[str, Mapping[str, object]]:
        chosen = {key: content.get(key, cls.model_fields[key].default) for key in cls.CHOICES}
        return {
            value: cls.CHOICES[key][value]
            for key, value in chosen.items()
            if isinstance(value, str) and value in cls.CHOICES[key]
        }

    @classmethod
    def problems(cls, content: Mapping[str, Any]) -> list[str]:
        """Return which settings are missing or belong to another choice; wrong types are left to others."""
        chosen = cls._chosen(content)
        users: dict[str, list[str]] = {}
        for choices in cls.CHOICES.values():
            for choice, settings in choices.items():
                for key in settings:
                    users.setdefault(key, []).append(choice)
        problems = []
        for key, choices_ in users.items():
            using = [choice for choice in choices_ if choice in chosen]
            given = content.get(key) is not None
            if given and not using and key not in cls.COMMON:
                problems.append(f"{key}: only used by {', '.join(choices_)}")
            if not given and using and chosen[using[0]][key] is REQUIRED:
                problems.append(f"{key}: {using[0]} needs it")
        return problems


def _available(data: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many training and test images there are; 0 where that is not known yet."""
    name = data.get("name", "mnist")
    if name == "folder":
        train, test = (_whole(data.get(key)) for key in ("all_train", "all_test"))
        return train, test
    if name == "own":
        samples = data.get("samples")
        return (sum(map(_whole, samples)) if isinstance(samples, list | tuple) else 0), 0
    return DATA_SIZES.get(str(name), (0, 0))


def _whole(value: object) -> int:
    return value if type(value) is int else 0


class DataPlan(_Section):
    """Which images, how many of them, and how the learners share them."""

    name: Literal["mnist", "digits", "folder", "own"] = "mnist"
    """`digits`: the small set that scikit-learn ships; `folder`: four files like MNIST's with your own images;
    `own`: what your own module loads."""
    train: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Training images shared out among all learners; 0 takes all there are."""
    test: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Test images; 0 takes all there are."""
    partition: Literal["equal", "dirichlet", "labels", "quantity", "module"] = "equal"
    """How the learners share the training images: `equal`, the paper's, the same number each; `dirichlet`: labels in
    unequal shares; `labels`: a few labels each; `quantity`: unequal numbers; `module`: as your own
    module does."""
    alpha: Positive | None = None
    """Of `dirichlet` and `quantity`: the smaller, the less even."""
    labels_each: Annotated[int, Field(ge=1, le=MAX_CLASSES)] | None = None
    """Of `labels`: how many parts of the images sorted by label a learner has, hence about as many labels."""
    validation: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Training images that no learner has, for whoever measures models before the end."""
    shared: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Training images that all nodes have, without their labels; learners of different models learn from each other
    on them."""
    validation_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """What these images and their labels are; filled in where the data set is at hand when a run is deployed."""
    all_train: Count | None = None
    """Of `folder`: the training images there are."""
    all_test: Count | None = None
    """Of `folder`: the test images there are."""
    size: Side | None = None
    """Of `folder`: height and width of the images."""
    train_images_sha256: Sha256 | None = None
    """Of `folder`: what the file train-images-idx3-ubyte holds."""
    train_labels_sha256: Sha256 | None = None
    """Of `folder`: what train-labels-idx1-ubyte holds."""
    test_images_sha256: Sha256 | None = None
    """Of `folder`: what t10k-images-idx3-ubyte holds."""
    test_labels_sha256: Sha256 | None = None
    """Of `folder`: what t10k-labels-idx1-ubyte holds."""
    samples: Counts | None = None
    """Of `own`: the training samples of each learner, in the order of nodeId."""
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)] | None = None
    """Of `folder` and `own`: labels are 0 to one less."""

    CHOICES = {
        "name": {
            "folder": {
                "all_train": LATER,
                "all_test": LATER,
                "size": LATER,
                "classes": LATER,
                "train_images_sha256": LATER,
                "train_labels_sha256": LATER,
                "test_images_sha256": LATER,
                "test_labels_sha256": LATER,
            },
            "own": {"samples": LATER, "classes": LATER},
        },
        "partition": {
            "equal": {},
            "dirichlet": {"alpha": 0.5},
            "labels": {"labels_each": 2},
            "quantity": {"alpha": 0.5},
        },
    }

    @model_validator(mode="before")
    @classmethod
    def _all_there_are(cls, content: object) -> object:
        """Put a number where the plan says "all", so that whoever reads the plan needs no data set to know."""
        if not isinstance(content, dict):
            return content
        sizes = _available(content)
        known = {"train": max(sizes[0] - _kept(content), 0), "test": sizes[1]}
        given = {key: content.get(key, 0) for key in known}
        # Of its type too: false and 0.0 equal 0, and are wrong.
        return content | {key: known[key] for key, value in given.items() if type(value) is int and value == 0}

    @property
    def available(self) -> tuple[int, int]:
        """Training and test images there are; the plan may take fewer."""
        return _available(self.model_dump())

    @property
    def noun(self) -> str:
        """What the data are called in a sentence."""
        return "samples" if self.name == "own" else "images"

    @property
    def class_count(self) -> int:
        """How many classes there are."""
        return self.classes or CLASSES

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images."""
        return self.size or (SIDE, SIDE)

    @property
    def unknown(self) -> list[str]:
        """The settings that are still to be filled in, by whoever has the data."""
        later = [key for key in self.CHOICES["name"].get(self.name, {}) if getattr(self, key) is None]
        return later + [key for key in ("train", "test") if not getattr(self, key)]


def _kept(data: Mapping[str, Any]) -> int:
    """Return how many training images a plan keeps from the learners' shards; wrong types are left to others."""
    counts = [data.get("validation"), data.get("shared")]
    return sum(count for count in counts if isinstance(count, int) and count > 0)


Architecture = Literal["cnn", "deep_cnn", "mlp", "separable_cnn"]


class ModelPlan(_Section):
    """Which architecture every node builds, or which each learner."""

    name: Literal[Architecture, "ensemble", "own"] = "cnn"
    """`cnn` is the paper's; `ensemble`: each learner has one of `architectures`; `own`: what your own
    module builds."""
    architectures: Annotated[tuple[Architecture, ...], Field(min_length=1), BeforeValidator(_tuple)] | None = None
    """Of `ensemble`: the architectures of learners 1, 2, …; with more learners from the beginning again."""
    weighting: Literal["uniform", "accuracy", "convex"] | None = None
    """Of `ensemble`: what each architecture counts for. `accuracy`: by how many held-out images it gets right;
    `convex`: what makes their labels most likely."""

    CHOICES = {"name": {"ensemble": {"architectures": REQUIRED, "weighting": "uniform"}}}


class OwnPlan(_Section):
    """A Python module with your own data and model; see docs/own.md."""

    module: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
    """In a file of a person: the path of the module, relative to the plan's; published: its name alone."""
    sha256: Sha256
    """Of the module's source; filled in from the file."""


class TrainingPlan(_Section):
    """What a learner does in one round."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """It begins each round anew."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.001
    """The optimizer's."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many times a learner goes through its images in a round."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    """Images in one step."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of one learner. A result depends on it, bit for bit, so it belongs to the plan."""
    proximal: Positive | None = None
    """FedProx: half of this times the squared distance from the global weights is added to the loss."""


class AggregationPlan(_Section):
    """How the header makes global weights from local weights."""

    rule: Literal[
        "fedavg",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "norm_clipping",
        "fedavgm",
        "fedadam",
        "fedasync",
        "fedbuff",
    ] = "fedavg"
    """The last two are those of `mode = "async"`, all others those of `sync`; see docs/adversaries.md and
    docs/modes.md."""
    weighting: Literal["samples", "uniform"] = "samples"
    """What a file counts for; the median, the trimmed mean, Krum and the asynchronous rules know no weights."""
    byzantine: Annotated[int, Field(ge=1, le=500)] | None = None
    """Of `trimmed_mean`, `krum`, `multi_krum`: how many learners may lie."""
    clip: Positive | None = None
    """Of `norm_clipping`: the longest that an update (local less global weights) may be, in the Euclidean norm."""
    server_learning_rate: Positive | None = None
    """Of `fedavgm`, `fedadam` and `fedbuff`: by how much the global weights follow."""
    momentum: Fraction | None = None
    """Of `fedavgm` and `fedadam` (there β₁): the share of the last direction that is kept."""
    second_momentum: Fraction | None = None
    """Of `fedadam` (β₂): the share of the last squares that is kept."""
    adaptivity: Positive | None = None
    """Of `fedadam` (τ): what is added to the root of the squares; small follows the signs, large the sizes."""
    mixing: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of `fedasync` (α): the share of fresh local weights in the next global weights."""
    buffer: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Of `fedbuff` (K): how many updates make the next global weights."""
    staleness: Literal["constant", "polynomial", "hinge"] | None = None
    """Of `fedasync` and `fedbuff`: how an update counts less, the more rounds have closed since it began."""
    exponent: Positive | None = None
    """Of `polynomial`: (rounds + 1) to the power of minus this."""
    grace: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Of `hinge`: so many rounds do not count."""
    slope: Positive | None = None
    """Of `hinge`: 1 / (slope · (rounds - grace) + 1) after that."""

    CHOICES = {
        "rule": {
            "fedavg": {},
            "median": {"weighting": "uniform"},
            "trimmed_mean": {"weighting": "uniform", "byzantine": REQUIRED},
            "krum": {"weighting": "uniform", "byzantine": REQUIRED},
            "multi_krum": {"byzantine": REQUIRED},
            "norm_clipping": {"clip": REQUIRED},
            "fedavgm": {"server_learning_rate": 1.0, "momentum": 0.9},
            "fedadam": {
                "server_learning_rate": 0.01,
                "momentum": 0.9,
                "second_momentum": 0.99,
                "adaptivity": 0.001,
            },
            "fedasync": {"weighting": "uniform", "mixing": 0.6, "staleness": "polynomial"},
            "fedbuff": {
                "weighting": "uniform",
                "buffer": REQUIRED,
                "staleness": "polynomial",
                "server_learning_rate": 1.0,
            },
        },
        "staleness": {"constant": {}, "polynomial": {"exponent": 0.5}, "hinge": {"grace": 4, "slope": 10.0}},
    }
    COMMON = frozenset({"weighting"})

    def least(self) -> int:
        """Return how many local files the rule needs to mean anything."""
        needs = {"trimmed_mean": 1, "krum": 3, "multi_krum": 3}
        return 2 * (self.byzantine or 0) + needs[self.rule] if self.rule in needs else 1


LARGEST_VALUE = 1e6
"""The largest size of a weight if the plan sets none."""
LONGEST_UPDATE = 1e5
"""The longest update if the plan sets none; an honest learner's on MNIST is about 3 long."""

Bound = Annotated[float, Field(gt=0, le=1e30)]


class BoundsPlan(_Section):
    """How large local weights may be; a file beyond that is refused, whatever the rule.

    A default is not written into the published plan, so that plans from before this section keep their CIDs.
    """

    value: Bound | None = None
    """The largest size of a single weight; 1e6 if not given."""
    update: Bound | None = None
    """The longest that an update (local less global weights) may be, in the Euclidean norm; 1e5 if not given."""


class AttackPlan(_Section):
    """What some learners do to the run; for the laboratory alone."""

    learners: NodeIds
    """The nodeIds of those who do it."""
    data: Literal["label_flip", "backdoor"] | None = None
    """What they do to their images before they train."""
    update: Literal["sign_flip", "scale", "noise", "constant", "copy"] | None = None
    """What they do to their weights after they have trained."""
    target: Annotated[int, Field(ge=0, lt=MAX_CLASSES)] | None = None
    """Of `backdoor`: what the model shall say of an image with the patch."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of `backdoor`: the share of their images that get the patch."""
    factor: Positive | None = None
    """Of `scale` and `sign_flip`: the update is multiplied by this, or by its negative."""
    deviation: Positive | None = None
    """Of `noise`: the standard deviation of what is added to each weight."""
    value: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    """Of `constant`: what every weight is set to."""

    CHOICES = {
        "data": {"label_flip": {}, "backdoor": {"target": 0, "fraction": 0.5}},
        "update": {
            "sign_flip": {"factor": 1.0},
            "scale": {"factor": 5.0},
            "noise": {"deviation": 0.1},
            "constant": {"value": 0.0},
            "copy": {},
        },
    }


class DistillationPlan(_Section):
    """How learners of different models learn from what all of them together say of the shared images."""

    weight: Positive = 1.0
    """What a shared image counts for beside one of the learner's own."""
    temperature: Annotated[float, Field(ge=1, le=100)] = 2.0
    """Softens what models say; 1 leaves it as it is."""


class SlowPlan(_Section):
    """Learners that take longer than they need; for the laboratory alone."""

    learners: NodeIds
    """The nodeIds of those who are slow; one that the run does not have slows nobody."""
    factor: Annotated[float, Field(ge=1, le=1000)] = 4.0
    """They pause after training until it has taken so many times as long."""


LISTS = {"data.size": "[28, 28]", "data.samples": "[100, 200]", "model.architectures": '["cnn", "mlp"]'}
"""By the settings that are lists: what one looks like, where it is not ``[1]``."""
ASYNCHRONOUS = frozenset({"fedasync", "fedbuff"})
"""Rules by which each update counts when it comes, and nobody waits for the slowest."""


class Plan(_Section):
    """The settings of one run."""

    mode: Literal["async", "ensemble"] | None = None
    """`sync` (if not given): a round closes with everybody's weights; `async`: with those that came first;
    `ensemble`: learners have different models, and the global weights are all of them and what each counts for."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    """What the run is called, and its folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Of all chance: initial weights, shards, the order of images."""
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Global weights that are made. Asynchronously a round is one update (`fedasync`) or `buffer` of them."""
    learners: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many there are, nodeIds from 1."""
    min_learners: Annotated[int, Field(ge=0, le=1000)] = 0
    """Local weights a round needs; 0 means every learner's."""
    round_timeout: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Seconds after which a round closes with `min_learners`; 0 means never."""
    fetch_timeout: Annotated[float, Field(gt=0, le=100_000)] = 30.0
    """Seconds in which something must arrive at a node that waits for a file; else the file counts as missing."""
    data: DataPlan = DataPlan()
    model: ModelPlan = ModelPlan()
    training: TrainingPlan = TrainingPlan()
    aggregation: AggregationPlan = AggregationPlan()
    bounds: BoundsPlan | None = None
    distillation: DistillationPlan | None = None
    own: OwnPlan | None = None
    attack: AttackPlan | None = None
    slow: SlowPlan | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_mode(cls, content: object) -> object:
        """Leave out the mode that needs no word, and fill in what the others imply."""
        return _implied(content) if isinstance(content, dict) else content

    @model_validator(mode="before")
    @classmethod
    def _by_module(cls, content: object) -> object:
        """Take data and model from your own module, if the plan names one."""
        return _of_module(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := _inconsistencies(self.model_dump()):
            raise ValueError("\n".join(problems))
        return self

    @property
    def required_learners(self) -> int:
        """Local weights without which a round does not close."""
        return self.min_learners or self.learners

    @property
    def largest_value(self) -> float:
        """The largest size of a single local weight."""
        given = self.bounds.value if self.bounds else None
        return LARGEST_VALUE if given is None else given

    @property
    def longest_update(self) -> float:
        """The longest update, in the Euclidean norm."""
        given = self.bounds.update if self.bounds else None
        return LONGEST_UPDATE if given is None else given

    def architecture_of(self, node_id: int) -> Architecture:
        """Return the architecture of a learner's model."""
        if self.model.architectures is None:
            return cast(Architecture, self.model.name)
        return self.model.architectures[(node_id - 1) % len(self.model.architectures)]

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The architectures that some learner has, in the order of their names."""
        return tuple(sorted({self.architecture_of(node_id) for node_id in range(1, self.learners + 1)}))

    @property
    def measures_members(self) -> bool:
        """Whether what an architecture counts for is measured on the held-out images."""
        return self.model.weighting in {"accuracy", "convex"}

    def to_bytes(self) -> bytes:
        """Return the canonical form that is published: JSON, sorted keys, no spaces, UTF-8."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


SECTIONS: Mapping[str, type[_Section]] = {
    "data": DataPlan,
    "model": ModelPlan,
    "aggregation": AggregationPlan,
    "attack": AttackPlan,
}
"""The sections in which a choice decides what else is used."""


def load(path: Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a plan in TOML, or in JSON as it is published.

    Parameters
    ----------
    path
        The TOML file; a file that ends in ``.json`` is read as JSON. ``-`` is standard input, in either.
    overrides
        Settings that replace those of the file, each as ``key=value`` in TOML, such as ``training.epochs=1``.

    Raises
    ------
    PlanError
        The file can't be read or the plan is not valid; the message lists everything that is wrong.
    """
    content = _read(path, overrides)
    return validate(_with_hash(content, _module(path, content)), str(path))


def module_file(path: Path, overrides: Iterable[str] = ()) -> Path | None:
    """Return the file of the module that a plan in TOML names by its path, or None; arguments as for :func:`load`."""
    return None if str(path) == "-" else _module(path, _read(path, overrides))


def _read(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    piped = str(path) == "-"
    form = "JSON" if path.suffix == ".json" else "TOML"
    try:
        given = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if piped else strict_json.read_bytes(path, MAX_FILE_BYTES)
        if len(given) > MAX_FILE_BYTES:
            raise JsonError(f"has more than the {MAX_FILE_BYTES} bytes allowed")
        text = _text(given)
        if piped and text.lstrip().startswith("{"):
            form = "JSON"
        content = strict_json.loads(text) if form == "JSON" else _toml(text)
    except OSError as error:
        raise PlanError(f"plan {path}: {error.strerror or error}") from error
    except JsonError as error:
        raise PlanError(f"plan {path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {path} is not valid {form}: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"plan {path} should be a table of settings")
    for override in overrides:
        _override(content, override)
        _check_override(content, override)
    return content


def _text(content: bytes) -> str:
    """Return the text of a plan; with ends of lines of any system, and with or without a byte-order mark.

    Raises
    ------
    ValueError
        It is not UTF-8; the message says where.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(f"line {line} has the byte 0x{byte:02x}, which is not UTF-8; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"line {text[: text.index(chr(0))].count(chr(10)) + 1} has a NUL byte; remove it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _toml(text: str) -> dict[str, Any]:
    """Parse TOML within the bounds that JSON has."""
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise JsonError(f"has more than {MAX_BRACKETS} opening brackets")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS and not line.lstrip().startswith("#"):
            raise JsonError(f"has more than {MAX_DOTS} dots in line {number}")
    content = tomllib.loads(text)
    strict_json.check(content)
    return content


def _check_override(content: dict[str, Any], override: str) -> None:
    try:
        strict_json.check(content)
    except JsonError as error:
        raise PlanError(f"--set {override[:60]!r}: with it, the plan {error}") from error


def _module(path: Path, content: Mapping[str, Any]) -> Path | None:
    """Return the file that `own.module` names, if it names one and not only a module."""
    own = content.get("own")
    named = own.get("module") if isinstance(own, Mapping) else None
    is_path = isinstance(named, str) and named.endswith(".py") and "\0" not in named
    return path.parent / str(named) if is_path else None


def _with_hash(content: dict[str, Any], module: Path | None) -> dict[str, Any]:
    """Put the name and the hash of a module in the place of its path."""
    if module is None:
        return content
    try:
        found = hashlib.sha256(module.read_bytes()).hexdigest()
    except OSError as error:
        raise PlanError(f"own.module: {module}: {error.strerror or error}") from error
    own = {"sha256": found, **content["own"], "module": module.stem}
    if own["sha256"] != found:
        raise PlanError(f"own.module: {module} has SHA-256 {found}, the plan says {own['sha256']}")
    return content | {"own": own}


def from_bytes(content: bytes, source: str = "published plan") -> Plan:
    """Read a plan as it was published.

    Raises
    ------
    PlanError
        The bytes are not the canonical form of a valid plan.
    """
    if len(content) > MAX_PLAN_BYTES:
        raise PlanError(f"{source}: {len(content)} bytes, more than the {MAX_PLAN_BYTES} that a plan may have")
    try:
        decoded = strict_json.loads(content)
    except JsonError as error:
        raise PlanError(f"{source} {error}") from error
    plan = validate(decoded, source)
    if plan.to_bytes() != content:
        raise PlanError(f"{source} is not in canonical form (JSON with sorted keys, no spaces, all settings)")
    check_complete(plan, source)
    return plan


def check_complete(plan: Plan, source: str) -> None:
    """Check that nothing is left to be filled in, so that a run can be audited without its data.

    Raises
    ------
    PlanError
        Something is; the message names it.
    """
    if plan.data.unknown:
        missing = ", ".join(f"data.{key}" for key in plan.data.unknown)
        raise PlanError(f"{source} lacks what whoever has the data fills in: {missing}")


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise PlanError(f"--set {override}: should be KEY=VALUE, such as training.epochs=1")
    try:
        value = _toml(f"value = {text.strip()}")["value"]
    except JsonError as error:
        raise PlanError(f"--set {key.strip()[:60]!r}: the value {error}") from error
    except ValueError:
        value = text.strip()
    for name in path[:-1]:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise PlanError(f"--set {override}: {name} is not a section of a plan")
    content[path[-1]] = value


def validate(content: object, source: str) -> Plan:
    """Return the plan that decoded TOML or JSON holds.

    Raises
    ------
    PlanError
        It is not valid; the message names the source and, a line each, everything that is wrong.
    """
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        problems = [_problem(dict(e)) for e in error.errors(include_url=False) if e["loc"]]
        if isinstance(content, dict):
            problems += _inconsistencies(_of_module(_implied(content)))
        else:
            problems.append("should be a table of settings")
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise PlanError(f"{source} is not a valid plan:{lines}") from error


def _implied(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's settings without the mode that needs no word, and with what the others imply."""
    filled = {key: value for key, value in content.items() if (key, value) != ("mode", "sync")}
    for mode, section, key, implied in (
        ("async", "aggregation", "rule", "fedasync"),
        ("ensemble", "model", "name", "ensemble"),
    ):
        given = filled.get(section, {})
        if filled.get("mode") == mode and isinstance(given, dict) and key not in given:
            filled[section] = {key: implied, **given}
    return filled


def _inconsistencies(content: Mapping[str, Any]) -> list[str]:
    """Return what is impossible about settings that are each possible alone; wrong types are left to others."""
    problems = []
    learners = content.get("learners", 2)
    required = content.get("min_learners", 0)
    data = content.get("data", {})
    data = data if isinstance(data, Mapping) else {}
    sizes = _available(data)
    for key, size in zip(("train", "test"), sizes, strict=True):
        count = data.get(key, 0)
        if isinstance(count, int) and count > size > 0:
            problems.append(f"data.{key}: should be at most {size}, all there are in this data set (is {count})")
    for key, section in SECTIONS.items():
        if isinstance(given := content.get(key, {}), Mapping):
            problems += [f"{key}.{problem}" for problem in section.problems(given)]
    problems += _class_problems(content, data)
    images, kept = data.get("train", 0), _kept(data)
    if data.get("validation_sha256") is not None and data.get("validation") is None:
        problems.append("data.validation_sha256: only used with data.validation")
    if isinstance(images, int) and kept and images + kept > sizes[0] > 0:
        keys = " and ".join(f"data.{key}" for key in ("validation", "shared") if data.get(key) is not None)
        problems.append(f"{keys}: should be at most {sizes[0] - images}, what is left of {sizes[0]} (is {kept})")
    problems += _rule_problems(content, required or learners) + _attack_problems(content, learners)
    problems += _ensemble_problems(content, data) + _own_problems(content, data, learners)
    if isinstance(learners, int) and isinstance(required, int) and required > learners:
        problems.append(f"min_learners: should be at most learners, which is {learners} (is {required})")
    if isinstance(learners, int) and isinstance(images, int) and 0 < images < learners:
        problems.append(f"data.train: should be 0 (all) or at least one a learner, {learners} (is {images})")
    return problems


def _rule_problems(content: Mapping[str, Any], files: object) -> list[str]:
    try:
        rule = AggregationPlan.model_validate(content.get("aggregation", {}))
    except ValidationError:
        return []
    problems = []
    if rule.rule in {"median", "trimmed_mean", "krum", *ASYNCHRONOUS} and rule.weighting != "uniform":
        problems.append(
            f"aggregation.weighting: should be uniform, {rule.rule} knows no weights (is {rule.weighting!r})"
        )
    mode, asynchronous = content.get("mode") == "async", rule.rule in ASYNCHRONOUS
    if mode != asynchronous and "rule" in content.get("aggregation", {}):
        wanted = " or ".join(sorted(ASYNCHRONOUS)) if mode else 'one of another mode; it needs mode = "async"'
        problems.append(f"aggregation.rule: should be {wanted} (is {rule.rule!r})")
    if rule.buffer and isinstance(files, int) and rule.buffer > files:
        problems.append(
            f"aggregation.buffer: should be at most {files}, or nobody is left to fill it (is {rule.buffer})"
        )
    if isinstance(files, int) and rule.byzantine and rule.least() > files:
        problems.append(
            f"aggregation.byzantine: {rule.rule} needs {rule.least()} local files in each round for "
            f"{rule.byzantine} that lie, and a round may close with {files}"
        )
    return problems


def _ensemble_problems(content: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    try:
        model = ModelPlan.model_validate(content.get("model", {}))
        rule = AggregationPlan.model_validate(content.get("aggregation", {})).rule
    except ValidationError:
        return []
    problems = []
    mode = content.get("mode") == "ensemble"
    if mode != (model.name == "ensemble") and "name" in content.get("model", {}):
        wanted = "ensemble, or not given" if mode else 'one architecture; an ensemble needs mode = "ensemble"'
        problems.append(f"model.name: should be {wanted} (is {model.name!r})")
    if mode and rule != "fedavg":
        problems.append(f"aggregation.rule: should be fedavg, the average within an architecture (is {rule!r})")
    if model.weighting not in (None, "uniform") and data.get("validation") is None:
        problems.append(
            f"data.validation: missing; model.weighting {model.weighting!r} is measured on images that no learner has"
        )
    if mode and content.get("own") is not None:
        problems.append('own: not used with mode = "ensemble", whose models are those of model.architectures')
    distils, shares = content.get("distillation") is not None, data.get("shared") is not None
    if distils and not mode:
        problems.append('distillation: only used with mode = "ensemble"')
    if distils and not shares:
        problems.append("data.shared: missing; distillation needs images that all have")
    if shares and not distils:
        problems.append("data.shared: only used with distillation")
    return problems


def _attack_problems(content: Mapping[str, Any], learners: object) -> list[str]:
    attack = content.get("attack")
    if not isinstance(attack, Mapping):
        return []
    problems = []
    if attack.get("data") is None and attack.get("update") is None:
        problems.append("attack: should have data or update, or both: what the learners do")
    ids = attack.get("learners")
    if isinstance(ids, list | tuple):
        known = [node_id for node_id in ids if isinstance(node_id, int)]
        if isinstance(learners, int) and any(node_id > learners for node_id in known):
            problems.append(f"attack.learners: should be among 1 to {learners} (is {list(ids)})")
        if len(set(known)) < len(known) or not known:
            problems.append(f"attack.learners: should name one or more, each once (is {list(ids)})")
    return problems


def _of_module(content: dict[str, Any]) -> dict[str, Any]:
    """Return settings with data and model from your own module, if the plan names one."""
    if not isinstance(content.get("own"), dict | OwnPlan):
        return content
    chosen = {"data": {"name": "own", "partition": "module"}, "model": {"name": "own"}}
    given = {key: content.get(key, {}) for key in chosen}
    return content | {key: chosen[key] | value for key, value in given.items() if isinstance(value, dict)}


def _class_problems(content: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return which settings do not fit the number of classes, as far as it is known."""
    classes = data.get("classes") or (CLASSES if data.get("name", "mnist") in DATA_SIZES else None)
    if not isinstance(classes, int):
        return []
    problems = []
    attack = content.get("attack")
    target = attack.get("target") if isinstance(attack, Mapping) else None
    if isinstance(target, int) and target >= classes:
        problems.append(f"attack.target: should be at most {classes - 1}, there are {classes} classes (is {target})")
    each = data.get("labels_each")
    if isinstance(each, int) and each > classes:
        problems.append(f"data.labels_each: should be at most {classes}, the number of classes (is {each})")
    return problems


def _own_problems(content: Mapping[str, Any], data: Mapping[str, Any], learners: object) -> list[str]:
    """Return what is wrong about your own data."""
    problems = []
    size, samples = data.get("size"), data.get("samples")
    if isinstance(size, list | tuple) and len(size) != 2:
        problems.append(f"data.size: should be height and width (is {list(size)})")
    attack = content.get("attack")
    attack = attack if isinstance(attack, Mapping) else {}
    if content.get("own") is None:
        if data.get("partition") == "module":
            problems.append("data.partition: module needs your own module, which [own] names")
        model = content.get("model")
        named = {"data": data.get("name"), "model": model.get("name") if isinstance(model, Mapping) else None}
        problems += [f"{key}.name: own needs [own] with a module" for key, name in named.items() if name == "own"]
        return problems
    model = content.get("model", {})
    for key, wanted, section in (("name", "own", data), ("partition", "module", data), ("name", "own", model)):
        found = section.get(key, wanted) if isinstance(section, Mapping) else wanted
        where = "model" if section is model else "data"
        if found != wanted:
            problems.append(f"{where}.{key}: should be left out, the module decides it (is {found!r})")
    if data.get("validation") is not None:
        problems.append("data.validation: should be left out, a module's samples all belong to learners")
    if attack.get("data") == "backdoor":
        problems.append("attack.data: backdoor puts a patch on images, and a module's samples may be anything")
    if isinstance(samples, list | tuple) and isinstance(learners, int) and len(samples) != learners:
        problems.append(f"data.samples: should be a number for each of {learners} learners (is {list(samples)})")
    if isinstance(train := data.get("train", 0), int) and 0 < train != _available(data)[0]:
        problems.append(f"data.train: should be left out, it is the sum of the samples (is {train})")
    return problems


def _problem(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing"
    if kind in {"model_type", "model_attributes_type"}:
        return f"{key or 'plan'}: should be a section with keys (is {given!r})"
    if kind == "string_pattern_mismatch" and key.endswith("sha256"):
        return f"{key}: should be a SHA-256, 64 hexadecimal digits (is {given!r})"
    if kind == "string_pattern_mismatch" and key == "own.module":
        return (
            f"{key}: should be a Python file whose name before .py has up to 63 letters (a to z), digits or '_' and "
            f"begins with no digit, such as my_module.py (is {given!r})"
        )
    if key == "own.module":
        return f"{key}: should be a Python file such as tabular.py, relative to the plan (is {given!r})"
    if kind == "tuple_type":
        return f"{key}: should be a list such as {LISTS.get(key, '[1]')} (is {given!r})"
    if kind == "string_pattern_mismatch":
        return (
            f"{key}: should be up to 63 lower-case letters, digits, '.', '_' or '-', "
            f"the first a letter or digit (is {given!r})"
        )
    message = error["msg"].replace("Input should be", "should be").replace("a valid integer", "a whole number")
    return f"{key}: {message} (is {given!r})"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Plan
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        sections = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        model = next((one for one in sections if issubclass(one, BaseModel)), model)
    return sorted(model.model_fields)
