"""Runs an audit: reads plan and history, runs the checks, and returns the result.

It fetches every file and compares it with its hash on chain, recomputes every global file from its local files and
compares them bit for bit, and compares the header's reasons for leaving out learners with the log of the contract.
It can't detect whether a learner trained on the data in its shard. It does not check the accuracies that learners
report; anyone can evaluate their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from fl_node.artifacts.store import Store
from fl_node.audit.budget import check_budget
from fl_node.audit.journals import check_journals, read_journals
from fl_node.audit.pruned import Pruned, Words, note_pruned, read_statements
from fl_node.audit.result import Audit, PrunedRound
from fl_node.audit.senders import check_registrations, check_senders
from fl_node.audit.verdicts import check_verdicts
from fl_node.chain import deployment
from fl_node.chain.contract import Contract, LogEntry, State
from fl_node.errors import (
    ChainError,
    ChainUnreachable,
    LogError,
    PlanError,
    StoreError,
    StoreUnreachable,
    WeightsError,
)
from fl_node.models.trainer import MakeTrainer
from fl_node.plan.schema import Plan
from fl_node.protocol import budget, history
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER, learner_label
from fl_node.protocol.publications import publications
from fl_node.protocol.reader import PLAN_TIMEOUT, Reader
from fl_node.protocol.terms import terms_of
from fl_node.protocol.verification.asynchronous import AsynchronousCase, AsynchronousChecker
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.global_files import check_initial
from fl_node.protocol.verification.synchronous import Closing, check_closing, check_pruned
from fl_node.wording import counted

MAX_READS = 3
"""Maximum number of times that the log is read, if the run proceeds meanwhile."""
EARLIER_CONTRACT, LEFT_OUT = "earlier_contract", "left_out"
"""Codes of notes."""


def audit(
    contract: Contract,
    store: Store,
    folder: Path,
    make_trainer: MakeTrainer,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    plan_timeout: float = PLAN_TIMEOUT,
    accounts: Mapping[int, str] = MappingProxyType({}),
    journals: Sequence[Path] = (),
    statements: Sequence[Path] = (),
) -> Audit:
    """Audit a run.

    Parameters
    ----------
    contract, store
        The run's contract and the store.
    folder
        An empty folder for the fetched files.
    make_trainer
        Returns the trainer for a plan, whose initial weights are compared.
    progress
        Called after each round with the number of checked rounds and the number of all rounds.
    plan_timeout
        Seconds without progress after which the plan counts as missing.
    accounts
        The accounts that learners should have, by nodeId, such as those in an inventory.
    journals
        Paths of the roles' journals to compare with the chain.
    statements
        Paths of the signed results of earlier audits.

    Raises
    ------
    ConfigError
        A journal or a statement can't be read.
    ChainError
        The Ethereum node can't be reached.
    ContractError
        The contract does not answer, although its code is this version's.
    StoreError
        The store can't be reached.
    """
    result, reader = Audit(contract=contract.address), Reader(store, folder, once=True)
    _check_deployment(contract, result)
    is_known = result.passed
    evidence = read_journals(contract, journals)
    words = Words(contract.address, evidence.journals, read_statements(statements, result))
    try:
        past, state = _read_history(contract)
        terms = contract.terms() if contract.closes_rounds else None
    except LogError as error:
        result.find(None, HEADER, "log", str(error))
        return result
    except ChainError as error:
        if is_known or isinstance(error, ChainUnreachable):
            raise
        return result  # the unknown code, which is a finding already, may lack these functions
    result.plan_cid, result.rounds = past.plan_cid, max(len(past.rounds) - 1, 0)
    plan = _read_plan(reader, past, result, plan_timeout)
    if plan is not None:
        if terms is not None:
            result.compare(None, HEADER, "terms", terms, terms_of(plan))
        check_senders(contract, past, state, result)
        check_registrations(plan, past, accounts, result)
        if past.rounds or past.withdrawn:
            trainer = make_trainer(plan)
            reader.expect_model(trainer.shapes())
            case = Case(plan, past.plan_cid, reader, trainer, result)
            spent = Budget.of(plan, past, _taken(case, past))
            if past.rounds:
                pruned = Pruned(case, past, words)
                _check_rounds(case, contract, past, pruned, progress, is_over=spent.is_over())
                _state_recomputed(past, plan, pruned.rounds, result)
            check_verdicts(case, past, result.pruned)
            check_budget(plan, past, result, spent)
        check_journals(contract, plan, past, evidence, result)
        if not past.rounds:
            result.note("the run has not started: no initial weights")
    result.files, result.bytes = reader.fetched, reader.fetched_bytes
    return result


def _check_deployment(contract: Contract, result: Audit) -> None:
    """Check that a contract is of this version or of an earlier one; of an earlier one, note what it allows."""
    origin = deployment.origin_of(contract)
    if origin.problem is not None:
        result.find(None, HEADER, *origin.problem)
    if (earlier := origin.earlier) is None:
        return
    result.note(f"the contract is of an earlier version, which was replaced on {earlier.replaced}", EARLIER_CONTRACT)
    for gap in earlier.gaps:
        result.note(f"the contract is weaker than today's: {gap}", EARLIER_CONTRACT)


def _taken(case: Case, past: History) -> Mapping[int, int] | None:
    """Return what the newest global weights accept or reject; None if it is not needed, or unknown."""
    if case.plan.mode != "async" or case.plan.dp is None or not past.rounds:
        return None
    try:
        return dict(case.file(str(past.rounds[-1].started.cid)).global_meta.taken or ())
    except WeightsError:
        return None  # reported where these weights are checked


def _state_recomputed(past: History, plan: Plan, pruned: Mapping[int, PrunedRound], result: Audit) -> None:
    """Add to the result which global weights were recomputed, and which were not."""
    wrong = {finding.round for finding in result.findings}
    result.weights = {
        started.number: str(started.started.cid)
        for started in past.rounds
        if started.number - 1 not in pruned and not wrong & {started.number, started.number - 1, None}
    }
    result.pruned = [one for _, one in sorted(pruned.items())]
    if plan.retention is not None:
        note_pruned(result.pruned, plan.retention.rounds, result)


def _check_rounds(
    case: Case,
    contract: Contract,
    past: History,
    pruned: Pruned,
    progress: Callable[[int, int], None],
    *,
    is_over: bool,
) -> None:
    result, plan, rounds, reader = case.result, case.plan, past.rounds, case.reader
    closed_rounds = len(rounds) - 1
    if closed_rounds < plan.rounds and not is_over:
        result.note(f"the run is in progress: {closed_rounds} of {plan.rounds} rounds are closed")
    if closed_rounds > plan.rounds:
        result.find(plan.rounds + 1, HEADER, "round", f"the plan ends after {counted(plan.rounds, 'round')}")
    keys = {entry.node_id: str(entry.key) for entry in past.first_keys if entry.node_id is not None}
    check_initial(case, str(rounds[0].started.cid), case.trainer.initial(), keys)
    progress(0, closed_rounds)
    is_async = plan.mode == "async"
    all_publications = tuple(publications(past.publications))
    checker = AsynchronousChecker(
        AsynchronousCase(
            case.plan, case.plan_cid, case.reader, case.trainer, case.result, contract, past, all_publications
        )
    )
    for closed, opened in pairwise(rounds):
        if is_async:
            checker.check(closed, opened.started)
        elif pruned.has(closed, contract):
            check_pruned(case, _closing(case, closed, past, opened.started), str(opened.started.cid))
        else:
            closing = _closing(case, closed, past, opened.started)
            if not contract.closes_rounds:
                closing = _as_the_header_closed(case, closing, closed, str(opened.started.cid))
            check_closing(case, closing, str(opened.started.cid))
        # The next round needs only the result of this one.
        reader.forget(reader.path(str(opened.started.cid)))
        progress(opened.number, closed_rounds)
    if is_async:
        checker.finish()
    reader.forget()


def _closing(case: Case, closed: Round, past: History, ended: LogEntry) -> Closing:
    """Return a round as the contract recorded it."""
    if closed.closed is None:
        case.result.find(closed.number + 1, HEADER, "round", "global weights were published while it was open")
    published = {node_id: str(entry.cid) for node_id, entry in closed.latest().items()}
    spent = {} if case.plan.dp is None else budget.publications(past.publications, ended)
    openings = {entry.node_id: str(entry.cid) for entry in closed.openings if entry.node_id is not None}
    keys = {entry.node_id: str(entry.key) for entry in closed.keys if entry.node_id is not None}
    return Closing(closed.number, str(closed.started.cid), published, closed.members, spent, openings, keys)


def _as_the_header_closed(case: Case, closing: Closing, closed: Round, name: str) -> Closing:
    """Return a round of the first contract with the publications that the header used, and note the others.

    That contract let the header decide. A publication may have come while the header aggregated.

    Parameters
    ----------
    case
        The run.
    closing
        The round with the last publication of each learner.
    closed
        The events of the round.
    name
        The CID of the global file that ended it.
    """
    try:
        meta = case.file(name).global_meta
    except WeightsError:
        return closing  # reported where this file is checked
    used = {input_.node_id: input_.cid for input_ in meta.inputs}
    used |= {rejection.node_id: rejection.cid for rejection in meta.refused}
    made = {(entry.node_id, entry.cid) for entry in closed.published}
    published = {}
    for node_id, last in closing.published.items():
        if (node_id, used.get(node_id)) in made:
            published[node_id] = used[node_id]
        elif node_id in meta.absent:
            text = f"round {closing.number}: {learner_label(node_id)} published {last}, but the header left it out"
            case.result.note(text, LEFT_OUT, closing.number, learner_label(node_id))
        else:
            published[node_id] = last
    return replace(closing, published=published)


def _read_history(contract: Contract) -> tuple[History, State]:
    """Return the history and the state of the contract; read both again if a round started in between."""
    for _ in range(MAX_READS):
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
