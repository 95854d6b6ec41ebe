"""What is said of each wrong inventory, read by Ansible's own parser; tests/integration asks ansible-playbook."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.wrong_inventories import GOOD, RIGHT, WRONG
from tests.unit.test_inventory import module
from tests.unit.test_variables import module as variables_module

Problems = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def problems() -> Problems:
    """What is wrong with an inventory, with the project's defaults and configuration."""
    before = os.environ.get("ANSIBLE_CONFIG")
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")  # read once, when Ansible is imported
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.vars.hostvars import HostVars
    from ansible.vars.manager import VariableManager

    init_plugin_loader()
    if before is None:
        del os.environ["ANSIBLE_CONFIG"]
    else:
        os.environ["ANSIBLE_CONFIG"] = before

    def look(path: Path) -> list[str]:
        loader = DataLoader()
        loader.set_basedir(str(ROOT / "ansible"))
        inventory = InventoryManager(loader=loader, sources=[str(path)])
        variables = VariableManager(loader=loader, inventory=inventory)
        hostvars = HostVars(inventory, variables, loader)
        groups = inventory.get_groups_dict()
        reported: list[str] = module.inventory_problems(groups, hostvars, [str(path)])
        # Without those that follow from other hosts' variables, which only a playbook knows.
        names = [name for name in variables_module.CHECKS if name.startswith("testbed_")]
        hosts = groups.get("testbed", [])
        known = {host: {name: hostvars[host][name] for name in names if name in hostvars[host]} for host in hosts}
        return reported or list(variables_module.variable_problems(hosts, known))

    return look


@pytest.mark.parametrize("wrong", WRONG)
def test_each_mistake_is_named_with_what_would_be_right(wrong: str, problems: Problems, tmp_path: Path) -> None:
    path = tmp_path / WRONG[wrong].name
    path.write_bytes(WRONG[wrong].file())
    reported = "; ".join(problems(path))
    for words in WRONG[wrong].says:
        assert words in reported
    assert "Traceback" not in reported


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("? [a, b]\n: {hosts: {}}\n", "line 11: a list or a mapping is no name"),
        ("x: &x\n  children: {x: *x}\n", "group x contains itself"),
        ("x: &x\n  vars: {a: *x}\n", ""),
        ("z: " + "[" * 20000, "is nested too deeply"),
        ("a: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30)), ""),
    ],
    ids=["a key that is a list", "a group in itself", "variables in themselves", "deep", "many aliases"],
)
def test_a_file_that_ansible_itself_could_not_read_is_named(more: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text(GOOD + more)
    found = "; ".join(module._source(str(path)))
    assert says in found


@pytest.mark.parametrize("right", RIGHT)
def test_a_right_inventory_passes(right: str, problems: Problems, tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_bytes(RIGHT[right])
    assert problems(path) == []


def test_an_inventory_that_is_not_there_is_named(problems: Problems, tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yml") == [f"{tmp_path / 'none.yml'}: there is no such file"]


def test_a_file_of_variables_that_ansible_ignores_is_named(problems: Problems, tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text(GOOD)
    (tmp_path / "group_vars" / "testbed").mkdir(parents=True)
    (tmp_path / "group_vars" / "testbed" / "vault.yml").write_text("ipfs_swarm_key: x\n")
    assert problems(path) == []
    (tmp_path / "group_vars" / "testbed.yml").write_text("testbed_chain_id: 7\n")
    (problem,) = problems(path)
    assert f"{tmp_path}/group_vars/testbed.yml is ignored" in problem
    assert "move the file into it" in problem


def test_the_configuration_that_ansible_used_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert module.configuration_problems(str(ROOT / "ansible.cfg")) == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    (none,) = module.configuration_problems("")
    assert f"cd '{ROOT}', or export ANSIBLE_CONFIG='{ROOT}/ansible.cfg'" in none
    (problem,) = module.configuration_problems("/etc/ansible/ansible.cfg")
    assert "/etc/ansible/ansible.cfg instead of" in problem
