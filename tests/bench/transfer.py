"""A large file from one IPFS node to two others at a time, one of them over a slow line.

Run as a program, it is one of those who fetch, in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.errors import FLNodeError, ProcessError
from fl_node.nodes.ipfs import new_swarm_key
from fl_node.runtime.waiting import wait_until
from tests.bench.memory import peak
from tests.bench.results import Part, Row, say
from tests.helpers.swarm import HANG, SlowLine, daemon

MEBIBYTE = 1024**2
RATE = 12 * MEBIBYTE
"""Bytes a second of the slow line."""
FETCH_TIMEOUT = 5.0
"""Seconds without a byte after which a fetch fails; all of the file takes far longer."""
MOST_MEMORY = 32.0
"""MB that a process may need beyond what it has without a file."""
PATIENCE = 1800.0


def measure(*, quick: bool) -> Part:
    """Fetch a file of 1 GiB twice at a time, directly and over the slow line."""
    size = (64 if quick else 1024) * MEBIBYTE
    part = Part(f"A file of {size / 1e6:.0f} MB from one IPFS node to two others at a time")
    key = new_swarm_key()
    with tempfile.TemporaryDirectory(prefix="fl-node-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        nodes = {who: stack.enter_context(daemon(folder / who, key))[0] for who in ("owner", "near", "far")}
        stores = {who: IpfsStore(node.api) for who, node in nodes.items()}
        for store in stores.values():
            wait_until(lambda: is_up(store), HANG)  # noqa: B023
        line = stack.enter_context(SlowLine(nodes["owner"].swarm_port, RATE))
        peer = stores["owner"].identity()
        ports = {"near": nodes["owner"].swarm_port, "far": line.port}
        for who, port in ports.items():
            stores[who].connect_peer(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}")
        say(f"writing a file of {size / 1e6:.0f} MB")
        path = folder / "file"
        with path.open("wb") as file:
            for _ in range(size // MEBIBYTE):
                file.write(random.randbytes(MEBIBYTE))
        say("adding it, then fetching it twice")
        added = _finish(_begin("add", nodes["owner"].api, path))
        cid = added["cid"]
        path.unlink()
        fetching = {who: _begin(who, nodes[who].api, folder / f"{who}.file", cid, size) for who in ports}
        fetched = {who: _finish(process) for who, process in fetching.items()}
        if any((folder / f"{who}.file").stat().st_size != size for who in fetched):
            raise ProcessError("a fetched file has another length")
    least = size / RATE
    part.rows += [
        Row("add: memory of the process that adds", added["grown"] / 1e6, "MB", MOST_MEMORY),
        Row("add: time to that of the slow line for as many bytes", added["seconds"] / least, "×"),
    ]
    for who, measures in fetched.items():
        what = "directly" if who == "near" else f"over a line of {RATE / 1e6:.1f} MB/s"
        part.rows += [
            Row(f"{what}: memory of the process that fetches", measures["grown"] / 1e6, "MB", MOST_MEMORY),
            Row(f"{what}: time to that of the slow line for as many bytes", measures["seconds"] / least, "×"),
            Row(f"{what}: time to fetch_timeout ({FETCH_TIMEOUT:g} s)", measures["seconds"] / FETCH_TIMEOUT, "×"),
            Row(f"{what}: words on its progress", measures["events"], ""),
            Row(
                f"{what}: longest silence between two words to fetch_timeout",
                measures["silence"] / FETCH_TIMEOUT,
                "×",
            ),
        ]
    return part


def is_up(store: IpfsStore) -> bool:
    """Return whether a daemon answers."""
    with contextlib.suppress(FLNodeError):
        return bool(store.version())
    return False


def _begin(what: str, api: str, path: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.transfer", what, api, path, *more]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> dict[str, float]:
    try:
        out, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        raise ProcessError(f"a transfer takes more than {PATIENCE:g} s") from late
    finally:
        process.kill()
    if process.returncode:
        raise ProcessError(f"a transfer failed: {error}")
    return json.loads(out)


def add(api: str, path: Path) -> dict[str, object]:
    """Add a file and return its CID, what memory this process needed for that, and the seconds."""
    store = IpfsStore(api)
    store.version()
    before, start = peak(), time.monotonic()
    cid = store.add(path)
    return {"cid": cid, "grown": peak() - before, "seconds": time.monotonic() - start}


def fetch(api: str, path: Path, cid: str, size: int) -> dict[str, object]:
    """Fetch a file and return this process' memory for that, the seconds, and how its progress was told."""
    store = IpfsStore(api)
    store.version()
    before = peak()
    told = [time.monotonic()]
    store.fetch(cid, path, size, FETCH_TIMEOUT, lambda _now, _length: told.append(time.monotonic()))
    silences = [later - sooner for sooner, later in itertools.pairwise(told)]
    return {
        "grown": peak() - before,
        "seconds": time.monotonic() - told[0],
        "events": len(told) - 1,
        "silence": max(silences),
    }


if __name__ == "__main__":
    _, what, api, path, *more = sys.argv
    print(json.dumps(add(api, Path(path)) if what == "add" else fetch(api, Path(path), more[0], int(more[1]))))
