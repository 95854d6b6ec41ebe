"""The commands of a node: its check, its account, its programs and its data set."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from fl_node.cli.common import checked_address, console, in_pixels, print_note
from fl_node.cli.options import (
    DEFAULT_RPC,
    DEFAULT_STORE,
    ContractChoice,
    DataOption,
    JsonOption,
    KeyOption,
    RpcOption,
    StoreOption,
)
from fl_node.errors import ChainError, ConfigError
from fl_node.runtime import files, numerals
from fl_node.runtime.terminal import styled

NOOP_PATIENCE = 10.0
NOOP_BLOCKS = 3
"""Seconds and blocks, whichever takes longer, in which a block should come."""
MIN_ETHER = Decimal("1e-18")
MAX_ETHER = Decimal("1e59")
"""The least and the most that a transaction can send: 1 wei, and a little less than 2^256 wei."""
_DIGITS = 80
"""More than an amount in wei can have."""


def doctor(
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    contract: ContractChoice = None,
    peers: Annotated[int | None, typer.Option("--peers", min=0, help="Expected number of peers.")] = None,
    genesis: Annotated[str | None, typer.Option("--genesis", help="Expected hash of block 0.")] = None,
    swarm_key: Annotated[Path | None, typer.Option("--swarm-key", help="Swarm key file of this node's IPFS.")] = None,
    data_dir: DataOption = None,
    firewall: Annotated[
        Path | None,
        typer.Option(
            "--firewall",
            envvar="FL_NODE_FIREWALL",
            help="On a testbed host, the socket that reports whether the firewall rules are complete.",
        ),
    ] = None,
    own_chain: Annotated[
        bool,
        typer.Option(
            "--own-chain",
            envvar="FL_NODE_OWN_CHAIN",
            help="The chain is your own: accept any Ethereum client and version (docs/chains.md).",
        ),
    ] = False,
    chain_id: Annotated[int | None, typer.Option("--chain-id", min=1, help="Expected number of the chain.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a role needs, one line each; exit code 1 if a check fails, with the remedy on its line."""
    from fl_node.lab import doctor as checks

    results = checks.run(
        rpc=rpc,
        store=store,
        key=key,
        contract=contract,
        peers=peers,
        genesis=genesis,
        swarm_key=swarm_key,
        data_dir=data_dir,
        firewall=firewall,
        own_chain=own_chain,
        chain_id=chain_id,
    )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            mark = {"ok": ("ok   ", "green"), "wrong": ("wrong", "red"), "skipped": ("skip ", "dim")}
            console.print(styled(*mark[result.state]), f"{result.what}: ", end="")
            console.print(result.found + (f"; {result.remedy}" if result.remedy else ""))
    if any(result.state == "wrong" for result in results):
        raise typer.Exit(1)


def key(path: Annotated[Path, typer.Argument(help="Key file to create.")]) -> None:
    """Create a key file for a new account, readable only by its owner, and print the account's address.

    If the key file exists, keep it and print its address.
    """
    from fl_node.chain.keys import create_key

    typer.echo(create_key(path))


