"""The configuration of a host's Geth and IPFS, as a lab's nodes have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from fl_node.chain.answers import ADDRESS
from fl_node.cli.options import JsonOption
from fl_node.errors import ConfigError
from fl_node.nodes import CHAIN_ID, configuration

PeersOption = Annotated[
    list[str] | None,
    typer.Option("--peer", help="Enode or multiaddress of another node; repeat for each node."),
]
ChainIdOption = Annotated[int, typer.Option("--chain-id", min=1, help="Chain ID and network ID.")]


def _port(name: str, what: str, least: int = 1) -> object:
    return typer.Option(name, min=least, max=65535, help=what)


def geth(
    sealer: Annotated[str, typer.Option("--sealer", help="Address of the sealer account.")],
    peers: PeersOption = None,
    chain_id: ChainIdOption = CHAIN_ID,
    folder: Annotated[str, typer.Option("--folder", help="Data directory.")] = "/var/lib/geth",
    config_file: Annotated[
        str, typer.Option("--config", help="Path of the configuration file.")
    ] = "/etc/geth/config.toml",
    port: Annotated[int, _port("--port", "TCP port for peers.")] = 30303,
    rpc_port: Annotated[int, _port("--rpc-port", "Port of the RPC, on loopback.")] = 8545,
    authrpc_port: Annotated[int, _port("--authrpc-port", "Port of the Engine API, on loopback.")] = 8551,
    metrics_port: Annotated[int, _port("--metrics-port", "Port of the metrics, on loopback; 0 means none.", 0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print Geth's arguments on a host as a systemd EnvironmentFile.

    With --json, also print the text of its configuration file.
    """
    settings = configuration.Geth(
        folder=folder,
        config_file=config_file,
        node_key=f"{folder}/nodekey",
        sealer=_address("--sealer", sealer),
        listen=f"0.0.0.0:{port}",
        rpc_port=rpc_port,
        peers=peers or [],
        chain_id=chain_id,
        authrpc_port=authrpc_port,
        metrics_port=metrics_port,
        ipc=f"{folder}/geth.ipc",
    )
    if as_json:
        content = {"arguments": settings.arguments, "init": settings.init_arguments, "config": settings.config}
        typer.echo(json.dumps(content))
    else:
        typer.echo(_variable("GETH_ARGUMENTS", " ".join(settings.arguments)))


def ipfs(
    address: Annotated[
        str, typer.Option("--address", help="Multiaddress that peers dial, with /p2p/ and the peer ID.")
    ],
    peers: PeersOption = None,
    folder: Annotated[str, typer.Option("--folder", help="IPFS repository.")] = "/var/lib/ipfs",
    port: Annotated[int, _port("--port", "TCP port for peers.")] = 4001,
    api_port: Annotated[int, _port("--api-port", "Port of the API, on loopback.")] = 5001,
    small_block: Annotated[
        int,
        typer.Option(
            "--small-block",
            min=0,
            help="Size in bytes up to which nodes send a block to a peer that asks whether they have it; "
            "0 means Kubo's default.",
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print IPFS's environment and arguments on a host as a systemd EnvironmentFile.

    With --json, also print the settings for its repository's configuration.
    """
    for option, value in [("--address", address), *(("--peer", peer) for peer in peers or [])]:
        if not value.rpartition("/p2p/")[0]:
            raise ConfigError(f"{option} {value}: should be a multiaddress such as /ip4/10.0.0.1/tcp/4001/p2p/12D3…")
    settings = configuration.Ipfs(
        folder=folder,
        listen=f"/ip4/0.0.0.0/tcp/{port}",
        address=address,
        api_port=api_port,
        peers=peers or [],
        small_block=small_block,
    )
    if as_json:
        content = {
            "arguments": settings.arguments,
            "environment": settings.environment,
            "settings": settings.settings,
        }
        typer.echo(json.dumps(content))
    else:
        for name, value in settings.environment.items():
            typer.echo(_variable(name, value))
        typer.echo(_variable("IPFS_ARGUMENTS", " ".join(settings.arguments)))


def genesis(
    sealers: Annotated[list[str], typer.Option("--sealer", help="Address of a sealer; repeat for each sealer.")],
    accounts: Annotated[
        list[str] | None,
        typer.Option("--account", help="Address that owns ether in the genesis block; repeat for each account."),
    ] = None,
    chain_id: ChainIdOption = CHAIN_ID,
) -> None:
    """Print the genesis file of a Clique network; it depends only on the options."""
    try:
        text = configuration.genesis(
            chain_id, _addresses("--sealer", sealers), _addresses("--account", accounts or [])
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    typer.echo(text, nl=False)


def _addresses(option: str, texts: Sequence[str]) -> list[str]:
    return [_address(option, text) for text in texts]


def _address(option: str, text: str) -> str:
    """Return an address; without web3, which a controller does not have."""
    if not ADDRESS.fullmatch(text):
        raise ConfigError(f"{option} {text}: should be an address, 0x and 40 hexadecimal digits")
    return text


def _variable(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
