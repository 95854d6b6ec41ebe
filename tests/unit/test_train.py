"""What train.yml says of its variables before it asks a host, through ansible-playbook itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("variables", "given"), [("settings=rounds=2", '"rounds=2"'), ('{"settings": {"rounds": 2}}', '{"rounds": 2}')]
)
def test_settings_that_are_no_list_are_refused_with_what_would_be_right(variables: str, given: str) -> None:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "ansible/train.yml", "-e", variables]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )
    assert done.returncode != 0
    said = done.stdout.replace('\\"', '"')
    assert f"""settings should be a list, such as -e '{{"settings": ["rounds=2"]}}' (is {given})""" in said, said
