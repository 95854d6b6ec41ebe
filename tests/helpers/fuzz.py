"""Feeds hostile files, plans and requests to what reads them, in a process that has imported what a role imports.

    python -m tests.helpers.fuzz KIND SEED COUNT

ends with 0 if each was taken or refused with an error of the project's own. What is fed follows from the seed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, Input, LocalMeta, Rejection
from fl_node.chain import client
from fl_node.errors import FLNodeError
from fl_node.experiments import reproduce, sweep
from fl_node.lab import run_folder
from fl_node.monitor import observer
from fl_node.nodes import CHAIN_ID, dev_chain  # what the roles import, and more
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.protocol.names import HEADER

NAME = cid.of_bytes(b"fuzz")
TENSORS = {"dense/bias": np.zeros(4, np.float32), "dense/kernel": np.ones((3, 4), np.float32)}
METAS = (
    LocalMeta(NAME, 1, 3, NAME, 700, 0.5, 0.25),
    GlobalMeta(NAME, 4, NAME, "fedavg", (Input(1, NAME, 7, 1.0),), (Rejection(2, NAME, "missing"),), (3,), ((1, 2),)),
)
PLAN = Plan(name="fuzz")
RUN = {
    "name": "demo",
    "backend": "embedded",
    "plan": NAME,
    "contract": "0x" + "ab" * 20,
    "chain_id": CHAIN_ID,
    "genesis": "0x" + "cd" * 32,
    "nodes": {"header": {"account": "0x" + "01" * 20, "rpc": "http://127.0.0.1:1", "store": "files"}},
    "versions": {"python": "3.11.7"},
}
ENTRY = {"cid": NAME, "accuracy": 0.5, "loss": 0.25}
REPORT = {
    "plan": PLAN.model_dump(),
    "initial": ENTRY,
    "rounds": [{"round": 0, "local": {"1": ENTRY}, "result": ENTRY, "accuracy": 0.5, "backdoor": None}],
    "seconds": 1.5,
}
REQUEST = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", True]}
METHODS = (
    *("eth_blockNumber", "eth_call", "eth_getBalance", "eth_getBlockByNumber", "eth_getBlockReceipts", "eth_getLogs"),
    *("eth_getBlockTransactionCountByNumber", "eth_getCode", "eth_getTransactionCount", "eth_getTransactionReceipt"),
    *("eth_sendRawTransaction", "eth_nothing", "__class__"),
)


def evil(rng: random.Random) -> str:
    """Return a text that stands where a JSON value should be."""
    depth = rng.choice([1, 3, 40, 1100, 9_999, 70_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ('["]",', "]"), ("[}", "{]")])
    return rng.choice(
        [
            *(opening * depth, opening * depth + "1" + closing * depth, closing * depth + opening * depth),
            *("9" * rng.choice([19, 80, 81, 5_000, 100_000]), "-" + "9" * 5_000, "0." + "0" * 5_000 + "1", "1e999"),
            *("1.7e308", "-1.7e308", "5e-324", "-0.0", "1e-400", "NaN", "Infinity", "-Infinity", "true", "null"),
            *(
                '"\\ud800"',
                '"\\udc00\\ud800"',
                '"\\u0000"',
                '"\\u001b[2J"',
                '"' + "x" * rng.choice([100, 70_000]) + '"',
            ),
            *(
                '{"a":1,"a":2}',
                '{"\\ud800":1}',
                '{"__class__":{}}',
                "",
                " ",
                '"',
                "\\",
                "[1,",
                "tru",
                "'a'",
                "0x10",
                "[]",
            ),
            *(
                "{}",
                "0",
                "1",
                "18446744073709551616",
                '"0x' + "f" * 5_000 + '"',
                '"-0x1"',
                '"0x"',
                '"latest"',
                "[[]]",
            ),
        ]
    )


def changed(rng: random.Random, value: Any) -> str:
    """Return JSON of a value in which something, anywhere, is replaced by what should not be there."""
    mark = "\x00here\x00"

    def replace(node: Any) -> Any:
        if isinstance(node, dict) and node and rng.random() < 0.8:
            key = rng.choice(list(node))
            if rng.random() < 0.1:
                return {name: part for name, part in node.items() if name != key}
            return {**node, key: replace(node[key])}
        if isinstance(node, list) and node and rng.random() < 0.8:
            place = rng.randrange(len(node))
            return [*node[:place], replace(node[place]), *node[place + 1 :]]
        return mark

    return json.dumps(replace(value), sort_keys=True, separators=(",", ":")).replace(json.dumps(mark), evil(rng))


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return other bytes."""
    kind = rng.randrange(4)
    place = rng.randrange(len(content) + 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place + rng.randrange(9) :]
    if kind == 2:
        return content[:place] + b"[" * rng.choice([100, 70_000]) + content[place:]
    return content + content[:place]


def mutated(rng: random.Random, value: Any) -> bytes:
    """Return a JSON file that is wrong somewhere."""
    if rng.random() < 0.25:
        return damaged(rng, json.dumps(value).encode())
    return changed(rng, value).encode()


# What reads


