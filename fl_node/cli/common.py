"""What several commands share: the consoles, the run that is named, its plan and its model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fl_node.cli.options import DEFAULT_RPC, DEFAULT_STORE
from fl_node.errors import ConfigError
from fl_node.runtime import files, scratch
from fl_node.runtime.strict_json import MAX_DIGITS
from fl_node.runtime.terminal import Console

if TYPE_CHECKING:
    from web3 import Web3

    from fl_node.artifacts.store import Store
    from fl_node.chain.contract import Contract
    from fl_node.models.trainer import Trainer
    from fl_node.plan.schema import Plan


@dataclass
class Process:
    """What is true of this process from its start to its end."""

    verbose: bool = False
    is_role: bool = False
    """Whether it logs events, as header and learners do."""
    stopped: bool = False
    """Whether a signal has asked it to stop."""


process = Process()
console = Console()
errors = Console(stderr=True)


def given_or(given: str | None, default: str) -> str:
    """Return what the user gave, even if it is empty, else the default."""
    return default if given is None else given


def print_note(line: str) -> None:
    """Print a line to standard error, beside the result."""
    errors.print(line)


def import_web3() -> type[Web3]:
    """Import web3, and undo the recursion limit that one of its imports raises."""
    from web3 import Web3

    from fl_node.runtime import recursion

    recursion.restore()
    return Web3


def plain_number(text: str) -> int:
    """Return a whole number, 0 or more, written in digits; more digits than any number here needs are refused.

    Raises
    ------
    ValueError
        The text is something else.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise ValueError(f"{text} is not a whole number")
    return int(text)


def checked_address(option: str, text: str) -> str:
    """Return an address with its checksum.

    Parameters
    ----------
    option
        The option that the error message names.
    text
        The address.

    Raises
    ------
    ConfigError
        The text is not an address, or its checksum is wrong.
    """
    web3 = import_web3()

    if not text.startswith("0x") or not web3.is_address(text):
        raise ConfigError(f"{option} {text}: should be an address, 0x and 40 hexadecimal digits")
    if text != text.lower() and not web3.is_checksum_address(text):
        raise ConfigError(f"{option} {text}: wrong checksum; check the address for a typo")
    return str(web3.to_checksum_address(text))


@contextlib.contextmanager
def open_run(
    folder: Path | None, rpc: str | None, store: str | None, contract: str | None
) -> Iterator[tuple[Contract, Store]]:
    """Connect to a run by its folder, or by RPC, store and contract; restart the nodes of a finished lab.

    Parameters
    ----------
    folder
        The run's folder; of the other arguments those from the environment then do not count.
    rpc
        The URL of the Ethereum node; the default if None.
    store
        The address of the store; the default if None.
    contract
        The address of the run's contract.

    Raises
    ------
    ConfigError
        Neither a folder nor a contract is given, or both.
    """
    from fl_node.artifacts.address import connect
    from fl_node.chain import earlier
    from fl_node.chain.client import Chain
    from fl_node.lab import run_folder as run

    if folder is not None:
        check_alone(folder, rpc=rpc, store=store, contract=contract)
        with run.reach(folder, print_note) as (reached, run_store):
            yield reached, with_progress(run_store)
        return
    if contract is None:
        raise ConfigError("no run given; give its folder, or --contract with --rpc and --store")
    files = connect(given_or(store, DEFAULT_STORE))
    yield earlier.reading(Chain(given_or(rpc, DEFAULT_RPC)).contract(contract)), with_progress(files)


def check_alone(folder: Path, **given: str | None) -> None:
    """Check that a run is named in no other way than by its folder.

    Parameters
    ----------
    folder
        The run's folder.
    **given
        The values of ``--rpc``, ``--store`` and ``--contract``. Those that the environment has set, as on a host, do
        not count.

    Raises
    ------
    ConfigError
        It is named in two ways.
    """
    for name, value in given.items():
        if value is not None and value != os.environ.get(f"FL_NODE_{name.upper()}"):
            raise ConfigError(f"--{name} {value}: the folder {folder} names the run; give the folder or --{name}")


def journals_at_hand(folder: Path | None, contract: Contract) -> list[Path]:
    """Return the files of a run's journals: those in the run's folder, else those of this host's role.

    Parameters
    ----------
    folder
        The run's folder, if given; else ``FL_NODE_FOLDER`` names the folder of this host's role.
    contract
        The run's contract.
    """
    from fl_node.lab import run_folder as run

    if folder is not None:
        return run.journals(folder, contract.address)
    of_host = os.environ.get("FL_NODE_FOLDER")
    return run.journals_of_host(Path(of_host), contract.address) if of_host else []


