"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN", allow_dash=True, help="Plan file in TOML, such as plans/demo.toml; - reads standard input."
    ),
]
OptionalPlanArgument = Annotated[
    Path | None,
    typer.Argument(metavar="PLAN", allow_dash=True, help="Plan file; by default the one that comes with fl-node."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the plan, such as training.epochs=1."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="FL_NODE_DATA_DIR",
        help="Folder with the four MNIST files; by default they are downloaded once and verified. For plans with "
        "images from a folder: the folder with your own four files.",
    ),
]
ModulesOption = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        envvar="FL_NODE_MODULES",
        help="Folder with the Python modules that this node may run for plans with a custom section "
        "(docs/custom.md).",
    ),
]
RpcOption = Annotated[str, typer.Option("--rpc", envvar="FL_NODE_RPC", help="URL of this node's Ethereum JSON-RPC.")]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FL_NODE_STORE",
        help="Multiaddress of this node's IPFS API, or an existing folder; file:FOLDER creates the folder.",
    ),
]
KeyOption = Annotated[
    Path, typer.Option("--key", envvar="FL_NODE_KEY", help="Key file of the role's account, with mode 0600.")
]
ContractOption = Annotated[
    str, typer.Option("--contract", envvar="FL_NODE_CONTRACT", help="Address of the run's contract.")
]
FolderOption = Annotated[
    Path,
    typer.Option(
        "--folder",
        envvar="FL_NODE_FOLDER",
        help="Folder for the role's journal and its copies of files.",
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--patience", min=0, help="Give up after waiting this many seconds without progress; 0 means never."
    ),
]
TensorboardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        envvar="FL_NODE_TENSORBOARD",
        metavar="DIR",
        help="Write accuracy and loss as TensorBoard event files to DIR/learner-N; use one DIR per run.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Run folder, such as runs/demo; or use --rpc, --store and --contract."),
]
RpcChoice = Annotated[
    str | None, typer.Option("--rpc", envvar="FL_NODE_RPC", help="URL of a node's Ethereum JSON-RPC.")
]
StoreChoice = Annotated[
    str | None,
    typer.Option("--store", envvar="FL_NODE_STORE", help="Multiaddress of a node's IPFS API, or a folder."),
]
ContractChoice = Annotated[
    str | None, typer.Option("--contract", envvar="FL_NODE_CONTRACT", help="Address of the run's contract.")
]
AnchorOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--anchor",
        metavar="FILE|DIR",
        help="A role's journal that was kept elsewhere, or a folder of journals, to compare with the chain, or the "
        "signed result of an earlier audit; may be repeated.",
    ),
]
RoundOption = Annotated[
    int | None, typer.Option("--round", min=0, help="Round of the global weights; the latest by default.")
]
DEFAULT_RPC = "http://127.0.0.1:8545"
DEFAULT_STORE = "/ip4/127.0.0.1/tcp/5001"
