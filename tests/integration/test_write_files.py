"""The action with which the roles write files, on this machine; it must do what copy and template do."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.checkout import ROOT

BIN = Path(sys.executable).parent
OWNER, GROUP = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
TEMPLATE = "# {{ name }}\n{% for number in [1, 2] %}\nline {{ number }}\n{% endfor %}\n{{ '{}' }} é\n"
RENDERED = "# it's\nline 1\nline 2\n{} é\n"

Files = list[dict[str, Any]]
Write = Callable[..., list[Any]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that runs tasks which write files to this machine, and returns their results."""
    for name, text in (("files/script", "#!/bin/sh\n"), ("templates/text.j2", TEMPLATE)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    report = tmp_path / "results.json"

    def run(*tasks: Files, options: Sequence[str] = ()) -> list[Any]:
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": {"name": "it's"}}
        play["tasks"] = [
            {
                "write_files": {"files": [{"owner": OWNER, "group": GROUP, **file} for file in files]},
                "register": f"result_{number}",
                "ignore_errors": True,
            }
            for number, files in enumerate(tasks)
        ]
        results = ", ".join(f"result_{number}" for number in range(len(tasks)))
        copy = {"content": f"{{{{ [{results}] | to_json }}}}", "dest": str(report)}
        play["tasks"].append({"ansible.builtin.copy": copy, "check_mode": False, "diff": False})
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        kept["ANSIBLE_ACTION_PLUGINS"] = str(ROOT / "roles" / "base" / "action_plugins")
        kept["ANSIBLE_PYTHON_INTERPRETER"] = sys.executable
        command = [BIN / "ansible-playbook", "play.yml", *options]
        subprocess.run(command, cwd=tmp_path, env=kept, check=True, timeout=600)
        return list(json.loads(report.read_text()))

    return run


def test_files_are_written_once_and_again_where_they_differ(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out put"
    out.mkdir()
    script, text, content, linked = (out / name for name in ("script", "text", "con'tent", "linked"))
    linked.symlink_to(script)
    files = [
        {"src": "script", "dest": str(script), "mode": "0755"},
        {"template": "text.j2", "dest": str(text)},
        {"content": "x\n", "dest": str(content)},
        {"content": "y\n", "dest": str(linked)},
    ]
    first, again = write(files, files)
    assert first["written"] == [str(script), str(text), str(content), str(linked)]
    assert script.read_text() == "#!/bin/sh\n"
    assert text.read_text() == RENDERED
    assert content.read_text() == "x\n"
    assert linked.read_text() == "y\n"
    assert not linked.is_symlink()
    assert [path.stat().st_mode & 0o777 for path in (script, text)] == [0o755, 0o644]
    assert not again["changed"]
    assert again["written"] == []

    script.chmod(0o700)
    text.write_text("other")
    content.unlink()
    wrong = [str(script), str(text), str(content)]
    (looked,) = write(files, options=["--check", "--diff"])
    assert looked["changed"]
    assert looked["written"] == wrong
    assert any("line 1" in part.get("after", "") for part in looked["diff"])
    assert text.read_text() == "other"
    (repaired,) = write(files)
    assert repaired["written"] == wrong
    assert [path.stat().st_mode & 0o777 for path in (script, text)] == [0o755, 0o644]
    assert text.read_text() == RENDERED
    assert content.read_text() == "x\n"


def test_a_file_that_is_not_valid_is_not_written_and_named(write: Write, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("old\n")
    files = [
        {"content": "a\n", "dest": str(first), "validate": "grep -q a %s"},
        {"content": "b\n", "dest": str(second), "validate": "grep -q a %s"},
    ]
    (result,) = write(files)
    assert result["failed"]
    assert result["msg"].startswith(f"{second}: ")
    assert "failed to validate" in result["msg"]
    assert (first.read_text(), second.read_text()) == ("a\n", "old\n")


def test_what_can_not_be_written_is_said(write: Write) -> None:
    incomplete = "needs dest, and one of src, template, content"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dest": "/nowhere/a"}, incomplete),
        ({"dest": "/nowhere/a", "src": "script", "content": "x"}, incomplete),
        ({"content": "x"}, incomplete),
        ({"dest": "/nowhere/a", "content": "x", "modus": "0644"}, "/nowhere/a: unknown modus"),
        ({"dest": "/nowhere/a", "src": "script", "mode": "u+x"}, "/nowhere/a: mode u+x: should be octal digits"),
        ({"dest": "/nowhere/a", "src": "script", "mode": 644}, "/nowhere/a: mode 644: should be octal digits"),
        ({"dest": "/nowhere/a", "src": "other"}, "other"),
        ({"dest": "/nowhere/a", "content": "x"}, "/nowhere/a: "),
    ]
    for result, (file, reason) in zip(write(*([file] for file, _ in wrong)), wrong, strict=True):
        assert result["failed"], file
        assert reason in result["msg"]
