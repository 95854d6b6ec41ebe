"""Creates the header and the learner for the mode of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fl_node import events
from fl_node.chain.abi import OPEN_MASKS, SET_GLOBAL_WEIGHT, SET_LOCAL_WEIGHT
from fl_node.errors import ConfigError
from fl_node.models.trainer import MakeTrainer, Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol.reader import Reader
from fl_node.roles import policy
from fl_node.roles.arrivals import Arrivals
from fl_node.roles.asynchronous import Asynchronous, AsynchronousLearner
from fl_node.roles.attack import check_allowed
from fl_node.roles.ending import Ending
from fl_node.roles.header import Header, standing_by
from fl_node.roles.impasse import Lookout
from fl_node.roles.learner import Learner
from fl_node.roles.local_training import Record
from fl_node.roles.loop import Done, Site, Waiting, fetch_plan, reconcile
from fl_node.roles.strategy import Context
from fl_node.roles.synchronous import Synchronous
from fl_node.runtime.logs import emit


def run_header(site: Site, make_trainer: MakeTrainer, *, evaluate: bool = True, standby: bool = False) -> None:
    """Lead a run until it ends, as long as the contract names this account as its header.

    Parameters
    ----------
    site
        The header's node, with the account that deployed the contract; of a standby, a learner's account.
    make_trainer
        Called with the plan, once; returns the plan's model.
    evaluate
        Say after each round what the global weights reach on the test images.
    standby
        Wait until the contract names a learner's account as the header; the model is loaded only then.

    Raises
    ------
    ConfigError
        The account is not the one that deployed the contract, and no standby is wanted.
    FLNodeError
        Another permanent error, such as a wrong plan or a call that the contract reverts.
    """
    if not standby and (owner := site.contract.deployer()) != site.chain.address:
        raise ConfigError(
            f"contract {site.contract.address}: its header is {owner}; --key has {site.chain.address}; "
            "a learner's host can take over with --standby"
        )
    state = site.contract.state()
    if not standby and state.header != site.chain.address:
        emit(events.HeaderReplaced(round=state.round, header=str(state.header)))
    header: list[Header] = []
    ending: list[Ending] = []
    lookout: list[Lookout] = []

    def step() -> Waiting | None:
        if not header:
            plan = fetch_plan(site)
            if not ending:
                reader = Reader(site.store, site.folder, plan)
                ending.append(Ending(site, plan, lambda _round, name: reader.read(name)))
                lookout.append(Lookout(site, plan, reader))
            if (waiting := wait_as_standby(site, ending[0], lookout[0])) is not None:
                return waiting
            if standby:
                emit(events.HeaderTakenOver(round=site.contract.round()))
            site.prefetch(plan, SET_LOCAL_WEIGHT, OPEN_MASKS)
            header.append(header_of(site, plan, make_trainer(plan), evaluate=evaluate))
        return header[0].step()

    try:
        reconcile(site, step)
    finally:
        for one in header:
            one.close()
        site.close()


def wait_as_standby(site: Site, ending: Ending, lookout: Lookout) -> Waiting | None:
    """Return the reason why a standby waits, without the plan's model; None if its account is the header.

    Parameters
    ----------
    site
        The standby's node.
    ending
        Tells when the run ends.
    lookout
        Tells whether it can go on.

    Raises
    ------
    Done
        The run has ended.
    RunStuck
        The run can never go on.
    """
    state = site.contract.state()
    is_last = ending.is_last(state)
    if is_last and (waiting := ending.wait_for_attestations(state)) is None:
        emit(events.RunFinished(round=state.round))
        raise Done
    if state.header == site.chain.address:
        return None
    return waiting if is_last else lookout.wait(state) or standing_by(site, state)


def header_of(site: Site, plan: Plan, trainer: Trainer, *, evaluate: bool) -> Header:
    """Return the header for the plan's mode.

    Parameters
    ----------
    site
        The header's node.
    plan
        The run's plan.
    trainer
        The plan's model.
    evaluate
        Whether to measure each round's global weights on the test images.
    """
    reader = Reader(site.store, site.folder, plan, trainer.shapes())
    arrivals = Arrivals(site.store, reader, plan.fetch_timeout, site.ring)
    context = Context(site, plan, site.contract.plan(), trainer, reader, arrivals)
    return Header(context, (Asynchronous if plan.mode == "async" else Synchronous)(context), evaluate=evaluate)


def run_learner(
    site: Site,
    make_trainer: MakeTrainer,
    record: Record = lambda *_: None,
    *,
    allow_attacks: bool = False,
    accepts: Mapping[str, float] = MappingProxyType({}),
    accounts: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Take part in a run until it ends.

    Parameters
    ----------
    site
        The learner's node, with the account that it is registered by.
    make_trainer
        Called with the plan, once; returns the plan's model with the data to train it on.
    record
        Called with accuracy and loss in training, by epoch of the whole run, and on the test images, by round.
    allow_attacks
        Take part in a run whose plan has learners attack it, as a laboratory does.
    accepts
        What the learner's owner accepts of a plan; see :mod:`fl_node.roles.policy`.
    accounts
        The accounts that learners must be registered with, by nodeId.

    Raises
    ------
    ConfigError
        The contract, the plan or a registered account is not one that the owner accepts.
    FLNodeError
        On other permanent errors: a wrong plan, missing data, a call that the contract rejects.
    """
    learner: list[Learner] = []
    unregistered = dict(accounts)

    def step() -> Waiting | None:
        nonlocal unregistered
        if unregistered:
            unregistered = policy.check_accounts(site.contract, unregistered)
        if not learner:
            plan = fetch_plan(site)
            # Before the trainer loads data, which takes seconds.
            check_allowed(plan, allowed=allow_attacks)
            policy.check_plan(plan, accepts)
            policy.check_contract(site.contract, plan)
            verified = (SET_LOCAL_WEIGHT, OPEN_MASKS) if plan.verification == "all" else ()
            site.prefetch(plan, SET_GLOBAL_WEIGHT, *verified)
            learner.append(learner_of(site, plan, make_trainer(plan), record, allow_attacks=allow_attacks))
        return learner[0].step()

    try:
        reconcile(site, step)
    finally:
        for one in learner:
            one.close()
        site.close()


def learner_of(
    site: Site,
    plan: Plan,
    trainer: Trainer,
    record: Record = lambda *_: None,
    *,
    allow_attacks: bool = False,
    verify: bool = True,
) -> Learner:
    """Return the learner for the plan's mode.

    Parameters
    ----------
    site
        The learner's node.
    plan
        The run's plan.
    trainer
        The plan's model, with the data to train it on.
    record
        Called with each figure; see :data:`fl_node.roles.local_training.Record`.
    allow_attacks
        Whether to take part in a run whose plan has an attack.
    verify
        Recompute global weights if the plan wants it; False where one process plays all roles.

    Raises
    ------
    ConfigError
        The plan has an attack, and it is not allowed.
    """
    kind = AsynchronousLearner if plan.mode == "async" else Learner
    return kind(site, plan, trainer, record, allow_attacks=allow_attacks, verify=verify)
