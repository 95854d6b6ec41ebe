"""Chains to run the contract on, and a contract on each."""

import ast
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from deployment import ACCOUNTS, CLASS, HEADER, Deployment, Terms, sha, with_learners
from eth.vm.forks import LondonVM
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_utils import to_canonical_address
from web3 import EthereumTesterProvider, Web3
from web3.types import RPCEndpoint, RPCResponse

from fl_node.chain.client import Chain
from fl_node.errors import ChainError
from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.backends import free_ports
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from fl_node.nodes.process import Child
from fl_node.runtime.waiting import wait_until

BALANCE = 10**24
GETH_PATIENCE = 600


class _Provider(EthereumTesterProvider):
    """eth-tester that reports a revert as Geth does: a JSON-RPC error with the revert's data."""

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        try:
            return super().make_request(method, params)
        except TransactionFailed as error:
            reason = str(error).removeprefix("execution reverted: ")
            # eth-tester hands on the bytes of a revert as their repr.
            data = ast.literal_eval(reason) if reason.startswith(("b'", 'b"')) else b""
            return {
                "jsonrpc": "2.0",
                "id": 0,
                "error": {"code": 3, "message": "execution reverted", "data": "0x" + data.hex()},
            }


@contextmanager
def _py_evm(funded: Sequence[str]) -> Iterator[Web3]:
    """py-evm with London's rules, a block for each transaction."""
    state = {
        to_canonical_address(address): {"balance": BALANCE, "nonce": 0, "code": b"", "storage": {}}
        for address in funded
    }
    backend = PyEVMBackend(genesis_state=state, vm_configuration=((0, LondonVM),))
    yield Web3(_Provider(EthereumTester(backend)))


@contextmanager
def _geth(funded: Sequence[str]) -> Iterator[Web3]:
    """Real Geth, one sealer alone, where it is installed."""
    binary = binaries.find(binaries.GETH)
    if binary is None:
        pytest.skip("Geth is not installed: make binaries")
    with tempfile.TemporaryDirectory() as name:
        node = GethNode(Path(name) / "node")
        node.prepare()
        node.p2p_port, node.http_port = free_ports(2)
        genesis_file = Path(name) / "genesis.json"
        genesis_file.write_text(genesis(CHAIN_ID, [node.sealer], funded))
        init = Child("geth init", node.init_command(binary, genesis_file), Path(name) / "init.log")
        assert init.process.wait(GETH_PATIENCE) == 0, init.tail()
        child = Child("geth", node.command(binary, []), Path(name) / "geth.log")
        try:
            chain = Chain(node.rpc)

            def seals() -> bool:
                try:
                    return chain.is_ready()
                except ChainError:
                    return False

            assert wait_until(seals, GETH_PATIENCE), child.tail()
            yield chain.web3
        finally:
            child.stop()


# A chain is a context manager that takes the addresses to fund and yields a Web3; all else is the chain's own.
CHAINS: dict[str, Callable[[Sequence[str]], AbstractContextManager[Web3]]] = {"py-evm": _py_evm, "geth": _geth}


@pytest.fixture(scope="session", params=list(CHAINS))
def w3(request: pytest.FixtureRequest) -> Iterator[Web3]:
    """A chain on which every account of ``deployment`` has ether."""
    with CHAINS[request.param]([one.address for one in (*ACCOUNTS.values(), *CLASS.values())]) as chain:
        # eth_call is charged to an account on py-evm, so it can't be the zero address.
        chain.eth.default_account = HEADER.address
        yield chain


@pytest.fixture
def wait_until_time(w3: Web3) -> Callable[[int], None]:
    """A function that returns when the next block is of this time or a later one."""

    def wait(time_: int) -> None:
        if isinstance(w3.provider, EthereumTesterProvider):
            tester = w3.provider.ethereum_tester
            if tester.get_block_by_number("pending")["timestamp"] < time_:
                tester.time_travel(time_)
        else:
            # No longer than the terms of a test say.
            assert wait_until(lambda: time.time() > time_, GETH_PATIENCE)

    return wait


@pytest.fixture
def deployed(w3: Web3) -> Deployment:
    """A contract that was just deployed; its rounds never close."""
    return Deployment(w3)


@pytest.fixture
def registered(deployed: Deployment) -> Deployment:
    """A contract with alice as node 1 and bob as node 2, but no global weights; its rounds never close."""
    return with_learners(deployed)


@pytest.fixture
def started(registered: Deployment) -> Deployment:
    """A contract with two learners in round 0; its rounds never close."""
    registered.write(HEADER, "setGlobalWeight", sha("initial"))
    return registered


@pytest.fixture
def synchronous(w3: Web3) -> Deployment:
    """A contract with two learners in round 0, which closes when both have published."""
    run = with_learners(Deployment(w3, Terms()))
    run.write(HEADER, "setGlobalWeight", sha("initial"))
    return run
