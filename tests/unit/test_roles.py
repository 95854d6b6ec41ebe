"""The roles: self-contained, with declared dependencies, arguments, defaults and tags."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from fl_node.nodes import configuration
from tests.helpers.checkout import ROOT

ROLES = {path.name: path for path in sorted((ROOT / "roles").iterdir())}
TAGS = {"install", "configure", "run", "always"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def texts(role: str) -> dict[Path, str]:
    """Return what a role consists of, but its page for people."""
    files = (path for path in ROLES[role].rglob("*") if path.is_file() and path.suffix not in (".md", ".pyc"))
    return {path: path.read_text() for path in files}


def python(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("role", ROLES)
def test_no_path_leads_out_of_a_role(role: str) -> None:
    for path, text in texts(role).items():
        assert "../" not in text, path
        assert "playbook_dir" not in text, path


@pytest.mark.parametrize("role", ROLES)
def test_a_role_depends_on_those_whose_variables_and_handlers_it_uses(role: str) -> None:
    known = {role, *load(ROLES[role] / "meta" / "main.yml")["dependencies"]}
    own = {path: text for path, text in texts(role).items() if path.suffix in (".yml", ".j2")}
    words = set(re.findall(r"\b(base|controller|fl_node|geth|ipfs)_[a-z]", " ".join(own.values())))
    assert words - known == set()
    handlers = {
        handler["name"]
        for name in known
        if (ROLES[name] / "handlers").exists()
        for handler in load(ROLES[name] / "handlers" / "main.yml")
    }
    tasks = [task for path in (ROLES[role] / "tasks").glob("*.yml") for task in load(path)]
    notified = [task["notify"] for task in tasks if "notify" in task]
    assert {name for handler in notified for name in ([handler] if isinstance(handler, str) else handler)} <= handlers


@pytest.mark.parametrize("role", ROLES)
def test_what_is_required_has_no_default_and_all_else_has_the_one_that_is_described(role: str) -> None:
    options = load(ROLES[role] / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = load(ROLES[role] / "defaults" / "main.yml")
    required = {name for name, option in options.items() if option.get("required")}
    assert defaults.keys() == options.keys() - required
    described = {name: option["default"] for name, option in options.items() if "default" in option}
    assert {name: defaults[name] for name in described} == described


def test_the_firewall_is_reloaded_by_one_handler() -> None:
    handlers = [file for folder in ROLES.values() for file in (folder / "handlers").glob("*.yml")]
    reloads = [task for path in handlers for task in load(path) if "fl-firewall.service" in str(task)]
    assert [task["name"] for task in reloads] == ["Reload the firewall"]


@pytest.mark.parametrize("role", ROLES)
def test_each_task_of_a_role_has_a_tag(role: str) -> None:
    folder = ROLES[role] / "tasks"
    pending = [("main.yml", False)]
    while pending:
        name, tagged = pending.pop()
        for task in load(folder / name):
            tags = task.get("tags", [])
            has_tag = tagged or bool(TAGS & set([tags] if isinstance(tags, str) else tags))
            imported = task.get("ansible.builtin.import_tasks")
            assert "ansible.builtin.include_tasks" not in task, "tags of an include don't reach its tasks"
            if imported:
                pending.append((imported, has_tag))
            else:
                assert has_tag, f"{role}/{name}: {task['name']}"


def test_a_host_merges_the_settings_of_ipfs_as_a_lab_does() -> None:
    config = {"Identity": {"PeerID": "x"}, "Swarm": {"ConnMgr": {}, "RelayClient": None}, "Pubsub": None}
    settings = {"Swarm": {"RelayClient": {"Enabled": False}}, "Bootstrap": [], "Pubsub": {"Router": ""}}
    module = python(ROLES["ipfs"] / "library" / "ipfs_config.py")
    assert module.merged(config, settings) == configuration.merged(config, settings)


@pytest.mark.parametrize("path", sorted((ROOT / "roles").glob("*/library/*.py")), ids=lambda path: path.stem)
def test_a_module_describes_the_arguments_that_it_takes(path: Path) -> None:
    text = path.read_text()
    described = yaml.safe_load(text.split('DOCUMENTATION = """')[1].split('"""')[0])
    taken = re.findall(r'"(\w+)": \{"type"', text)
    assert described["module"] == path.stem
    assert sorted(described["options"]) == sorted(taken)


def test_modules_can_run_with_the_oldest_python_of_a_host() -> None:
    for path in (ROOT / "roles").glob("*/*/*.py"):
        if path.parent.name in ("library", "module_utils"):
            ast.parse(path.read_text(), feature_version=(3, 8))
