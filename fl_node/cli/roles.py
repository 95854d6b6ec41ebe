"""The commands of a run on hosts: deploy it, and be its header or one of its learners."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_node.cli.common import (
    checked_address,
    complete,
    import_web3,
    load_plan,
    make_trainer,
    never_lost,
    plain_number,
    process,
)
from fl_node.cli.options import (
    DEFAULT_RPC,
    DEFAULT_STORE,
    ContractOption,
    DataOption,
    FolderOption,
    JsonOption,
    KeyOption,
    ModulesOption,
    PatienceOption,
    PlanArgument,
    RpcOption,
    SetOption,
    StoreOption,
    TensorboardOption,
)
from fl_node.errors import ConfigError
from fl_node.protocol.names import HEADER
from fl_node.roles import accounts
from fl_node.runtime import scratch

if TYPE_CHECKING:
    from fl_node.chain.contract import Contract
    from fl_node.models.trainer import Trainer
    from fl_node.plan.schema import Plan
    from fl_node.roles.loop import Site


def deploy(
    plan: PlanArgument,
    learner: Annotated[
        list[str],
        typer.Option(
            "--learner", metavar="ID=ADDRESS", help="nodeId and account of a learner; repeat for each learner."
        ),
    ],
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a run: publish the plan, deploy the contract, register the learners, publish the initial weights.

    The account of --key becomes the header. The command prints the contract's address; pass it to header and
    learners with --contract.

        fl-node deploy plans/paper.toml --learner 1=0x… --learner 2=0x… --key header.key
    """
    from fl_node.artifacts.address import connect
    from fl_node.chain.client import Chain
    from fl_node.chain.keys import load_key
    from fl_node.roles.deploy import deploy as start
    from fl_node.runtime.logs import configure

    loaded, modules = load_plan(plan, settings, modules)
    if loaded.data.validation or loaded.unknown:
        loaded = complete(loaded, data_dir, modules)
    learners = accounts_of(learner)
    chain, run_store = Chain(rpc, load_key(key)), connect(store)
    accounts.check(learners, chain.address)  # before the model library is loaded
    configure("deploy", verbose=process.verbose)
    with scratch.folder() as here:
        trainer = make_trainer(loaded, modules=modules, with_data=False)
        contract = start(chain, run_store, here, loaded, learners, trainer)
    with never_lost(lambda: f"; the contract is {contract.address}"):
        if as_json:
            content = {"contract": contract.address, "plan": contract.plan(), "header": contract.header()}
            typer.echo(json.dumps(content | {"learners": {str(n): a for n, a in learners.items()}}))
        else:
            typer.echo(contract.address)


def header(
    contract: ContractOption,
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    folder: FolderOption = Path("work"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Evaluate each round's global weights on the test images."),
    ] = True,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="Take over when the contract names this account, a learner's, as the header.",
        ),
    ] = False,
    patience: PatienceOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Run the header: collect the learners' local weights, aggregate them, publish the global weights.

    The header reads the contract, does the next step, and repeats until the run ends. You can kill and restart it at
    any time. It logs to standard error; --json also writes each event to standard output.
    """
    site = _site(HEADER, rpc, store, key, contract, folder, patience, as_json=as_json)
    # What comes now takes some seconds: TensorFlow.
    from fl_node.roles.factory import run_header

    def make(plan: Plan) -> Trainer:
        return make_trainer(plan, data_dir, modules, with_data=evaluate or plan.measures_members)

    run_header(site, make, evaluate=evaluate, standby=standby)


def learner(
    contract: ContractOption,
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    folder: FolderOption = Path("work"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    patience: PatienceOption = 0.0,
    tensorboard: TensorboardOption = None,
    trainer: Annotated[
        Path | None,
        typer.Option(
            "--trainer",
            envvar="FL_NODE_TRAINER",
            metavar="SOCKET",
            help="Let a process of this host train, fl-node trainer, which several learners share.",
        ),
    ] = None,
    allow_attacks: Annotated[
        bool,
        typer.Option(
            "--allow-attacks",
            envvar="FL_NODE_ALLOW_ATTACKS",
            help="Join runs whose plan lets learners attack, for experiments.",
        ),
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="NAME=NUMBER",
            envvar="FL_NODE_ACCEPT",
            help="Join only runs whose plan keeps a limit: min_samples (in the smallest shard), min_learners, "
            "max_epochs, max_rounds, max_epsilon; may be repeated.",
        ),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODEID=ADDRESS",
            envvar="FL_NODE_LEARNERS",
            help="Join only runs in which this learner is registered with this account; may be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a learner: train each round's global weights on this node's images, publish the local weights.

    The account determines the learner's nodeId; the header registers it. You can kill and restart the learner at any
    time. It takes nothing on the header's word: it checks the contract's code and terms at the start, recomputes
    global weights before it publishes what it trained from them, and rejects false ones. It logs to standard error;
    --json also writes each event to standard output.

        fl-node learner --contract 0x… --accept min_samples=100 --accept max_epochs=10
    """
    from fl_node.roles import policy

    accepts, expected = policy.parse(accept or ()), accounts_of(learner or ())
    site = _site("learner", rpc, store, key, contract, folder, patience, as_json=as_json)
    from fl_node.models import shared_trainer
    from fl_node.roles.factory import run_learner
    from fl_node.roles.local_training import Record
    from fl_node.roles.tensorboard import EventFiles

    def make(plan: Plan) -> Trainer:
        if trainer is not None and shared_trainer.serves(plan):
            return shared_trainer.SharedTrainer(plan, trainer)
        return make_trainer(plan, data_dir, modules)

    record: Record = EventFiles(tensorboard) if tensorboard else lambda *_: None
    run_learner(site, make, record, allow_attacks=allow_attacks, accepts=accepts, accounts=expected)


