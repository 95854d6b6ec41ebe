"""Build the roles and playbooks as an Ansible collection, with everything that a controller needs to use them.

A collection differs from the checkout: the playbooks are in ``playbooks/``, the roles' modules in ``plugins/``, and a
playbook is called by its full name, such as ``fl_node.testbed.site``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "fl_node", "testbed"
FULL_NAME = f"{NAMESPACE}.{NAME}"
FOLDERS = ("fl_node", "plans", "examples")
FILES = (
    *("pyproject.toml", "README.md", "LICENSE"),
    "contracts/FederatedLearning.json",
    "requirements/node.txt",
    "requirements/controller.txt",
    "inventory/ssh.example.yml",
    "docs/collection.md",
)
"""What the controller builds the hosts' package from, and more that a site needs."""
GALAXY = """\
namespace: {namespace}
name: {name}
version: {version}
readme: docs/collection.md
authors: [The testbed's maintainers]
description: Federated learning on hosts with a private Ethereum chain and a private IPFS swarm
license: [Apache-2.0]
tags: [infrastructure, ethereum, ipfs]
dependencies: {{}}
"""
RUNTIME = 'requires_ansible: ">=2.19.0,<2.22.0"\n'
TEXTS = {
    "run make controller, then .venv/bin/ansible-playbook": "docs/collection.md lists them",
    "make bundle": f"ansible-playbook {FULL_NAME}.bundle",
    'root: "{{ playbook_dir | dirname }}"': """root: "{{ '.' | project_path }}\"""",
    "{{ playbook_dir | dirname }}/runs": "{{ '.' | project_path }}/runs",
    "{{ playbook_dir | dirname }}/backups": "{{ '.' | project_path }}/backups",
    "{{ playbook_dir | dirname }}/fl-testbed": "{{ '.' | project_path }}/fl-testbed",
}
"""What the texts of the checkout are in a collection."""
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def main() -> None:
    """Print the path of the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the archive is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stage(Path(name))
        command = [sys.executable, "-P", "-m", "ansible.cli.galaxy", "collection", "build", name, "--force"]
        done = subprocess.run(
            [*command, "--output-path", str(options.folder)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        sys.exit(f"ansible-galaxy failed: {done.stderr.strip()}")
    print(options.folder / f"{NAMESPACE}-{NAME}-{version()}.tar.gz")


def version() -> str:
    """Return the version of the package, which is the collection's too."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "fl_node" / "__init__.py").read_text())
    if found is None:
        sys.exit("fl_node/__init__.py has no __version__")
    return found[1]


def stage(folder: Path) -> None:
    """Write the files of the collection to a folder."""
    (folder / "galaxy.yml").write_text(GALAXY.format(namespace=NAMESPACE, name=NAME, version=version()))
    (folder / "meta").mkdir()
    (folder / "meta" / "runtime.yml").write_text(RUNTIME)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=_IGNORED)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "ansible", folder / "playbooks", ignore=_without("roles", Path(__file__).name))
    shutil.copytree(ROOT / "roles", folder / "roles", ignore=_without("action_plugins", "library", "module_utils"))
    for source, target in (("action_plugins", "action"), ("library", "modules"), ("module_utils", "module_utils")):
        (folder / "plugins" / target).mkdir(parents=True)
        for path in sorted(ROOT.glob(f"roles/*/{source}/*.py")):
            (folder / "plugins" / target / path.name).write_text(_imports(path.read_text()))
    for part in ("playbooks", "roles"):
        for path in (folder / part).rglob("*"):
            if path.suffix in (".yml", ".j2", ".py", ".sh", ".md"):
                path.write_text(_named(path.read_text()))


def _without(*names: str) -> Callable[[str, list[str]], set[str]]:
    """Return a function that says what to ignore in a folder: these names, and compiled files."""

    def ignored(folder: str, content: list[str]) -> set[str]:
        return _IGNORED(folder, content) | set(names)

    return ignored


def _imports(code: str) -> str:
    """Return a module's code with its own utilities where a collection has them."""
    own = "|".join(path.stem for path in ROOT.glob("roles/*/module_utils/*.py"))
    wanted = rf"ansible_collections.{FULL_NAME}.plugins.module_utils.\1"
    return re.sub(rf"ansible\.module_utils\.({own})\b", wanted, code)


def _named(text: str) -> str:
    """Return a text that names what a collection has, and keeps runs and bundles in the working directory."""
    for there, here in TEXTS.items():
        text = text.replace(there, here)
    return re.sub(r"\bansible/([a-z_]+)\.yml\b", rf"{FULL_NAME}.\1", text)


if __name__ == "__main__":
    main()
