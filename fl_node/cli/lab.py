"""``fl-node lab``: a whole run on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_node.cli.common import complete_or_digits, console, errors, load_plan, make_trainer, print_note
from fl_node.cli.options import DataOption, JsonOption, ModulesOption, PlanArgument, SetOption
from fl_node.errors import ConfigError
from fl_node.runtime import files, scratch

if TYPE_CHECKING:
    from fl_node.lab.faults import Undisturbed
    from fl_node.plan.schema import Plan


RESERVED = ("audits", "final", "logs", "nodes", "plan", "report", "run")
"""What a run's folder holds, without endings."""
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run; the plan's name by default.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Parent folder of the run folders.")]
StayOption = Annotated[
    bool, typer.Option("--stay", help="Keep the nodes up after the run until Ctrl-C, and print their addresses.")
]


def demo(
    name: NameOption = None,
    runs: RunsOption = Path("runs"),
    data_dir: DataOption = None,
    settings: SetOption = None,
    stay: StayOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a small experiment that needs no files: a header and two learners on a chain and a store in Python.

    It trains on MNIST, downloaded once and verified, or on scikit-learn's digits if MNIST is not available. The same
    run from a plan file of your own:

        fl-node plan new mine.toml
        fl-node lab mine.toml --or-digits
    """
    from fl_node.plan import examples

    lab(
        examples.path("demo"),
        name=name,
        runs=runs,
        data_dir=data_dir,
        settings=settings,
        fallback=True,
        stay=stay,
        as_json=as_json,
    )


def lab(
    plan: PlanArgument,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="[bold]embedded[/bold]: py-evm as the chain and a folder as the store, in Python only; the default. "
            "[bold]processes[/bold]: a real Geth and IPFS process for each node; the default with --nodes.",
            show_default=False,
        ),
    ] = None,
    learners: Annotated[
        int | None,
        typer.Option(
            "--learners",
            metavar="N",
            help="Run N learners instead of the plan's number, each with its own account and share of the data.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes",
            metavar="M",
            help="Start only M Geth and M IPFS nodes: one for the header, the others shared by the learners in turn. "
            "By default each learner has its own.",
        ),
    ] = None,
    name: NameOption = None,
    runs: RunsOption = Path("runs"),
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    fallback: Annotated[
        bool,
        typer.Option("--or-digits", help="Use scikit-learn's digits with a note if MNIST is not available."),
    ] = False,
    stay: StayOption = False,
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", help="Inject a fault and check the expectations; `list` shows the scenarios."),
    ] = None,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="Start a standby header for each learner, which takes over if the header lies or is gone.",
        ),
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            envvar="FL_NODE_TENSORBOARD",
            metavar="DIR",
            help="Write each learner's TensorBoard event files to DIR/learner-N in the run folder.",
        ),
    ] = None,
    rpc: Annotated[
        str | None,
        typer.Option("--rpc", help="URL of a node of your own chain; the lab then starts no chain (docs/chains.md)."),
    ] = None,
    funder: Annotated[
        Path | None,
        typer.Option("--funder", help="With --rpc: key file of an account that gives each role 1 ether."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run everything on this machine: chain, store, header and learners, then audit and report.

    Header and learners are processes with the same entry points as on hosts. If you kill one, the lab restarts it
    and it continues. Ctrl-C stops everything. The run folder keeps logs, report, final model and node state.

        fl-node lab plans/demo.toml
        fl-node lab plans/paper.toml --backend processes --set seed=2
        fl-node lab plans/demo.toml --scenario header-killed
        fl-node lab plans/demo.toml --learners 12 --nodes 3

    With --scenario, the plan also runs once without the fault for comparison, and the exit code is 1 if an
    expectation fails.

    With --learners and --nodes, a few nodes serve many learners, as when a class has fewer machines than students.
    Each learner is a process with a model of its own, so memory limits their number.
    """
    from fl_node.lab import faults
    from fl_node.lab import run_folder as run
    from fl_node.lab.fault_model import Check
    from fl_node.lab.lab import Lab
    from fl_node.lab.show import Show, checks_table, scenarios_table
    from fl_node.nodes.backends import OwnChain, OwnChainBackend

    backend = backend or ("embedded" if nodes is None else "processes")
    if backend not in ("embedded", "processes"):
        raise ConfigError(f"--backend {backend}: should be embedded or processes")
    if (rpc is None) != (funder is None):
        raise ConfigError("--rpc and --funder belong together: a node of your own chain, and an account that pays")
    own_chain = OwnChain(rpc, funder) if rpc is not None and funder is not None else None
    if own_chain is not None and backend != "embedded":
        raise ConfigError(f"--backend {backend} starts a chain; leave it out with --rpc")
    if nodes is not None and (backend != "processes" or own_chain is not None):
        raise ConfigError("--nodes needs --backend processes: without it there is one chain and one store for all")
    if nodes is not None and scenario is not None:
        raise ConfigError("--nodes can't be combined with --scenario, whose faults need a node for each learner")
    settings = _with_learners(settings, learners)
    backend = OwnChainBackend.name if own_chain else backend
    if scenario == "list":
        console.print(scenarios_table(faults.SCENARIOS.values()))
        return
    chosen = faults.get(scenario, backend) if scenario else None
    loaded, modules = load_plan(plan, settings, modules)
    if chosen is not None:
        loaded = faults.planned(chosen, loaded)
    if nodes is not None and not 1 <= nodes <= loaded.learners + 1:
        most = f"{loaded.learners + 1}: one for the header and one for each learner"
        raise ConfigError(f"--nodes {nodes}: should be 1 to {most}")
    if tensorboard is not None:
        _check_place(tensorboard)
    if own_chain is not None:
        own_chain.check(loaded.learners + 1)
    loaded = complete_or_digits(loaded, data_dir, modules, fallback=fallback)
    with_standby = standby or (chosen is not None and chosen.standby)
    name = name or (loaded.name if chosen is None else f"{loaded.name}-{chosen.name}")
    with run.new_folder(runs, name) as folder, Show(errors if as_json else console, loaded, folder) as show:
        experiment = Lab(
            loaded,
            backend,
            folder,
            data_dir,
            show.update,
            chosen,
            modules,
            tensorboard,
            own_chain,
            standby=with_standby,
            nodes=nodes,
        )
        outcome = experiment.run(stay=show.stay if stay else None)
    checks: list[Check] = []
    if chosen is not None:
        undisturbed = None
        if not (loaded.dp is not None and loaded.is_masked):  # no other run has the same noise
            print_note("running the same plan without the fault for comparison")
            undisturbed = _undisturbed(experiment.plan, folder, data_dir, modules)
        checks = faults.checks(chosen, experiment.trace, outcome, undisturbed)
    if as_json:
        content = {
            "run": str(outcome.folder),
            "report": str(outcome.report),
            "model": str(outcome.model),
            "seconds": outcome.seconds,
            "final": None if outcome.result.newest is None else asdict(outcome.result.newest),
            "audit": asdict(outcome.audit) | {"passed": outcome.audit.passed},
        }
        if chosen is not None:
            content |= {"scenario": chosen.name, "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(content, indent=2))
    elif not stay:
        show.outcome(outcome)
    if checks and not as_json:
        console.print(checks_table(str(scenario), checks))
    if not outcome.audit.passed or not all(check.passed for check in checks):
        raise typer.Exit(1)


def _check_place(tensorboard: Path) -> None:
    """Check where event files go before the run: in the run's folder or elsewhere.

    Raises
    ------
    ConfigError
        They can't be written there, or the run's folder needs the name for something else.
    """
    if tensorboard.is_absolute():
        with files.output_folder(tensorboard, "--tensorboard"):
            return
    first = next(iter(tensorboard.parts), "")
    if first in ("", "..") or first.partition(".")[0] in RESERVED:
        raise ConfigError(
            f"--tensorboard {tensorboard}: should be an absolute path, or a name that the run folder does not use, "
            "such as curves"
        )


def _with_learners(settings: list[str] | None, learners: int | None) -> list[str] | None:
    """Return the settings with the number of learners that ``--learners`` gives.

    Raises
    ------
    ConfigError
        The number is given twice.
    """
    if learners is None:
        return settings
    if any(one.partition("=")[0].strip() == "learners" for one in settings or ()):
        raise ConfigError("--learners and --set learners=… are the same setting; give one of them")
    return [*(settings or ()), f"learners={learners}"]


def _undisturbed(plan: Plan, folder: Path, data_dir: Path | None, modules: Path | None) -> Undisturbed:
    """Carry a plan out in this process without the fault, with the keys and secrets of the run in a folder."""
    from fl_node.lab import simulate
    from fl_node.lab.faults import Undisturbed, weights_of

    trainer = make_trainer(plan, data_dir, modules)
    with scratch.folder() as here:
        simulate.take_keys(here, folder, plan.learners)
        cids = simulate.simulate(plan, here, trainer)
        last = simulate.measure(plan, here, trainer, cids)[-1]
        return Undisturbed(weights_of(here / "files" / cids[-1]), float(last["accuracy"]))
