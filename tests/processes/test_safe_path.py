"""No file of the working directory runs in place of a library's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_node.nodes.process import python
from tests.helpers.checkout import ROOT

TRAPS = ("random", "tempfile", "logging", "numpy", "tensorflow", "keras", "typer", "rich", "yaml", "torch")
SCRIPT = str(Path(sys.executable).with_name("fl-node"))
SAY = "import fl_node.__main__, sys, os; print(sys.path); print(os.environ.get('PYTHONPATH'))"


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with modules that nobody should import."""
    for name in (*TRAPS, "fl_node", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('trap {name}')\n")
    (tmp_path / "matplotlibrc").write_text("backend: module://random\n")
    return tmp_path


def carry_out(command: list[str], here: Path, path: str | None = None) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FL_NODE_"))}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [SCRIPT, "--version"],
        python("fl_node", "--version"),
        python("fl_node.nodes.dev_chain", "--help"),
        python("fl_node.lab.simulate", "--help"),
    ],
    ids=["script", "module", "chain", "simulation"],
)
def test_nothing_of_the_working_directory_is_imported(trapped: Path, command: list[str]) -> None:
    for name in sys.stdlib_module_names:
        (trapped / f"{name}.py").write_text(f"raise SystemExit('trap {name}')\n")
    assert carry_out(command, trapped)[0] == 0


def test_a_module_that_a_person_starts_imports_nothing_of_it_either(trapped: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", "import runpy, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in sys.stdlib_module_names - {*loaded.stdout.split(), "__future__"}:
        (trapped / f"{name}.py").write_text(f"raise SystemExit('trap {name}')\n")
    (trapped / "fl_node.py").unlink()  # by which Python itself finds `-m fl_node`
    assert carry_out([sys.executable, "-m", "fl_node", "--version"], trapped)[0] == 0


@pytest.mark.parametrize("path", ["{here}", "/nowhere:{here}", "."])
def test_what_pythonpath_names_hides_no_library(
    trapped: Path, tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    for name in ("fl_node", "sitecustomize", "usercustomize"):  # at the start of Python, before any program
        (trapped / f"{name}.py").unlink()
    command = [sys.executable, "-m", "fl_node", "plan", "check", str(ROOT / "plans" / "demo.toml")]
    code, said = carry_out(command, trapped, path.format(here=trapped))
    assert (code, "trap" in said) == (0, False)


def test_the_path_of_children_is_the_same_and_ordering_it_twice_changes_nothing(tmp_path: Path) -> None:
    again = f"{SAY}; from fl_node import safe_path; safe_path.apply(); print(sys.path)"
    children = "import subprocess; subprocess.run([sys.executable, '-c', 'import sys; print(sys.path)'])"
    (tmp_path / "own").mkdir()
    code, said = carry_out([sys.executable, "-c", f"{again}; {children}"], tmp_path, f":{tmp_path / 'own'}")
    assert code == 0
    paths = [line for line in said.splitlines() if line.startswith("[")]
    assert len(paths) == 3
    assert len(set(paths)) == 1, said
    assert paths[0].rindex(str(tmp_path / "own")) > paths[0].rindex("site-packages")
    assert f"'{tmp_path}'" not in paths[0]


def test_every_python_that_is_started_leaves_the_working_directory_out() -> None:
    sources = [
        path for folder in ("fl_node", "roles", "ansible") for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    started = re.compile(r"(sys\.executable|ansible_playbook_python)\W+-m\W|python3 -m|python3?['\", ]+-m\W")
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        if path.suffix in {"", ".py", ".yml", ".sh", ".j2"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if started.search(line)
        and "``" not in line
        and not line.strip().startswith("python -m")
        and "prog=" not in line
    ]
    assert wrong == []
