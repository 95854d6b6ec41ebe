"""Run every scenario, print one line each, and write its table of docs/scenarios.md.

python -m tests.scenarios [--backend processes] [NAME ...]     on this machine
python -m tests.scenarios --backend hosts [NAME ...]           on the hosts of the inventory, which must be up
With --undefended each goes without its defence, and one of its expectations must fail.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fl_node.lab.faults import SCENARIOS
from fl_node.runtime.markdown import escape

from .undefended import ON_HOSTS, WITHOUT, Without

PLAN = Path("plans/scenario.toml")
PAGE = Path("docs/scenarios.md")
DATA = Path("ansible/scenarios")
HOSTS = "hosts"
NEEDS_MACHINES = ("wrong-clock",)
COMMON = (
    "the fault was injected",
    "the run ends",
    "the audit passes",
    "an audit from a learner passes",
    "the fault began before its round ended",
)
TIMEOUT = 600
LAST = 5000
"""Letters of a playbook's output that say why it failed."""


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios; all if none is named")
    parser.add_argument("--backend", choices=["embedded", "processes", HOSTS], default="processes")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--undefended", action="store_true", help="take each scenario's defence away")
    options = parser.parse_args()
    if options.undefended:
        known = ON_HOSTS if options.backend == HOSTS else WITHOUT
        sys.exit(undefended(options.backend, {name: known[name] for name in options.names or known}))
    names = options.names or names_of(options.backend)
    rows, broken = [], 0
    for name in names:
        result = run_on_hosts(name) if options.backend == HOSTS else run(name, options.backend)
        rows.append(row(name, result))
        failed = [check for check in result["checks"] if not check["passed"]]
        broken += bool(failed)
        accuracy = f"{result['final']['accuracy']:.2%}, " if "final" in result else ""
        print(f"{'FAIL' if failed else 'pass'} {name}: {accuracy}{result.get('seconds', 0):.0f} s", flush=True)
        for check in failed:
            print(f"       {check['what']}: {check['seen']}", flush=True)
    write(options.page, options.backend, rows)
    sys.exit(1 if broken else 0)


def undefended(backend: str, wanted: dict[str, Without]) -> int:
    """Carry scenarios out without their defences, and return 1 if one of them is not broken as it must be."""
    unbroken = 0
    for name, without in wanted.items():
        begin = time.time()
        if backend == HOSTS:
            lines = run_undefended_on_hosts(name, without)
        else:
            lines = run_undefended(name, SCENARIOS[name].backends[0])
        is_broken = any(without.broken in line for line in lines)
        unbroken += not is_broken
        verdict = "broken" if is_broken else "PASSED"
        print(f"{verdict} {name}, without this: {without.defence}; {time.time() - begin:.0f} s", flush=True)
        if not is_broken:
            print("".join(f"       {line}\n" for line in lines), end="", flush=True)
    return 1 if unbroken else 0


def run_undefended(name: str, backend: str) -> list[str]:
    """Return the expectations that fail without the defence, or the error that the lab ended with."""
    with tempfile.TemporaryDirectory(prefix="fl-scenario-") as runs:
        command = [sys.executable, "-m", "tests.scenarios.undefended", name, str(PLAN)]
        command += ["--backend", backend, "--runs", runs, "--json"]
        done = ended(command, TIMEOUT)
    if done.returncode == 0:
        return []
    try:
        return broken_promises(json.loads(done.stdout))
    except ValueError:
        return done.stderr.splitlines()[-20:]


def run_undefended_on_hosts(name: str, without: Without) -> list[str]:
    """Return the expectations that fail without the defence, or what the playbook ended with."""
    change_units(without.unit)
    try:
        settings = [f"{key}={value}" for key, value in without.settings.items()]
        outcome = run_on_hosts(name, "-e", json.dumps({"fl_settings": settings, **without.variables}))
    finally:
        change_units("")
    return [*broken_promises(outcome), *outcome.get("said", [])]


def change_units(content: str) -> None:
    """Give the roles' units on all hosts settings beside their own, until a reboot; an empty text takes them away."""
    folder = "/run/systemd/system/fl-$role.service.d"
    write = f"mkdir -p {folder} && printf %s {shlex.quote(content)} | sed s/ROLE/$role/ >{folder}/undefended.conf"
    take = f"rm -rf {folder}; systemctl reset-failed fl-$role.service 2>/dev/null || true"
    script = f"for role in header learner; do {write if content else take}; done; systemctl daemon-reload"
    command = [str(Path(sys.executable).parent / "ansible"), "testbed", "-m", "ansible.builtin.shell", "-a", script]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)


