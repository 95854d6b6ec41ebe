"""The configuration of a host's Geth and IPFS, as a lab's nodes have it."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from fl_node.chain.answers import ADDRESS
from fl_node.cli.options import JsonOption
from fl_node.errors import ConfigError
from fl_node.nodes import CHAIN_ID, configuration

MAX_PORT = 65535
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_DIGITS_AND_POINTS = re.compile(r"[0-9.]+")
_ENODE = re.compile(
    rf"enode://[0-9a-fA-F]{{128}}@(?P<host>\[[0-9a-fA-F:.]+\]|{_NAME}):(?P<port>[0-9]{{1,5}})"
    r"(?:\?discport=(?P<discovery>[0-9]{1,5}))?"
)
"""The address of a Geth node (https://ethereum.org/developers/docs/networking-layer/network-addresses)."""
_MULTIADDRESS = re.compile(
    rf"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>{_NAME}|[0-9a-fA-F:.]+)/tcp/(?P<port>[0-9]{{1,5}})"
    r"/p2p/[0-9A-Za-z]{46,128}"
)
"""The address of an IPFS node over TCP, which a private swarm uses alone, with its peer ID."""
PeersOption = Annotated[
    list[str] | None,
    typer.Option("--peer", help="Enode or multiaddress of another node; repeat for each node."),
]
ChainIdOption = Annotated[int, typer.Option("--chain-id", min=1, help="Chain ID and network ID.")]


def _port(name: str, what: str, least: int = 1) -> object:
    return typer.Option(name, min=least, max=MAX_PORT, help=what)


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
    _check_path("--folder", folder)
    _check_path("--config", config_file)
    for peer in peers or []:
        _check_enode("--peer", peer)
    _check_different(
        {"--port": port, "--rpc-port": rpc_port, "--authrpc-port": authrpc_port, "--metrics-port": metrics_port}
    )
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
    _check_path("--folder", folder)
    for option, value in [("--address", address), *(("--peer", peer) for peer in peers or [])]:
        _check_multiaddress(option, value)
    _check_different({"--port": port, "--api-port": api_port})
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


def _check_path(option: str, text: str) -> None:
    """Check that systemd takes a path for one word, and writes it as it is.

    Raises
    ------
    ConfigError
        It has a space, a character that is not printable, a quote or a backslash.
    """
    if any(character.isspace() or not character.isprintable() or character in "\"'\\" for character in text):
        raise ConfigError(
            f"{option} {text!r}: should be a path without spaces, control characters, quotes, backslashes"
        )


def _check_enode(option: str, text: str) -> None:
    """Check the address of a Geth node.

    Raises
    ------
    ConfigError
        It is none.
    """
    match = _ENODE.fullmatch(text)
    if not (
        match
        and _is_host(match["host"].strip("[]"), "ip6" if match["host"].startswith("[") else "")
        and _is_port(match["port"])
        and _is_port(match["discovery"] or "1", least=0)
    ):
        raise ConfigError(
            f"{option} {text!r}: should be an enode such as enode://KEY@10.0.0.1:30303, KEY with 128 digits"
        )


def _check_multiaddress(option: str, text: str) -> None:
    """Check the address of an IPFS node, with its identity.

    Raises
    ------
    ConfigError
        It is none.
    """
    match = _MULTIADDRESS.fullmatch(text)
    if not (match and _is_host(match["host"], match["kind"]) and _is_port(match["port"])):
        raise ConfigError(f"{option} {text!r}: should be a multiaddress such as /ip4/10.0.0.1/tcp/4001/p2p/12D3KooW…")


def _is_host(text: str, kind: str) -> bool:
    """Return whether a text is an address of this kind (ip4 or ip6), or for any other kind a name or address."""
    if not kind.startswith("ip"):
        kind = "ip4" if _DIGITS_AND_POINTS.fullmatch(text) else "name"
    try:
        return kind == "name" or ipaddress.ip_address(text).version == int(kind[-1])
    except ValueError:
        return False


def _is_port(text: str, least: int = 1) -> bool:
    return least <= int(text) <= MAX_PORT


def _check_different(ports: Mapping[str, int]) -> None:
    """Check that no port is given for two purposes; 0 means none.

    Raises
    ------
    ConfigError
        Two are the same.
    """
    users: dict[int, str] = {}
    for option, port in ports.items():
        if port and (other := users.setdefault(port, option)) != option:
            raise ConfigError(f"{option} {port}: {other} is the same port; give each its own")


def _variable(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
