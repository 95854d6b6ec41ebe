"""Which wheels hosts get: those of the lock that hold for their platform and Python, whatever the controller is."""

import pytest

from tests.helpers.checkout import ROOT, load

wheelhouse = load("roles/controller/files/wheelhouse.py")


@pytest.mark.parametrize(("machine", "wanted", "absent"), [("x86_64", "-cpu", ""), ("aarch64", "", "-cpu")])
def test_hosts_get_tensorflows_cpu_build_where_there_is_one(machine, wanted, absent):
    names = [entry.split("==")[0] for entry in wheelhouse.entries(ROOT / "requirements/node.txt", machine, "3.11")]
    assert f"tensorflow{wanted}" in names
    assert f"tensorflow{absent}" not in names


def test_every_entry_keeps_its_hashes_and_loses_its_marker(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a comment\n"
        'numpy==2.4 ; python_full_version < "3.12" \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n'
        "    # via something\n"
        'numpy==2.5 ; python_full_version >= "3.12" \\\n    --hash=sha256:cc\n'
        'colorama==1 ; sys_platform == "win32" \\\n    --hash=sha256:dd\n'
    )
    assert wheelhouse.entries(lock, "x86_64", "3.11") == ["numpy==2.4 --hash=sha256:aa --hash=sha256:bb"]
    assert wheelhouse.entries(lock, "x86_64", "3.13") == ["numpy==2.5 --hash=sha256:cc"]


def controller_pin(name: str) -> str:
    """Return a package's entry in the controller's lock."""
    lock = wheelhouse.entries(ROOT / "requirements/controller.txt", "x86_64", "3.11")
    (entry,) = [line for line in lock if line.startswith(f"{name}==")]
    return entry


def test_uv_is_pinned_for_the_hosts():
    assert "--hash=sha256:" in controller_pin("uv")


def test_a_controller_can_make_wheels_of_what_is_published_as_source_alone():
    major = controller_pin("setuptools").removeprefix("setuptools==").split(".")[0]
    assert int(major) > 70  # those before 70.1 want a package more
