"""`fl-node` as a process: what it imports, how it is interrupted, and what it says about missing packages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_node.chain.keys import create_key
from tests.helpers.accounts import ALICE
from tests.helpers.checkout import ROOT

PAPER = str(ROOT / "plans" / "paper.toml")
HANG = 600.0
"""Seconds after which a process has hung; on a busy machine its imports take a part of them."""


@pytest.mark.parametrize("arguments", [["--help"], ["lab", "--help"], ["plan", "check", PAPER], ["--version"]])
def test_help_and_plans_are_answered_without_what_takes_long_to_import(arguments: list[str]) -> None:
    script = f"""
import sys
import tempfile
from fl_node.cli import app as cli
sys.argv = ["fl-node", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code
slow = {{"tensorflow", "keras", "web3", "eth", "sklearn", "ipfshttpclient"}}
print("slow:", sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow: []"


def test_ctrl_c_is_code_130_without_a_traceback(tmp_path: Path, free_port: Callable[[], int]) -> None:
    create_key(tmp_path / "role.key")
    command = [sys.executable, "-m", "fl_node", "learner", "--key", "role.key", "--store", "file:files"]
    command += ["--rpc", f"http://127.0.0.1:{free_port()}", "--contract", ALICE.address]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path))
            for _ in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        for process, number in zip(processes, (signal.SIGINT, signal.SIGTERM), strict=True):
            assert process.stderr is not None
            event = json.loads(process.stderr.readline())
            assert (event["event"], event["reason"]) == ("waiting", "chain_unreachable")
            process.send_signal(number)
            _, err = process.communicate(timeout=HANG)
            assert process.returncode == 130
            assert err == "fl-node: stopped\n"


def test_ctrl_c_during_the_imports_ends_the_process_without_a_traceback() -> None:
    script = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "fl_node.cli.app":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
import fl_node.__main__
fl_node.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


REPLACED = """
import os, signal, sys, time
from fl_node.cli import app

def busy():
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise RuntimeError("an error of C++ code, REPLACED BY " + type(error).__name__) from None

def doctor():
    "Stand in for any command."
    {call}

app.node.doctor = app.COMMANDS["Set up a node"]["doctor"] = doctor
app.app = app._build()
sys.argv = ["fl-node", "doctor"]
app.main()
"""


@pytest.mark.parametrize(
    ("name", "call", "code"),
    [
        ("SIGINT", "busy()", 130),
        ("SIGTERM", "busy()", 130),
        ("SIGHUP", "busy()", 130),
        ("SIGINT", "app.process.is_role = True; busy()", 130),
        ("SIGTERM", "app.process.is_role = True; busy()", 0),
    ],
)
def test_a_signal_whose_exception_c_code_replaces_stops_the_process_without_a_traceback(
    name: str, call: str, code: int
) -> None:
    script = REPLACED.format(name=name, call=call)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr == ("" if "is_role" in call else "fl-node: stopped\n")


def test_a_package_that_is_not_installed_is_one_line_that_says_what_to_install() -> None:
    script = """
import sys
import tempfile
sys.modules["web3"] = None
from fl_node.cli import app as cli
sys.argv = ["fl-node", "fund", "0x" + "1" * 40]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"fl-node: the Python package web3 is not installed in {sys.prefix}; install fl-node there "
        "with its dependencies (a checkout: requirements/node.txt)"
    ]


def test_a_learners_host_can_leave_out_plots_live_page_and_embedded_chain() -> None:
    script = """
import sys
for name in ("eth_tester", "eth", "matplotlib", "starlette", "sse_starlette", "uvicorn", "prometheus_client"):
    sys.modules[name] = None
import fl_node.cli.app, fl_node.roles.factory, fl_node.models.keras_trainer, fl_node.models.ensemble
import fl_node.data.loading, fl_node.data.datasets, fl_node.audit.auditor, fl_node.report.collect, fl_node.lab.doctor
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_recursion_limit_is_pythons_own_after_what_a_role_imports() -> None:
    script = """
import importlib, sys
for name in ("chain.rpc", "nodes.geth", "chain.client", "nodes.dev_chain"):
    importlib.import_module(f"fl_node.{name}")
    assert sys.getrecursionlimit() == 1000, (name, sys.getrecursionlimit())
assert {"py_ecc", "eth", "web3"} <= set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_matplotlib_is_loaded_when_something_is_drawn_and_not_before() -> None:
    modules = "fl_node.cli.app, fl_node.report.collect, fl_node.report.context"
    script = f"import sys, {modules}; print([m for m in sys.modules if 'matplotlib' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_is_started_anew_with_the_same_arguments(tmp_path: Path) -> None:
    plan = tmp_path / "a plan.toml"
    plan.write_text('name = "x"\n')
    for start in ([sys.executable, "-m", "fl_node"], [sys.executable, "-E", "-m", "fl_node"]):
        command = [*start, "plan", "check", "--json", "-", "--set", "seed=3"]
        with plan.open() as file:
            done = subprocess.run(
                command,
                stdin=file,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PYTHONHASHSEED": "5"},
            )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["seed"] == 3