def with_progress(store: Store) -> Store:
    """Return the store, or on a terminal one that shows how far a large file is."""
    from fl_node.artifacts.download import ShownStore

    return ShownStore(store, errors) if errors.is_terminal else store


def in_pixels(size: tuple[int, ...]) -> str:
    """Return the size of an image as text."""
    return f"{' × '.join(map(str, size))} pixels"


def plan_of(contract: Contract, store: Store) -> Plan:
    """Return the plan that a run was deployed with."""
    from fl_node.protocol.reader import Reader

    with scratch.folder() as here:
        return Reader(store, here).read_plan(contract.plan())


@contextlib.contextmanager
def never_lost(what: Callable[[], str]) -> Iterator[None]:
    """Print a result that took long to compute, and keep it findable if printing fails.

    Parameters
    ----------
    what
        Returns the text that the error message ends with, such as where the result is.

    Raises
    ------
    ConfigError
        Standard output can't be written.
    BrokenPipeError
        The reader of standard output has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"{files.described(error)}{what()}") from error


def make_trainer(
    plan: Plan, data_dir: Path | None = None, modules: Path | None = None, *, with_data: bool = True
) -> Trainer:
    """Return the trainer of the plan's model.

    Parameters
    ----------
    plan
        The run's plan.
    data_dir, modules
        The folders of data sets and of custom modules, if given.
    with_data
        Whether to load the plan's data.

    Raises
    ------
    DataError
        The data can't be loaded, or differ from what the plan states.
    ModuleError
        The plan's custom module can't be loaded.
    """
    from fl_node.data import loading
    from fl_node.models.ensemble import trainer_for

    data = loading.load(plan, data_dir, modules, print_note) if with_data else None
    return trainer_for(plan, data, modules)


def make_trainer_with_data_if_there(plan: Plan, data_dir: Path | None, modules: Path | None, without: str) -> Trainer:
    """Return a trainer with the plan's data; if they can't be loaded, print a note and return one without.

    Parameters
    ----------
    plan, data_dir, modules
        As for :func:`make_trainer`.
    without
        The start of the note: what the command can't do without the data.
    """
    from fl_node.errors import DataError

    try:
        return make_trainer(plan, data_dir, modules)
    except DataError as error:
        print_note(f"note: {without}{error}")
        return make_trainer(plan, modules=modules, with_data=False)


def load_plan(plan: Path, settings: list[str] | None, modules: Path | None) -> tuple[Plan, Path | None]:
    """Return a plan, and the folder of custom modules: the given one, or that of the module that the plan file names.

    Parameters
    ----------
    plan
        The plan file.
    settings
        The settings that the command line overrides.
    modules
        The folder given on the command line.

    Raises
    ------
    PlanError
        The file can't be read or the plan is not valid.
    """
    from fl_node.plan import loading as plans

    loaded, module = plans.load_with_module(plan, settings or ())
    return loaded, module.parent if modules is None and module is not None else modules


def complete(plan: Plan, data_dir: Path | None, modules: Path | None) -> Plan:
    """Return the plan, completed with facts about its data.

    Parameters
    ----------
    plan, data_dir, modules
        As for :func:`make_trainer`.

    Raises
    ------
    DataError
        The data can't be loaded.
    """
    from fl_node.data import loading

    return loading.complete(plan, loading.load(plan, data_dir, modules, print_note))


def complete_or_digits(plan: Plan, data_dir: Path | None, modules: Path | None, *, fallback: bool) -> Plan:
    """Return the complete plan, with the digits of scikit-learn if MNIST is not available and the user allows it.

    Parameters
    ----------
    plan, data_dir, modules
        As for :func:`make_trainer`.
    fallback
        Whether digits may replace MNIST.

    Raises
    ------
    DataError
        The data can't be loaded.
    """
    from fl_node.errors import DataError
    from fl_node.plan import loading as plans

    try:
        return complete(plan, data_dir, modules)
    except DataError as error:
        if not fallback or data_dir is not None or plan.data.name != "mnist":
            raise
        print_note(f"note: using scikit-learn's digits: {error}")
        content = plan.model_dump() | {"data": plan.data.model_dump() | {"name": "digits", "train": 0, "test": 0}}
        return plans.validate(content, f"plan {plan.name} with digits")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""
