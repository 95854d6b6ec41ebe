"""Checks registrations, the signers of all events, and whether the contract agrees with its log.

A forged contract could write anything into its log before it gets the right code.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_node.audit.result import Audit
from fl_node.chain.contract import Contract, State
from fl_node.plan.schema import Plan
from fl_node.protocol.history import History
from fl_node.protocol.names import HEADER, learner_label


def check_senders(contract: Contract, past: History, state: State, result: Audit) -> None:
    """Check the log of a run's contract.

    Parameters
    ----------
    contract
        The run's contract.
    past
        The run's history from the log.
    state
        The state of the contract, read after the log.
    result
        Receives findings and notes.
    """
    _check_state(contract, past, state, result)
    _check_signers(contract, past, result)


def _check_state(contract: Contract, past: History, state: State, result: Audit) -> None:
    """Compare the contract's functions with the log, from which the audit takes the history."""
    rounds = past.rounds
    if rounds and state.round != len(rounds) - 1:
        result.find(None, HEADER, "round", f"is {state.round} in the contract, {len(rounds) - 1} in its log")
    for past_round in rounds:
        if contract.global_weight_at(past_round.number) != past_round.started.cid:
            result.find(past_round.number, HEADER, "globalWeightAt", "differs from the log")
    # In the current round a learner may publish again at any time.
    for past_round in rounds[:-1]:
        for node_id, entry in past_round.latest().items():
            if contract.local_weight_at(past_round.number, node_id) != entry.cid:
                result.find(past_round.number, learner_label(node_id), "localWeightAt", "differs from the log")


def _check_signers(contract: Contract, past: History, result: Audit) -> None:
    """Check that the account that may cause an event signed its transaction."""
    learners = {node_id: str(entry.account) for node_id, entry in past.learners.items()}
    rounds = (*past.rounds, *past.withdrawn)
    by_header = [*past.learners.values(), *(past_round.started for past_round in rounds)]
    by_learners = [entry for past_round in rounds for entry in (*past_round.attestations, *past_round.rejections)]
    by_learners += [entry for past_round in rounds for entry in (*past_round.openings, *past_round.keys)]
    by_learners += [*past.publications, *past.first_keys]
    events = [(entry, HEADER, past.header_at(entry)) for entry in by_header]
    events += [
        (entry, learner_label(node_id), learners[node_id])
        for entry in by_learners
        if (node_id := entry.node_id) in learners
    ]
    sealed = contract.chain.sealed(entry.transaction for entry, _, _ in events)
    for entry, node, account in events:
        transaction = sealed.get(entry.transaction)
        if transaction and (transaction.sender, transaction.receiver) != (account, contract.address):
            actual = f"{entry.name}'s transaction is from {transaction.sender} to {transaction.receiver}"
            result.find(entry.round, node, "sender", f"{actual}; should be from {account} to {contract.address}")
    if unknown := sum(entry.transaction not in sealed for entry, _, _ in events):
        result.note(f"the senders of {unknown} transactions were not checked: the node has not indexed them")


def check_registrations(plan: Plan, past: History, accounts: Mapping[int, str], result: Audit) -> None:
    """Check that the plan has a shard for each learner, and that learners have the expected accounts.

    The contract refuses other nodeIds; a contract with other code may not. The accounts show whether the header
    registered accounts of its own.

    Parameters
    ----------
    plan, past
        The run's plan and history.
    accounts
        The expected accounts of learners, by nodeId, where the auditor knows them.
    result
        Receives findings and notes.
    """
    for node_id, entry in past.learners.items():
        if node_id in accounts:
            result.compare(None, learner_label(node_id), "account", entry.account, accounts[node_id])
        if not 1 <= node_id <= plan.learners:
            shards = f"the plan has shards for learners 1 to {plan.learners}"
            result.find(None, learner_label(node_id), "registered", shards)
