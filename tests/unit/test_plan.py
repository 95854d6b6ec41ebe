"""Plans: defaults, everything that is wrong at once, and the canonical form that is published."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_node.artifacts import cid
from fl_node.data.loading import with_noise
from fl_node.errors import PlanError
from fl_node.plan import loading as plans
from fl_node.plan.data_sets import DATA_SIZES
from fl_node.plan.schema import AttackPlan, DataPlan, Plan

PLANS = Path(__file__).parents[2] / "plans"
DEFAULTS = {
    "name": "test",
    "seed": 1,
    "rounds": 5,
    "learners": 2,
    "min_learners": 0,
    "round_timeout": 0.0,
    "fetch_timeout": 30.0,
    "data": {"name": "mnist", "train": 60_000, "test": 10_000, "partition": "equal"},
    "model": {"name": "cnn"},
    "training": {"optimizer": "adam", "learning_rate": 0.001, "epochs": 5, "batch_size": 64, "threads": 1},
    "aggregation": {"rule": "fedavg", "weighting": "samples"},
}


def write(folder: Path, text: str, name: str = 'name = "test"\n') -> Path:
    path = folder / "plan.toml"
    path.write_text(name + text)
    return path


def problems(folder: Path, text: str, name: str = 'name = "test"\n') -> list[str]:
    """Return the lines of what is wrong with a plan."""
    path = write(folder, text, name)
    with pytest.raises(PlanError) as caught:
        plans.load(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path} is not a valid plan:"
    return [line.removeprefix("  ") for line in lines]


def test_a_plan_needs_no_more_than_a_name(tmp_path: Path) -> None:
    assert plans.load(write(tmp_path, "")).model_dump() == DEFAULTS


def test_a_plan_for_all_images_says_how_many_they_are(tmp_path: Path) -> None:
    loaded = plans.load(write(tmp_path, '[data]\nname = "digits"\ntrain = 0'))
    assert (loaded.data.train, loaded.data.test) == DATA_SIZES["digits"]


def test_a_round_needs_every_learner_unless_the_plan_says_how_many(tmp_path: Path) -> None:
    assert plans.load(write(tmp_path, "learners = 5")).required_learners == 5
    assert plans.load(write(tmp_path, "learners = 5\nmin_learners = 3")).required_learners == 3


def test_a_whole_number_of_seconds_is_taken_for_a_time(tmp_path: Path) -> None:
    assert plans.load(write(tmp_path, "round_timeout = 60")).round_timeout == 60.0


def test_everything_that_is_wrong_is_said_at_once_each_with_its_key(tmp_path: Path) -> None:
    text = """
