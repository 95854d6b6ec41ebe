"""A plan: all settings of one run, in one file.

People write plans in TOML. What is published in the store is the same plan with every default filled in, as
canonical JSON, so that an old run stays readable when a default changes.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fl_node.errors import PlanError

MAX_PLAN_BYTES = 64 * 1024

DATA_SIZES = {"mnist": (60_000, 10_000), "digits": (1_437, 360)}
"""Training and test images of each data set."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataPlan(_Section):
    """Which images, how many of them, and how the learners share them."""

    name: Literal["mnist", "digits"] = "mnist"
    train: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Training images shared out among all learners; 0 takes all there are."""
    test: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Test images; 0 takes all there are."""
    partition: Literal["equal"] = "equal"

    @model_validator(mode="before")
    @classmethod
    def _all_there_are(cls, content: object) -> object:
        """Put a number where the plan says "all", so that whoever reads the plan needs no data set to know."""
        if not isinstance(content, dict):
            return content
        sizes = DATA_SIZES.get(str(content.get("name", "mnist")), (0, 0))
        known = dict(zip(("train", "test"), sizes, strict=True))
        given = {key: content.get(key, 0) for key in known}
        # Of its type too: false and 0.0 equal 0, and are wrong.
        return content | {key: known[key] for key, value in given.items() if type(value) is int and value == 0}


class ModelPlan(_Section):
    """Which architecture every node builds."""

    name: Literal["cnn", "mlp"] = "cnn"


class TrainingPlan(_Section):
    """What a learner does in one round."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.001
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of one learner. A result depends on it, bit for bit, so it belongs to the plan."""


class AggregationPlan(_Section):
    """How the header makes global weights from local weights."""

    rule: Literal["fedavg"] = "fedavg"
    weighting: Literal["samples", "uniform"] = "samples"


class Plan(_Section):
    """The settings of one run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    learners: Annotated[int, Field(ge=1, le=1000)] = 2
    min_learners: Annotated[int, Field(ge=0, le=1000)] = 0
    """Local weights a round needs; 0 means every learner's."""
    round_timeout: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Seconds after which a round closes with `min_learners`; 0 means never."""
    fetch_timeout: Annotated[float, Field(gt=0, le=100_000)] = 30.0
    """Seconds in which a file must come out of the swarm; after that it counts as missing."""
    data: DataPlan = DataPlan()
    model: ModelPlan = ModelPlan()
    training: TrainingPlan = TrainingPlan()
    aggregation: AggregationPlan = AggregationPlan()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := _inconsistencies(self.model_dump()):
            raise ValueError("\n".join(problems))
        return self

    @property
    def required_learners(self) -> int:
        """Local weights without which a round does not close."""
        return self.min_learners or self.learners

    def to_bytes(self) -> bytes:
        """Return the canonical form that is published: JSON, sorted keys, no spaces, UTF-8."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


def load(path: Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a plan in TOML, or in JSON as it is published.

    Parameters
    ----------
    path
        The TOML file; a file that ends in ``.json`` is read as JSON.
    overrides
        Settings that replace those of the file, each as ``key=value`` in TOML, such as ``training.epochs=1``.

    Raises
    ------
    PlanError
        The file can't be read or the plan is not valid; the message lists everything that is wrong.
    """
    form, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"plan {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {path} is not valid {form}: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"plan {path} should be a table of settings")
    for override in overrides:
        _override(content, override)
    return _validate(content, str(path))


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
        decoded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{source} is not JSON: {error}") from error
    plan = _validate(decoded, source)
    if plan.to_bytes() != content:
        raise PlanError(f"{source} is not in canonical form (JSON with sorted keys, no spaces, all settings)")
    return plan


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise PlanError(f"--set {override}: should be KEY=VALUE, such as training.epochs=1")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for name in path[:-1]:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise PlanError(f"--set {override}: {name} is not a section of a plan")
    content[path[-1]] = value


def _validate(content: object, source: str) -> Plan:
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        problems = [_problem(dict(e)) for e in error.errors(include_url=False) if e["loc"]]
        problems += _inconsistencies(content) if isinstance(content, dict) else ["should be a table of settings"]
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise PlanError(f"{source} is not a valid plan:{lines}") from error


def _inconsistencies(content: Mapping[str, Any]) -> list[str]:
    """Return what is impossible about settings that are each possible alone; wrong types are left to others."""
    problems = []
    learners = content.get("learners", 2)
    required = content.get("min_learners", 0)
    data = content.get("data", {})
    data = data if isinstance(data, Mapping) else {}
    sizes = DATA_SIZES.get(str(data.get("name", "mnist")), (0, 0))
    for key, size in zip(("train", "test"), sizes, strict=True):
        count = data.get(key, 0)
        if isinstance(count, int) and count > size > 0:
            problems.append(f"data.{key}: should be at most {size}, all there are in this data set (is {count})")
    images = data.get("train", 0)
    if isinstance(learners, int) and isinstance(required, int) and required > learners:
        problems.append(f"min_learners: should be at most learners, which is {learners} (is {required})")
    if isinstance(learners, int) and isinstance(images, int) and 0 < images < learners:
        problems.append(f"data.train: should be 0 (all) or at least one a learner, {learners} (is {images})")
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
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return sorted(model.model_fields)
