"""Checks for settings that are valid alone but not together.

Each check is a generator of problems, each a key and a message. If a check reads a setting that is itself invalid,
the plan raises :class:`NotValidError` and the check ends; another message reports that setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fl_node.aggregation import RULES, FedAvg
from fl_node.aggregation.fixed_point import reduced
from fl_node.plan.sections import MIN_SUMMED, PlanSettings
from fl_node.privacy.learner_noise import LEAST, MOST, TAIL
from fl_node.runtime.settings import NotValidError

INCONSISTENT = "inconsistent"
"""The type of pydantic's error for a plan with these problems."""

Problems = Iterator[tuple[str, str]]


def problems(plan: PlanSettings) -> list[str]:
    """Return the problems of a plan or of the valid part of a plan, one line each."""
    lines = []
    for check in CHECKS:
        try:
            for key, problem in check(plan):
                lines.append(f"{key}: {problem}")
        except NotValidError:
            continue
    return lines


def _train_exists(plan: PlanSettings) -> Problems:
    yield from _exist("train", plan.data.train, plan.data.available[0])


def _test_exists(plan: PlanSettings) -> Problems:
    yield from _exist("test", plan.data.test, plan.data.available[1])


def _exist(key: str, count: int, available: int) -> Problems:
    if count > available > 0:
        yield f"data.{key}", f"should be at most {available}, the size of this data set (is {count})"


def _sample_for_each_learner(plan: PlanSettings) -> Problems:
    if 0 < plan.data.train < plan.learners:
        yield (
            "data.train",
            f"should be 0 (all) or at least {plan.learners}, one per learner (is {plan.data.train})",
        )


def _reserved_images(plan: PlanSettings) -> Problems:
    data = plan.data
    if data.reserved and data.train + data.reserved > data.available[0] > 0:
        keys = " and ".join(f"data.{key}" for key in ("validation", "public_set") if getattr(data, key))
        remaining = data.available[0] - data.train
        yield (
            keys,
            f"should be at most {remaining}, the rest of {data.available[0]} training images (is {data.reserved})",
        )


def _validation_hash(plan: PlanSettings) -> Problems:
    if plan.data.validation_sha256 is not None and not plan.data.validation:
        yield "data.validation_sha256", "needs data.validation"


def _image_size(plan: PlanSettings) -> Problems:
    size = getattr(plan.data.source, "size", None)
    if size is not None and len(size) != 2:
        yield "data.size", f"should be a height and a width (is {list(size)})"


def _labels_each(plan: PlanSettings) -> Problems:
    classes, labels_each = plan.data.source.class_count, getattr(plan.data.partitioner, "labels_each", None)
    if classes is not None and labels_each is not None and labels_each > classes:
        yield "data.labels_each", f"should be at most {classes}, the number of classes (is {labels_each})"


def _target(plan: PlanSettings) -> Problems:
    if plan.attack is not None and plan.attack.on_data is not None:
        classes, target = plan.data.source.class_count, getattr(plan.attack.on_data, "target", None)
        if classes is not None and target is not None and target >= classes:
            yield "attack.target", f"should be at most {classes - 1}; there are {classes} classes (is {target})"


def _attackers(plan: PlanSettings) -> Problems:
    if plan.attack is not None:
        ids = plan.attack.learners
        if len(set(ids)) < len(ids) or not ids:
            yield "attack.learners", f"should list at least one learner, each only once (is {list(ids)})"
        if any(node_id > plan.learners for node_id in ids):
            yield "attack.learners", f"should be between 1 and {plan.learners} (is {list(ids)})"


def _attack_kind(plan: PlanSettings) -> Problems:
    if plan.attack is not None and plan.attack.on_data is None and plan.attack.on_update is None:
        yield "attack", "should set data, update or both"


def _min_learners(plan: PlanSettings) -> Problems:
    if plan.min_learners > plan.learners:
        yield "min_learners", f"should be at most learners = {plan.learners} (is {plan.min_learners})"