seed = -1
round = 5
learners = 2
min_learners = 3
fetch_timeout = inf
round_timeout = true
model = 5
[data]
name = "cifar"
train = 1
[training]
epoch = 3
epochs = "five"
learning_rate = 0
threads = 1.0
batch_size = 0
[aggregation]
colour = "red"
weighting = "mean"
"""
    found = dict(line.split(": ", 1) for line in problems(tmp_path, text))
    assert set(found) == {
        "seed",
        "round",
        "min_learners",
        "fetch_timeout",
        "round_timeout",
        "model",
        "data.name",
        "data.train",
        "training.epoch",
        "training.epochs",
        "training.learning_rate",
        "training.threads",
        "training.batch_size",
        "aggregation.colour",
        "aggregation.weighting",
    }
    assert found["round"] == "unknown key; did you mean rounds?"
    assert found["training.epoch"] == "unknown key; did you mean epochs?"
    assert found["aggregation.colour"].startswith("unknown key; valid keys: arithmetic, beta_2, buffer, ")
    assert found["training.epochs"] == "should be a whole number (is 'five')"
    assert found["model"] == "should be a section with keys (is 5)"
    assert found["min_learners"] == "should be at most learners = 2 (is 3)"
    assert found["data.train"] == "should be 0 (all) or at least 2, one per learner (is 1)"
    assert found["data.name"] == "should be 'mnist', 'digits', 'folder' or 'custom' (is 'cifar')"


@pytest.mark.parametrize(
    "text",
    [
        "seed = 9223372036854775807.0",
        "rounds = 0",
        "rounds = 1000001",
        "rounds = true",
        "learners = 0",
        "learners = 1001",
        "fetch_timeout = 0",
        "fetch_timeout = nan",
        "round_timeout = -1",
        "min_learners = -1",
    ],
)
def test_a_value_out_of_bounds_or_of_another_type_is_refused(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith(text.split(" = ", maxsplit=1)[0] + ": ")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('[data]\nname = "digits"\ntrain = 1438\ntest = 361', ["data.train", "data.test"]),
        ("[data]\ntrain = 60001", ["data.train"]),
        ("[data]\ntrain = -1", ["data.train"]),
        ("[data]\ntrain = false", ["data.train"]),
        ("[data]\ntest = 0.0", ["data.test"]),
        ("[training]\nlearning_rate = 10.5", ["training.learning_rate"]),
        ("[data]\nnames = 1", ["data.names"]),
        ("data = 3", ["data"]),
        ("learners = 100\n[data]\ntrain = 99", ["data.train"]),
    ],
)
def test_a_wrong_setting_of_a_section_is_named_with_its_section(tmp_path: Path, text: str, keys: list[str]) -> None:
    assert [line.split(": ")[0] for line in problems(tmp_path, text)] == keys


@pytest.mark.parametrize("name", ["", "Test", "-a", "a b", "../a", "a/b", "é", "a" * 64, "a\n"])
def test_a_name_that_would_not_do_as_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (line,) = problems(tmp_path, "", f"name = {json.dumps(name)}\n")
    assert line.startswith("name: should be up to 63 lower-case letters")


def test_a_plan_without_a_name_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, "", "") == ["name: missing"]


def test_a_plan_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.toml: No such file"):
        plans.load(tmp_path / "nowhere.toml")
    with pytest.raises(PlanError, match="not valid TOML"):
        plans.load(write(tmp_path, "rounds 5"))
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="not valid TOML"):
        plans.load(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rounds = " + "[" * 100_000, "more than 200 opening brackets"),
        ("rounds = " + "[" * 100_000 + "]" * 100_000, "more than 200 opening brackets"),
        ("rounds = " + "{a=" * 70_000, "more than 200 opening brackets"),
        ("a." * 50_000 + "a = 1", "more than 64 dots in line 2"),
        ("[" + "a." * 50 + "a]\nb = 1", "nested more than 32 levels deep"),
        ("rounds = 0x" + "f" * 5000, "a number of more than 80 digits"),
        ("rounds = " + "9" * 5000, "not valid TOML"),
        ('"\\u001b[2J" = 1', "the key '\\x1b[2J'"),
        ("# " + "x" * 300_000, "more than the 262144 bytes"),
    ],
)
def test_a_file_that_is_nested_deeply_or_has_endless_numbers_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(PlanError) as caught:
        plans.load(write(tmp_path, text))
    assert what in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("rounds=" + "[" * 100_000, "more than 200 opening brackets"),
        ("a." * 5000 + "a=1", "nested more than 32 levels deep"),
        ("rounds=0x" + "f" * 5000, "a number of more than 80 digits"),
        ("data.name=\udcff", "surrogate"),
    ],
)
def test_an_override_has_the_same_bounds(tmp_path: Path, override: str, what: str) -> None:
    with pytest.raises(PlanError) as caught:
        plans.load(write(tmp_path, ""), [override])
    assert what in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(PlanError, match="more than the 262144 bytes"):
        plans.load(path)


def test_a_byte_order_mark_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert plans.load(path).model_dump() == DEFAULTS


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 65_536, "nested more than 32 levels deep"),
        (b'{"a":' * 13_000, "nested more than 32 levels deep"),
        (b'{"name":"x","name":"x"}', "the key 'name' twice"),
        (b'{"name":"\\ud800"}', "surrogate"),
        (b'{"rounds":' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"rounds":NaN}', "has NaN"),
    ],
)
def test_a_published_plan_that_is_not_strict_json_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(PlanError) as caught:
        plans.from_bytes(content, "plan Qm")
    assert what in str(caught.value)


def test_overrides_replace_settings_and_are_read_as_toml_or_as_text(tmp_path: Path) -> None:
    path = write(tmp_path, "rounds = 9")
    loaded = plans.load(path, ["rounds=1", "training.epochs = 2", "data.name=digits", 'model.name="mlp"'])
    assert (loaded.rounds, loaded.training.epochs, loaded.data.name, loaded.model.name) == (1, 2, "digits", "mlp")
    assert plans.load(path, ["rounds=1", "rounds=2"]).rounds == 2
    assert plans.load(path, ["data={name='digits'}", "data.train=9"]).data.train == 9


def test_an_override_of_several_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        plans.load(write(tmp_path, "rounds = 9"), ["rounds=1\nseed=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "should be KEY=VALUE"),
        ("=1", "should be KEY=VALUE"),
        ("training.=1", "should be KEY=VALUE"),
        ("rounds.x=1", "rounds is not a section"),
        ("training.epoch=1", "did you mean epochs"),
        ("rounds=many", "rounds: should be a whole number"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plans.load(write(tmp_path, "rounds = 9"), [override])


@st.composite
def all_plans(draw: st.DrawFn) -> Plan:
    learners = draw(st.integers(1, 1000))
    data = draw(st.sampled_from(sorted(DATA_SIZES)))
    train, test = DATA_SIZES[data]
    content: dict[str, Any] = {
        "name": draw(st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "rounds": draw(st.integers(1, 1_000_000)),
        "learners": learners,
        "min_learners": draw(st.integers(0, learners)),
        "round_timeout": draw(st.floats(0, 1_000_000)),
        "fetch_timeout": draw(st.floats(0, 100_000, exclude_min=True)),
        "data": {
            "name": data,
            "train": draw(st.one_of(st.just(0), st.integers(learners, train))),
            "test": draw(st.integers(0, test)),
        },
        "model": {"name": draw(st.sampled_from(["cnn", "deep_cnn", "mlp", "separable_cnn"]))},
        "training": {
            "optimizer": draw(st.sampled_from(["adam", "sgd"])),
            "learning_rate": draw(st.floats(0, 10, exclude_min=True)),
            "epochs": draw(st.integers(1, 1000)),
            "batch_size": draw(st.integers(1, 65536)),
            "threads": draw(st.integers(1, 256)),
        },
        "aggregation": {"weighting": draw(st.sampled_from(["samples", "uniform"]))},
    }
    return Plan.model_validate(content)


@settings(max_examples=40)
@given(plan=all_plans())
def test_a_published_plan_comes_back_as_it_was(plan: Plan) -> None:
    content = plan.to_bytes()
    assert plans.from_bytes(content) == plan
    assert plans.from_bytes(content).to_bytes() == content
    assert json.loads(content) == plan.model_dump()


def test_the_published_form_of_a_plan_is_the_same_for_ever() -> None:
    content = plans.load(PLANS / "paper.toml").to_bytes()
    assert cid.of_bytes(content) == "QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.replace(",", ", ", 1),
        lambda text: text.replace('"seed":1', '"seed":01'),
        lambda text: text.replace('"fetch_timeout":30.0', '"fetch_timeout":30'),
        lambda text: text.replace('"seed":1', '"seed":1,"seed":1'),
        lambda text: text.replace('"seed":1,', ""),
        lambda text: text.replace('"train":60000', '"train":0'),
        lambda text: text.replace("test", r"\u0074est"),
        lambda text: text.replace('"learning_rate":0.001', '"learning_rate":NaN'),
        lambda text: text.replace('"seed":1', '"seed":1,"extra":2'),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        lambda text: "[]",
        lambda text: "null",
        lambda text: "5",
        lambda text: "",
        lambda text: "[" * 60_000,
    ],
)
def test_a_published_plan_in_any_other_form_is_refused(change: Any) -> None:
    text = Plan.model_validate(DEFAULTS).to_bytes().decode()
    assert plans.from_bytes(text.encode()).name == "test"
    with pytest.raises(PlanError):
        plans.from_bytes(change(text).encode())


@given(content=st.binary(max_size=200))
def test_junk_is_no_plan(content: bytes) -> None:
    with pytest.raises(PlanError):
        plans.from_bytes(content)


def test_a_published_plan_has_a_bounded_size() -> None:
    with pytest.raises(PlanError, match="65537 bytes; a plan may have at most 65536"):
        plans.from_bytes(b" " * 65537)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_plan_of_this_project_is_valid(path: Path) -> None:
    loaded = plans.load(path)
    assert loaded.name == path.stem
    # As deployment publishes it.
    complete = with_noise(loaded)
    assert plans.from_bytes(complete.to_bytes()) == complete


def test_the_papers_plan_has_the_papers_values() -> None:
    paper = plans.load(PLANS / "paper.toml")
    assert (paper.rounds, paper.learners, paper.training.epochs) == (5, 2, 5)
    assert paper.data.model_dump() == {"name": "mnist", "train": 60_000, "test": 10_000, "partition": "equal"}
    assert (paper.training.optimizer, paper.aggregation.rule, paper.model.name) == ("adam", "fedavg", "cnn")


# Choices: what is used depends on another setting


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[aggregation]\nrule = "krum"', "aggregation.num_malicious: missing; krum needs it"),
        ("committee = 2", "committee: needs verification = \"committee\" (is 'all')"),
        ('verification = "committee"', "committee: should be at most learners = 2 (is 5)"),
        (
            'mode = "async"\nlearners = 5\nverification = "committee"',
            "verification: should be all or none with mode = \"async\" (is 'committee')",
        ),
        (
            'mode = "async"\nlearners = 3\n[aggregation]\nrule = "fedasync"\nmax_share = 0.3',
            "aggregation.max_share: should be at least 7/20, or 3 learners can't make 20 updates (is 0.3)",
        ),
        (
            'mode = "async"\nlearners = 4\n[aggregation]\n'
            'rule = "fedbuff"\nbuffer = 2\nmax_share = 0.1\nshare_window = 5',
            "aggregation.max_share: should be at least 2/5, or 4 learners can't make 5 updates (is 0.1)",
        ),
        ("[aggregation]\nclipping_norm = 1.0", "aggregation.clipping_norm: only valid for norm_clipping"),
        ('[data]\npartition = "labels"\nalpha = 0.5', "data.alpha: only valid for dirichlet, quantity"),
        (
            'learners = 5\n[aggregation]\nrule = "median"\nweighting = "samples"',
            "aggregation.weighting: should be uniform; this rule weights all files equally (is 'samples')",
        ),
        (
            'learners = 6\n[aggregation]\nrule = "multi_krum"\nnum_malicious = 2',
            "aggregation.num_malicious: multi_krum needs 7 local files per round to tolerate 2 malicious "
            "learners, but a round may close with 6",
        ),
        (
            'learners = 9\nmin_learners = 4\n[aggregation]\nrule = "trimmed_mean"\nnum_malicious = 2',
            "aggregation.num_malicious: trimmed_mean needs 5 local files per round to tolerate 2 malicious "
            "learners, but a round may close with 4",
        ),
        ("[attack]\nlearners = [1]", "attack: should set data, update or both"),
        ('[attack]\ndata = "label_flip"', "attack.learners: missing"),
        ('[attack]\nlearners = [3]\nupdate = "copy"', "attack.learners: should be between 1 and 2 (is [3])"),
        (
            '[attack]\nlearners = []\nupdate = "copy"',
            "attack.learners: should list at least one learner, each only once (is [])",
        ),
        ('[attack]\nlearners = [1]\nupdate = "copy"\ntarget = 1', "attack.target: only valid for backdoor"),
        (
            '[attack]\nlearners = [1]\ndata = "backdoor"\ntarget = 10',
            "attack.target: should be at most 9; there are 10 classes (is 10)",
        ),
        (
            '[data]\nname = "digits"\npartition = "labels"\nlabels_each = 11',
            "data.labels_each: should be at most 10, the number of classes (is 11)",
        ),
        ('[attack]\nlearners = 1\nupdate = "copy"', "attack.learners: should be a list such as [1] (is 1)"),
        ('[stragglers]\nlearners = "1"', "stragglers.learners: should be a list such as [1] (is '1')"),
        ('[data]\nname = "folder"\nsize = 28', "data.size: should be a list such as [28, 28] (is 28)"),
        (
            'mode = "ensemble"\n[model]\narchitectures = "cnn"',
            """model.architectures: should be a list such as ["cnn", "mlp"] (is 'cnn')""",
        ),
        (
            "[data]\ntrain = 59990\nvalidation = 11",
            "data.validation: should be at most 10, the rest of 60000 training images (is 11)",
        ),
    ],
)
def test_a_setting_that_is_missing_or_belongs_to_another_choice_is_named(
    tmp_path: Path, text: str, found: str
) -> None:
    assert problems(tmp_path, text) == [found]


def test_the_defaults_of_a_choice_are_filled_in_and_those_of_others_are_not(tmp_path: Path) -> None:
    text = 'learners = 5\n[aggregation]\nrule = "fedadam"\n[attack]\nlearners = [2]\ndata = "backdoor"'
    content = plans.load(write(tmp_path, text)).model_dump(mode="json")
    assert content["aggregation"] == {
        "rule": "fedadam",
        "weighting": "samples",
        "server_learning_rate": 0.01,
        "momentum": 0.9,
        "beta_2": 0.99,
        "tau": 0.001,
    }
    assert content["attack"] == {"learners": [2], "data": "backdoor", "target": 0, "fraction": 0.5}
    assert plans.from_bytes(plans.load(write(tmp_path, text)).to_bytes()).attack is not None


def test_a_plan_that_uses_nothing_new_is_published_as_ever() -> None:
    content = json.loads(Plan.model_validate(DEFAULTS).to_bytes())
    assert "attack" not in content
    assert set(content["aggregation"]) == {"rule", "weighting"}
    assert set(content["training"]) == {"optimizer", "learning_rate", "epochs", "batch_size", "threads"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[aggregation]\nrule = "fedadam"\nsecond_momentum = 0.9', "aggregation.second_momentum: {} beta_2?"),
        ('[aggregation]\nrule = "fedadam"\nadaptivity = 0.1', "aggregation.adaptivity: {} tau?"),
        ("[aggregation]\nclip = 1.0", "aggregation.clip: {} clipping_norm?"),
        ("[aggregation]\nbyzantine = 1", "aggregation.byzantine: {} num_malicious?"),
        ("[training]\nproximal = 1.0", "training.proximal: {} proximal_mu?"),
        ("[data]\nshared = 10", "data.shared: {} public_set?"),
        ("[slow]\nlearners = [1]", "slow: {} stragglers?"),
        ('[own]\nmodule = "a.py"', "own: {} custom?"),
    ],
)
def test_a_former_name_of_a_setting_is_refused_with_its_name_of_today(tmp_path: Path, text: str, hint: str) -> None:
    assert problems(tmp_path, text) == [hint.format("unknown key; did you mean")]


@pytest.mark.parametrize(
    "text",
    [
        "strategy = {}",
        'strategy = {mode = "async"}',
        '[data]\nsource = {name = "digits"}',
        "[data]\npartitioner = {}",
        "[attack]\nlearners = [1]\non_update = {}\nupdate = 'copy'",
        'mode = "async"\n[aggregation]\nfunction = {}',
    ],
)
def test_the_name_that_the_code_has_for_a_choice_is_no_key(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, text)
    assert "unknown key" in line


KEYS = st.sampled_from(
    [
        *Plan.keys(),
        *Plan.model_fields,
        *DataPlan.keys(),
        *AttackPlan.keys(),
        "rule",
        "buffer",
        "exponent",
        "own",
        "sync",
    ]
)
VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        2.5,
        10**30,
        "sync",
        "async",
        "ensemble",
        "krum",
        "fedbuff",
        "custom",
        "folder",
        "copy",
        [1],
        {},
    ]
)


@settings(max_examples=150)
@given(content=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=6))
def test_whatever_settings_say_each_problem_is_a_line_with_a_key(content: dict[str, Any]) -> None:
    try:
        plan = plans.validate({"name": "test", **content}, "plan")
    except PlanError as error:
        first, *lines = str(error).splitlines()
        assert first == "plan is not a valid plan:"
        assert lines
        assert all(": " in line for line in lines)
        assert len(set(lines)) == len(lines)
    else:
        assert plans.validate(json.loads(plan.to_bytes()), "plan").to_bytes() == plan.to_bytes()


# Learners with different models

UNUSED_PUBLIC_SET = 'data.public_set: needs [distillation] and mode = "ensemble"'
ENSEMBLE = 'mode = "ensemble"\n[model]\narchitectures = ["mlp", "cnn"]\n'


def test_learners_have_their_architecture_in_turns(tmp_path: Path) -> None:
    loaded = plans.load(write(tmp_path, "learners = 3\n" + ENSEMBLE))
    assert [loaded.architecture_of(node_id) for node_id in (1, 2, 3)] == ["mlp", "cnn", "mlp"]
    assert (loaded.architectures, loaded.model.name, loaded.model.weighting) == (
        ("cnn", "mlp"),
        "ensemble",
        "uniform",
    )
    assert plans.from_bytes(loaded.to_bytes()) == loaded


def test_an_architecture_that_no_learner_has_is_no_member(tmp_path: Path) -> None:
    loaded = plans.load(write(tmp_path, "learners = 1\n" + ENSEMBLE))
    assert loaded.architectures == ("mlp",)


def test_all_images_are_those_that_are_neither_held_out_nor_shared(tmp_path: Path) -> None:
    text = ENSEMBLE + "[data]\nvalidation = 1000\npublic_set = 2000\n[distillation]\n"
    assert plans.load(write(tmp_path, text)).data.train == 57_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('mode = "ensemble"', ["model.architectures: missing; ensemble needs it"]),
        (
            '[model]\nname = "ensemble"\narchitectures = ["mlp"]',
            ["model.name: should be one architecture, or set mode = \"ensemble\" (is 'ensemble')"],
        ),
        (
            ENSEMBLE + '[aggregation]\nrule = "median"',
            ["aggregation.rule: should be fedavg in an ensemble (is 'median')"],
        ),
        (
            ENSEMBLE + 'weighting = "convex"',
            ["data.validation: missing; model.weighting 'convex' needs held-out images"],
        ),
        (ENSEMBLE + "[distillation]", ["data.public_set: missing; distillation needs a public set"]),
        ("[data]\npublic_set = 10", [UNUSED_PUBLIC_SET]),
        (
            "[data]\npublic_set = 10\n[distillation]",
            ['distillation: needs mode = "ensemble"', UNUSED_PUBLIC_SET],
        ),
    ],
)
def test_what_an_ensemble_needs_is_said(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_every_plan_of_the_project_is_valid() -> None:
    assert {plans.load(path).name for path in PLANS.glob("*.toml")} == {path.stem for path in PLANS.glob("*.toml")}


# Files as editors of all systems write them

TEXT = 'name = "test"\n# für später\nrounds = 3\n'


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_a_plan_may_have_a_byte_order_mark_and_ends_of_lines_of_any_system(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    assert plans.load(path).rounds == 3
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert plans.load(Path("-")).rounds == 3
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xef\xbb\xbf" + plans.load(tmp_path / "plan.toml").to_bytes() + b"\r\n")
    assert plans.load(path).rounds == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "UTF-16 or UTF-32; save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-16 or UTF-32"),
        (TEXT.encode("utf-16-be"), "UTF-16 or UTF-32"),
        (TEXT.encode("utf-32"), "UTF-16 or UTF-32"),
        (TEXT.encode("latin-1"), "line 2 has the byte 0xfc, which is not UTF-8; save it as UTF-8"),
        (TEXT.encode().replace(b"3", b"\0"), "line 3 has a NUL byte; remove it"),
        (TEXT.encode() + b"\x80", "line 4 has the byte 0x80"),
    ],
)
def test_a_plan_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("plan.toml", "plan.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PlanError, match=f"{name} .*{message}") as raised:
            plans.load(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["my-module.py", "2nd.py", "mödule.py", "a b.py", "a.b.py"])
def test_what_a_modules_name_may_contain_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    found = problems(tmp_path, f'[custom]\nmodule = "{name}"')
    assert found == [
        "custom.module: should be a Python file such as my_module.py; the name has up to 63 letters (a to z), digits "
        f"or '_' and does not start with a digit (is {name.removesuffix('.py')!r})"
    ]


FIXED = '\n[aggregation]\narithmetic = "fixed"\n'
MASKED = "\n[privacy]\nsecure_aggregation = true\n"


def test_masks_and_exact_sums_are_not_in_plans_without_them(tmp_path: Path) -> None:
    loaded = plans.load(write(tmp_path, "learners = 3" + FIXED + MASKED))
    assert loaded.model_dump()["privacy"] == {"secure_aggregation": True}
    assert (loaded.threshold, loaded.is_masked) == (3, True)
    assert plans.load(write(tmp_path, "")).threshold == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "learners = 7" + FIXED,
            "aggregation.fraction_bits: should be at most 15 with this range, or modulus_bits = 64",
        ),
        ("[aggregation]\nrange = 2.0\n", 'aggregation.range: needs arithmetic = "fixed"'),
        ("[privacy]\nthreshold = 3\n", "privacy.threshold: needs privacy.secure_aggregation = true"),
        ("learners = 2" + FIXED + MASKED, "learners: should be at least 3 with secure_aggregation"),
        ("learners = 3" + MASKED, "aggregation.arithmetic: should be fixed with secure_aggregation"),
        ('learners = 3\nmode = "async"' + MASKED, "privacy.secure_aggregation: should be false with mode"),
        ('learners = 3\nmode = "ensemble"' + MASKED, "privacy.secure_aggregation: should be false with mode"),
        ('learners = 3\nverification = "none"' + FIXED + MASKED, "verification: should be all"),
        (
            "learners = 3\n[data]\ntrain = 300\nvalidation = 30" + FIXED + MASKED,
            "data.validation: should be left out",
        ),
        ("learners = 5" + FIXED + MASKED + "threshold = 2\n", "privacy.threshold: should be 3 to 5"),
        ("learners = 5\nmin_learners = 3" + FIXED + MASKED, "min_learners: should be at least 4"),
        *(
            (f'learners = 5{MASKED}[aggregation]\nrule = "{rule}"\n', "aggregation.rule: should be fedavg with sec")
            for rule in ("median", "trimmed_mean", "krum", "norm_clipping", "fedavgm", "fedadam")
        ),
    ],
)
def test_what_masks_and_exact_sums_forbid_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    more = "num_malicious = 1\n" if '"krum"' in text or "trimmed" in text else ""
    more += "clipping_norm = 1.0\n" if "norm_clipping" in text else ""
    assert any(found.startswith(line) for found in problems(tmp_path, text + more)), problems(tmp_path, text + more)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("learners = 2" + FIXED + MASKED, "learners"),
        ("learners = 3" + FIXED + MASKED + "threshold = 4\n", "privacy.threshold"),
    ],
)
def test_a_number_of_learners_that_masks_do_not_allow_is_one_problem(tmp_path: Path, text: str, key: str) -> None:
    found = problems(tmp_path, text)
    assert [line.partition(":")[0] for line in found] == [key]


@pytest.mark.parametrize(
    ("settings", "verifiers"),
    [
        ({"learners": 16}, "all"),
        ({"learners": 17}, "committee"),
        ({"learners": 17, "verification": "none"}, "none"),
        ({"learners": 17, "mode": "async", "aggregation": {"rule": "fedasync"}}, "all"),
        ({"learners": 5, "verification": "committee"}, "committee"),
    ],
)
def test_a_committee_verifies_for_many_learners_unless_the_plan_says_who(
    settings: dict[str, Any], verifiers: str
) -> None:
    made = Plan.model_validate({"name": "small", "data": {"name": "digits"}} | settings)
    assert made.verifiers == verifiers
    # What is not given is not written, so that plans keep their CIDs.
    assert (b"verification" in made.to_bytes()) == ("verification" in settings)


def test_retention_is_written_only_if_files_are_deleted() -> None:
    small = {"name": "small", "data": {"name": "digits"}}
    everything = Plan.model_validate(small)
    assert Plan.model_validate(small | {"retention": "all"}).to_bytes() == everything.to_bytes()
    assert b"retention" not in everything.to_bytes()
    some = Plan.model_validate(small | {"retention": {"rounds": 3}})
    assert some.retention is not None
    assert some.retention.rounds == 3
    assert plans.validate(json.loads(some.to_bytes()), "plan").to_bytes() == some.to_bytes()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('retention = "none"', 'retention: should be "all" or { rounds = '),
        ("retention = 3", 'retention: should be "all" or { rounds = '),
        ("[retention]", "retention.rounds: missing"),
        ("retention = { rounds = 0 }", "retention.rounds: "),
        ("retention = { round = 3 }", "retention.round: unknown key; did you mean rounds?"),
        ('mode = "async"\nretention = { rounds = 3 }', 'retention: should be "all" with mode = "async"'),
        (
            'verification = "none"\nretention = { rounds = 3 }',
            'retention: should be "all" with verification = "none"',
        ),
    ],
)
def test_a_wrong_retention_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    found = problems(tmp_path, text + "\n")
    assert any(one.startswith(line) for one in found), found
