"""A module of one's own: it runs where its owner put it and nowhere else; whatever is wrong with it is one line."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.data import custom_module, loading, partition
from fl_node.errors import FLNodeError, ModuleError, PlanError
from fl_node.lab import simulate
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.runtime import arithmetic
from tests.helpers.checkout import ROOT
from tests.helpers.warm import fl_node

EXAMPLE = ROOT / "examples" / "tabular" / "plan.toml"

GOOD = """
import keras
import numpy as np

SIZES = {1: 7, 2: 12, None: 9}


def load_data(shard):
    generator = np.random.default_rng(0 if shard is None else shard)
    x = generator.normal(size=(SIZES[shard], 4, 2))
    return x, (x[:, 0, 0] > 0).astype(int) + (x[:, 0, 1] > 1)


def build_model():
    return keras.Sequential([
        keras.Input((4, 2)),
        keras.layers.Flatten(),
        keras.layers.Dense(6, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax"),
    ])
"""

ODD_LAYER = """
import keras


class Odd(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x, training=None):
        return self.function(training) if training else x
"""

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a module and return the plan beside it that names it."""

    def write(source: str) -> Path:
        (tmp_path / "mine.py").write_text(source)
        path = tmp_path / "plan.toml"
        settings = 'name = "mine"\nrounds = 2\n[custom]\nmodule = "mine.py"\n[training]\nepochs = 2\nbatch_size = 4\n'
        path.write_text(settings)
        return path

    return write


def completed(path: Path, *settings: str) -> tuple[Plan, loading.Data]:
    plan = plans.load(path, settings)
    plan = loading.complete(plan, loading.load(plan, modules=path.parent))
    return plan, loading.load(plan, modules=path.parent)


def make_trainer(path: Path) -> KerasTrainer:
    plan, module = completed(path)
    return KerasTrainer(plan, module, path.parent)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# The plan


def test_the_plan_has_the_modules_name_and_hash_and_never_its_path(make: Make) -> None:
    path = make(GOOD)
    published = json.loads(plans.load(path).to_bytes())
    assert published["custom"] == {"module": "mine", "sha256": hashlib.sha256(GOOD.encode()).hexdigest()}
    assert str(path.parent) not in json.dumps(published)
    assert (published["data"]["name"], published["data"]["partition"]) == ("custom", "module")
    assert published["model"] == {"name": "custom"}


def test_whoever_deploys_fills_in_all_numbers_and_the_same_ones_again(make: Make) -> None:
    plan, module = completed(make(GOOD))
    assert (plan.data.samples, plan.data.train, plan.data.test, plan.data.class_count) == ((7, 12), 19, 9, 3)
    assert plans.from_bytes(plan.to_bytes()) == plan
    assert loading.complete(plan, module) == plan


def test_a_plan_that_lacks_them_is_refused_as_a_published_one(make: Make) -> None:
    plan = plans.load(make(GOOD))
    with pytest.raises(PlanError, match=r"lacks .*data\.samples, data\.classes, data\.train, data\.test"):
        plans.from_bytes(plan.to_bytes())


def test_numbers_of_a_learners_samples_can_be_given_by_hand_and_its_data_are_not_asked_for(make: Make) -> None:
    elsewhere = changed("    generator =", "    assert shard is None, 'only at the learner'\n    generator =")
    path = make(elsewhere)
    plan, _ = completed(path, "data.samples=[5, 6]")
    assert plan.data.samples == (5, 6)
    with pytest.raises(ModuleError, match="only at the learner"):
        completed(path)


def test_how_many_samples_each_learner_has_follows_from_the_plan_alone(make: Make) -> None:
    plan, _ = completed(make(GOOD))
    assert [partition.shard_size(plan, node_id) for node_id in (1, 2)] == [7, 12]
    assert partition.shard(plan, 1).tolist() == list(range(7))
    assert partition.shard(plan, 2).tolist() == list(range(7, 19))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.name=mnist", "data.name: should be left out; the module sets it"),
        ("data.partition=dirichlet", "data.partition: should be left out"),
        ("data.train=5", "data.train: should be left out"),
        ("data.validation=5", "data.validation: should be left out"),
        ("data.samples=[1, 2, 3]", "data.samples: should have one number for each of 2 learners"),
        ("model.name=cnn", "model.name: should be left out"),
        ('attack={learners=[1], data="backdoor"}', "backdoor needs images"),
        (f"custom.sha256={'0' * 64}", "has SHA-256 "),
        ("custom.module=other.py", "No such file"),
        ("custom.module=mine", "custom.sha256: missing"),
        ('custom.module="a b"', "custom.module: should be a Python file"),
    ],
)
def test_settings_that_a_module_decides_are_refused(make: Make, setting: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plans.load(make(GOOD), [setting])


@pytest.mark.parametrize("setting", ["data.name=custom", "model.name=custom", "data.partition=module"])
def test_without_a_module_nothing_can_be_its(setting: str) -> None:
    with pytest.raises(PlanError, match="custom"):
        plans.load(ROOT / "plans" / "demo.toml", [setting])


def test_other_plans_know_nothing_of_all_this() -> None:
    content = json.loads(plans.load(ROOT / "plans" / "paper.toml").to_bytes())
    assert "custom" not in content
    assert sorted(content["data"]) == ["name", "partition", "test", "train"]


# Who runs it


def test_a_module_that_is_not_installed_is_not_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans.load(make(GOOD))
    monkeypatch.delenv("FL_NODE_MODULES", raising=False)
    with pytest.raises(ModuleError, match=r"this node has no modules folder.*--modules or FL_NODE_MODULES"):
        custom_module.load(plan)
    empty = tmp_path / "empty"
    with pytest.raises(ModuleError, match=f"not in {empty}"):
        custom_module.load(plan, empty)


def test_a_module_of_another_hash_is_not_run_and_both_hashes_are_named(make: Make, tmp_path: Path) -> None:
    plan = plans.load(make(GOOD))
    ran = tmp_path / "ran"
    changed_source = GOOD + f"open({str(ran)!r}, 'w')\n"
    (tmp_path / "mine.py").write_text(changed_source)
    hashes = [hashlib.sha256(source.encode()).hexdigest() for source in (GOOD, changed_source)]
    with pytest.raises(ModuleError, match=f"{hashes[1]}.*{hashes[0]}"):
        custom_module.load(plan, tmp_path)
    assert not ran.exists()


def test_the_folder_of_modules_can_stand_in_the_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(GOOD)
    monkeypatch.setenv("FL_NODE_MODULES", str(path.parent))
    assert custom_module.load(plans.load(path)).data(1)[0].shape == (7, 4, 2)


# Bad modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build_model(): pass", "has no function load_data"),
        ("load_data = 1\nbuild_model = 2", "has no function load_data"),
        ("def load_data(shard): pass", "has no function build_model"),
        ("import nothing_like_this", r"import failed: .*mine\.py:1: ModuleNotFoundError"),
        ("def (", "import failed: .*SyntaxError"),
        ("raise SystemExit(0)", "import failed: .*SystemExit"),
        ("raise GeneratorExit", "import failed: .*GeneratorExit"),
        ("raise BaseException('x')", "import failed: .*BaseException: x"),
        (
            changed("    x = ", "    x = 1 / 0\n    x = "),
            r"load_data\(None\) failed: .*mine\.py:10: ZeroDivisionError",
        ),
        (changed("return x, (x", "return x, x, (x"), r"load_data\(None\): should return two arrays"),
        (changed("return x, ", "return None, "), "samples should be an array of numbers"),
        (
            changed("return x, ", "yield x\n    raise RuntimeError('late')\n    return x, "),
            r"mine\.py:12: RuntimeError: late",
        ),
        (
            "class Odd:\n    def __array__(self, *_, **__): return 1 / 0\n" + changed("return x, ", "return Odd(), "),
            r"load_data\(None\) failed: .*mine\.py:2: ZeroDivisionError",
        ),
        (changed("return x, ", "return x * 1e300, "), "samples should be finite numbers that float32 can hold"),
        (changed("return x, ", "return x[1:], "), "returned 8 samples and 9 labels"),
        (changed("None: 9", "None: 0"), "returned no samples"),
        (changed("return x, ", "x[0, 0, 0] = np.nan\n    return x, "), "samples should be finite numbers"),
        (changed(" > 1)", " > 1) + 1"), r"labels should be 0 to 2 \(are 1 to 3\)"),
        (changed(".astype(int)", ".astype(float)"), "labels should be a one-dimensional array of integers"),
        (changed("return keras", "raise KeyError('x')\n    return keras"), r"build_model\(\) failed: .*KeyError"),
        (changed("    return keras.", "    keras."), "is NoneType, should be a keras.Model"),
        (changed("keras.Input((4, 2)),", ""), "should be a model with one keras.Input and one output"),
        (
            changed("keras.Input((4, 2))", "keras.Input((8, 2))"),
            r"samples of shape \(4, 2\), build_model expects \(8, 2\)",
        ),
        (
            changed("keras.Input((4, 2))", "keras.Input((8,))"),
            r"samples of shape \(4, 2\), build_model expects \(8,\)",
        ),
        (changed("Dense(3, activation", "Dense(1, activation"), "has outputs of shape"),
        (changed("keras.layers.Flatten()", "keras.layers.ReLU()"), "has outputs of shape"),
        (changed('Dense(3, activation="softmax")', "Dense(3)"), "the outputs are not probabilities"),
        (
            GOOD + "of_one = build_model\ndef build_model():\n    model = of_one()\n"
            "    return keras.Model(model.inputs, {'answer': model.outputs[0]})\n",
            "the outputs are not probabilities",
        ),
        (
            ODD_LAYER + changed("keras.layers.Flatten()", "Odd(lambda x: x), keras.layers.Flatten()"),
            "the model can't be saved: .*NotImplementedError",
        ),
        (changed("Dense(6,", "Dense(6, dtype='float16',"), "of type float16, all should be float32"),
        (changed("Dense(6,", "Dense(6, bias_initializer=lambda s, **k: np.nan * np.ones(s),"), "are not finite"),
        (
            changed("keras.layers.BatchNormalization()", "keras.layers.Normalization()"),
            "type int64, all should be float32",
        ),
        (
            changed("Dense(6,", "Dense(6, dtype='mixed_float16',"),
            "computes in float16, all should compute in float32",
        ),
        (changed("keras.layers.Flatten()", "keras.layers.Flatten(dtype='bfloat16')"), "computes in bfloat16"),
        ("import keras\nkeras.config.set_floatx('float16')" + GOOD, "Keras's floatx is float16, should be float32"),
        ("import keras\nkeras.config.set_epsilon(0.1)" + GOOD, "Keras's epsilon is 0.1, should be 1e-07"),
        (
            "import keras\nkeras.config.set_image_data_format('channels_first')" + GOOD,
            "Keras's image_data_format is channels_first, should be channels_last",
        ),
        (
            "import keras\nkeras.mixed_precision.set_global_policy('mixed_bfloat16')" + GOOD,
            "Keras's dtype policy is mixed_bfloat16, should be float32",
        ),
        (
            changed(
                "    return keras.", "    keras.mixed_precision.set_global_policy('mixed_float16')\n    return keras."
            ),
            "Keras's dtype policy is mixed_float16",
        ),
        (
            changed("    x = ", "    keras.config.set_max_steps_per_epoch(1)\n    x = "),
            "Keras's max_steps_per_epoch is 1",
        ),
        ("import numpy\nnumpy.seterr(all='raise')" + GOOD, "NumPy's error state is"),
        (
            "import tensorflow as tf\ntf.config.optimizer.set_jit(True)\ntf.config.run_functions_eagerly(True)"
            + GOOD,
            "TensorFlow's run_functions_eagerly is True, should be False; TensorFlow's jit is True, should be False",
        ),
        (
            "import tensorflow as tf\ntf.config.optimizer.set_experimental_options({'auto_mixed_precision': True})"
            + GOOD,
            "TensorFlow's auto_mixed_precision is True",
        ),
        (
            "import tensorflow as tf\ntf.config.threading.set_intra_op_parallelism_threads(8)" + GOOD,
            r"import failed: .*mine\.py:2: RuntimeError: Intra op parallelism cannot be modified",
        ),
    ],
)
def test_what_is_wrong_with_a_module_is_one_line(make: Make, source: str, message: str) -> None:
    with pytest.raises(ModuleError, match=message) as raised:
        completed(make(source))
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert arithmetic.strayed() == []


