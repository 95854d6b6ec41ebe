"""What stops the release of Kubo does not stop the build of the testbed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

from fl_node.nodes import binaries

HANG = 600


def test_a_file_that_holds_a_deeply_nested_block_is_an_error_and_no_stack_overflow(tmp_path: Path) -> None:
    # CVE-2026-42328, as a member can publish it: the root looks like any model file's.
    ipfs = binaries.install(binaries.KUBO)

    def run(*arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "IPFS_PATH": str(tmp_path)}
        return subprocess.run(
            [ipfs, *arguments], input=content, env=env, capture_output=True, timeout=HANG, check=False
        )

    assert run("init", "--profile=test").returncode == 0
    nested = run("block", "put", "--cid-codec=dag-cbor", "--allow-big-block", content=b"\x81" * 2_000_000 + b"\0")
    link = {"Hash": {"/": nested.stdout.decode().strip()}, "Name": "", "Tsize": 2_000_001}
    file_of_5_bytes = base64.b64encode(b"\x08\x02\x18\x05\x20\x05").decode()
    root = {"Data": {"/": {"bytes": file_of_5_bytes}}, "Links": [link]}
    put = run("dag", "put", "--input-codec=dag-json", "--store-codec=dag-pb", content=json.dumps(root).encode())
    assert put.returncode == 0
    got = run("cat", put.stdout.decode().strip())
    assert (got.returncode, got.stdout) == (1, b"")
    assert b"goroutine" not in got.stderr
