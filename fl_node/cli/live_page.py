"""``fl-node dashboard``: a run in a browser."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_node.cli.common import check_alone, checked_address, given_or, import_web3, print_note, process
from fl_node.cli.options import (
    DEFAULT_RPC,
    DEFAULT_STORE,
    ContractChoice,
    DataOption,
    RpcChoice,
    RunArgument,
    StoreChoice,
)
from fl_node.errors import ConfigError
from fl_node.runtime import files, scratch

if TYPE_CHECKING:
    from fl_node.nodes.backends import Endpoint

DEPLOY_PATIENCE = 120.0
"""Seconds in which a lab that has its folder should have deployed its run."""


def dashboard(
    run: RunArgument = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="Address to listen on; with 0.0.0.0, every host that reaches this machine can view the page.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 means a free one.")
    ] = 8090,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name that browsers may use for this machine; may be repeated."),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node", metavar="NAME=RPC,STORE", help="Node to monitor, such as header=…; repeat for each node."
        ),
    ] = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    contract_file: Annotated[
        Path | None,
        typer.Option("--contract-file", help="File with FL_NODE_CONTRACT=0x…; changes take effect at once."),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Evaluate new global weights on the test images; loads TensorFlow."),
    ] = False,
    data_dir: DataOption = None,
) -> None:
    """Show a run live in a browser: nodes, rounds, blocks, and a form to try the model on a digit.

    The page is read-only: it needs no key and writes nothing. Prometheus metrics are at /metrics. For a finished lab,
    the command restarts the nodes. Ctrl-C stops it.

        fl-node dashboard runs/demo
        fl-node dashboard --contract 0x… --rpc http://127.0.0.1:8545 --store /ip4/127.0.0.1/tcp/5001
    """
    import threading

    from fl_node.lab import run_folder as runs
    from fl_node.monitor import server as page
    from fl_node.monitor.inference import Predictor
    from fl_node.monitor.observer import Observer
    from fl_node.nodes.backends import Endpoint
    from fl_node.runtime.logs import configure
    from fl_node.runtime.waiting import wait_until

    configure("dashboard", verbose=process.verbose)
    with contextlib.ExitStack() as stack:
        folder, address = None, contract
        if run is not None:
            check_alone(run, rpc=rpc, store=store, contract=contract)
            if node or contract_file is not None:
                option = "--node" if node else "--contract-file"
                raise ConfigError(
                    f"{option}: the folder {run} names the run and its nodes; give the folder or {option}"
                )
            if (run / "nodes").is_dir() and not (run / runs.FILE).exists():
                print_note(f"waiting for the lab to deploy {run.name}")
                wait_until((run / runs.FILE).exists, DEPLOY_PATIENCE, 0.5)
            address = runs.load(run).contract
            listener = stack.enter_context(page.bind(listen, port))  # before nodes come up for it
            nodes = stack.enter_context(runs.endpoints(run, print_note))
            folder = runs.folder_of(run)
        else:
            if contract_file is None and contract is None:
                raise ConfigError("no run given; give its folder, --contract or --contract-file")
            here = Endpoint(given_or(rpc, DEFAULT_RPC), given_or(store, DEFAULT_STORE))
            nodes = dict(_endpoint(text) for text in node or []) or {"this node": here}
            address = checked_address("--contract", contract) if contract else None
            listener = stack.enter_context(page.bind(listen, port))
        work = stack.enter_context(scratch.folder())
        observer = stack.enter_context(
            Observer(
                nodes,
                lambda: _contract_in(contract_file) if contract_file and run is None else address,
                work,
                logs=folder / "logs" if folder else None,
                report=folder / "report.json" if folder else None,
            )
        )
        predictor = stack.enter_context(Predictor(data_dir))
        if evaluate:
            ending = threading.Event()
            stack.callback(ending.set)
            threading.Thread(target=page.measure, args=(observer, predictor, ending), daemon=True).start()
        shown, bound = listener.getsockname()[:2]
        typer.echo(f"http://{f'[{shown}]' if ':' in shown else shown}:{bound}/")
        with contextlib.suppress(KeyboardInterrupt):  # its proper end
            page.serve(observer, predictor, listener, name or ())


def _endpoint(text: str) -> tuple[str, Endpoint]:
    from fl_node.nodes.backends import Endpoint

    name, _, addresses = text.partition("=")
    rpc, _, store = addresses.partition(",")
    if not name or not name.isprintable() or not rpc or not store:
        raise ConfigError(f"--node {text}: should be NAME=RPC,STORE, such as header=http://127.0.0.1:8545,/ip4/…")
    return name, Endpoint(rpc, store)


def _contract_in(path: Path) -> str | None:
    """Return the address of the contract that a file names, or None while it does not."""
    web3 = import_web3()

    try:
        settings = dict(line.split("=", 1) for line in files.read_small(path).decode().splitlines() if "=" in line)
    except (OSError, UnicodeDecodeError):
        return None
    address = settings.get("FL_NODE_CONTRACT", "").strip()
    return str(web3.to_checksum_address(address)) if web3.is_address(address) else None