def test_a_model_that_fails_while_it_is_trained_used_or_saved_is_one_line(make: Make, tmp_path: Path) -> None:
    path = make(ODD_LAYER + changed("keras.layers.Flatten()", "Odd(len), keras.layers.Flatten()"))
    # With numbers that are given by hand nothing is tried out before.
    plan = plans.load(path, ["data.samples=[7, 12]", "data.classes=3", "data.train=19", "data.test=9"])
    trainer = KerasTrainer(plan, loading.load(plan, modules=path.parent), path.parent)
    with pytest.raises(ModuleError, match=r"the model fails: .*mine\.py:11: TypeError") as raised:
        trainer.train(trainer.initial(), partition.shard(plan, 1), seed=5)
    assert "\n" not in str(raised.value)
    assert trainer.evaluate(trainer.initial()).count == 9
    with pytest.raises(ModuleError, match="the model can't be saved"):
        trainer.save({**trainer.initial()}, tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()


def test_a_shard_of_another_size_than_the_plans_is_refused(make: Make) -> None:
    path = make(GOOD)
    plan, _ = completed(path, "data.samples=[7, 11]")
    module = loading.load(plan, modules=path.parent)
    with pytest.raises(ModuleError, match=r"load_data\(2\): returned 12 samples, the plan requires 11"):
        module.training(partition.shard(plan, 2))


# Training


def test_two_models_in_one_process_have_the_same_tensors_and_train_to_the_same_bits(make: Make) -> None:
    path = make(GOOD)
    first, second = make_trainer(path), make_trainer(path)
    assert first.shapes() == second.shapes()
    assert any(shape == (6,) for shape in first.shapes().values())
    samples = partition.shard(first.plan, 2)
    trained = [each.train(each.initial(), samples, seed=5) for each in (first, second)]
    again = first.train(first.initial(), samples, seed=5)
    for name, tensor in trained[0].items():
        assert first.initial()[name].tobytes() == second.initial()[name].tobytes()
        assert tensor.tobytes() == trained[1][name].tobytes() == again[name].tobytes()


def test_what_batch_normalisation_learns_without_training_is_part_of_the_weights(make: Make) -> None:
    trainer = make_trainer(make(GOOD))
    trained = trainer.train(trainer.initial(), partition.shard(trainer.plan, 1), seed=5)
    score = trainer.evaluate(trained)
    trainer.train(trainer.initial(), partition.shard(trainer.plan, 2), seed=9)
    assert trainer.evaluate(trained) == score
    assert len(trained) == 4 + 4


def test_another_seed_drops_other_neurons(make: Make) -> None:
    trainer = make_trainer(make(GOOD))
    samples = np.arange(4)
    trained = [trainer.train(trainer.initial(), samples, seed=seed) for seed in (1, 2)]
    assert any(trained[0][name].tobytes() != trained[1][name].tobytes() for name in trained[0])


def test_a_learner_loads_its_own_shard_alone(make: Make) -> None:
    alone = changed("    generator =", "    assert shard != 1, 'not mine'\n    generator =")
    path = make(alone)
    plan, _ = completed(path, "data.samples=[7, 12]")
    module = loading.load(plan, modules=path.parent)
    assert len(module.training(partition.shard(plan, 2))[0]) == 12
    with pytest.raises(ModuleError, match="not mine"):
        module.training(partition.everyone(plan))


def test_samples_of_several_shards_come_in_the_order_of_their_numbers(make: Make) -> None:
    plan, module = completed(make(GOOD))
    x, y = module.training(partition.everyone(plan))
    assert x[7:].tobytes() == module.training(partition.shard(plan, 2))[0].tobytes()
    assert y.tolist() == module.labels().tolist()
    assert module.training(np.array([18]))[0].tobytes() == x[18:].tobytes()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_the_shards_of_a_module_are_all_samples_each_once(sizes: list[int]) -> None:
    content = {"name": "mine", "learners": len(sizes), "custom": {"module": "mine", "sha256": "0" * 64}}
    plan = Plan.model_validate(content | {"data": {"samples": sizes, "test": 1, "classes": 2}})
    shards = [partition.shard(plan, node_id) for node_id in range(1, len(sizes) + 1)]
    assert [len(shard) for shard in shards] == sizes
    assert np.concatenate(shards).tolist() == partition.everyone(plan).tolist() == list(range(sum(sizes)))
    assert plans.from_bytes(plan.to_bytes()) == plan


def test_a_whole_run_of_a_module_passes_its_audit(make: Make, tmp_path: Path) -> None:
    trainer = make_trainer(make(GOOD))
    folder = tmp_path / "run"
    folder.mkdir()
    cids = simulate.simulate(trainer.plan, folder, trainer)
    assert len(set(cids)) == 3


def test_a_plan_whose_samples_are_not_counted_yet_can_be_simulated_and_be_a_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.json").write_bytes(plans.load(EXAMPLE, ["rounds=1", "training.epochs=1"]).to_bytes())
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("FL_NODE_MODULES", str(EXAMPLE.parent))
    arguments = ["simulate", str(tmp_path / "plan.json"), "--folder", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", arguments)
    simulate.main()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["plan"]["data"]["samples"]
    done = fl_node("baseline", EXAMPLE, "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["accuracy"]) == 1


def test_a_sweep_takes_the_module_from_the_folder_of_its_plan_or_from_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FL_NODE_MODULES", raising=False)
    monkeypatch.chdir(tmp_path)
    options = [
        "--rules",
        "fedavg",
        "--attacks",
        "",
        "--seeds",
        "1",
        "--set",
        "rounds=1",
        "--set",
        "training.epochs=1",
    ]
    done = fl_node("sweep", EXAMPLE, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["figures"]) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    done = fl_node("sweep", EXAMPLE, *options, "--results", tmp_path / "other", "--modules", empty)
    assert done.returncode == 2
    assert f"not in {empty}" in done.stderr


# The command line


def test_checking_a_plan_hashes_its_module_and_does_not_run_it(make: Make) -> None:
    done = fl_node("plan", "check", make("raise SystemExit('it was run')"))
    assert done.returncode == 0, done.stderr
    assert "deployment fills in data.samples, data.classes, data.train, data.test" in done.stdout


def test_a_bad_module_ends_a_lab_before_anything_is_started(make: Make, tmp_path: Path) -> None:
    done = fl_node("lab", make(changed("return x, ", "return x[1:], ")), "--runs", tmp_path / "runs")
    assert done.returncode == 2
    assert done.stderr.strip() == "fl-node: module mine: load_data(None): returned 8 samples and 9 labels"
    assert not (tmp_path / "runs").exists()


def test_the_shards_of_the_example_are_all_that_there_is() -> None:
    done = fl_node("plan", "shards", EXAMPLE, "--json", "--set", "learners=3")
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)["learners"]
    assert sum(sum(row) for row in counts.values()) == 569 - 114
    assert {len(row) for row in counts.values()} == {2}


def test_what_a_module_prints_is_no_result_of_a_command(make: Make) -> None:
    path = make(changed("    generator =", "    print('loading')\n    generator =") + "print('here')\n")
    done = fl_node("plan", "shards", path, "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["learners"]) == ["1", "2"]
    assert "here\nloading" in done.stderr


def test_every_error_of_a_module_is_one_that_a_user_can_mend() -> None:
    assert issubclass(ModuleError, FLNodeError)