def _committee(plan: PlanSettings) -> Problems:
    if plan.verifiers != "committee":
        if plan.committee != type(plan).model_fields["committee"].default:
            yield "committee", f'needs verification = "committee" (is {plan.verifiers!r})'
        return
    if plan.mode == "async":
        yield "verification", "should be all or none with mode = \"async\" (is 'committee')"
    if plan.committee > plan.learners:
        yield "committee", f"should be at most learners = {plan.learners} (is {plan.committee})"


def _rule_of_mode(plan: PlanSettings) -> Problems:
    rule, mode = plan.aggregation, plan.mode
    if mode == "ensemble" and rule.rule != "fedavg":
        yield "aggregation.rule", f"should be fedavg in an ensemble (is {rule.rule!r})"
    elif mode == "async" and not rule.asynchronous:
        allowed = " or ".join(name for name, rule in RULES.items() if rule.asynchronous)
        yield "aggregation.rule", f"should be {allowed} (is {rule.rule!r})"
    elif mode != "async" and rule.asynchronous:
        yield "aggregation.rule", f'should be a synchronous rule, or set mode = "async" (is {rule.rule!r})'


def _rule_of_learners(plan: PlanSettings) -> Problems:
    files = plan.required_learners
    for key, problem in plan.aggregation.problems(files):
        yield f"aggregation.{key}", problem


def _model_of_mode(plan: PlanSettings) -> Problems:
    if plan.mode == "ensemble" and plan.custom is not None:
        yield "custom", 'should be left out with mode = "ensemble", which uses model.architectures'
    elif plan.mode == "ensemble" and plan.model.name != "ensemble":
        yield "model.name", f"should be ensemble or left out (is {plan.model.name!r})"
    elif plan.mode != "ensemble" and plan.model.name == "ensemble":
        yield (
            "model.name",
            f'should be one architecture, or set mode = "ensemble" (is {plan.model.name!r})',
        )


def _measured_on(plan: PlanSettings) -> Problems:
    if plan.measures_members and not plan.data.validation:
        yield (
            "data.validation",
            f"missing; model.weighting {plan.ensemble_model.weighting!r} needs held-out images",
        )


def _distilled_on(plan: PlanSettings) -> Problems:
    if plan.distillation is not None and not plan.data.public_set:
        yield "data.public_set", "missing; distillation needs a public set"
    if plan.distillation is None and plan.data.public_set:
        yield "data.public_set", 'needs [distillation] and mode = "ensemble"'


def _module_named(plan: PlanSettings) -> Problems:
    if plan.custom is None:
        if plan.data.partitioner.module:
            yield "data.partition", "module needs a [custom] section with a module"
        if plan.data.source.module:
            yield "data.name", "custom needs a [custom] section with a module"


def _module_model(plan: PlanSettings) -> Problems:
    if plan.custom is None and plan.model.name == "custom":
        yield "model.name", "custom needs a [custom] section with a module"


def _module_decides(plan: PlanSettings) -> Problems:
    if plan.custom is None:
        return
    data = plan.data
    if not data.source.module:
        yield "data.name", f"should be left out; the module sets it (is {data.name!r})"
    if not data.partitioner.module:
        yield "data.partition", f"should be left out; the module sets it (is {data.partition!r})"
    if plan.mode != "ensemble" and plan.model.name != "custom":
        yield "model.name", f"should be left out; the module sets it (is {plan.model.name!r})"


def _module_data(plan: PlanSettings) -> Problems:
    if plan.custom is None:
        return
    data = plan.data
    if data.validation:
        yield "data.validation", "should be left out; a module's samples all belong to learners"
    samples = getattr(data.source, "samples", None)
    if samples is not None and len(samples) != plan.learners:
        yield (
            "data.samples",
            f"should have one number for each of {plan.learners} learners (is {list(samples)})",
        )
    if 0 < data.train != data.available[0]:
        yield "data.train", f"should be left out; it is the sum of data.samples (is {data.train})"


def _module_attacked(plan: PlanSettings) -> Problems:
    if plan.custom is not None and plan.attack is not None and plan.attack.on_data is not None:
        attack = plan.attack.on_data
        if attack.needs_images:
            yield "attack.data", f"{attack.data} needs images; it does not support samples of a module"