def model_files(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to read model files."""
    path = folder / "model"
    good = [
        model_file.write(folder / f"good-{number}", meta, TENSORS).path.read_bytes()
        for number, meta in enumerate(METAS)
    ]
    shapes = {name: tensor.shape for name, tensor in TENSORS.items()}
    for _ in range(count):
        content = rng.choice(good)
        if rng.random() < 0.3:
            content = damaged(rng, content)
        else:
            (size,) = struct.unpack("<Q", content[:8])
            header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
            if rng.random() < 0.7:
                name = rng.choice(list(header["__metadata__"]))
                old = header["__metadata__"][name]
                with contextlib.suppress(ValueError):
                    old = json.loads(old)
                header["__metadata__"][name] = rng.choice([evil(rng), changed(rng, old), changed(rng, [old])])
                text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
            else:
                text = mutated(rng, header)
            text += b" " * (-len(text) % 8)
            content = struct.pack("<Q", len(text)) + text + data
        path.write_bytes(content)
        yield lambda: model_file.read(path)
        yield lambda: model_file.read(path, shapes)


def published_plans(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to read plans, as they are published and as a person writes them."""
    for number in range(count):
        content = mutated(rng, PLAN.model_dump())
        yield lambda content=content: plans.from_bytes(content)  # type: ignore[misc]
        path = folder / rng.choice(["plan.json", "plan.toml"])
        if path.suffix == ".toml":
            key = rng.choice(
                ["rounds", "name", "data", "training.epochs", "a." * rng.choice([3, 500]) + "a", '"\\u001b"']
            )
            value = evil(rng).replace("null", "nan").replace("0x10", "0x" + "f" * 9_000)
            content = f'name = "fuzz"\n{key} = {value}\n'.encode(errors="replace")
        path.write_bytes(content)
        yield lambda path=path: plans.load(path)  # type: ignore[misc]
        if number % 4 == 0:
            override = f"{rng.choice(['rounds', 'data.train', 'x.' * 50 + 'x'])}={evil(rng)}"
            (folder / "good.toml").write_text('name = "fuzz"\n')
            yield lambda override=override: plans.load(folder / "good.toml", [override])  # type: ignore[misc]


def run_files(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to read what a run's folder says, and to reach the run."""
    path = folder / "run.json"
    for _ in range(count):
        path.write_bytes(mutated(rng, RUN))

        def attempt() -> None:
            run_ = run_folder.load(folder)
            client.Chain(run_.nodes[HEADER].rpc).contract(run_.contract).plan()

        yield attempt


def reports(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to read results that were kept."""
    path = folder / "report.json"
    for _ in range(count):
        path.write_bytes(mutated(rng, REPORT))

        def accuracies() -> None:
            for value in observer._reported(path).values():
                assert 0 <= value <= 1

        yield accuracies
        yield lambda: sweep._kept(path)
        yield lambda: reproduce._kept(path, PLAN, lambda _line: None, lambda _plan: {})


def answers(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to make requests of the embedded chain, as it is served."""
    with served(
        folder,
        *(sys.executable, "-m", "fl_node.nodes.dev_chain"),
        *("--blocks", str(folder / "blocks"), "--accounts", "0x" + "01" * 20),
    ) as port:
        for _ in range(count):
            request = {**REQUEST, "method": rng.choice(METHODS)}
            body = mutated(rng, rng.choice([request, [request, request]]))
            yield lambda body=body: post(port, "/", body)  # type: ignore[misc]
        status, content = post(port, "/", json.dumps(REQUEST).encode())
        assert status == 200 and json.loads(content)["result"]["number"] == "0x0", content


def page(rng: random.Random, folder: Path, count: int) -> Iterator[Callable[[], object]]:
    """Yield attempts to make requests of the live page, as it is served."""
    contract, store = "0x" + "01" * 20, folder / "files"
    store.mkdir()
    with served(
        folder,
        *(sys.executable, "-m", "fl_node", "dashboard", "--port", "0", "--contract", contract),
        *("--rpc", "http://127.0.0.1:1", "--store", str(store)),
    ) as port:
        for _ in range(count):
            path = rng.choice(
                ["/", "/state", "/metrics", "/image", "/predict", "/nothing", "/%00", "/..%2f", "/predict?x"]
            )
            body = rng.choice([rng.randbytes(rng.choice([0, 784, 78_400, 90_000])), mutated(rng, REQUEST)])
            yield lambda path=path, body=body: post(port, path, body, rng)  # type: ignore[misc]
        status, content = get(port, "/state")
        assert status == 200 and "nodes" in json.loads(content), content


KINDS = {
    "model": model_files,
    "plan": published_plans,
    "run": run_files,
    "report": reports,
    "rpc": answers,
    "page": page,
}


@contextlib.contextmanager
def served(folder: Path, *command: str) -> Iterator[int]:
    """Run a server and yield its port; it must still run at the end, and never have written a traceback."""
    log = folder / "log"
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip().rstrip("/")
            yield int(url.rpartition(":")[2])
            assert process.poll() is None, f"ended with {process.poll()}"
            assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-3000:]
        finally:
            process.terminate()


def post(port: int, path: str, body: bytes, rng: random.Random | None = None) -> tuple[int, bytes]:
    """Make a request; with a generator, one that may be wrong in its head too."""
    headers = {"Content-Type": "application/json"}
    method = "POST"
    if rng is not None:
        method = rng.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS"])
        headers["Content-Type"] = rng.choice(["application/octet-stream", "application/json", "", "\xff"])
        headers["X"] = "y" * rng.choice([0, 100, 10_000])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.BadStatusLine):
        return 0, b""  # it may hang up on what is too large
    finally:
        connection.close()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def main() -> None:
    """Feed one kind."""
    kind, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    assert dev_chain and "py_ecc" in sys.modules
    refused = taken = 0
    with tempfile.TemporaryDirectory() as name:
        for attempt in KINDS[kind](random.Random(seed), Path(name), count):
            try:
                attempt()
                taken += 1
            except FLNodeError as error:
                refused += 1
                str(error).encode()
            except Exception:
                traceback.print_exc()
                sys.exit(f"attempt {refused + taken} of {kind} with seed {seed}")
    print(f"{kind}: {refused} refused, {taken} taken")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
