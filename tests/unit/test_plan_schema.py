"""The JSON Schema of plans, what the documentation says of settings, and how a rule is added."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from pydantic import ValidationError

from fl_node.plan.json_schema import plan_schema
from fl_node.plan.schema import Plan
from tests.helpers.checkout import ROOT

PLANS = [*sorted((ROOT / "plans").glob("*.toml")), ROOT / "examples" / "tabular" / "plan.toml"]


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = plan_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_the_schema_file_for_editors_is_what_the_command_prints() -> None:
    # To renew it: fl-node plan schema >plans/plan.schema.json
    assert (ROOT / "plans" / "plan.schema.json").read_text() == (
        json.dumps(plan_schema(), indent=2, ensure_ascii=False) + "\n"
    )


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_each_plan_names_the_schema_and_follows_it(path: Path, validator: Draft7Validator) -> None:
    first, _, _ = path.read_text().partition("\n")
    assert (path.parent / first.removeprefix("#:schema ")).resolve() == ROOT / "plans" / "plan.schema.json"
    validator.validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize(
    "content",
    [
        {"mode": "async", "aggregation": {"mixing": 0.5}},
        {"mode": "async", "aggregation": {"rule": "fedbuff", "buffer": 2, "staleness": "hinge", "grace": 4}},
        {"mode": "ensemble", "model": {"architectures": ["cnn", "mlp"]}, "distillation": {"weight": 2}},
        {"aggregation": {"rule": "krum", "num_malicious": 1}},
        {"data": {"partition": "dirichlet", "alpha": 1}},
        {"attack": {"learners": [1], "data": "backdoor", "target": 3, "update": "scale", "factor": 2}},
        {"custom": {"module": "my/module.py"}, "data": {"samples": [1, 2]}},
        {"retention": "all"},
        {"retention": {"rounds": 10}},
    ],
)
def test_the_schema_takes_what_a_choice_uses(content: dict[str, Any], validator: Draft7Validator) -> None:
    validator.validate({"name": "test", **content})


@pytest.mark.parametrize(
    "content",
    [
        {"round": 1},
        {"rounds": 0},
        {"aggregation": {"rule": "krum"}},
        {"aggregation": {"rule": "median", "weighting": "samples"}},
        {"aggregation": {"rule": "fedavg", "clipping_norm": 1}},
        {"aggregation": {"rule": "fedasync", "staleness": "constant", "grace": 1}},
        {"data": {"partition": "labels", "alpha": 1}},
        {"data": {"name": "cifar"}},
        {"attack": {"learners": [1], "update": "copy", "target": 1}},
        {"distillation": {}},
        {"slow": {"learners": [1]}},
    ],
)
def test_the_schema_refuses_what_is_wrong_by_itself(content: dict[str, Any], validator: Draft7Validator) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({"name": "test", **content})
    assert not validator.is_valid({"name": "test", **content})


def test_each_setting_has_a_description() -> None:
    def without(schema: dict[str, Any]) -> list[str]:
        properties = schema.get("properties", {})
        missing = [name for name, setting in properties.items() if not setting.get("description")]
        return missing + [f"{name}.{key}" for name, setting in properties.items() for key in without(setting)]

    # Where two choices use a key in different ways, each has its own description.
    assert set(without(plan_schema())) <= {"aggregation.weighting", "attack.factor"}


NEW_RULE = """
from typing import Annotated, Literal

from pydantic import Field

from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import Aggregate, Rule, shares


class Halved(Rule):
    \"\"\"Half of the average.\"\"\"

    rule: Literal["halved"] = "halved"
    times: Annotated[int, Field(ge=1, description="How often it is halved.")] = 1

    def aggregate(self, inputs, counts, parent):
        average = lambda name: fedavg((one[name] for one in inputs), counts)
        return Aggregate(shares(counts), lambda name: average(name) / 2**self.times)
"""
USE_IT = """
import sys
from pathlib import Path

import numpy as np

from fl_node.artifacts import cid, model_file
from fl_node.errors import PlanError
from fl_node.plan import loading
from fl_node.plan.json_schema import plan_schema
from fl_node.protocol.global_files import global_file

plan = loading.validate({"name": "t", "min_learners": 1, "aggregation": {"rule": "halved"}}, "plan")
assert loading.from_bytes(plan.to_bytes()) == plan
assert b'"aggregation":{"rule":"halved","times":1,"weighting":"samples"}' in plan.to_bytes()
assert "times" in plan_schema()["properties"]["aggregation"]["properties"]
try:
    loading.validate({"name": "t", "aggregation": {"times": 2}}, "plan")
except PlanError as error:
    assert "aggregation.times: only valid for halved" in str(error)
here = cid.of_bytes(b"p")
local = model_file.write(
    Path("local"), model_file.LocalMeta(here, 1, 0, here, 1, 0.5, 1.0), {"a": np.float32([4])}
)
made = global_file(Path("global"), plan, here, round_=1, parent=here, inputs=[local])
print(made.global_meta.rule, made.tensor("a").tolist())
"""


def test_a_rule_is_added_by_one_file_and_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fl_node", tmp_path / "fl_node", ignore=shutil.ignore_patterns("__pycache__", "static"))
    rules = tmp_path / "fl_node" / "aggregation"
    (rules / "halved.py").write_text(NEW_RULE)
    start = "from fl_node.aggregation.krum import Krum as Krum\n"
    line = "from fl_node.aggregation.halved import Halved as Halved\n"
    text = (rules / "__init__.py").read_text()
    assert start in text
    (rules / "__init__.py").write_text(text.replace(start, line + start))
    done = subprocess.run(
        [sys.executable, "-c", USE_IT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("halved [2.0]\n", "")
