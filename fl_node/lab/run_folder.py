"""The folder of a run: what it is, where its nodes are, and how to reach them again."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_node.artifacts.address import connect
from fl_node.artifacts.store import Store
from fl_node.chain import earlier
from fl_node.chain.answers import ADDRESS
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, JsonError
from fl_node.nodes import backends
from fl_node.nodes.backends import EmbeddedBackend, Endpoint, OwnChainBackend
from fl_node.protocol import journal, statement
from fl_node.protocol.names import HEADER, is_node_name
from fl_node.runtime import files, scratch, strict_json
from fl_node.runtime.arithmetic import unpinned

FILE = "run.json"
WORK = "work"
"""The folder of a node's role, in the folder of the node."""
STATEMENTS = "audits"
"""The folder of signed results of audits, in a run's folder."""
MAX_BYTES = 1024**2
"""The most that a ``run.json`` may have; that of a thousand nodes has a quarter of it."""
BACKENDS = ("embedded", "processes", OwnChainBackend.name)


@dataclass(frozen=True)
class Node:
    """A node of a run: its role's account, and where its RPC and store are while the nodes are up."""

    account: str
    rpc: str
    store: str


@dataclass(frozen=True)
class Run:
    """What ``run.json`` says."""

    name: str
    backend: str
    plan: str
    contract: str
    chain_id: int
    genesis: str
    nodes: dict[str, Node]
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``run.json``; it appears whole or not at all."""
        files.write(folder / FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def folder_of(run: Path) -> Path:
    """Return the folder of a run that is named by its folder or by the ``run.json`` in it."""
    return run if run.is_dir() else run.parent


def load(folder: Path) -> Run:
    """Read the ``run.json`` of a run's folder.

    Raises
    ------
    ConfigError
        There is none, or it is not what :meth:`Run.save` writes.
    """
    path = folder / FILE if folder.is_dir() else folder
    try:
        content = strict_json.loads(strict_json.read_bytes(path, MAX_BYTES))
        return _decoded(content)
    except OSError as error:
        raise ConfigError(f"run {folder}: {path.name}: {error.strerror}; is it a run folder?") from error
    except JsonError as error:
        raise ConfigError(f"run {folder}: {path.name} is damaged: it {error}") from error
    except ValueError as error:
        raise ConfigError(f"run {folder}: {path.name} is damaged: {error}") from error


def _decoded(content: object) -> Run:
    """Return the run that the decoded JSON of a ``run.json`` describes.

    Raises
    ------
    ValueError
        It is not what :meth:`Run.save` writes; the message says what is wrong.
    """
    fields = _fields(content, Run, "it")
    nodes = fields.pop("nodes")
    if not isinstance(nodes, dict):
        raise ValueError("nodes should be names and nodes")
    run = Run(nodes={name: Node(**_fields(node, Node, f"nodes.{name}")) for name, node in nodes.items()}, **fields)
    _check(run)
    return run


def _fields(content: object, kind: type[Run] | type[Node], name: str) -> dict[str, Any]:
    """Return a copy of a decoded object that has the fields of a class, and no others.

    Parameters
    ----------
    content
        The decoded JSON.
    kind
        The class.
    name
        The name of the object in ``run.json``, for the error message.

    Raises
    ------
    ValueError
        It is not an object, lacks a field or has another.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{name} should be an object, {{…}}")
    known = {entry.name: entry.default_factory is dataclasses.MISSING for entry in dataclasses.fields(kind)}
    if missing := [key for key, is_required in known.items() if is_required and key not in content]:
        raise ValueError(f"{name} has no {', '.join(missing)}")
    if unknown := [key for key in content if key not in known]:
        raise ValueError(f"{name} has {', '.join(unknown)}, which a run does not have")
    return dict(content)


def _check(run: Run) -> None:
    """Check the types and values of a run's record.

    Raises
    ------
    ValueError
        A value is wrong; the message names it.
    """
    texts = {key: getattr(run, key) for key in ("name", "backend", "plan", "contract", "genesis")}
    for name, node in run.nodes.items():
        texts |= {f"nodes.{name}.{key}": value for key, value in dataclasses.asdict(node).items()}
    if not isinstance(run.versions, dict):
        raise ValueError("versions should be names and versions")
    texts |= {f"versions.{key}": value for key, value in run.versions.items()}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str) or "\0" in value), None):
        raise ValueError(f"{wrong} should be a text")
    if type(run.chain_id) is not int:
        raise ValueError("chain_id should be a whole number")
    if HEADER not in run.nodes:  # readers of a run ask this node
        raise ValueError(f"nodes has no {HEADER}")
    if wrong := next((name for name in run.nodes if not is_node_name(name)), None):
        raise ValueError(f"nodes.{wrong}: should be header, learner-1, learner-2, …")
    for key, value in texts.items():
        if (key == "contract" or key.endswith(".account")) and not ADDRESS.fullmatch(value):
            raise ValueError(f"{key} should be an address, 0x and 40 hexadecimal digits")
    if run.backend not in BACKENDS:
        raise ValueError(f"backend should be one of {', '.join(BACKENDS)}")


