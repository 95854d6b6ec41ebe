"""Is everything there that a role needs? One answer a question, with what to do about it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import stat
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_node.artifacts.address import connect
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.store import Store
from fl_node.chain import clique, deployment
from fl_node.chain.client import Chain
from fl_node.chain.contract import CALL_GAS
from fl_node.chain.keys import load_key
from fl_node.chain.transactions import MAX_FEE
from fl_node.data import datasets
from fl_node.errors import ChainUnreachable, ConfigError, FLNodeError, StoreUnreachable
from fl_node.nodes import binaries
from fl_node.privacy.secret import beside
from fl_node.privacy.secret import load as load_secret
from fl_node.runtime.arithmetic import unpinned
from fl_node.runtime.files import read_small

ENOUGH_WEI = CALL_GAS * MAX_FEE
"""What an account must own for one call of the contract; nodes refuse the transaction of one that owns less."""
STORE_QUESTIONS = ("store", "swarm key", "swarm peers", "no public peers")
APART = ("host secret", "swarm key", "data", "arithmetic", "firewall")
"""Questions that need neither chain nor store."""
FIREWALL_SECONDS = 15.0
FIREWALL_BYTES = 2**10


@dataclass(frozen=True)
class Check:
    """One answer; ``state`` is ``ok``, ``wrong`` or ``skipped``."""

    what: str
    state: str
    found: str
    remedy: str = ""


class _Wrong(Exception):
    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class _Skip(Exception):
    """A question that can't be asked, or makes no sense here."""


def run(
    *,
    rpc: str,
    store: str,
    key: Path,
    contract: str | None = None,
    peers: int | None = None,
    genesis: str | None = None,
    swarm_key: Path | None = None,
    data_dir: Path | None = None,
    firewall: Path | None = None,
    own_chain: bool = False,
    chain_id: int | None = None,
) -> list[Check]:
    """Run all checks; return the results in the order in which problems should be fixed.

    Parameters
    ----------
    rpc
        The URL of the Ethereum node.
    store
        The address of the store.
    key
        The key file of the role's account.
    contract
        The address of the run's contract, if there is one.
    peers
        The number of peers that the nodes should have.
    genesis
        The hash that the first block should have.
    swarm_key
        The swarm key of IPFS.
    data_dir
        The folder of the data set.
    firewall
        The socket that reports on the host's firewall.
    own_chain
        Whether the site has its own chain, on which any client may run.
    chain_id
        The number that the chain should have.
    """
    chain = functools.cache(lambda: Chain(rpc))
    files = functools.cache(lambda: connect(store))
    questions: list[tuple[str, Callable[[], str]]] = [
        ("chain", lambda: _chain(chain(), own_chain, chain_id)),
        ("genesis", lambda: _genesis(chain(), genesis)),
        ("sealing", lambda: _sealing(chain())),
        ("sealers", lambda: _sealers(chain())),
        ("chain peers", lambda: _chain_peers(chain(), peers)),
        ("finality", lambda: _finality(chain())),
        ("account", lambda: _account(chain(), key)),
        ("contract", lambda: _contract(chain(), contract, key)),
        ("host secret", lambda: _host_secret(beside(key), key)),
        ("store", lambda: _store(files())),
        ("swarm key", lambda: _swarm_key(swarm_key)),
        ("swarm peers", lambda: _swarm_peers(files(), peers)),
        ("no public peers", lambda: _public(files())),
        ("data", lambda: _data(data_dir)),
        ("arithmetic", _arithmetic),
        ("firewall", lambda: _firewall(firewall)),
    ]
    checks: list[Check] = []
    down: set[str] = set()
    for what, question in questions:
        part = "store" if what in STORE_QUESTIONS else "chain"
        if part in down and what not in APART:
            checks.append(Check(what, "skipped", f"the {part} can't be reached"))
            continue
        check, reached = _ask(what, question)
        checks.append(check)
        if what in ("chain", "store") and not reached:
            down.add(part)
    return checks