def broken_promises(outcome: dict[str, Any]) -> list[str]:
    """Return the expectations of a scenario that failed."""
    return [check["what"] for check in outcome["checks"] if not check["passed"]]


def run(name: str, backend: str) -> dict[str, Any]:
    """Carry a scenario out as a user does, and return what it printed."""
    with tempfile.TemporaryDirectory(prefix="fl-scenario-") as runs:
        command = [*(sys.executable, "-m", "fl_node", "lab", str(PLAN), "--scenario", name)]
        command += ["--backend", backend, "--runs", runs, "--json"]
        done = ended(command, TIMEOUT)
    try:
        outcome: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"checks": [{"what": "the scenario ends", "passed": False, "seen": reason[0]}]}
    return outcome


def ended(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; one that does not end by itself is ended, and says so."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    note = ""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        note = f"\nit did not end within {timeout:g} s"
        process.terminate()
        output, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors.rstrip("\n") + note)


def names_of(backend: str) -> list[str]:
    """Return the scenarios that a backend has: those of the lab, or those of the hosts."""
    if backend == HOSTS:
        # These want a kernel or a clock of the host's own.
        return sorted(path.stem for path in DATA.glob("*.yml") if path.stem not in NEEDS_MACHINES)
    return [name for name, scenario in SCENARIOS.items() if backend in scenario.backends]


def run_on_hosts(name: str, *settings: str) -> dict[str, Any]:
    """Carry a scenario out on the hosts as a user does, and return what it wrote down."""
    start = time.time()
    playbook = [str(Path(sys.executable).parent / "ansible-playbook"), "ansible/scenario.yml"]
    command = [*playbook, "-e", f"fl_scenario={name}", *settings]
    done = ended(command, 2 * TIMEOUT)
    written = [path for path in Path("runs").glob("*/scenario.json") if path.stat().st_mtime >= start]
    if not written:
        (reason,) = re.findall(r"^.*(?:FAILED|ERROR|msg:).*$", done.stdout + done.stderr, re.MULTILINE)[-1:] or [
            "nothing"
        ]
        broken = {"what": "the scenario ends", "passed": False, "seen": reason.strip()}
        # All of it in one line, for Ansible folds long ones; and it doubles apostrophes within quotes.
        output = " ".join(done.stdout.split()).replace("''", "'")[-LAST:]
        return {"checks": [broken], "text": "", "seconds": time.time() - start, "said": [output]}
    outcome: dict[str, Any] = json.loads(written[0].read_text())
    return outcome | {"seconds": time.time() - start}


def row(name: str, result: dict[str, Any]) -> str:
    """Return a scenario's line of the table."""
    checks = result["checks"]
    passed = "passed" if all(check["passed"] for check in checks) else "**failed**"
    # What all scenarios expect says little of one.
    own = [check for check in checks if check["what"] not in COMMON]
    seen = "<br>".join(f"{escape(check['what'])}: *{escape(check['seen'])}*" for check in own)
    # Of CIDs, addresses and Geth's peers the beginning: nobody reads the rest of them in a table.
    seen = re.sub(r"\b(Qm\w{6}|0x\w{6}|[0-9a-f]{8})\w{34,}\b", r"\1…", seen)
    text = SCENARIOS[name].text if "text" not in result else result["text"].strip()
    return f"| {name} | {escape(text)} | {seen} | {passed} |"


def name_of(line: str) -> str:
    """Return the scenario that a line of the table is about."""
    return line.split("|")[1].strip()


def write(page: Path, backend: str, rows: list[str]) -> None:
    """Put the lines into the table between its marks, in place of those of the same scenarios."""
    begin, end = f"<!-- {backend}: begin -->", f"<!-- {backend}: end -->"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    table, after = rest.split(end)
    new = {name_of(line): line for line in rows}
    kept = {name_of(line): line for line in table.splitlines() if line.startswith("| ")}
    order = sorted(kept | new) if backend == HOSTS else SCENARIOS
    rows = [(kept | new)[name] for name in order if name in kept | new and name != "scenario"]
    table = "\n".join(["| scenario | what happens | what must hold: *what was seen* | |", "|---|---|---|---|", *rows])
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
