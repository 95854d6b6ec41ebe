"""The command line, ``fl-node``.

What takes long to import is imported where it is used, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_node import __version__
from fl_node.errors import ChainError, ConfigError, FLNodeError
from fl_node.runtime import files, streams
from fl_node.runtime.arithmetic import pin_environment
from fl_node.runtime.terminal import Console, prepare, styled

if TYPE_CHECKING:
    from web3 import Web3

    from fl_node.artifacts.model_file import Tensors
    from fl_node.artifacts.store import Store
    from fl_node.chain.client import Contract
    from fl_node.models.ensemble import EnsembleTrainer
    from fl_node.models.keras_trainer import KerasTrainer
    from fl_node.nodes.backends import Endpoint
    from fl_node.plan.schema import Plan
    from fl_node.roles.loop import Site

EXIT_CODES = """
[bold]Exit codes[/bold]  0 all is well · 1 an audit or check found something · 2 wrong option, plan or configuration ·
3 data set · 4 chain · 5 store · 6 model file refused · 7 gave up waiting · 8 Geth or IPFS not installed ·
9 a process of a lab ended · 130 interrupted · 141 whoever read the output has gone
"""

INTERRUPTED = 130
NO_READER = 141
"""What a shell gives for SIGPIPE."""
DEPLOY_PATIENCE = 120.0
"""Seconds in which a lab that has its folder should have deployed its run."""
NUDGE_PATIENCE = 10.0
"""Seconds in which a block should come."""

app = typer.Typer(
    name="fl-node",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
plan_app = typer.Typer(no_args_is_help=True, help="Look at plans.")
app.add_typer(plan_app, name="plan")

console = Console()
errors = Console(stderr=True)

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
        help="Folder with the Python modules that this node may run for plans that name one (docs/own.md).",
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

_verbose = False
_is_role = False
"""Whether this process logs events, as header and learners do."""


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"fl-node {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where an error comes from, and log more.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning on a private Ethereum chain and a private IPFS swarm.

    A header averages what learners trained on data that never leaves them. Model files are in IPFS, their hashes
    in a contract, so that anybody can trace, check and recompute every model.

    Start with [bold]fl-node lab plans/demo.toml[/bold]: a whole run on this machine in about a minute.
    """
    global _verbose
    _verbose = verbose


def _flowed(text: str) -> str:
    """Return a docstring with one line for each paragraph, for Typer breaks lines where the source does.

    Indented examples keep their lines.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(one if one.startswith(" ") else " ".join(one.split()) for one in paragraphs)


def main() -> None:
    """Run the command line; every error that a user can mend is one line and an exit code."""
    global _is_role
    _is_role = False
    pin_environment()
    streams.prepare()
    prepare()
    for command in (*app.registered_commands, *plan_app.registered_commands):
        command.help = _flowed(str(command.callback.__doc__))
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        app(standalone_mode=True)
    except FLNodeError as error:
        if _verbose:
            errors.print(traceback.format_exc(), end="")
        if not _log_failure(error):
            errors.print(f"fl-node: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        # As on a controller, which has what it needs to reach hosts and no more.
        missing = (error.name or "").partition(".")[0]
        if _verbose or missing == "fl_node":
            raise
        errors.print(
            f"fl-node: this needs the Python package {missing}, which is not in {sys.prefix}; "
            "install requirements/node.txt there",
        )
        sys.exit(ConfigError.exit_code)
    except OSError as error:
        # A folder that is not there, a full disk.
        if _verbose:
            traceback.print_exc()
        errors.print(f"fl-node: {files.described(error)}")
        sys.exit(ConfigError.exit_code)
    except SystemExit as end:
        # typer and rich make this of a broken pipe, with the code of an audit that found something.
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(NO_READER)
        # typer makes this of KeyboardInterrupt, and says nothing.
        if end.code == INTERRUPTED:
            errors.print("fl-node: stopped")
        raise
    finally:
        streams.finish()


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""


def _stop(_signal: int, _frame: object) -> None:
    raise _Terminated


@app.command()
def lab(
    plan: PlanArgument,
    place: Annotated[
        str,
        typer.Option(
            "--place",
            help="[bold]embedded[/bold]: a py-evm chain and a folder, Python alone. "
            "[bold]processes[/bold]: real Geth and IPFS for each node.",
        ),
    ] = "embedded",
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; the plan's if not given.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where the folders of runs are.")] = Path("runs"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    fallback: Annotated[
        bool,
        typer.Option("--or-digits", help="Use scikit-learn's digits, and say so, where MNIST can't be had."),
    ] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep the nodes up after the run, until Ctrl-C, and print their addresses.")
    ] = False,
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", help="Do harm to the run and check what must hold; list names those there are."),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            envvar="FL_NODE_TENSORBOARD",
            metavar="DIR",
            help="Write each learner's accuracy and loss to DIR/learner-N below the run's folder, for TensorBoard.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Do a whole run on this machine: chain, store, header and learners, then audit and report.

    Header and learners are processes with the same entrypoints as on hosts. Kill one: it is started again and
    goes on. Ctrl-C stops everything. The run's folder keeps logs, report, final model and the nodes' state.

        fl-node lab plans/demo.toml
        fl-node lab plans/paper.toml --place processes --set seed=2
        fl-node lab plans/demo.toml --scenario header-killed

    With --scenario the exit code is 1 if something did not hold that must; the same plan is carried out without harm
    as well, to compare.
    """
    from fl_node.lab import faults
    from fl_node.lab import run_folder as run
    from fl_node.lab.fault_model import Check
    from fl_node.lab.lab import Lab
    from fl_node.lab.show import Show, checks_table, scenarios_table
    from fl_node.plan import schema as plans

    if place not in ("embedded", "processes"):
        raise ConfigError(f"--place {place}: should be embedded or processes")
    if scenario == "list":
        console.print(scenarios_table(faults.SCENARIOS.values()))
        return
    harm = faults.get(scenario, place) if scenario else None
    modules = _modules(plan, settings, modules)
    loaded = plans.load(plan, settings or ())
    if harm is not None:
        loaded = faults.planned(harm, loaded)
    loaded = _with_data(loaded, data_dir, modules, fallback=fallback)
    name = name or (loaded.name if harm is None else f"{loaded.name}-{harm.name}")
    with run.new_folder(runs, name) as folder, Show(errors if as_json else console, loaded, folder) as show:
        one = Lab(loaded, place, folder, data_dir, show.update, harm, modules, tensorboard)
        outcome = one.run(stay=show.stay if stay else None)
    found: list[Check] = []
    if harm is not None:
        _note("the same plan without harm, to compare")
        found = faults.checks(harm, one.story, outcome, _undisturbed(one.plan, data_dir, modules))
    if as_json:
        content = {
            "run": str(outcome.folder),
            "report": str(outcome.report),
            "model": str(outcome.model),
            "seconds": outcome.seconds,
            "final": asdict(outcome.result.rounds[-1].result),
            "audit": asdict(outcome.audit) | {"passed": outcome.audit.passed},
        }
        if harm is not None:
            content |= {"scenario": harm.name, "checks": [asdict(check) for check in found]}
        typer.echo(json.dumps(content, indent=2))
    elif not stay:
        show.outcome(outcome)
    if found and not as_json:
        console.print(checks_table(str(scenario), found))
    if not outcome.audit.passed or not all(check.held for check in found):
        raise typer.Exit(1)


