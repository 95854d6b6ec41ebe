"""Three real hosts: the project's Vagrantfile, inventory and playbooks, in a copy of the checkout.

The hosts are containers that boot systemd (docker provider), on a network of their own, so that a testbed that a
person has up is not touched. All is removed at the end: containers, network, and the Docker engine if it was
started here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from tests.helpers import checkout

ROOT = checkout.ROOT
NETWORK = "192.168.58"
NAMES = ("header", "learner-1", "learner-2")
ADDRESSES = dict(zip(NAMES, (f"{NETWORK}.10", f"{NETWORK}.11", f"{NETWORK}.12"), strict=True))
PLAN = "plans/demo.toml"
SMALL = ["data.train=2000", "data.test=500", "rounds=2"]
"""Settings of a run that is soon over."""
KEPT = ".kept"
"""A file in the folder of hosts that outlive the tests."""
HANG = 1500.0
"""Seconds after which a command has hung."""
NOTHING_LEFT = """
find / -xdev \\( -name 'fl-node*' -o -name 'fl-firewall*' \\
  -o -name 'fl-learner*' -o -name 'fl-header*' -o -name 'fl-standby*' -o -name 'fl-sweep*' -o -name 'fl-trainer*' \\
  -o -name 'geth*' -o -name 'ipfs*' -o -name '*fl-testbed*' \\) \\
  -not -path '/home/*' -not -path '/proc/*' -not -path '/usr/local/share/fl-testbed*' -not -path '/etc/ssh/*'
getent passwd geth ipfs fl-node fl-dashboard
nft list tables | grep fl_testbed
systemctl list-unit-files --no-legend | grep -E '^(fl-|geth|ipfs)'
systemctl --failed --no-legend
"""
"""Prints what is left of the testbed on a host; the image's own files and Vagrant's settings of sshd don't count."""


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Ansible's last lines: for each host how many tasks were ok, changed, failed …"""
        return {
            host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
            for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", self.output, re.MULTILINE)
        }

    def must(self, code: int = 0) -> Ended:
        """Return it if it ended with this code."""
        assert self.code == code, self.output[-6000:]
        return self


