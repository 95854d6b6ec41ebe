"""The signed results of audits: where they are kept, and how a new one is added."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fl_node.cli.common import print_note
from fl_node.errors import ConfigError, JournalError, StoreError
from fl_node.runtime import files

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from fl_node.artifacts.ipfs_store import IpfsStore
    from fl_node.artifacts.store import Store
    from fl_node.audit.result import Audit
    from fl_node.chain.contract import Contract

TIMEOUT = 10.0
"""Seconds without progress after which a file in IPFS is missing."""


def anchored_journals(anchors: Iterable[Path]) -> list[Path]:
    """Return the journals that the user gives to compare with the chain.

    Parameters
    ----------
    anchors
        Files and folders that the user gives; signed results of audits among them do not count.

    Raises
    ------
    ConfigError
        One of them is not there, or there is nothing in it to compare.
    """
    from fl_node.protocol import journal, statement

    found: list[Path] = []
    for anchor in anchors:
        if anchor.exists() and not (anchor.is_dir() or anchor.is_file()):
            raise ConfigError(f"--anchor {anchor}: should be a journal, a signed result, or a folder of them")
        journals = [path for path in journal.find(anchor) if not path.name.endswith(statement.SUFFIX)]
        if not journals and not any(statement.find(anchor)):
            raise ConfigError(
                f"--anchor {anchor}: the folder has no journal (…{journal.FILE}) and no signed result "
                f"(…{statement.SUFFIX})"
            )
        if anchor in journals and not journal.read(anchor).entries:
            raise ConfigError(f"--anchor {anchor}: has no valid line of a journal; nothing could be compared with it")
        found += journals
    return found


def statements_at_hand(
    run: Path | None, contract: Contract, store: Store, anchors: Iterable[Path], scratch: Path
) -> list[Path]:
    """Return the files of signed results of earlier audits: in the run's folder or on this host, and given ones.

    Parameters
    ----------
    run
        The run's folder, if given; else the folder of this host's role and this node's IPFS count.
    contract, store
        The run's contract and store.
    anchors
        Files and folders that the user gives.
    scratch
        Where files from IPFS are written.
    """
    from fl_node.lab import run_folder
    from fl_node.protocol import statement

    given = [path for anchor in anchors for path in statement.find(anchor)]
    if run is not None:
        return [*run_folder.statements(run), *given]
    of_host = _folder_of_host(contract)
    local = sorted(of_host.glob(f"*{statement.SUFFIX}")) if of_host else []
    known = {path.name for path in (*local, *given)}
    return [*local, *given, *(path for path in _shared(contract, store, scratch) if path.name not in known)]


def signed_before(known: Iterable[Path], contract: Contract, result: Audit, account: LocalAccount) -> Path | None:
    """Return the file in which an account has signed all that an audit has recomputed; None if there is none.

    Parameters
    ----------
    known
        Files of signed results.
    contract
        The run's contract.
    result
        The audit, which passed.
    account
        The account.
    """
    from fl_node.protocol import statement

    for path in known:
        try:
            earlier = statement.read(path)
        except (ConfigError, JournalError):
            continue  # the audit has noted it
        if (earlier.contract, earlier.plan, earlier.account) != (contract.address, result.plan_cid, account.address):
            continue
        if result.passed and result.weights.items() <= earlier.weights.items():
            return path
    return None


def attest(run: Path | None, contract: Contract, store: Store, result: Audit, account: LocalAccount) -> Path:
    """Sign what an audit has recomputed, keep it beside the journals, and return its file.

    Parameters
    ----------
    run
        The run's folder, if given; else this host's folder, or the current one, and this node's IPFS keep it.
    contract, store
        The run's contract and store.
    result
        The audit.
    account
        Whose word it is.

    Raises
    ------
    ConfigError
        The audit failed or recomputed nothing, or the file can't be written.
    """
    from fl_node.lab import run_folder
    from fl_node.protocol import statement

    if not result.passed:
        raise ConfigError("--attest: the audit failed, so there is nothing to sign")
    if not result.weights:
        raise ConfigError("--attest: no global weights were recomputed, so there is nothing to sign")
    made = statement.Statement(
        contract.address, result.plan_cid, account.address, round(time.time(), 3), result.weights
    )
    if run is not None:
        folder = run_folder.folder_of(run) / run_folder.STATEMENTS
    else:
        folder = _folder_of_host(contract) or Path(run_folder.STATEMENTS)
    with files.output_folder(folder, "--attest"):
        path = folder / f"{made.name}.{statement.SUFFIX}"
        files.keep(path, statement.signed(made, account))
    if run is None and (ipfs := _ipfs(store)) is not None:
        try:
            ipfs.add_named(path, made.name)
        except StoreError as error:
            print_note(f"note: the signed result is not in IPFS: {error}")
    return path


def _folder_of_host(contract: Contract) -> Path | None:
    of_host = os.environ.get("FL_NODE_FOLDER")
    return Path(of_host) / contract.address.lower() if of_host else None


def _shared(contract: Contract, store: Store, scratch: Path) -> Iterator[Path]:
    """Yield the signed results that this node's IPFS keeps by name, copied to a folder."""
    from fl_node.protocol import statement

    if (ipfs := _ipfs(store)) is None:
        return
    try:
        for name, cid in sorted(ipfs.named_files().items()):
            if name.startswith(contract.address) and name.endswith(statement.MARK):
                path = scratch / f"{name}.{statement.SUFFIX}"
                ipfs.fetch(cid, path, statement.MAX_BYTES, TIMEOUT)
                yield path
    except StoreError as error:
        print_note(f"note: signed results of earlier audits: {error}")


def _ipfs(store: Store) -> IpfsStore | None:
    """Return the store without what shows its progress, if it is IPFS."""
    from fl_node.artifacts.address import connect
    from fl_node.artifacts.ipfs_store import IpfsStore

    plain = connect(store.address)
    return plain if isinstance(plain, IpfsStore) else None
