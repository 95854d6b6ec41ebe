"""Compressed updates over a slow line, beside the same weights as they are: bytes, time, and cost of decoding."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np

from fl_node.artifacts import model_file
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta
from fl_node.compression import Compression, Float16, Int8, TopK
from fl_node.nodes.ipfs import new_swarm_key
from fl_node.plan.schema import Plan
from fl_node.protocol.compressed import compress, decoded
from fl_node.runtime.waiting import wait_until
from tests.bench.results import Part, Row, say
from tests.bench.stub import MODELS
from tests.bench.transfer import is_up
from tests.helpers.stub import noise
from tests.helpers.swarm import HANG, SlowLine, daemon

SMALL = MODELS["small"]
RATE = 250_000
"""Bytes a second of the slow line: 2 Mbit/s, as in the scenario slow-line."""
KINDS: dict[str, Compression | None] = {"none": None, "float16": Float16(), "int8": Int8(), "topk (5%)": TopK()}
AIMS = {"float16": 0.55, "int8": 0.3, "topk (5%)": 0.15}
"""The most bytes that each kind may have, compared with the plain file."""
FASTER = {"int8": 1 / 3, "topk (5%)": 1 / 3}


def measure(*, quick: bool) -> Part:
    """Publish one learner's update in each way, and fetch it over the slow line."""
    part = Part(f"An update of 0.9 MB over a line of {8 * RATE / 1e6:g} Mbit/s")
    times = 1 if quick else 5
    key = new_swarm_key()
    with tempfile.TemporaryDirectory(prefix="fl-node-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        nodes = {who: stack.enter_context(daemon(folder / who, key))[0] for who in ("learner", "header")}
        stores = {who: IpfsStore(node.api) for who, node in nodes.items()}
        for store in stores.values():
            wait_until(lambda: is_up(store), HANG)  # noqa: B023
        line = stack.enter_context(SlowLine(nodes["learner"].swarm_port, RATE))
        stores["header"].connect_peer(f"/ip4/127.0.0.1/tcp/{line.port}/p2p/{stores['learner'].identity()}")
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        processor: dict[str, list[float]] = {kind: [] for kind in KINDS}
        sizes: dict[str, int] = {}
        for number in range(times):
            for kind, compression in KINDS.items():
                say(f"{number + 1} of {times}: {kind}")
                file, start = _file(folder, compression, number)
                sizes[kind] = file.path.stat().st_size
                cid = stores["learner"].add(file.path)
                began = time.monotonic()
                fetched = folder / "fetched.safetensors"
                stores["header"].fetch(cid, fetched, 2 * sizes[kind], HANG)
                taken[kind].append(time.monotonic() - began)
                began = time.process_time()
                local = model_file.read(fetched, SMALL, cid, compressed=compression)
                plan = Plan(name="bench", compression=compression)
                for tensor in SMALL:
                    decoded(local, start, plan).tensor(tensor)
                processor[kind].append(time.process_time() - began)
                fetched.unlink()
    for kind in list(KINDS)[1:]:
        ratios = [one / plain for one, plain in zip(taken[kind], taken["none"], strict=True)]
        part.rows += [
            Row(f"{kind}: bytes to those of the plain file", sizes[kind] / sizes["none"], "×", AIMS[kind]),
            Row(f"{kind}: time to fetch to that of the plain file", float(np.median(ratios)), "×", FASTER.get(kind)),
            Row(
                f"{kind}: processor time to check and decode to that of the plain file",
                float(np.median(processor[kind]) / np.median(processor["none"])),
                "×",
            ),
        ]
    part.notes.append(f"The plain file takes {float(np.median(taken['none'])):.1f} s.")
    return part


def _file(
    folder: Path, compression: Compression | None, seed: int
) -> tuple[model_file.WeightsFile, model_file.WeightsFile]:
    """Return what a learner publishes, and the global weights that it trained from."""
    plan_cid = "QmPK1s3pNYLi9ERiq3BDxKa4XosgWwFRQUydHUtz4YgpqB"
    start = model_file.write(
        folder / "start.safetensors", GlobalMeta(plan=plan_cid, round=0, parent=None, rule="initial"), noise(SMALL, 1)
    )
    step = noise(SMALL, 1000 * seed + len(compression.kind if compression else "") + 2)
    trained = {name: start.tensor(name) + np.float32(0.01) * step[name] for name in SMALL}
    tensors = trained if compression is None else compress(compression, trained, start.on_demand(), {}).tensors
    meta = LocalMeta(
        plan=plan_cid,
        node_id=1,
        round=0,
        parent=start.cid,
        samples=1,
        accuracy=0.5,
        loss=1.0,
        compression=None if compression is None else compression.kind,
    )
    return model_file.write(folder / "local.safetensors", meta, tensors), start
