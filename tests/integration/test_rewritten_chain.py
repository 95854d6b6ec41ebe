"""Two of three sealers rewrite the chain: the journals of the roles show it, and the audit names what differs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fl_node.audit.journals import REPLACED, SEALERS_CHANGED
from fl_node.chain.client import Chain
from fl_node.chain.keys import load_key
from fl_node.nodes.geth import GethNode
from fl_node.protocol import journal
from fl_node.protocol.names import HEADER, learner_name
from fl_node.runtime.waiting import wait_until
from tests.helpers.runs import Run, World, plan
from tests.helpers.sealing import HANG, block_hash, has_peers, initialised, send, started

LIARS, HONEST = (HEADER, "learner-1"), "learner-2"
PLAN = plan(learners=2, rounds=2, min_learners=1, round_timeout=1.0, fetch_timeout=1.0)


class GethWorld(World):
    """Three Geth nodes in place of the embedded chain; all that a test does goes through one of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sealing = {name: self.accounts[name] for name in (*LIARS, HONEST)}
        others = [account for name, account in self.accounts.items() if name not in sealing]
        (folder / "geth").mkdir()
        self.nodes = initialised(folder / "geth", sealing, others)

    @contextlib.contextmanager
    def up(self, *names: str) -> Iterator[None]:
        """Run some of the nodes, and wait until they see one another."""
        nodes = {name: self.nodes[name] for name in names}
        logs = self.folder / "geth"
        options = ("--http.api", "eth,net,web3,clique")
        with started(nodes, lambda _, other: nodes[other].enode, logs, options):
            assert all(has_peers(Chain(node.rpc), len(names) - 1) for node in nodes.values())
            yield

    def use(self, name: str) -> None:
        """From now on go through this node."""
        self.rpc = self.nodes[name].rpc

    def seen_by(self, name: str, run: Run) -> Run:
        """Return a run as another node sees it."""
        self.use(name)
        return Run(self, run.plan, run.address, run.folder, run.trainer)

    def seal(self, name: str, blocks: int) -> None:
        """Have so many blocks sealed, by transactions to a node."""
        chain = Chain(self.nodes[name].rpc, load_key(self.keys["mallory"]))
        for _ in range(blocks):
            send(chain)


def rounds(run: Run) -> list[str | None]:
    return [run.contract.global_weight_at(number) for number in range(PLAN.rounds + 1)]


def finish(run: Run) -> None:
    with ExitStack() as stack:
        for role in [stack.enter_context(run.header()), *(stack.enter_context(run.learner(n)) for n in (1, 2))]:
            role.finish()


def leave_learner_2_out(run: Run) -> None:
    """Play the run again without learner 2, by the accounts of the header and of learner 1."""
    contract = run.as_node(HEADER)
    for _ in range(PLAN.rounds):
        (local,) = run.publish_locals(1)
        assert wait_until(lambda: contract.close_round(contract.chain.nonce()) is not None, HANG, 0.1)
        run.publish_global(run.average([local], absent=[2]))


@pytest.mark.nightly
def test_the_audit_names_what_two_of_three_sealers_have_rewritten(tmp_path: Path) -> None:
    world = GethWorld(tmp_path)
    with world.up(*LIARS, HONEST):
        world.use(HONEST)
        run = world.deploy(PLAN)
        started_at = Chain(world.rpc).block_number()
        assert wait_until(lambda: all(at(world.nodes[name]) >= started_at for name in LIARS), HANG, 0.1)
    for name in LIARS:
        shutil.copytree(world.nodes[name].folder / "geth", tmp_path / f"old-{name}")

    with world.up(*LIARS, HONEST):
        finish(run)
        before = rounds(run)
        honest = run.audit()
        assert (honest.findings, honest.passed) == ([], True)
        assert not [note for note in honest.notes if note.code in {SEALERS_CHANGED, REPLACED}]
        height = at(world.nodes[HONEST])

    for name in LIARS:
        shutil.rmtree(world.nodes[name].folder / "geth")
        (tmp_path / f"old-{name}").rename(world.nodes[name].folder / "geth")
    with world.up(*LIARS):
        leave_learner_2_out(world.seen_by(HEADER, run))
        # They also take the third sealer's right away, and seal until theirs is the heavier chain.
        for name in LIARS:
            Chain(world.nodes[name].rpc).ask(("clique_propose", [world.nodes[HONEST].sealer, False]))
        world.seal(HEADER, 2 * height)
        head = at(world.nodes[HEADER])

    with world.up(*LIARS, HONEST):
        honest_chain, lying = (Chain(world.nodes[name].rpc) for name in (HONEST, HEADER))
        assert wait_until(lambda: block_hash(honest_chain, head) == block_hash(lying, head), HANG, 0.1)
        run = world.seen_by(HONEST, run)
        assert rounds(run)[0] == before[0] and rounds(run)[1:] != before[1:]
        audited = run.audit()
        # Learner 2's journal alone would do; the liars' journals recorded the same before they lied.
        by_learner_2 = [finding for finding in audited.findings if finding.node == "learner 2"]
        assert [(finding.round, finding.field) for finding in by_learner_2] == [(1, "journal"), (2, "journal")]
        for number, finding in enumerate(by_learner_2, 1):
            assert str(before[number]) in finding.message and str(rounds(run)[number]) in finding.message
        assert {finding.field for finding in audited.findings} == {"journal"}, "only the journals show it"
        (note,) = [note for note in audited.notes if note.code == SEALERS_CHANGED]
        assert "removed" in note
        assert world.nodes[HONEST].sealer in note.lower()
        kept = journal.read(run.folder / learner_name(2) / "role" / journal.FILE)
        assert not kept.problem


def at(node: GethNode) -> int:
    return Chain(node.rpc).block_number()
