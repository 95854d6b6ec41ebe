"""Starts a run: publishes the plan, deploys the contract, registers learners, and publishes initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fl_node import events
from fl_node.artifacts.model_file import WeightsFile
from fl_node.artifacts.store import Store
from fl_node.chain.client import Chain
from fl_node.chain.contract import MAX_REGISTRATIONS, Contract
from fl_node.errors import ChainError, ConfigError
from fl_node.models.trainer import Trainer
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.names import learners_label
from fl_node.protocol.terms import terms_of
from fl_node.roles import accounts
from fl_node.runtime import files
from fl_node.runtime.logs import emit

TRIES = 6


def deploy(
    chain: Chain, store: Store, folder: Path, plan: Plan, learners: Mapping[int, str], trainer: Trainer
) -> Contract:
    """Start a run and return its contract.

    Parameters
    ----------
    chain
        The header's node, with the header's account.
    store
        The header's store.
    folder
        For the files while they are written.
    plan
        The run's plan.
    learners
        The account of each learner, by nodeId.
    trainer
        The plan's model.

    Raises
    ------
    ConfigError
        The plan has no shard for a nodeId, the contract would not register an account, or the model has too many
        values for the plan's differential privacy.
    PlanError
        The plan lacks facts that are known only where its data are.
    ChainError
        No block included a transaction in time.
    """
    plans.check_complete(plan, f"plan {plan.name}")
    if extra := sorted(node_id for node_id in learners if not 1 <= node_id <= plan.learners):
        raise ConfigError(f"--learner {extra[0]}: the plan has shards only for learners 1 to {plan.learners}")
    accounts.check(learners, chain.address)
    if plan.learner_noise is not None:
        plan.learner_noise.check_values(sum(math.prod(shape) for shape in trainer.shapes().values()))
    folder.mkdir(parents=True, exist_ok=True)
    plan_file = folder / "plan.json"
    files.write(plan_file, plan.to_bytes())
    plan_cid = store.add(plan_file)
    emit(events.PlanStored(plan=plan.name, cid=plan_cid))
    receipt = chain.deploy(plan_cid, terms_of(plan))
    contract = chain.contract(str(receipt.contract))
    emit(events.ContractDeployed(contract=contract.address, block=receipt.block, gas=receipt.gas))
    register(contract, learners)
    if not plan.is_masked:
        start(contract, store, initial_file(folder / "global-0.safetensors", plan, plan_cid, trainer.initial()))
    # Else the header starts the run when all learners have announced their keys.
    return contract


def register(contract: Contract, learners: Mapping[int, str]) -> None:
    """Register learners that are not registered with these accounts yet, many per transaction.

    Parameters
    ----------
    contract
        The run's contract.
    learners
        The address of each learner's account, by nodeId.

    Raises
    ------
    ChainError
        No block included a transaction in time.
    """
    ordered = sorted(learners.items())
    for first in range(0, len(ordered), MAX_REGISTRATIONS):
        _register_batch(contract, dict(ordered[first : first + MAX_REGISTRATIONS]))


def _register_batch(contract: Contract, learners: Mapping[int, str]) -> None:
    for _ in range(TRIES):
        view = contract.view(contract.chain.address)
        registered = contract.accounts_of(list(learners), view.block)
        missing = {node_id: account for node_id, account in learners.items() if registered.get(node_id) != account}
        if not missing:
            return
        if contract.register_learners(missing, view.nonce) is not None:
            for node_id, account in missing.items():
                emit(events.LearnerRegistered(learner=node_id, account=account))
            return
    named = learners_label(learners)
    raise ChainError(f"the registration of {named} is in no block; are enough sealers running?")


def start(contract: Contract, store: Store, file: WeightsFile) -> None:
    """Publish the initial weights, unless the run has started.

    Parameters
    ----------
    contract
        The run's contract.
    store
        The header's store.
    file
        The file of initial weights.

    Raises
    ------
    ChainError
        No block included the transaction in time.
    """
    store.add(file.path)
    for _ in range(TRIES):
        view = contract.view(contract.chain.address)
        if view.state.started:
            return
        receipt = contract.set_global_weight(file.cid, view.nonce)
        if receipt is not None:
            emit(events.GlobalWeightsPublished(round=0, cid=file.cid, block=receipt.block, gas=receipt.gas))
            return
    raise ChainError("the initial weights are in no block; are enough sealers running?")
