"""Roles that a test steps one by one, on a chain that can lose its newest blocks."""

from __future__ import annotations

import threading
from pathlib import Path

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract, LogEntry
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ChainError, ContractError, StoreError, WeightsError
from fl_node.nodes.dev_chain import EmbeddedChain, _Server
from fl_node.plan.schema import Plan
from fl_node.protocol.names import HEADER, learner_name, standby_name
from fl_node.roles.deploy import deploy
from fl_node.roles.factory import header_of, learner_of
from fl_node.roles.header import Header
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Site, Timing
from tests.helpers.clock import FakeClock
from tests.helpers.stub import StubTrainer

MOST_STEPS = 600
"""Steps in which a run that nothing disturbs any more must end; it takes about forty."""


class Network:
    """A chain that can lose its newest blocks, as in a reorganisation, and the roles of one run on it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        learner_names = [learner_name(node_id) for node_id in range(1, plan.learners + 1)]
        self.learners = tuple(learner_names)
        self.nodes = (HEADER, *learner_names)
        self.role_names = (*self.nodes, *(standby_name(n) for n in range(1, plan.learners + 1)))
        self.store = FolderStore(folder / "store")
        self.keys = {node: folder / f"{node}.key" for node in self.nodes}
        self.accounts = [create_key(path) for path in self.keys.values()]
        self.blocks = folder / "blocks-0"
        self.server = _Server(0, EmbeddedChain(self.blocks, self.accounts))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.rpc = f"http://127.0.0.1:{self.server.server_port}"
        learners = dict(enumerate(self.accounts[1:], 1))
        deployed = deploy(self.chain("header"), self.store, folder / "deploy", plan, learners, StubTrainer(plan))
        self.contract = deployed.address
        self.floor = self.height()
        self.reorganisations = 0
        self.lies = 0
        self.clock = FakeClock()
        self.roles: dict[str, Header | Learner] = {}

    def chain(self, node: str) -> Chain:
        return Chain(self.rpc, load_key(self.keys[node.replace("standby", "learner")]))

    def as_node(self, node: str) -> Contract:
        return self.chain(node).contract(self.contract)

    def height(self) -> int:
        return self.chain("header").block_number()

    def log(self) -> list[LogEntry]:
        return list(self.as_node("header").log())

    def role(self, node: str) -> Header | Learner:
        """Return the process of a node: a new one if it was killed or has ended."""
        if node not in self.roles:
            folder = self.folder / node
            folder.mkdir(exist_ok=True)
            contract = self.as_node(node)
            site = Site(
                contract.chain,
                contract,
                self.store,
                folder,
                timing=Timing(clock=self.clock),
                secret=self.folder / f"{node}.secret",
            )
            trainer = StubTrainer(self.plan)
            is_learner = node.startswith("learner")
            self.roles[node] = (
                learner_of(site, self.plan, trainer)
                if is_learner
                else header_of(site, self.plan, trainer, evaluate=False)
            )
        return self.roles[node]

    def step(self, node: str) -> bool:
        """Let a role look once and do the next thing; return whether its run has ended."""
        try:
            self.role(node).step()
        except Done:
            self.kill(node)
            return True
        except ContractError:
            raise
        except (ChainError, StoreError, WeightsError):
            pass  # as the loop of the roles does, it looks again
        return False

    def kill(self, node: str) -> None:
        role = self.roles.pop(node, None)
        if role is not None:
            role.close()

    def let_learners_close_the_round(self) -> bool:
        """Let the learners do their work, and return whether the round is closed."""
        for node in self.learners * 10:
            if self.as_node("header").state().closed:
                return True
            self.step(node)
        return False

    def lie(self) -> None:
        """Publish, as the header, global weights that leave every learner out."""
        state = self.as_node("header").state()
        start = model_file.read(self.folder / "store" / str(state.global_cid))
        self.lies += 1
        path = self.folder / f"lie-{self.lies}.safetensors"
        meta = GlobalMeta(start.global_meta.plan, state.round + 1, start.cid, "fedavg")
        lie = model_file.write(path, meta, start.tensors())
        node = dict(zip(self.accounts, self.nodes, strict=True))[str(state.header)]
        header = self.as_node(node)
        header.set_global_weight(self.store.add(lie.path), header.chain.nonce())

    def lose_blocks(self, count: int) -> None:
        """Go on from an older block; the transactions of those after it are lost, and their senders do not know."""
        kept = max(self.height() - count, self.floor)
        lines = self.blocks.read_text().splitlines(keepends=True)[:kept]
        self.reorganisations += 1
        self.blocks = self.folder / f"blocks-{self.reorganisations}"
        self.blocks.write_text("".join(lines))
        with self.server.lock:
            self.server.chain = EmbeddedChain(self.blocks, self.accounts)

    def finish(self) -> str:
        """Disturb nothing any more, and return the CID of the final weights."""
        waiting = set(self.role_names)
        for _ in range(MOST_STEPS):
            waiting -= {node for node in sorted(waiting) if self.step(node)}
            if not waiting:
                return str(self.as_node("header").global_weight_at(self.plan.rounds))
        raise AssertionError(f"{sorted(waiting)} have not ended after {MOST_STEPS} steps; the log: {self.log()}")

    def close(self) -> None:
        for node in self.role_names:
            self.kill(node)
        self.server.shutdown()
        self.server.server_close()