def trainer(
    socket: Annotated[
        Path,
        typer.Option(
            "--socket", metavar="PATH", help="Socket to listen on, in a folder that only this user can write to."
        ),
    ],
    data_dir: DataOption = None,
    modules: ModulesOption = None,
) -> None:
    """Train for several learners of this host, one after the other.

    TensorFlow and the images are then in memory once. Learners use it with --trainer PATH. Learners that attack, and
    those of an ensemble, train by themselves.

        fl-node trainer --socket ~/trainer.sock
    """
    from fl_node.models.shared_trainer import TrainerServer
    from fl_node.runtime.logs import configure

    configure("trainer", verbose=process.verbose)
    server = TrainerServer(socket, lambda plan: make_trainer(plan, data_dir, modules))
    try:
        server.serve()
    finally:
        server.close()
    # For another plan, in the same process and without what it had in memory.
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the same program


def accounts_of(given: Sequence[str]) -> dict[int, str]:
    """Return the accounts of learners by nodeId, as ``--learner`` names them.

    Raises
    ------
    ConfigError
        A text is not a nodeId and an account's address, or a nodeId or an address appears twice.
    """
    learners = dict(_learner(text) for text in given)
    if len(learners) < len(given):
        raise ConfigError("--learner: each nodeId may appear only once")
    accounts.check(learners)
    return learners


def _learner(text: str) -> tuple[int, str]:
    web3 = import_web3()

    node_id, _, account = text.partition("=")
    wrong = ConfigError(f"--learner {text}: should be nodeId=address, such as 1=0x5aAe…")
    try:
        number = plain_number(node_id)
    except ValueError as error:
        raise wrong from error
    if not account.startswith("0x") or not web3.is_address(account):
        raise wrong
    return number, checked_address(f"--learner {node_id}=", account)


def _site(
    name: str, rpc: str, store: str, key: Path, contract: str, folder: Path, patience: float, *, as_json: bool
) -> Site:
    from fl_node.artifacts.address import connect
    from fl_node.artifacts.ipfs_store import IpfsStore
    from fl_node.chain.client import Chain
    from fl_node.chain.keys import load_key
    from fl_node.errors import ChainUnreachable, GaveUp
    from fl_node.events import RoleStarted, Waiting
    from fl_node.privacy.secret import beside
    from fl_node.roles.journal import Recorder
    from fl_node.roles.loop import Site
    from fl_node.runtime.logs import configure, emit
    from fl_node.runtime.waiting import wait_until

    configure(name, as_json=as_json, verbose=process.verbose)
    chain, files = Chain(rpc, load_key(key)), connect(store)
    contract = checked_address("--contract", contract)
    deployed: list[Contract] = []

    def look() -> bool:
        try:
            deployed.append(chain.contract(contract))
        except ChainUnreachable as error:
            if not reported:
                reported.append(str(error))
                emit(Waiting(reason="chain_unreachable", detail=str(error)))
        return bool(deployed)

    reported: list[str] = []
    if not wait_until(look, patience or float("inf"), 0.5):
        raise GaveUp(f"gave up after {patience:g} s: {reported[0]}", "chain_unreachable")
    work = folder / contract.lower()
    work.mkdir(parents=True, exist_ok=True)
    process.is_role = True  # from now on an error is an event
    emit(RoleStarted(role=name, contract=contract, account=chain.address))
    deployed[0].listen()
    share = files.add_named if isinstance(files, IpfsStore) else None
    recorder = Recorder(work, deployed[0], name, load_key(key), share)
    return Site(chain, deployed[0], files, work, patience, journal=recorder, secret=beside(key))