def _fixed_point(plan: PlanSettings) -> Problems:
    point, rule = plan.fixed_point, plan.aggregation
    if point is None:
        if isinstance(rule, FedAvg):
            for key in ("range", "fraction_bits", "modulus_bits"):
                if getattr(rule, key) != FedAvg.model_fields[key].default:
                    yield f"aggregation.{key}", 'needs arithmetic = "fixed"'
        return
    if plan.mode == "ensemble":
        yield "aggregation.arithmetic", 'should be float in an ensemble (is "fixed")'
    counts = plan.counts
    if counts and not point.fits(counts):
        total = sum(reduced(counts))
        weights = (
            "weights of 1" if total == len(counts) else f"weights that sum to {total} (samples / common divisor)"
        )
        fitting = [bits for bits in range(1, point.fraction_bits) if replace(point, fraction_bits=bits).fits(counts)]
        limit = f"at most {fitting[-1]} with this range" if fitting else "smaller, as should range"
        yield (
            "aggregation.fraction_bits",
            f"should be {limit}, or modulus_bits = 64: the sum of the updates of {len(counts)} learners, with "
            f"{weights}, can exceed 2^{point.modulus_bits} (is {point.fraction_bits})",
        )


def _masked(plan: PlanSettings) -> Problems:
    """Refuse settings that need the local weights of single learners, or allow a learner to derive another's."""
    if not plan.is_masked:
        if plan.privacy.threshold:
            yield "privacy.threshold", "needs privacy.secure_aggregation = true"
        return
    key, rule = "privacy.secure_aggregation", plan.aggregation.rule
    if plan.learners < MIN_SUMMED:
        yield (
            "learners",
            f"should be at least {MIN_SUMMED} with secure_aggregation; of two learners, each could subtract its own "
            f"update from the sum (is {plan.learners})",
        )
    if plan.mode == "async":
        yield key, 'should be false with mode = "async", which uses single updates (is true)'
    elif plan.mode == "ensemble":
        yield key, 'should be false with mode = "ensemble", where a single learner may train a model (is true)'
    elif rule != "fedavg":
        yield "aggregation.rule", f"should be fedavg with secure_aggregation; {rule} needs single updates"
    elif plan.fixed_point is None:
        yield "aggregation.arithmetic", 'should be fixed with secure_aggregation; masks are integers (is "float")'
    if plan.compression is not None:
        yield "compression", "should be left out with secure_aggregation, whose integers are its own quantisation"
    if plan.verifiers != "all":
        yield (
            "verification",
            f"should be all with secure_aggregation; otherwise the header could replace keys (is {plan.verifiers!r})",
        )
    if plan.data.validation:
        yield (
            "data.validation",
            "should be left out with secure_aggregation; contributions (Shapley values) need single updates",
        )
    if plan.learners < MIN_SUMMED:
        return  # what follows from it needs no other change
    least = max(plan.learners // 2 + 1, MIN_SUMMED - 1)
    if not least <= plan.threshold <= plan.learners:
        yield (
            "privacy.threshold",
            f"should be {least} to {plan.learners}: more than half of the learners, so that only one set of members "
            f"can be opened (is {plan.threshold})",
        )
        return
    needed = plan.least_members
    if plan.required_learners < needed:
        why = "which secure_aggregation needs to read a sum"
        if needed == plan.noise_adders:
            why = "all learners but privacy.dp.tolerated, whose noise a sum needs"
        yield "min_learners", f"should be at least {needed}, {why} (is {plan.min_learners})"


def _dp_noise(plan: PlanSettings) -> Problems:
    if plan.dp is None:
        return
    dp = plan.dp
    if dp.noise_multiplier is None and dp.epsilon is None:
        yield "privacy.dp", "should set noise_multiplier, or epsilon to derive it"
    if dp.epsilon is not None and dp.epsilon_max is not None and dp.epsilon_max < dp.epsilon:
        yield "privacy.dp.epsilon_max", f"should be at least epsilon = {dp.epsilon:g} (is {dp.epsilon_max:g})"


def _dp_delta(plan: PlanSettings) -> Problems:
    """Require δ < 1/n: publishing one of n examples in clear satisfies δ = 1/n."""
    if plan.dp is None:
        return
    if plan.dp.is_of_learners:
        if plan.dp.delta * plan.learners >= 1:
            yield "privacy.dp.delta", f"should be below 1 / {plan.learners}, the learners (is {plan.dp.delta:g})"
        return
    shard_sizes = getattr(plan.data.source, "samples", None)
    train = plan.data.train or plan.data.available[0] - plan.data.reserved
    samples = min(shard_sizes) if shard_sizes else train // plan.learners
    if samples > 0 and plan.dp.delta * samples >= 1:
        yield (
            "privacy.dp.delta",
            f"should be below 1 / {samples}; a learner has {samples} examples (is {plan.dp.delta:g})",
        )


def _dp_mode(plan: PlanSettings) -> Problems:
    if plan.dp is not None and plan.mode == "ensemble":
        yield "privacy.dp", 'does not support mode = "ensemble", whose learners also train on a public set'


def _dp_of_learners(plan: PlanSettings) -> Problems:
    """Refuse what does not hide the update of a whole learner."""
    dp = plan.dp
    if dp is None or not dp.is_of_learners:
        if dp is not None and dp.tolerated:
            yield "privacy.dp.tolerated", f'needs unit = "learner" (is {dp.tolerated})'
        return
    if not plan.is_masked:
        yield (
            "privacy.secure_aggregation",
            'should be true with dp.unit = "learner"; else everyone reads each update, with a share of the noise '
            "(is false)",
        )
    if plan.counts and max(reduced(plan.counts)) > 1:
        yield (
            "aggregation.weighting",
            'should be uniform with dp.unit = "learner" and learners with different numbers of samples; else a '
            'learner with more samples needs more noise (is "samples")',
        )
    if not dp.tolerated < plan.learners:
        yield "privacy.dp.tolerated", f"should be below the {plan.learners} learners (is {dp.tolerated})"
    noise, point = plan.learner_noise, plan.fixed_point
    if noise is None or point is None:
        return
    bits = "aggregation.fraction_bits"
    if noise.deviation < LEAST:
        yield (
            bits,
            f"should be higher: the noise of a learner has a standard deviation of {noise.deviation} units, at "
            f"least {LEAST} (is {point.fraction_bits})",
        )
    elif noise.deviation > MOST:
        yield (
            bits,
            f"should be lower: the noise of a learner has a standard deviation of {noise.deviation} units, at most "
            f"{MOST} (is {point.fraction_bits})",
        )
    elif not noise.fits(plan.learners):
        yield (
            bits,
            f"should be lower, or modulus_bits = 64: the updates of {plan.learners} learners and {TAIL} standard "
            f"deviations of their noise can leave a ring of 2^{point.modulus_bits} (is {point.fraction_bits})",
        )


def _retention(plan: PlanSettings) -> Problems:
    """Refuse to delete files that are needed later, or that nobody has checked."""
    if plan.retention is None:
        return
    if plan.mode == "async":
        yield (
            "retention",
            'should be "all" with mode = "async", where global weights may use a file of any earlier round',
        )
    if not plan.is_verified:
        yield (
            "retention",
            'should be "all" with verification = "none": files are deleted only after more than half of the learners '
            "have recomputed the global weights",
        )


CHECKS: tuple[Callable[[PlanSettings], Problems], ...] = (
    _train_exists,
    _test_exists,
    _reserved_images,
    _validation_hash,
    _image_size,
    _target,
    _labels_each,
    _rule_of_mode,
    _rule_of_learners,
    _attack_kind,
    _attackers,
    _model_of_mode,
    _measured_on,
    _distilled_on,
    _module_named,
    _module_model,
    _module_decides,
    _module_data,
    _module_attacked,
    _min_learners,
    _committee,
    _sample_for_each_learner,
    _fixed_point,
    _masked,
    _dp_noise,
    _dp_delta,
    _dp_mode,
    _dp_of_learners,
    _retention,
)
