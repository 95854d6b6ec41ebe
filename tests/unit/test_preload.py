"""The callback plugin that loads Ansible's plugins before it forks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ansible.plugins import loader

_PATH = Path(__file__).parents[2] / "ansible" / "callback_plugins" / "preload.py"
_SPEC = importlib.util.spec_from_file_location("preload", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
preload = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(preload)


def test_nothing_that_most_tasks_need_is_loaded_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    loader.init_plugin_loader()
    preload.CallbackModule().v2_playbook_on_start(None)
    late: list[str] = []
    monkeypatch.setattr(
        loader.PluginLoader, "_load_module_source", lambda *arguments, **_: late.append(str(arguments))
    )
    for name in ("default", "map", "regex_replace", "to_json"):
        assert loader.filter_loader.get(name) is not None
    assert loader.test_loader.get("match") is not None
    for name in preload.ACTIONS:
        assert loader.action_loader.get(name, class_only=True) is not None
    for kind, name in (("become", "sudo"), ("connection", "ssh"), ("connection", "local"), ("shell", "sh")):
        assert getattr(loader, f"{kind}_loader").get(name, class_only=True) is not None
    assert late == []
