"""A sweep on the hosts: the same cells as on one machine, whatever is lost meanwhile, and nothing is left running."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import HANG, NAMES, ROOT, Ended, Testbed

SMALL = ["rounds=1", "learners=4", "data.train=400", "data.test=200"]
WHAT = {"rules": "fedavg,median", "attacks": "sign_flip", "attackers": "0.25", "seeds": "1,2"}
UNITS = ("fl-sweep", "fl-sweep-scheduler", "fl-sweep-worker")


def sweep(provisioned: Testbed, *more: str, settings: list[str] = SMALL) -> Ended:
    arguments = {"fl_sweep": WHAT, "fl_settings": settings, "fl_data": "digits"}
    return provisioned.play("sweep", "-e", json.dumps(arguments), *more)


def cells(results: Path) -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in results.glob("cells/*.json")}
    for cell in found.values():
        del cell["seconds"]
        # Hosts and this machine may have another Python.
        del cell["versions"]
    return found


def nothing_is_left(provisioned: Testbed) -> None:
    for name in NAMES:
        host = provisioned.host(name)
        for unit in UNITS:
            assert host.check_output("systemctl show %s --property=ActiveState --value", unit) == "inactive"
        assert not host.file("/run/fl-sweep").exists
        assert host.check_output("pgrep --count --uid fl-sweep || true") == "0"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the same sweep on this machine."""
    results = tmp_path_factory.mktemp("here")
    options = [f"--{key}={value}" for key, value in WHAT.items()]
    settings = [f"--set={text}" for text in [*SMALL, "data.name=digits", "data.train=0", "data.test=0"]]
    command = [
        sys.executable,
        "-P",
        "-m",
        "fl_node",
        "sweep",
        str(ROOT / "plans" / "sweep.toml"),
        *options,
        *settings,
    ]
    done = subprocess.run(
        [*command, "--results", str(results)], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return results / "sweep"


def test_a_sweep_on_hosts_gives_the_cells_of_one_machine_though_a_worker_is_killed(
    provisioned: Testbed, here: Path
) -> None:
    killed = threading.Event()

    def kill() -> None:
        host = provisioned.host("learner-1")
        while not killed.is_set():
            if host.run("pgrep --uid fl-sweep --full fl_node.lab.simulate").rc == 0:
                host.check_output("systemctl kill --signal=KILL fl-sweep-worker")
                killed.set()
            time.sleep(0.5)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ended = sweep(provisioned)
    finally:
        was_killed = killed.is_set()
        killed.set()
        killer.join()
    ended.must()
    assert was_killed
    assert "8 of 8: " in ended.output
    results = provisioned.root / "runs" / "sweep" / "sweep"
    assert cells(results) == cells(here)
    assert json.loads((results / "sweep.json").read_text()) == json.loads((here / "sweep.json").read_text())
    assert {"sweep.html", "sweep.md"} <= {path.name for path in results.iterdir()}
    nothing_is_left(provisioned)


def test_the_next_sweep_resumes_from_the_controllers_files(provisioned: Testbed, here: Path) -> None:
    provisioned.host("header").check_output("rm -rf /var/lib/fl-sweep/results")
    again = sweep(provisioned).must()
    assert len(re.findall(r"\(kept\)", again.output)) == 8
    nothing_is_left(provisioned)


def test_a_lost_scheduler_is_reported_and_stops_everything(provisioned: Testbed) -> None:
    more = [*SMALL, "name=lost", "rounds=3"]
    done: list[Ended] = []
    player = threading.Thread(target=lambda: done.append(sweep(provisioned, settings=more)))
    player.start()
    header = provisioned.host("header")
    try:
        end = time.monotonic() + HANG
        while header.run("ls /var/lib/fl-sweep/results/lost/cells/*.json").rc != 0:
            assert player.is_alive() and time.monotonic() < end
            time.sleep(0.5)
        header.check_output("systemctl kill --signal=KILL fl-sweep-scheduler")
    finally:
        player.join()
    assert done[0].code != 0
    assert "the next call resumes" in re.sub(r"\s+", " ", done[0].output)
    assert cells(provisioned.root / "runs" / "sweep" / "lost")
    nothing_is_left(provisioned)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"fl_sweep": "fedavg"}, "fl_sweep should be a mapping"),
        ({"fl_sweep": {"rule": "fedavg"}}, "fl_sweep has rule"),
        ({"fl_sweep": {"rules": "fedavg median"}}, "without spaces"),
        ({"fl_sweep": {"rules": "nothing"}, "fl_data": "digits"}, "nothing"),
        ({"fl_jobs": 0}, "fl_jobs is 0"),
        ({"fl_settings": ["data.name=folder"]}, "a sweep needs mnist or digits"),
    ],
)
def test_wrong_options_are_named_before_any_host_is_asked(
    provisioned: Testbed, given: dict[str, Any], named: str
) -> None:
    ended = provisioned.play("sweep", "-e", json.dumps(given))
    assert ended.code != 0
    assert named in re.sub(r"\s+", " ", ended.output)
    assert set(ended.recap) == {"localhost"}


def test_units_of_a_sweep_are_hardened_and_read_no_key(provisioned: Testbed) -> None:
    host = provisioned.host("header")
    for unit in UNITS:
        assert host.check_output("systemctl show %s --property=User --value", unit) == "fl-sweep"
        verdict = host.check_output("systemd-analyze security %s --no-pager | tail -1", unit)
        exposure = re.search(r": ([\d.]+) ", verdict)
        assert exposure is not None, verdict
        assert float(exposure[1]) <= 4.0, verdict
    for file in ("/var/lib/fl-node/role.key", "/var/lib/geth/nodekey", "/var/lib/ipfs/swarm.key"):
        assert host.run("runuser --user=fl-sweep -- cat %s", file).rc != 0