@contextlib.contextmanager
def new_folder(runs: Path, name: str) -> Iterator[Path]:
    """Make the folder ``NAME`` below ``runs``, or ``NAME-2``, ``NAME-3``, … if there is one, and give it.

    After an error it is removed again, unless a run was deployed in it.

    Raises
    ------
    ConfigError
        It can't be made, or the name is no name of a folder.
    """
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ConfigError(f"--name {name!r}: should be a folder name, such as demo")
    first = not runs.exists()
    folder = _make_folder(runs, name)
    try:
        yield folder
    except BaseException:
        if not (folder / FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            if first:
                with contextlib.suppress(OSError):
                    runs.rmdir()
        raise


def _make_folder(runs: Path, name: str) -> Path:
    folder = runs
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = runs / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                break
    except FileExistsError as error:
        raise ConfigError(f"run folder {folder}: {files.NO_FOLDER}") from error
    except OSError as error:
        raise ConfigError(f"run folder {folder}: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def reach(folder: Path, report: Callable[[str], None]) -> Iterator[tuple[Contract, Store]]:
    """Give the contract and the store of a run, as :func:`endpoints` finds them."""
    with endpoints(folder, report) as ends:
        header = ends[HEADER]
        yield earlier.reading(Chain(header.rpc).contract(load(folder).contract)), connect(header.store)


@contextlib.contextmanager
def endpoints(folder: Path, report: Callable[[str], None]) -> Iterator[Mapping[str, Endpoint]]:
    """Give where chain and store of a run's nodes are, bringing nodes up for as long as that takes.

    Nodes of which one is up, because the run goes on or was kept with ``--stay``, are used as they are. Else others
    come up with what the run's nodes have kept. Nothing is written to the run's folder, which may be another's, may
    have been moved, and may be a copy.

    Raises
    ------
    ConfigError
        The run is on the user's own chain, which does not answer.
    """
    run = load(folder)
    folder = folder_of(folder)
    nodes = folder / "nodes"
    if _is_where_it_was(run, nodes) and any(_is_up(node.rpc, run.genesis) for node in run.nodes.values()):
        yield {name: Endpoint(node.rpc, node.store) for name, node in run.nodes.items()}
        return
    if run.backend == OwnChainBackend.name:
        rpc = run.nodes[HEADER].rpc
        if not _is_up(rpc, run.genesis):
            try:
                other = Chain(rpc).genesis()
            except ChainError as error:
                raise ConfigError(
                    f"run {folder}: its chain does not answer at {rpc}; start the node there"
                ) from error
            raise ConfigError(
                f"run {folder}: the node at {rpc} is on another chain (genesis block {other}, should be "
                f"{run.genesis}); start the node of the run's chain there"
            )
        yield {name: Endpoint(node.rpc, str(nodes / "files")) for name, node in run.nodes.items()}
        return
    report("restarting the run's nodes on a copy of their data")
    accounts = {name: node.account for name, node in run.nodes.items()}
    with scratch.folder() as copy:
        backend = backends.to_read(run.backend, nodes, copy, accounts, report)
        try:
            ends = backend.start()
            _check_contract(run, ends, nodes / "blocks" if run.backend == EmbeddedBackend.name else nodes)
            yield ends
        finally:
            backend.stop()


def _check_contract(run: Run, ends: Mapping[str, Endpoint], kept: Path) -> None:
    """Check that a chain that came back has the run's contract, which it lacks if blocks are missing.

    Raises
    ------
    ConfigError
        It does not; the message names what the chain was read from.
    ChainUnreachable
        The chain does not answer.
    """
    try:
        Chain(ends[HEADER].rpc).contract(run.contract)
    except ChainUnreachable:
        raise
    except ChainError as error:
        raise ConfigError(f"{kept}: its blocks do not include the run's contract {run.contract}") from error


def journals(folder: Path, contract: str) -> list[Path]:
    """Return the journals in a run's folder: those of a lab's roles, or those that were fetched from hosts.

    Parameters
    ----------
    folder
        The run's folder.
    contract
        The address of the run's contract.
    """
    root = folder_of(folder)
    of_lab = root.glob(f"nodes/*/{WORK}/{contract.lower()}/*{journal.FILE}")
    return sorted([*of_lab, *root.glob(f"journals/*{journal.FILE}")])


def statements(folder: Path) -> list[Path]:
    """Return the signed results of audits in a run's folder.

    Parameters
    ----------
    folder
        The run's folder.
    """
    return sorted((folder_of(folder) / STATEMENTS).glob(f"*{statement.SUFFIX}"))


def journals_of_host(folder: Path, contract: str) -> list[Path]:
    """Return the journals of a run in the folder of a host's role.

    Parameters
    ----------
    folder
        The folder of the role, with one for each run in it.
    contract
        The address of the run's contract.
    """
    return sorted((folder / contract.lower()).glob(f"*{journal.FILE}"))


def _is_where_it_was(run: Run, nodes: Path) -> bool:
    """Return whether the files of a run that goes on are where ``run.json`` says, which those of a copy are not."""
    if run.backend == "processes":
        return True  # each node's own IPFS is asked
    store, here = Path(run.nodes[HEADER].store), nodes / "files"
    try:
        return store.samefile(here) if here.exists() else store.is_dir()
    except OSError:
        return False


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and what else it may depend on."""
    names = ("tensorflow-cpu", "tensorflow", "keras", "numpy", "web3", "safetensors", "fl-node")
    known = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known | {"not pinned": "; ".join(unpinned())}


def _is_up(rpc: str, genesis: str) -> bool:
    try:
        return Chain(rpc).genesis() == genesis
    except ChainError:
        return False
