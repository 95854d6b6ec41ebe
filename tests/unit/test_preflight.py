"""What a host is, as the script says it that runs there first."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "roles" / "base" / "files" / "preflight.sh"


def preflight(tmp_path: Path, flags: str = "avx", units: str = ".") -> dict[str, Any]:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    environment = os.environ | {"CPUINFO": str(tmp_path / "cpuinfo"), "UNITS": str(tmp_path / units)}
    ended = subprocess.run(["bash", SCRIPT, "1"], env=environment, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has processors without AVX")
@pytest.mark.parametrize(("flags", "avx"), [("fpu sse avx sse4_2", True), ("fpu avx2 avx512f", False), ("", False)])
def test_a_processor_without_avx_is_found(tmp_path: Path, flags: str, avx: bool) -> None:
    assert preflight(tmp_path, flags)["avx"] is avx


def test_the_units_of_the_project_are_listed(tmp_path: Path) -> None:
    assert preflight(tmp_path)["units"] == preflight(tmp_path, units="none")["units"] == []
    for name in ("fl-header.service", "fl-learner@.service", "fl-header.service.d", "geth.service", 'fl-"x.service'):
        (tmp_path / name).touch()
    assert preflight(tmp_path)["units"] == ["fl-header.service", "fl-learner@.service"]