def _ask(what: str, question: Callable[[], str]) -> tuple[Check, bool]:
    """Return the answer to a question, and whether what was asked could be reached."""
    try:
        return Check(what, "ok", question()), True
    except _Wrong as wrong:
        return Check(what, "wrong", wrong.found, wrong.remedy), True
    except _Skip as skip:
        return Check(what, "skipped", str(skip)), True
    except ChainUnreachable as error:
        return Check(what, "wrong", str(error), "start Geth, or correct --rpc"), False
    except StoreUnreachable as error:
        return Check(what, "wrong", str(error), "start IPFS, or correct --store"), False
    except ConfigError as error:
        return Check(what, "wrong", str(error)), False
    except FLNodeError as error:
        return Check(what, "wrong", str(error)), True


def _chain(chain: Chain, own_chain: bool, wanted_id: int | None) -> str:
    client, found_id = chain.client(), chain.chain_id()
    wanted = binaries.pin("geth").full_version
    if not own_chain and client.startswith("Geth/") and client.split("/")[1] != f"v{wanted}":
        raise _Wrong(
            client, f"install Geth {wanted}; fl-node binaries builds it. For a chain of your own, set --own-chain"
        )
    if wanted_id is not None and found_id != wanted_id:
        raise _Wrong(f"chain {found_id}, should be {wanted_id}", "the node is on another chain; correct --rpc")
    return f"{client}, chain {found_id}, block {chain.block_number()}"


def _genesis(chain: Chain, wanted: str | None) -> str:
    block = chain.genesis()
    if wanted is not None and block != wanted.lower():
        raise _Wrong(f"{block}, should be {wanted}", "the node is on another chain; compare its genesis file")
    return block


def _sealing(chain: Chain) -> str:
    if not chain.is_ready():
        if chain.is_clique:
            raise _Wrong(
                "the node is not sealing", "start Geth with --mine and its account unlocked, or wait for its peers"
            )
        raise _Wrong("the node is not in sync", "wait until it has all blocks, or check its peers")
    pace = chain.pace()
    how = f"a block every {pace.seconds:g} s" if pace.is_steady else "blocks on demand"
    return f"the node is sealing, {how}" if chain.is_clique else f"the node is in sync, {how}"


def _sealers(chain: Chain) -> str:
    found = clique.sealers(chain)
    if found is None:
        raise _Skip(clique.NOT_CLIQUE)
    return str(found)


def _chain_peers(chain: Chain, wanted: int | None) -> str:
    count = chain.peers()
    if wanted is not None and count != wanted:
        raise _Wrong(f"{count}, should be {wanted}", "compare the static peers and the hosts' firewall rules")
    return str(count)


def _finality(chain: Chain) -> str:
    final = chain.finalized()
    if final is None:
        raise _Skip("the chain does not tell final blocks from others")
    return f"block {final} of {chain.block_number()} is final"


def _account(chain: Chain, key: Path) -> str:
    if not key.exists():
        raise _Wrong(f"no key file {key}", f"create one: fl-node key {key}")
    address = str(load_key(key).address)
    balance = chain.balance(address)
    if balance < ENOUGH_WEI:
        raise _Wrong(
            f"{address} owns {balance} wei, too little to pay for transactions",
            "fund it in the genesis block, or with fl-node fund",
        )
    return f"{address} owns {balance / 10**18:.2f} ether"


def _contract(chain: Chain, address: str | None, key: Path) -> str:
    if address is None:
        raise _Skip("no contract given")
    contract = chain.contract(address)
    if problem := deployment.problem_of(contract):
        field, text = problem
        raise _Wrong(f"{address} ({field}): {text}", "use the version that deployed it")
    account = str(load_key(key).address)
    if contract.header() == account:
        return f"{address}, this account is its header"
    node_id = contract.node_id_of(account)
    if node_id is None:
        raise _Wrong(f"{account} is neither its header nor a learner", "let the header register it")
    return f"{address}, this account is its learner {node_id}"


def _host_secret(path: Path, key: Path) -> str:
    if not path.exists():
        raise _Skip(f"no {path}; the first private run makes it")
    status, owner = path.stat(), (key if key.exists() else path.parent).stat().st_uid
    if status.st_uid != owner:
        raise _Wrong(f"{path} belongs to user {status.st_uid}; should belong to {owner}", f"chown {owner} {path}")
    try:
        load_secret(path)
    except ConfigError as error:
        is_open = stat.S_IMODE(status.st_mode) & 0o077
        remedy = f"chmod 600 {path}" if is_open else f"delete {path} between two runs; the next private run makes it"
        raise _Wrong(str(error), remedy) from error
    return f"{path}, readable by its owner alone"


