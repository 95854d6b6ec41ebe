"""Runs an audit: reads plan and history, has the checkers go through them, and says what they found.

Every file is fetched and compared with its hash on chain, every global file is recomputed from its local files and
compared bit for bit, and what the header says of learners that it left out is compared with the chain's log.
What an audit can't see: whether a learner trained on the data it should have, and whether the accuracy that it
reports is true; anyone can measure its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from fl_node.artifacts.store import Store
from fl_node.audit.budget import check_budget
from fl_node.audit.journals import check_journals, read_journals
from fl_node.audit.result import Audit
from fl_node.audit.senders import check_registrations, check_senders
from fl_node.audit.verdicts import check_verdicts
from fl_node.chain.contract import Contract, LogEntry, State
from fl_node.errors import ContractError, LogError, PlanError, StoreError, StoreUnreachable
from fl_node.models.trainer import MakeTrainer
from fl_node.plan.schema import Plan
from fl_node.protocol import budget, history
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER
from fl_node.protocol.publications import publications
from fl_node.protocol.reader import PLAN_TIMEOUT, Reader
from fl_node.protocol.terms import terms_of
from fl_node.protocol.verification.asynchronous import AsynchronousCase, AsynchronousChecker
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.global_files import check_initial
from fl_node.protocol.verification.synchronous import Closing, check_closing

LOOKS = 3
"""How often the log is read again because the run went on in the meantime."""


def audit(
    contract: Contract,
    store: Store,
    folder: Path,
    make_trainer: MakeTrainer,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    plan_timeout: float = PLAN_TIMEOUT,
    accounts: Mapping[int, str] = MappingProxyType({}),
    journals: Sequence[Path] = (),
) -> Audit:
    """Audit a run.

    Parameters
    ----------
    contract, store
        The run's contract and the store, as some node sees them.
    folder
        An empty folder for the files.
    make_trainer
        Called with the plan; returns the model whose initial weights are compared.
    progress
        Called after each round with the number of rounds checked and of all rounds.
    plan_timeout
        Seconds without progress after which the plan counts as missing.
    accounts
        The accounts that learners should have, by nodeId, as their owners or an inventory name them.
    journals
        The files of the roles' journals that are compared with the chain.

    Raises
    ------
    ConfigError
        A journal can't be read.
    ChainError
        The Ethereum node can't be reached.
    ContractError
        The contract does not answer, although its code is this version's.
    StoreError
        The store can't be reached.
    """
    result, reader = Audit(contract=contract.address), Reader(store, folder, once=True)
    if not contract.has_known_code():
        result.find(None, HEADER, "contract", "its code differs from FederatedLearning.sol")
    evidence = read_journals(contract, journals)
    try:
        past, state = _read_history(contract)
    except LogError as error:
        result.find(None, HEADER, "log", str(error))
        return result
    except ContractError:
        if result.passed:
            raise
        return result  # other code, which is found already, need not have these functions
    result.plan_cid, result.rounds = past.plan_cid, max(len(past.rounds) - 1, 0)
    plan = _read_plan(reader, past, result, plan_timeout)
    if plan is not None:
        result.compare(None, HEADER, "terms", contract.terms(), terms_of(plan))
        check_senders(contract, past, state, result)
        check_registrations(plan, past, accounts, result)
        if past.rounds or past.withdrawn:
            trainer = make_trainer(plan)
            reader.expect_model(trainer.shapes())
            case = Case(plan, past.plan_cid, reader, trainer, result)
            if past.rounds:
                _check_rounds(case, contract, past, progress)
            check_verdicts(case, past)
            check_budget(plan, past, result)
        check_journals(contract, plan, past, evidence, result)
        if not past.rounds:
            result.note("the run has not started: no initial weights")
    result.files, result.bytes = reader.fetched, reader.fetched_bytes
    return result


def _check_rounds(case: Case, contract: Contract, past: History, progress: Callable[[int, int], None]) -> None:
    result, plan, rounds, reader = case.result, case.plan, past.rounds, case.reader
    closed_rounds = len(rounds) - 1
    if closed_rounds < plan.rounds and not Budget.of(plan, past).is_over():
        result.note(f"the run is in progress: {closed_rounds} of {plan.rounds} rounds are closed")
    if closed_rounds > plan.rounds:
        result.find(plan.rounds + 1, HEADER, "round", f"the plan ends after {plan.rounds} rounds")
    keys = {one.node_id: str(one.key) for one in past.first_keys if one.node_id is not None}
    check_initial(case, str(rounds[0].started.cid), case.trainer.initial(), keys)
    progress(0, closed_rounds)
    is_async = plan.mode == "async"
    everything = tuple(publications(past.publications))
    checker = AsynchronousChecker(
        AsynchronousCase(case.plan, case.plan_cid, case.reader, case.trainer, case.result, contract, past, everything)
    )
    for closed, opened in pairwise(rounds):
        if is_async:
            checker.check(closed, opened.started)
        else:
            check_closing(case, _closing(case, closed, past, opened.started), str(opened.started.cid))
        # Of a round only its result is needed for the next.
        reader.forget(reader.path(str(opened.started.cid)))
        progress(opened.number, closed_rounds)
    if is_async:
        checker.finish()
    reader.forget()


def _closing(case: Case, closed: Round, past: History, ended: LogEntry) -> Closing:
    """Return a round as the contract fixed it; what came after it closed was never sealed by our contract."""
    if closed.closed is None:
        case.result.find(closed.number + 1, HEADER, "round", "global weights were published while it was open")
    published = {node_id: str(entry.cid) for node_id, entry in closed.latest().items()}
    spent = {} if case.plan.dp is None else budget.publications(past.publications, ended)
    openings = {entry.node_id: str(entry.cid) for entry in closed.openings if entry.node_id is not None}
    keys = {entry.node_id: str(entry.key) for entry in closed.keys if entry.node_id is not None}
    return Closing(closed.number, str(closed.started.cid), published, closed.members, spent, openings, keys)


def _read_history(contract: Contract) -> tuple[History, State]:
    """Read the log, and again if the run has gone on since, and what the contract says of its round."""
    for _ in range(LOOKS):
        past, state = history.read(contract), contract.state()
        if state.round <= max(len(past.rounds) - 1, 0):
            break
    return past, state


def _read_plan(reader: Reader, past: History, result: Audit, timeout: float) -> Plan | None:
    try:
        return reader.read_plan(past.plan_cid, timeout)
    except StoreUnreachable:
        raise
    except (PlanError, StoreError) as error:
        result.find(None, HEADER, "plan", str(error))
        return None