@dataclass
class Testbed:
    """A copy of the checkout with its hosts."""

    __test__ = False

    root: Path
    up: Ended | None = None
    hosts: dict[str, Host] = field(default_factory=dict)

    def run(self, *command: str | Path, **environment: str) -> Ended:
        """Run a command in the copy, as a user would."""
        ended = subprocess.run(
            [str(part) for part in command],
            cwd=self.root,
            env=os.environ | {"PATH": f"{self.root}/.venv/bin:{os.environ['PATH']}", "NO_COLOR": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout)

    def play(self, name: str, *arguments: str, **environment: str) -> Ended:
        """Run one of the playbooks."""
        return self.run("ansible-playbook", f"ansible/{name}.yml", *arguments, **environment)

    def vagrant(self, *arguments: str, **environment: str) -> Ended:
        return self.run("vagrant", *arguments, **environment)

    def host(self, name: str, address: str | None = None) -> Host:
        """Return a host, spoken to by SSH with the testbed's key, as root by sudo."""
        if name not in self.hosts:
            self.hosts[name] = testinfra.get_host(
                f"ssh://vagrant@{address or ADDRESSES[name]}?sudo=true&controlpersist=60",
                ssh_identity_file=str(self.root / ".vagrant" / "testbed_key"),
                ssh_extra_args=f"-o UserKnownHostsFile={self.root}/.vagrant/known_hosts "
                "-o StrictHostKeyChecking=accept-new -o IdentitiesOnly=yes",
            )
        return self.hosts[name]

    def forget(self, name: str) -> None:
        """A host was made again: its old connection is worth nothing."""
        self.hosts.pop(name, None)

    def ask(self, name: str, expression: str) -> Any:
        """Return what a host's Geth console answers to an expression."""
        output = self.host(name).check_output("geth attach --exec %s /var/lib/geth/geth.ipc", expression)
        return json.loads(output)


def copy_checkout(target: Path) -> None:
    """Copy the checkout, with the hosts on the tests' network."""
    checkout.copy(target)
    inventory = target / "inventory" / "hosts.yml"
    inventory.write_text(inventory.read_text().replace("192.168.56.", f"{NETWORK}."))


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def left(root: Path) -> dict[str, list[str]]:
    """Return the containers and networks that the tests made."""
    containers = docker("ps", "--all", "--format", "{{.Names}}").split()
    networks = docker("network", "ls", "--format", "{{.Name}}").split()
    return {
        "containers": [name for name in containers if name.startswith(f"{root.name}_")],
        "networks": [name for name in networks if NETWORK in name],
    }


LABEL = "fl-testbed.folder"
"""Of each container: whose host it is (vagrant/testbed.rb)."""


def remove_leftovers(address: str = NETWORK) -> None:
    """Remove the hosts of a test run that was killed: the engine starts them again, and they hold the addresses."""
    for network in docker("network", "ls", "--quiet", "--filter", f"name={address}").split():
        for container in docker("ps", "--all", "--quiet", "--filter", f"network={network}").split():
            folder = docker("inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', container).strip()
            if folder and Path(folder, KEPT).exists():
                if Path(folder) == Path(os.environ.get("FL_TESTBED_KEEP", "")).resolve():
                    return
                pytest.fail(
                    f"hosts kept in {folder} are in the way: cd {folder} && vagrant destroy -f", pytrace=False
                )
            docker("rm", "--force", "--volumes", container)
        docker("network", "rm", network)


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """One test run at a time has hosts, since their addresses are the same."""
    with Path(tempfile.gettempdir(), "fl-testbed-tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail("another run of these tests has its hosts up; wait for its end", pytrace=False)
        yield


@pytest.fixture(scope="session")
def engine(alone: None) -> Iterator[None]:
    """A Docker engine: the one that runs, or one that is started by hand and stopped again."""
    for program, package in (("vagrant", "vagrant"), ("dockerd", "docker.io"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(program) is None and shutil.which(program, path="/usr/sbin") is None:
            pytest.fail(f"{program} is missing, so no hosts can be made: apt-get install {package}", pytrace=False)
    script = ROOT / "vagrant" / "docker-engine"
    answered = subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    started = subprocess.run([script, "start"], capture_output=True, text=True, check=False)
    if started.returncode != 0:
        pytest.fail(f"no Docker engine: {started.stdout}{started.stderr}", pytrace=False)
    try:
        remove_leftovers()
        yield
    finally:
        if not answered:
            subprocess.run([script, "stop"], check=True)


@pytest.fixture(scope="session")
def testbed(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """The three hosts, as one `vagrant up` made them.

    For who works on the tests: FL_TESTBED_KEEP names a folder whose hosts are kept, and used again the next time.
    """
    kept = os.environ.get("FL_TESTBED_KEEP")
    root = Path(kept) if kept else tmp_path_factory.mktemp("testbed")
    root.mkdir(exist_ok=True)
    copy_checkout(root)
    testbed = Testbed(root)
    if kept:
        (root / KEPT).touch()
        testbed.up = testbed.vagrant("up", "--provider=docker")
        yield testbed
        return
    try:
        testbed.up = testbed.vagrant("up", "--provider=docker")
        yield testbed
    finally:
        gone = testbed.vagrant("destroy", "--force")
        remains = left(root)
    assert gone.code == 0, gone.output[-3000:]
    assert remains == {"containers": [], "networks": []}


@pytest.fixture(scope="session")
def provisioned(testbed: Testbed) -> Testbed:
    """The three hosts, provisioned without a failed task."""
    assert testbed.up is not None
    testbed.up.must()
    return testbed


@pytest.fixture(scope="session")
def data_set() -> str:
    """MNIST where it can be had, else the digits that scikit-learn ships; the same for hosts and lab."""
    command = [sys.executable, "-m", "fl_node", "data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"MNIST is left out: {done.stderr.strip()}")
        return "digits"
    return "mnist"


@pytest.fixture(scope="session")
def trained(provisioned: Testbed, data_set: str) -> Ended:
    """What `train.yml` said of a run under the name first."""
    return provisioned.play("train", "-e", f"fl_plan={PLAN}", "-e", "fl_run=first", *choice(data_set)).must()


def choice(data_set: str) -> list[str]:
    return ["-e", "fl_data=digits"] if data_set == "digits" else []


def report(testbed: Testbed, name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((testbed.root / "runs" / name / "report.json").read_text())
    return content


@pytest.fixture(params=NAMES)
def host(request: pytest.FixtureRequest, provisioned: Testbed) -> Host:
    """Each host in turn."""
    return provisioned.host(request.param)


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], float], Any]:
    """Call something until it gives a true value, for so many seconds at most; a command that fails gives none."""

    def wait(look: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):
                if value := look():
                    return value
            if time.monotonic() > deadline:
                return None
            time.sleep(1)

    return wait
