"""Chains to run the contract on, and a contract on each."""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from deployment import ACCOUNTS, HEADER, Deployment
from eth.vm.forks import LondonVM
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_utils import to_canonical_address
from web3 import EthereumTesterProvider, Web3
from web3.types import RPCEndpoint, RPCResponse

BALANCE = 10**24


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


# A chain is a context manager that takes the addresses to fund and yields a Web3; all else is the chain's own.
CHAINS: dict[str, Callable[[Sequence[str]], AbstractContextManager[Web3]]] = {"py-evm": _py_evm}


@pytest.fixture(scope="session", params=list(CHAINS))
def w3(request: pytest.FixtureRequest) -> Iterator[Web3]:
    """A chain on which every account of ``deployment.ACCOUNTS`` has ether."""
    with CHAINS[request.param]([account.address for account in ACCOUNTS.values()]) as chain:
        # eth_call is charged to an account on py-evm, so it can't be the zero address.
        chain.eth.default_account = HEADER.address
        yield chain


@pytest.fixture
def deployed(w3: Web3) -> Deployment:
    """A contract that was just deployed."""
    return Deployment(w3)


@pytest.fixture
def registered(deployed: Deployment) -> Deployment:
    """A contract with alice as node 1 and bob as node 2, but no global weights."""
    deployed.write(HEADER, "registerLearner", 1, ACCOUNTS["alice"].address)
    deployed.write(HEADER, "registerLearner", 2, ACCOUNTS["bob"].address)
    return deployed