def _undisturbed(plan: Plan, data_dir: Path | None, modules: Path | None) -> tuple[str, float]:
    """Carry a plan out in this process without harm, and return CID and accuracy of its final weights."""
    from fl_node.lab import simulate

    trainer = _trainer(plan, data_dir, modules)
    with tempfile.TemporaryDirectory() as name:
        cids = simulate.simulate(plan, Path(name), trainer)
        last = simulate.measure(plan, Path(name), trainer, cids)[-1]
    return cids[-1], float(last["accuracy"])


@app.command()
def deploy(
    plan: PlanArgument,
    learner: Annotated[
        list[str],
        typer.Option("--learner", metavar="ID=ADDRESS", help="A learner's nodeId and account; once for each."),
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

    The account of --key becomes the header. What is printed last is the contract's address, which header and
    learners are started with.

        fl-node deploy plans/paper.toml --learner 1=0x… --learner 2=0x… --key header.key
    """
    from fl_node.artifacts import store as stores
    from fl_node.chain.client import Chain, load_key
    from fl_node.plan import schema as plans
    from fl_node.roles.deploy import deploy as start
    from fl_node.runtime.logs import configure

    modules = _modules(plan, settings, modules)
    loaded = plans.load(plan, settings or ())
    if loaded.data.validation or loaded.data.unknown:
        loaded = _complete(loaded, data_dir, modules)
    learners = dict(_learner(text) for text in learner)
    if len(learners) < len(learner):
        raise ConfigError("--learner: a nodeId is given twice")
    chain, place = Chain(rpc, load_key(key)), stores.connect(store)
    configure("deploy", verbose=_verbose)
    with tempfile.TemporaryDirectory() as name:
        trainer = _trainer(loaded, modules=modules, with_data=False)
        contract = start(chain, place, Path(name), loaded, learners, trainer)
    with _never_lost(lambda: f"; the contract is {contract.address}"):
        if as_json:
            content = {"contract": contract.address, "plan": contract.plan(), "header": contract.header()}
            typer.echo(json.dumps(content | {"learners": {str(n): a for n, a in learners.items()}}))
        else:
            typer.echo(contract.address)


@app.command()
def header(
    contract: ContractOption,
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    folder: FolderOption = Path("work"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure each round's global weights on the test images.")
    ] = True,
    patience: PatienceOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Play the header of a run: take the learners' local weights, average them, publish the global weights.

    It reads the contract, does the next thing and reads again until the run has ended. Kill it and start it again
    at any time. What it says goes to standard error; --json writes each event to standard output as well.
    """
    site = _site("header", rpc, store, key, contract, folder, patience, as_json=as_json)
    # What comes now takes some seconds: TensorFlow.
    from fl_node.roles.factory import run_header

    def make(plan: Plan) -> KerasTrainer | EnsembleTrainer:
        return _trainer(plan, data_dir, modules, with_data=evaluate or plan.measures_members)

    _play(lambda: run_header(site, make, evaluate=evaluate))


@app.command()
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
    allow_attacks: Annotated[
        bool,
        typer.Option(
            "--allow-attacks",
            envvar="FL_NODE_ALLOW_ATTACKS",
            help="Take part in a run whose plan has learners attack it, as a laboratory does.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Play a learner of a run: train each round's global weights on this node's images, publish the result.

    Which learner it is follows from its account, which the header registered. Kill it and start it again at any
    time. What it says goes to standard error; --json writes each event to standard output as well.
    """
    site = _site("learner", rpc, store, key, contract, folder, patience, as_json=as_json)
    from fl_node.roles.factory import run_learner
    from fl_node.roles.learner import Record
    from fl_node.roles.tensorboard import EventFiles

    def make(plan: Plan) -> KerasTrainer | EnsembleTrainer:
        return _trainer(plan, data_dir, modules)

    record: Record = EventFiles(tensorboard) if tensorboard else lambda *_: None
    _play(lambda: run_learner(site, make, record, allow_attacks=allow_attacks))


@app.command()
def logs(
    source: Annotated[
        str, typer.Argument(metavar="RUN|-", help="The folder of a run, such as runs/demo, or - for standard input.")
    ],
    nodes: Annotated[
        list[str] | None, typer.Option("--node", help="Only of this node, such as learner-1; may be repeated.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--event", help="Only events of this name; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what header and learners have logged, in order of time.

    Roles log JSON lines where standard error is no terminal: to the log files of a lab's run, and on a host to the
    journal. This shows them as text. On a host: journalctl -u fl-learner -o cat --follow | fl-node logs -
    """
    from fl_node import events as kinds
    from fl_node.runtime import logs as logging_

    for name in names or ():
        if name not in kinds.EVENTS:
            raise ConfigError(f"--event {name}: there are {', '.join(kinds.EVENTS)}")
    for event in logging_.read(source, nodes or ()):
        if not names or event["event"] in names:
            print(json.dumps(event) if as_json else logging_.sentence(event), flush=True)


@app.command()
def status(
    run: RunArgument = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far a run has come, from the chain and the store alone; works on any node."""
    from fl_node.lab.show import rounds_table
    from fl_node.report import collect

    with _reach(run, rpc, store, contract) as (found, place), tempfile.TemporaryDirectory() as name:
        result = collect.collect(found, place, Path(name))
    if as_json:
        typer.echo(collect.as_json(result))
        return
    state = "ended" if result.ended else f"in round {result.round} of {result.plan.rounds}"
    console.print(styled(result.plan.name, "bold"), f", {state}", sep="")
    console.print(f"contract {result.contract}, plan {result.plan_cid}")
    console.print(rounds_table(collect.table(result)))
    if not result.ended and result.plan.mode == "async":
        console.print(f"round {result.round}: waiting for updates")
    elif not result.ended:
        silent = [n for n in range(1, result.plan.learners + 1) if n not in result.open_round]
        who = f"learner {', '.join(map(str, silent))}" if silent else "the header"
        console.print(f"round {result.round}: waiting for {who}")


@app.command()
def dashboard(
    run: RunArgument = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="ADDRESS", help="0.0.0.0 lets everybody in who reaches this machine: they can look."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 means a free one.")] = 8090,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name that browsers may call this machine by; more than once."),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NAME=RPC,STORE", help="A node to ask, such as header=…; once for each."),
    ] = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    contract_file: Annotated[
        Path | None,
        typer.Option("--contract-file", help="A file with FL_NODE_CONTRACT=0x…; read again when it changes."),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Measure each new global model on the test images; loads TensorFlow."),
    ] = False,
    data_dir: DataOption = None,
) -> None:
    """Show a run as it goes on, in a browser: nodes, rounds, blocks, and the model to be tried on a digit.

    It only reads: no key is needed, and nothing is written. Prometheus finds the same at /metrics. A run that has
    ended can be looked at too; its nodes are brought up for it. Ctrl-C ends it.

        fl-node dashboard runs/demo
        fl-node dashboard --contract 0x… --rpc http://127.0.0.1:8545 --store /ip4/127.0.0.1/tcp/5001
    """
    import threading

    from fl_node.chain.client import wait_until
    from fl_node.lab import run_folder as runs
    from fl_node.monitor import server as page
    from fl_node.monitor.inference import Predictor
    from fl_node.monitor.observer import Observer
    from fl_node.nodes.backends import Endpoint
    from fl_node.runtime.logs import configure

    configure("dashboard", verbose=_verbose)
    with contextlib.ExitStack() as stack:
        folder, address = None, contract
        if run is not None:
            if (run / "nodes").is_dir() and not (run / runs.FILE).exists():
                _note(f"waiting for the lab to deploy {run.name}")
                wait_until((run / runs.FILE).exists, DEPLOY_PATIENCE, 0.5)
            nodes = stack.enter_context(runs.endpoints(run, _note))
            address = runs.load(run).contract
            folder = run if run.is_dir() else run.parent
        else:
            if contract_file is None and contract is None:
                raise ConfigError("which run? Name its folder, or its contract by --contract or --contract-file")
            here = Endpoint(_else(rpc, DEFAULT_RPC), _else(store, DEFAULT_STORE))
            nodes = dict(_endpoint(text) for text in node or []) or {"this node": here}
            address = _address("--contract", contract) if contract else None
        listener = stack.enter_context(page.bind(listen, port))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
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


def _else(given: str | None, default: str) -> str:
    return default if given is None else given  # an empty text is a mistake


def _endpoint(text: str) -> tuple[str, Endpoint]:
    from fl_node.nodes.backends import Endpoint

    name, _, addresses = text.partition("=")
    rpc, _, store = addresses.partition(",")
    if not name or not name.isprintable() or not rpc or not store:
        raise ConfigError(f"--node {text}: should be NAME=RPC,STORE, such as header=http://127.0.0.1:8545,/ip4/…")
    return name, Endpoint(rpc, store)


def _contract_in(path: Path) -> str | None:
    """Return the address of the contract that a file names, or None while it does not."""
    web3 = _web3()

    try:
        found = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    except (OSError, UnicodeDecodeError):
        return None
    address = found.get("FL_NODE_CONTRACT", "").strip()
    return str(web3.to_checksum_address(address)) if web3.is_address(address) else None


@app.command()
def audit(
    run: RunArgument = None,
    data_dir: DataOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    modules: ModulesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a whole run: fetch every file, compare it with the chain, recompute every global file bit for bit.

    Anybody can do this on any node, for nothing is needed but chain and store. Exit code 0 if all is well, 1 with
    a line for each finding (round, node, field) if not. The nodes of a lab that has ended are brought up for it.
    """
    from fl_node.audit.auditor import audit as check

    def make(plan: Plan) -> KerasTrainer | EnsembleTrainer:
        if plan.measures_members:
            return _trainer_with_data_if_there(plan, data_dir, modules, "")
        return _trainer(plan, modules=modules, with_data=False)

    with _reach(run, rpc, store, contract) as (found, place), tempfile.TemporaryDirectory() as name:
        show = errors.status("auditing", spinner="line") if errors.is_terminal else contextlib.nullcontext()
        with show:
            result = check(found, place, Path(name), make)
    text = json.dumps(asdict(result) | {"passed": result.passed}, indent=2)
    with _never_lost(lambda: files.rescued("audit.json", text)):
        if as_json:
            typer.echo(text)
        else:
            for note in result.notes:
                console.print(f"note: {note}")
            for finding in result.findings:
                console.print(str(finding))
            verdict = "passed" if result.passed else f"FAILED with {len(result.findings)} findings"
            size = f"{result.bytes / 1e6:.1f} MB"
            console.print(f"audit {verdict}: {result.rounds} rounds, {result.files} files, {size}")
    if not result.passed:
        raise typer.Exit(1)


@app.command("report")
def report_(
    run: RunArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the run; the plan's name if not given.")
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Measure each round's global weights on the test images; if not said, where they are there.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a run and write its report, plan and final model to a folder, from chain and store alone.

    Anybody can do this on any node, during a run (of the rounds so far) or long after it. report.html is for people:
    one file, which loads nothing from anywhere; report.md and report.json say the same as text and for scripts.

        fl-node report runs/demo -o DIR
    """
    from fl_node.lab import run_folder as runs
    from fl_node.lab.show import rounds_table
    from fl_node.report.collect import table
    from fl_node.report.finalize import conclude

    with files.output_folder(output, "--output"), _reach(run, rpc, store, contract) as (found, place):
        plan = _plan_of(found, place)
        if evaluate is None:
            trainer = _trainer_with_data_if_there(plan, data_dir, modules, "nothing is measured: ")
        else:
            trainer = _trainer(plan, data_dir, modules, with_data=evaluate)
        title = name or (run.resolve().name if run else trainer.plan.name)
        # A run's folder names Geth and IPFS as they were when it was made; a host's node names itself.
        versions = runs.load(run).versions if run else runs.versions() | {"chain client": found.chain.client()}
        made = conclude(found, place, output, title, trainer, versions, evaluate=trainer.data is not None)
    passed = made.audit.passed
    if as_json:
        content = {
            "report": str(made.report),
            "model": str(made.model) if made.model else None,
            "ended": made.result.ended,
            "audit": asdict(made.audit) | {"passed": passed},
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        console.print(rounds_table(table(made.result)))
        for finding in made.audit.findings:
            console.print(str(finding))
        if not made.result.ended:
            console.print(
                f"the run goes on, in round {made.result.round} of {plan.rounds}: there is no final model yet"
            )
        verdict = "passed" if passed else f"FAILED with {len(made.audit.findings)} findings"
        console.print(f"audit {verdict}: {made.audit.rounds} rounds, {made.audit.files} files")
        console.print(f"report: {made.report} (as text: report.md)")
    if not passed:
        raise typer.Exit(1)


@app.command()
def export(
    run: RunArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, ending in .keras.")] = Path(
        "model.keras"
    ),
    round_: RoundOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    modules: ModulesOption = None,
) -> None:
    """Write a round's global weights as a .keras model, which Keras alone can load."""
    if output.suffix != ".keras":
        raise ConfigError(f"--output {output}: should end in .keras")
    files.check(output, "--output")
    trainer, tensors, number = _global_weights(run, rpc, store, contract, round_, modules=modules)
    trainer.save(tensors, output)
    console.print(f"wrote the global weights {number} to {output}")


@app.command()
def evaluate(
    run: RunArgument = None,
    round_: RoundOption = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a round's global weights on the test images."""
    trainer, tensors, number = _global_weights(
        run, rpc, store, contract, round_, measure=True, data_dir=data_dir, modules=modules
    )
    scores = {"global weights": trainer.evaluate(tensors)} | trainer.members(tensors)
    if as_json:
        whole, *members = (asdict(score) for score in scores.values())
        content = {"round": number, **whole}
        if members:
            content["members"] = dict(zip(list(scores)[1:], members, strict=True))
        typer.echo(json.dumps(content))
        return
    for name, score in scores.items():
        who = f"{name} {number}" if name == "global weights" else f"  {name}"
        console.print(
            f"{who}: {score.accuracy:.2%} of {score.count} test {trainer.plan.data.noun} right, "
            f"loss {score.loss:.4f}, calibration error {score.calibration_error:.4f}",
        )


@app.command()
def predict(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A picture of one digit, such as a photo or drawing.")
    ],
    run: RunArgument = None,
    round_: RoundOption = None,
    invert: Annotated[
        bool | None, typer.Option("--invert/--no-invert", help="Dark on light or not; found out if not given.")
    ] = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    as_json: JsonOption = False,
) -> None:
    """Say which digit an image shows, by a round's global weights.

    fl-node predict seven.png runs/demo
    """
    from fl_node.data.images import read

    pixels = read(image, invert=invert)
    trainer, tensors, number = _global_weights(run, rpc, store, contract, round_, images=pixels.shape)
    (probabilities,) = trainer.predict(tensors, pixels[None])
    digit = int(probabilities.argmax())
    if as_json:
        typer.echo(json.dumps({"round": number, "digit": digit, "probabilities": [float(p) for p in probabilities]}))
    else:
        console.print(f"{digit} ({probabilities[digit]:.1%})")


@app.command()
def baseline(
    plan: PlanArgument,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs; rounds × local epochs of the plan if not given.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result as JSON.")] = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the plan's model on all its images on this node alone: what a run is compared with."""
    from fl_node.data import loading
    from fl_node.experiments import baseline as single
    from fl_node.models.keras_trainer import KerasTrainer
    from fl_node.plan import schema as plans

    modules = _modules(plan, settings, modules)
    loaded = plans.load(plan, settings or ())
    if loaded.mode == "ensemble":
        raise ConfigError(f"plan {plan}: an ensemble is no single model; take a plan of one of its architectures")
    if output is not None:
        files.check(output, "--output")
    found = loading.load(loaded, data_dir, modules, _note)
    loaded = loading.complete(loaded, found)
    trainer = KerasTrainer(loaded, found, modules)
    count = epochs or loaded.rounds * loaded.training.epochs

    def on_epoch(epoch: int, accuracy: float) -> None:
        errors.print(f"epoch {epoch} of {count}: {accuracy:.2%} of the test {loaded.data.noun} right")

    result = single.run(loaded, trainer, count, on_epoch)
    text = json.dumps({"plan": loaded.model_dump(), **asdict(result)}, indent=2)
    unwritten: ConfigError | None = None
    if output is not None:
        try:
            files.keep(output, text + "\n")
        except ConfigError as error:
            unwritten = error
    in_file = output is not None and unwritten is None
    with _never_lost(lambda: f"; the result is in {output}" if in_file else files.rescued("baseline.json", text)):
        if as_json:
            typer.echo(text)
        else:
            console.print(single.table(loaded, result))
    if unwritten is not None:
        raise unwritten


@app.command()
def reproduce(
    plan: PlanArgument = Path("plans/paper.toml"),
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, with commas between.")] = "1,2,3",
    results: Annotated[Path, typer.Option("--results", help="Where results are kept.")] = Path("results"),
    runs: Annotated[Path, typer.Option("--runs", help="Where the folders of runs are.")] = Path("runs"),
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce the paper: for each seed a run on real nodes and a single-node baseline, then one report.

    Takes about twenty minutes a seed on two cores. What is done is kept: interrupt it, and call it again to go on.
    Exit code 1 if something that was asked for was not reached.
    """
    from fl_node.experiments import reproduce as work
    from fl_node.lab import run_folder as run
    from fl_node.lab.lab import Lab
    from fl_node.lab.show import Show
    from fl_node.plan import schema as plans
    from fl_node.runtime import strict_json

    loaded = plans.load(plan)
    numbers = _seeds(seeds)

    def lab(name: str, seeded: Plan) -> dict[str, Any]:
        with run.new_folder(runs, name) as folder, Show(errors if as_json else console, seeded, folder) as show:
            outcome = Lab(seeded, "processes", folder, data_dir, show.update).run()
        if not outcome.audit.passed:
            raise FLNodeError(f"the audit of {folder} failed: {outcome.audit.findings[0]}")
        content: dict[str, Any] = strict_json.read(folder / "report.json")
        return content | {"seconds": outcome.seconds}

    path = work.run(loaded, numbers, results, lab, data_dir, _note)
    content = strict_json.read(results / "reproduce.json")
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        for target in content["targets"]:
            mark = styled("met    ", "green") if target["met"] else styled("not met", "red")
            console.print(mark, f"{target['what']}: {target['found']} (asked: {target['wanted']})")
        console.print(f"Report: {path}")
    if not all(target["met"] for target in content["targets"]):
        raise typer.Exit(1)


@app.command()
def matrix(
    plan: PlanArgument = Path("plans/matrix.toml"),
    rules: Annotated[
        str, typer.Option("--rules", help="Aggregation rules, with commas between; norm_clipping:1.5 gives a number.")
    ] = "fedavg,median,trimmed_mean,krum,multi_krum,norm_clipping:1.5",
    attacks: Annotated[
        str, typer.Option("--attacks", help="Attacks, with commas between; + puts two together: label_flip+scale:5.")
    ] = "label_flip+scale:5",
    attackers: Annotated[
        str, typer.Option("--attackers", help="Shares of the learners that attack, with commas between.")
    ] = "0.2",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, with commas between.")] = "1,2,3",
    results: Annotated[Path, typer.Option("--results", help="Where results are kept.")] = Path("results/matrix"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Runs at a time; 0 means one a core.")] = 0,
    place: Annotated[
        str, typer.Option("--place", help="embedded, or processes for real Geth and IPFS (one run at a time then).")
    ] = "embedded",
    data_dir: DataOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare rules under attack: a run for every rule, attack, share of attackers and seed, and without attack.

    Each run is audited. What is done is kept: interrupt it, and call it again to go on; name more rules, attacks
    or seeds, and only those are run. Ends with a table of the last round's accuracy, and the same as a heat map.

        fl-node matrix plans/matrix.toml --rules fedavg,median --attacks sign_flip,noise:0.5 --attackers 0.1,0.3
    """
    import os

    from fl_node.cli.tables import matrix_table
    from fl_node.experiments import sweep as work
    from fl_node.plan import schema as plans

    if place not in ("embedded", "processes"):
        raise ConfigError(f"--place {place}: should be embedded or processes")
    loaded = plans.load(plan, settings or ())
    numbers = _seeds(seeds)
    shares = []
    for text in attackers.split(","):
        try:
            shares.append(float(text))
        except ValueError as error:
            raise ConfigError(f"--attackers {attackers}: should be shares such as 0.1,0.2") from error
    todo = work.cells(loaded, _names(rules), _names(attacks), shares, numbers)
    folder = results / loaded.name
    files.check_folder(folder, "--results")
    count = 0

    def done(cell: work.Cell, result: Mapping[str, Any], kept: bool) -> None:
        nonlocal count
        count += 1
        took = "kept" if kept else f"{result['seconds']:.0f} s"
        _note(f"{count} of {len(todo)}: {cell}: {result['rounds'][-1]['accuracy']:.2%} ({took})")

    _note(f"{len(todo)} runs of {loaded.rounds} rounds with {loaded.learners} learners")
    cores = len(os.sched_getaffinity(0))
    at_a_time = 1 if place == "processes" else jobs or max(cores // loaded.training.threads, 1)
    found = work.run(todo, folder, at_a_time, data_dir, done, place=place)
    made = work.figures(todo, found)
    path = work.write(folder, loaded, made, numbers)
    if as_json:
        typer.echo((folder / "matrix.json").read_text(), nl=False)
    else:
        console.print(matrix_table(made))
        console.print(f"Heat map: {path}")


@app.command()
def contribution(
    run: RunArgument = None,
    rpc: RpcChoice = None,
    store: StoreChoice = None,
    contract: ContractChoice = None,
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what each learner's weights were worth: exact Shapley values, by round and in total, without training.

    For each set of learners the model that their files alone would have made is measured on the images that the plan
    holds out (data.validation). Up to 8 learners a round, and no asynchronous runs. Anybody with chain, store and
    data set gets the same.

        fl-node contribution runs/valued
    """
    from fl_node.data import loading
    from fl_node.data.held_out import held_out
    from fl_node.lab.show import contribution_table
    from fl_node.models.ensemble import trainer_for
    from fl_node.models.evidence import evidence
    from fl_node.report import contribution as work

    with _reach(run, rpc, store, contract) as (found, place), tempfile.TemporaryDirectory() as name:
        plan = _plan_of(found, place)
        work.check(plan)
        dataset = loading.load_images(plan, data_dir, _note)
        images, labels = held_out(plan, dataset)
        trainer = trainer_for(plan, dataset)
        measure = evidence(plan, trainer)

        def right(tensors: Tensors) -> int:
            return int((trainer.predict(tensors, images).argmax(axis=1) == labels).sum())

        show = errors.status("measuring", spinner="line") if errors.is_terminal else contextlib.nullcontext()
        with show:
            values = work.contributions(found, place, Path(name), plan, trainer.shapes(), right, measure)
    text = json.dumps(work.as_content(values, len(labels)), indent=2)
    with _never_lost(lambda: files.rescued("contribution.json", text)):
        if as_json:
            typer.echo(text)
        else:
            console.print(contribution_table(values, len(labels)))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"--seeds {text}: should be whole numbers with commas between, such as 1,2,3")
    return [int(part) for part in text.split(",")]


@plan_app.command("shards")
def plan_shards(
    plan: PlanArgument,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw it as well: the SVG file to write, for a browser.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many images of each label each learner gets.

    fl-node plan shards plans/matrix.toml --set data.alpha=0.1 --picture shards.svg
    """
    from fl_node.data import loading, partition
    from fl_node.lab.show import shards_table
    from fl_node.plan import schema as plans
    from fl_node.report import picture as pictures

    if picture is not None:
        files.check(picture, "--picture")
    modules = _modules(plan, settings, modules)
    loaded = _complete(plans.load(plan, settings or ()), data_dir, modules)
    counts = partition.label_counts(loaded, loading.load(loaded, data_dir, modules, _note).labels())
    if picture is not None:
        title = (
            f"{loaded.name}: {loaded.data.noun} of {loaded.data.name} by label, shared out by {loaded.data.partition}"
        )
        files.write(picture, pictures.shards(counts, title))
        _note(f"picture: {picture}")
    if as_json:
        typer.echo(json.dumps({"learners": {str(n): row for n, row in counts.items()}}))
    else:
        console.print(shards_table(counts))


@plan_app.command("check")
def plan_check(plan: PlanArgument, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a plan and show it with every default filled in; exit code 2 with all that is wrong."""
    from fl_node.artifacts import cid
    from fl_node.plan import schema as plans

    loaded = plans.load(plan, settings or ())
    if as_json:
        typer.echo(loaded.to_bytes().decode())
        return
    console.print_json(loaded.model_dump_json())
    if loaded.data.unknown:
        missing = ", ".join(f"data.{key}" for key in loaded.data.unknown)
        console.print(f"{plan} is a valid plan; when it is deployed, {missing} are filled in")
        return
    console.print(f"{plan} is a valid plan; published it is {cid.of_bytes(loaded.to_bytes())}")


@plan_app.command("module")
def plan_module(plan: PlanArgument, settings: SetOption = None) -> None:
    """Print the path of the module that a plan names; print nothing if the plan gives no path."""
    from fl_node.plan import schema as plans

    if file := plans.module_file(plan, settings or ()):
        typer.echo(file.absolute())


@app.command()
def nudge(rpc: RpcOption = DEFAULT_RPC, key: KeyOption = Path("role.key"), as_json: JsonOption = False) -> None:
    """Send a transaction of no effect, so that sealers make a block.

    Roles do so themselves when a chain stands still; by hand it shows whether blocks come at all.
    """
    from fl_node.chain.client import Chain, load_key, wait_until

    chain = Chain(rpc, load_key(key))
    before = chain.block_number()
    chain.nudge()
    if not wait_until(lambda: chain.block_number() > before, NUDGE_PATIENCE):
        raise ChainError(f"chain at {rpc}: no block after {NUDGE_PATIENCE:g} s; are enough sealers running?")
    after = chain.block_number()
    typer.echo(json.dumps({"before": before, "after": after}) if as_json else f"block {after}")


@app.command()
def doctor(
    rpc: RpcOption = DEFAULT_RPC,
    store: StoreOption = DEFAULT_STORE,
    key: KeyOption = Path("role.key"),
    contract: ContractChoice = None,
    peers: Annotated[int | None, typer.Option("--peers", min=0, help="How many peers there should be.")] = None,
    genesis: Annotated[str | None, typer.Option("--genesis", help="The hash that block 0 should have.")] = None,
    swarm_key: Annotated[
        Path | None, typer.Option("--swarm-key", help="The swarm key file of this node's IPFS.")
    ] = None,
    data_dir: DataOption = None,
    firewall: Annotated[
        Path | None,
        typer.Option(
            "--firewall",
            envvar="FL_NODE_FIREWALL",
            help="On a host of the testbed, the socket that tells whether its firewall is complete.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that all a role needs is there: a line each, with what is wrong and what to do; exit code 1 if any is."""
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


@app.command()
def key(path: Annotated[Path, typer.Argument(help="The key file to make.")]) -> None:
    """Make a key file for a new account, readable by its owner alone, and print the account's address.

    A key file that is there is kept, and its address printed.
    """
    from fl_node.chain.client import create_key

    typer.echo(create_key(path))


@app.command()
def fund(
    accounts: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Accounts to give ether to.")],
    ether: Annotated[float, typer.Option("--ether", min=0, help="How much each gets.")] = 1000.0,
    always: Annotated[bool, typer.Option("--always", help="Also accounts that own at least half of it.")] = False,
    rpc: RpcOption = DEFAULT_RPC,
    key: KeyOption = Path("role.key"),
    as_json: JsonOption = False,
) -> None:
    """Give ether of this node's account to accounts that joined the chain later, to pay for their transactions."""
    from fl_node.chain.client import Chain, load_key

    if not math.isfinite(ether):
        raise ConfigError(f"--ether {ether}: should be a number of ether, such as 1000")
    addresses = [_address("ADDRESS", text) for text in accounts]
    chain = Chain(rpc, load_key(key))
    wei = int(ether * 10**18)
    given = []
    for account in addresses:
        gets, said = 0.0, "has enough"
        if account == chain.address:
            said = "is the one that gives"
        elif always or chain.balance(account) < wei // 2:
            chain.give(account, wei)
            gets, said = ether, f"got {ether:g} ether"
        given.append({"account": account, "given": gets})
        if not as_json:
            console.print(f"{account} {said}")
    if as_json:
        typer.echo(json.dumps(given))


@app.command()
def binaries(
    platform: Annotated[
        str | None,
        typer.Option("--platform", help="For hosts, such as linux-arm64: none from PATH; else for this machine."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Copy them here, as geth and ipfs.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Get Geth and IPFS: installed ones of the right version, else built from their pinned source.

    Both are built, with fixes of known faults. FL_NODE_GETH_UNPATCHED=1 or FL_NODE_KUBO_UNPATCHED=1 takes a release.
    """
    from fl_node.nodes import binaries as programs

    if output is not None:
        files.check_folder(output, "--output")
    found = programs.install_all(_note, machine=platform)
    if output is not None:
        found = programs.copy(found, output)
    if as_json:
        content = {
            name: {"path": str(path), "version": programs.pin(name).full_version, "sha256": programs.digest(path)}
            for name, path in found.items()
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        for path in found.values():
            typer.echo(path)


@app.command("data")
def data_set(data_dir: DataOption = None, as_json: JsonOption = False) -> None:
    """Get MNIST: find or download its four files, verify them, and say where they are.

    A folder with four such files of your own is checked likewise, for plans with images from a folder.
    """
    from fl_node.data import datasets as data

    found = data.at_hand(data_dir, _note)
    folder = str(Path(found.source).absolute())
    if found.name == "folder":
        counts = f"{len(found.train_images)} training and {len(found.test_images)} test images"
        _note(f"note: this is not MNIST: {counts} of {_pixels(found.train_images.shape[1:])}")
    typer.echo(json.dumps({"folder": folder}) if as_json else folder)


def _note(line: str) -> None:
    errors.print(line)


def _web3() -> type[Web3]:
    from web3 import Web3

    from fl_node.runtime import recursion

    recursion.restore()
    return Web3


def _learner(text: str) -> tuple[int, str]:
    web3 = _web3()

    node_id, _, account = text.partition("=")
    if not node_id.isdecimal() or not account.startswith("0x") or not web3.is_address(account):
        raise ConfigError(f"--learner {text}: should be nodeId=address, such as 1=0x5aAe…")
    return int(node_id), _address(f"--learner {node_id}=", account)


def _address(option: str, text: str) -> str:
    web3 = _web3()

    if not text.startswith("0x") or not web3.is_address(text):
        raise ConfigError(f"{option} {text}: should be an address, 0x and 40 hexadecimal digits")
    if text != text.lower() and not web3.is_checksum_address(text):
        raise ConfigError(f"{option} {text}: a digit of the address is mistaken, for its checksum is wrong")
    return str(web3.to_checksum_address(text))


def _site(
    name: str, rpc: str, store: str, key: Path, contract: str, folder: Path, patience: float, *, as_json: bool
) -> Site:
    from fl_node.artifacts import store as stores
    from fl_node.chain.client import Chain, load_key, wait_until
    from fl_node.errors import ChainUnreachable, GaveUp
    from fl_node.events import RoleStarted, Waiting
    from fl_node.roles.loop import Site
    from fl_node.runtime.logs import configure, emit

    configure(name, as_json=as_json, verbose=_verbose)
    chain, files = Chain(rpc, load_key(key)), stores.connect(store)
    contract = _address("--contract", contract)
    found: list[Contract] = []

    def look() -> bool:
        try:
            found.append(chain.contract(contract))
        except ChainUnreachable as error:
            if not said:
                said.append(str(error))
                emit(Waiting(reason="chain_unreachable", detail=str(error)))
        return bool(found)

    said: list[str] = []
    if not wait_until(look, patience or float("inf"), 0.5):
        raise GaveUp(f"gave up after {patience:g} s: {said[0]}", "chain_unreachable")
    work = folder / contract.lower()
    work.mkdir(parents=True, exist_ok=True)
    global _is_role
    _is_role = True  # from now on an error is an event
    emit(RoleStarted(role=name, contract=contract, account=chain.address))
    return Site(chain, found[0], files, work, patience)


def _log_failure(error: FLNodeError) -> bool:
    """Log the error if a role ends with it; return whether standard error has it in its log."""
    if not _is_role:
        return False
    from fl_node.events import RoleFailed
    from fl_node.runtime import logs

    logs.emit(RoleFailed(error=type(error).__name__, exit_code=error.exit_code, detail=str(error)))
    return logs.is_json()


def _play(role: Any) -> None:
    from fl_node.events import RoleStopped
    from fl_node.runtime.logs import emit

    try:
        role()
    except _Terminated:
        emit(RoleStopped())


@contextlib.contextmanager
def _reach(
    folder: Path | None, rpc: str | None, store: str | None, contract: str | None
) -> Iterator[tuple[Contract, Store]]:
    from fl_node.artifacts import store as stores
    from fl_node.chain.client import Chain
    from fl_node.lab import run_folder as run

    if folder is not None:
        with run.reach(folder, _note) as (reached, place):
            yield reached, _shown(place)
        return
    if contract is None:
        raise ConfigError("which run? Name its folder, or its contract by --contract (with --rpc and --store)")
    files = stores.connect(_else(store, DEFAULT_STORE))
    yield Chain(_else(rpc, DEFAULT_RPC)).contract(contract), _shown(files)


def _shown(store: Store) -> Store:
    """Return the store, or on a terminal one that shows how far a large file is."""
    from fl_node.artifacts.download import ShownStore

    return ShownStore(store, errors) if errors.is_terminal else store


def _global_weights(
    folder: Path | None,
    rpc: str | None,
    store: str | None,
    contract: str | None,
    round_: int | None,
    *,
    measure: bool = False,
    data_dir: Path | None = None,
    modules: Path | None = None,
    images: tuple[int, ...] | None = None,
) -> tuple[KerasTrainer | EnsembleTrainer, dict[str, Any], int]:
    """Return a run's model, with data if it is to be measured, and the global weights of a round with its number.

    With ``images``, the model is one for images of this size.
    """
    from fl_node.aggregation import global_shapes
    from fl_node.artifacts import model_file

    with _reach(folder, rpc, store, contract) as (found, place), tempfile.TemporaryDirectory() as name:
        number = found.state().round if round_ is None else round_
        file_cid = found.global_weight_at(number)
        if file_cid is None:
            raise ConfigError(f"there are no global weights {number}; the newest are {found.state().round}")
        plan = _plan_of(found, place)
        if images is not None and (plan.own is not None or plan.data.image_size != images):
            takes = "what its own module loads" if plan.own else _pixels(plan.data.image_size)
            raise ConfigError(f"this makes an image of {_pixels(images)}, and the run's model takes {takes}")
        trainer = _trainer(plan, data_dir, modules, with_data=measure)
        path = Path(name) / "global.safetensors"
        shapes = global_shapes(plan, trainer.shapes())
        place.fetch(file_cid, path, model_file.size_of(shapes), plan.fetch_timeout)
        return trainer, model_file.read(path, shapes).tensors(), number


def _pixels(size: tuple[int, ...]) -> str:
    return f"{' × '.join(map(str, size))} pixels"


def _plan_of(contract: Contract, store: Store) -> Plan:
    """Return the plan that a run was deployed with."""
    from fl_node.plan import schema as plans

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "plan.json"
        store.fetch(contract.plan(), path, plans.MAX_PLAN_BYTES, 30.0)
        return plans.from_bytes(path.read_bytes(), f"plan {contract.plan()}")


@contextlib.contextmanager
def _never_lost(what: Callable[[], str]) -> Iterator[None]:
    """Print a result that took long; if it can't be printed, the error goes on with what ``what`` returns."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{files.described(error)}{what()}") from error


def _trainer(
    plan: Plan, data_dir: Path | None = None, modules: Path | None = None, *, with_data: bool = True
) -> KerasTrainer | EnsembleTrainer:
    from fl_node.data import loading
    from fl_node.models.ensemble import trainer_for

    data = loading.load(plan, data_dir, modules, _note) if with_data else None
    return trainer_for(plan, data, modules)


def _trainer_with_data_if_there(
    plan: Plan, data_dir: Path | None, modules: Path | None, without: str
) -> KerasTrainer | EnsembleTrainer:
    """Return a trainer with the plan's data, or one without and a note of why, which begins with what that means."""
    from fl_node.errors import DataError

    try:
        return _trainer(plan, data_dir, modules)
    except DataError as error:
        _note(f"note: {without}{error}")
        return _trainer(plan, modules=modules, with_data=False)


def _modules(plan: Path, settings: list[str] | None, modules: Path | None) -> Path | None:
    """Return where modules are: if not said, the folder of the one that the user's own plan file names."""
    from fl_node.plan import schema as plans

    if modules is None and (file := plans.module_file(plan, settings or ())):
        return file.parent
    return modules


def _complete(plan: Plan, data_dir: Path | None, modules: Path | None) -> Plan:
    """Return the plan with what only those know who have its data."""
    from fl_node.data import loading

    return loading.complete(plan, loading.load(plan, data_dir, modules, _note))


def _with_data(plan: Plan, data_dir: Path | None, modules: Path | None, *, fallback: bool) -> Plan:
    """Return the complete plan, for digits instead of MNIST if that can't be had and the user allows it."""
    from fl_node.errors import DataError
    from fl_node.plan import schema as plans

    try:
        return _complete(plan, data_dir, modules)
    except DataError as error:
        if not fallback or data_dir is not None or plan.data.name != "mnist":
            raise
        _note(f"note: using scikit-learn's digits: {error}")
        content = plan.model_dump() | {"data": plan.data.model_dump() | {"name": "digits", "train": 0, "test": 0}}
        return plans.Plan.model_validate(content)
