"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN", allow_dash=True, help="The plan, a TOML file such as plans/demo.toml; - for stdin."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the plan, such as training.epochs=1."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="FL_NODE_DATA_DIR",
        help="Folder with the four MNIST files, without which they are downloaded once and verified; or, for a plan "
        "with images from a folder, four such files of your own.",
    ),
]
ModulesOption = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        envvar="FL_NODE_MODULES",
        help="Folder with the Python modules that this node may run for plans that name one (docs/custom.md).",
    ),
]
RpcOption = Annotated[str, typer.Option("--rpc", envvar="FL_NODE_RPC", help="URL of this node's Ethereum RPC.")]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FL_NODE_STORE",
        help="This node's IPFS API as a multiaddress, or an existing folder for files; file:FOLDER makes a new one.",
    ),
]
KeyOption = Annotated[
    Path, typer.Option("--key", envvar="FL_NODE_KEY", help="Key file of the role's account, mode 0600.")
]
ContractOption = Annotated[
    str, typer.Option("--contract", envvar="FL_NODE_CONTRACT", help="Address of the run's contract.")
]
FolderOption = Annotated[
    Path,
    typer.Option(
        "--folder",
        envvar="FL_NODE_FOLDER",
        help="Where the role keeps copies of files; nothing there is needed again.",
    ),
]
PatienceOption = Annotated[
    float, typer.Option("--patience", help="Give up after waiting so many seconds for the same; 0 means never.")
]
TensorboardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        envvar="FL_NODE_TENSORBOARD",
        metavar="DIR",
        help="Write accuracy and loss to DIR/learner-N, as event files of TensorBoard; one DIR for each run.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, for scripts.")]
RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN]", help="The folder of a run, such as runs/demo; else --rpc, --store, --contract."),
]
RpcChoice = Annotated[str | None, typer.Option("--rpc", envvar="FL_NODE_RPC", help="URL of a node's RPC.")]
StoreChoice = Annotated[
    str | None,
    typer.Option("--store", envvar="FL_NODE_STORE", help="A node's IPFS API as a multiaddress, or a folder."),
]
ContractChoice = Annotated[
    str | None, typer.Option("--contract", envvar="FL_NODE_CONTRACT", help="Address of the run's contract.")
]
RoundOption = Annotated[
    int | None, typer.Option("--round", min=0, help="Global weights of this round; the newest if not given.")
]
DEFAULT_RPC = "http://127.0.0.1:8545"
DEFAULT_STORE = "/ip4/127.0.0.1/tcp/5001"
