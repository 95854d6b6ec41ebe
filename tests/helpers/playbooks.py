"""Playbooks as a user runs them, where no host is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.checkout import ROOT

PROGRAMS = Path(sys.executable).parent
"""Where the locked ansible-core is."""


def play(
    playbook: str, *arguments: str | Path, cwd: Path = ROOT, root: Path = ROOT, programs: Path = PROGRAMS
) -> tuple[int, str]:
    """Run a playbook; return its exit code and, in one line, what it said failed.

    Parameters
    ----------
    playbook
        Its name.
    *arguments
        Of ``ansible-playbook``.
    cwd
        The folder in which the user is.
    root
        The checkout with the playbook.
    programs
        The folder of ``ansible-playbook``.
    """
    ended = subprocess.run(
        [programs / "ansible-playbook", root / "ansible" / f"{playbook}.yml", *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        | {"NO_COLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, " ".join((ended.stdout + ended.stderr).split())