def fund(
    accounts: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Accounts that get ether.")],
    ether: Annotated[str, typer.Option("--ether", metavar="NUMBER", help="Amount for each account.")] = "1000",
    always: Annotated[
        bool, typer.Option("--always", help="Also pay accounts that own at least half of the amount.")
    ] = False,
    rpc: RpcOption = DEFAULT_RPC,
    key: KeyOption = Path("role.key"),
    as_json: JsonOption = False,
) -> None:
    """Send ether from this node's account to accounts that joined later, to pay for their transactions."""
    from fl_node.chain.client import Chain
    from fl_node.chain.keys import load_key

    wei = _wei(ether)
    addresses = [checked_address("ADDRESS", text) for text in accounts]
    chain = Chain(rpc, load_key(key))
    gains: list[int] = []
    for account in addresses:
        before = sum(gain for other, gain in zip(addresses, gains, strict=False) if other == account)
        pays = account != chain.address and (always or chain.balance(account) + before < wei // 2)
        gains.append(wei if pays else 0)
    if (total := sum(gains)) and (owned := chain.balance(chain.address)) <= total:
        raise ChainError(f"chain at {rpc}: {chain.address} owns {owned} wei, too little to send {total}")
    given: list[dict[str, object]] = []
    try:
        for account, gain in zip(addresses, gains, strict=True):
            answer = "is the sender" if account == chain.address else "has enough"
            if gain:
                chain.transfer(account, gain)
                answer = f"got {_in_ether(gain):f} ether"
            given.append({"account": account, "given": float(_in_ether(gain))})
            if not as_json:
                console.print(f"{account} {answer}")
    finally:  # also what was given before an error
        if as_json:
            typer.echo(json.dumps(given))


def _wei(ether: str) -> int:
    """Return an amount of ether in wei, exactly.

    Raises
    ------
    ConfigError
        The text is not a number, or not of whole wei that a transaction can have.
    """
    try:
        numerals.real(ether)
        amount = Decimal(ether)
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"--ether {ether}: should be a number of ether, such as 1000") from error
    if not MIN_ETHER <= amount <= MAX_ETHER:
        raise ConfigError(f"--ether {ether}: should be from 1e-18 (1 wei) to {MAX_ETHER:.0e} ether")
    wei = Fraction(amount) * 10**18
    if wei.denominator != 1:
        raise ConfigError(f"--ether {ether}: should have at most 18 digits after the point; 1 wei is 1e-18 ether")
    return int(wei)


def _in_ether(wei: int) -> Decimal:
    """Return an amount in ether, exactly and without zeros at its end."""
    with localcontext(prec=_DIGITS):
        return Decimal(wei).scaleb(-18).normalize()


def send_noop(rpc: RpcOption = DEFAULT_RPC, key: KeyOption = Path("role.key"), as_json: JsonOption = False) -> None:
    """Send a no-op transaction so that the sealers seal a block, and wait for the block.

    Roles do this when the chain is idle. Nothing is sent where blocks come without transactions. Use the command to
    check whether the sealers seal blocks.
    """
    from fl_node.chain.client import Chain
    from fl_node.chain.keys import load_key
    from fl_node.runtime.waiting import wait_until

    chain = Chain(rpc, load_key(key))
    before = chain.block_number()
    chain.send_noop()
    patience = chain.patience(NOOP_PATIENCE, NOOP_BLOCKS)
    if not wait_until(lambda: chain.block_number() > before, patience):
        raise ChainError(f"chain at {rpc}: no block after {patience:g} s; do the nodes that seal blocks run?")
    after = chain.block_number()
    typer.echo(json.dumps({"before": before, "after": after}) if as_json else f"block {after}")


def binaries(
    platform: Annotated[
        str | None,
        typer.Option("--platform", help="Target platform, such as linux-arm64; PATH is then ignored."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the programs to this folder as geth and ipfs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Get Geth and IPFS: use installed programs of the right version, or build them from pinned source.

    Builds include fixes for known vulnerabilities. FL_NODE_GETH_UNPATCHED=1 or FL_NODE_KUBO_UNPATCHED=1 allows the
    unpatched release.
    """
    from fl_node.nodes import binaries as programs

    with contextlib.nullcontext() if output is None else files.output_folder(output, "--output"):
        paths = programs.install_all(print_note, machine=platform)
        if output is not None:
            paths = programs.copy(paths, output)
    if as_json:
        content = {
            name: {"path": str(path), "version": programs.pin(name).full_version, "sha256": programs.digest(path)}
            for name, path in paths.items()
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        for path in paths.values():
            typer.echo(path)


def data_files(data_dir: DataOption = None, as_json: JsonOption = False) -> None:
    """Get MNIST: find or download its four files, verify them, and print their folder.

    With --data-dir, the command also checks a folder with your own four files, for plans that use them.
    """
    from fl_node.data import datasets as data

    data_set = data.at_hand(data_dir, print_note)
    folder = str(Path(data_set.source).absolute())
    if data_set.name == "folder":
        counts = f"{len(data_set.train_images)} training and {len(data_set.test_images)} test images"
        print_note(
            f"note: these are your own images, not MNIST: {counts} of {in_pixels(data_set.train_images.shape[1:])}"
        )
    typer.echo(json.dumps({"folder": folder}) if as_json else folder)