def _store(files: Store) -> str:
    if not isinstance(files, IpfsStore):
        folder = Path(files.address)
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise _Wrong(
                f"no read and write access to folder {folder}", "grant access to this user, or use another folder"
            )
        return f"folder {folder}" + ("" if folder.is_dir() else ", created with the first file")
    version = files.version()
    if version != binaries.KUBO.version:
        raise _Wrong(f"IPFS {version}", f"install Kubo {binaries.KUBO.version}; fl-node binaries builds it")
    return f"IPFS {version}, peer {files.identity()}"


def _swarm_key(path: Path | None) -> str:
    if path is None:
        raise _Skip("no swarm key file given")
    try:
        lines = read_small(path).decode().split()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        raise _Wrong(f"{path}: {error}", "create it; without it the daemon joins the public network") from error
    if lines[:2] != ["/key/swarm/psk/1.0.0/", "/base16/"] or len(lines) != 3 or not _is_key(lines[2]):
        raise _Wrong(
            f"{path} is not a swarm key",
            "should have three lines: /key/swarm/psk/1.0.0/, /base16/, 64 hexadecimal digits",
        )
    if mode & 0o077:
        raise _Wrong(f"{path} has mode {mode:04o}", f"chmod 600 {path}")
    return str(path)


def _is_key(text: str) -> bool:
    return len(text) == 64 and set(text) <= set(string.hexdigits)


def _swarm_peers(files: Store, wanted: int | None) -> str:
    if not isinstance(files, IpfsStore):
        raise _Skip("not used with a folder")
    # Two nodes that dialled each other at once have two connections.
    count = len({peer.rpartition("/")[2] for peer in files.peers()})
    if wanted is not None and count != wanted:
        raise _Wrong(f"{count}, should be {wanted}", "compare the swarm keys and the hosts' firewall rules")
    return str(count)


def _public(files: Store) -> str:
    if not isinstance(files, IpfsStore):
        raise _Skip("not used with a folder")
    if bootstrap := files.bootstrap():
        raise _Wrong(f"{len(bootstrap)} bootstrap peers, such as {bootstrap[0]}", "ipfs bootstrap rm --all")
    for peer in files.peers():
        if not _is_private(peer):
            raise _Wrong(f"connected to {peer}", "the daemon is in the public network; configure a swarm key")
    return "no bootstrap peers; all peers have private addresses"


def _is_private(peer: str) -> bool:
    """Return whether a multiaddress begins with a private IP address."""
    match peer.split("/")[:3]:
        case ["", "ip4" | "ip6", host]:
            with contextlib.suppress(ValueError):
                return ipaddress.ip_address(host).is_private
    return False


def _data(folder: Path | None) -> str:
    if folder is None and not any(datasets.cache_dir().glob("*.gz")):
        raise _Skip("no data folder given; MNIST is downloaded on first use")
    data_set = datasets.at_hand(folder)
    name = "MNIST" if data_set.name == "mnist" else "your own images"
    return f"{name} in {data_set.source}, {len(data_set.train_images)} training images"


def _arithmetic() -> str:
    return f"pinned, except: {'; '.join(unpinned())}"


def _firewall(path: Path | None) -> str:
    """Ask the host's service, because only root can read the firewall's rules.

    Raises
    ------
    _Skip
        The host has no such service.
    _Wrong
        The service does not answer, or the rules are incomplete.
    """
    if path is None:
        raise _Skip("not a testbed host")
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(FIREWALL_SECONDS)
            asking.connect(str(path))
            with asking.makefile("rb") as file:
                answer = file.readline(FIREWALL_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _Wrong(f"no answer at {path}: {error}", "sudo systemctl restart fl-firewall-check.socket") from error
    if answer != "complete":
        raise _Wrong(
            answer or f"no answer at {path}",
            "sudo systemctl reload-or-restart fl-firewall; journalctl --unit=fl-firewall shows the error",
        )
    return "all rules are loaded"
