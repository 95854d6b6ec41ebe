"""Who sent what: registrations, the signers of all events, and whether the contract agrees with its log.

A contract that is deployed by other code than its own can have written anything into its log before.
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
        The run's history by the log.
    state
        What the contract says of its round, read after the log.
    result
        Takes what is found.
    """
    _check_state(contract, past, state, result)
    _check_signers(contract, past, result)


def _check_state(contract: Contract, past: History, state: State, result: Audit) -> None:
    """Compare what the contract's functions answer with the log that the audit goes by."""
    rounds = past.rounds
    if rounds and state.round != len(rounds) - 1:
        result.find(None, HEADER, "round", f"is {state.round} in the contract, {len(rounds) - 1} in its log")
    for one in rounds:
        if contract.global_weight_at(one.number) != one.started.cid:
            result.find(one.number, HEADER, "globalWeightAt", "differs from the log")
    # In the round that is open a learner may publish again at any moment.
    for one in rounds[:-1]:
        for node_id, entry in one.latest().items():
            if contract.local_weight_at(one.number, node_id) != entry.cid:
                result.find(one.number, learner_label(node_id), "localWeightAt", "differs from the log")


def _check_signers(contract: Contract, past: History, result: Audit) -> None:
    """Check that each event comes of a call that was signed by who may make it."""
    learners = {node_id: str(entry.account) for node_id, entry in past.learners.items()}
    by_header = [*past.learners.values(), *(one.started for one in (*past.rounds, *past.withdrawn))]
    events = [(entry, HEADER, past.header_at(entry)) for entry in by_header]
    by_learners = [p for one in (*past.rounds, *past.withdrawn) for p in (*one.attestations, *one.rejections)]
    by_learners += [p for one in (*past.rounds, *past.withdrawn) for p in (*one.openings, *one.keys)]
    by_learners += [*past.publications, *past.first_keys]
    events += [(p, learner_label(n), learners[n]) for p in by_learners if (n := p.node_id) in learners]
    sealed = contract.chain.sealed(entry.transaction for entry, _, _ in events)
    for entry, node, account in events:
        known = sealed.get(entry.transaction)
        if known and (known.sender, known.receiver) != (account, contract.address):
            seen = f"{entry.name}'s transaction is from {known.sender} to {known.receiver}"
            result.find(entry.round, node, "sender", f"{seen}; should be from {account} to {contract.address}")
    if unknown := sum(entry.transaction not in sealed for entry, _, _ in events):
        result.note(f"the senders of {unknown} transactions were not checked: the node has not indexed them")


def check_registrations(plan: Plan, past: History, accounts: Mapping[int, str], result: Audit) -> None:
    """Check that the plan has a shard for each learner, and that its account is not one of the header's own.

    The contract refuses other nodeIds; contracts of other code may not.

    Parameters
    ----------
    plan, past
        The run's plan, and its history by the log.
    accounts
        The accounts that learners should have, by nodeId, as far as the auditor knows them.
    result
        Takes what is found.
    """
    for node_id, entry in past.learners.items():
        if node_id in accounts:
            result.compare(None, learner_label(node_id), "account", entry.account, accounts[node_id])
        if not 1 <= node_id <= plan.learners:
            shards = f"the plan has shards for learners 1 to {plan.learners}"
            result.find(None, learner_label(node_id), "registered", shards)
