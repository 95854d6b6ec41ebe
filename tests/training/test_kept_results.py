"""What a reproduction does with results that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_node.errors import ConfigError
from fl_node.experiments import reproduce
from tests.helpers.runs import plan

RESULT = {"accuracy": 0.9, "cid": "Qm"}
LOCAL = {"1": {"accuracy": 0.8}, "2": {"accuracy": 0.7}}
WHOLE: dict[str, dict[str, Any]] = {
    "plain-keras.json": {"seconds": 2.5},
    "baseline-1.json": {"accuracy": [0.5, 1.0]},
    "federated-1.json": {"seconds": 2, "rounds": [{"local": LOCAL, "result": RESULT}] * 2},
}


def keep(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", WHOLE)
def test_a_result_of_the_same_plan_is_kept(tmp_path: Path, name: str) -> None:
    content = {"plan": plan().model_dump()} | WHOLE[name]
    assert reproduce._found(keep(tmp_path / name, content), plan()) == content
    assert reproduce._found(tmp_path / "none.json", plan()) is None


@pytest.mark.parametrize("name", WHOLE)
def test_a_result_of_another_plan_is_not_overwritten(tmp_path: Path, name: str) -> None:
    other = plan().model_copy(update={"seed": 99})
    path = keep(tmp_path / name, {"plan": other.model_dump()} | WHOLE[name])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=name):
        reproduce._kept(path, plan(), lambda _line: None, lambda _plan: pytest.fail("computed"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, text) for name in WHOLE for text in ("", "{", "[]", "5", "null", "{}", '{"plan": 1}')),
        *(("plain-keras.json", {"seconds": value}) for value in (0, -1, "2", True, None)),
        *(("baseline-1.json", {"accuracy": value}) for value in ([], [2], ["x"], [[0.5]], None, {"a": 1}, 0.5)),
        *(("federated-1.json", {"seconds": 1, "rounds": value}) for value in ([], {}, 5, [5], [{"local": {}}])),
        ("federated-1.json", {"seconds": 1, "rounds": [{"local": {}, "result": RESULT}]}),
        ("federated-1.json", {"seconds": 1, "rounds": [{"local": LOCAL, "result": RESULT | {"cid": 1}}]}),
        ("federated-1.json", {"seconds": 1, "rounds": [{"local": {"1": {}}, "result": RESULT}]}),
        (
            "federated-1.json",
            {"seconds": 1, "rounds": [{"local": LOCAL, "result": RESULT}, {"local": {}, "result": RESULT}]},
        ),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, name: str, wrong: Any) -> None:
    content = wrong if isinstance(wrong, str) else {"plan": plan().model_dump()} | wrong
    with pytest.raises(ConfigError, match=name):
        reproduce._found(keep(tmp_path / name, content), plan())
