"""Signs transactions with the role's account, sends them, and waits until a block includes them.

Since transactions are signed here, Geth needs no unlocked account.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_account.datastructures import SignedTransaction
from eth_account.signers.local import LocalAccount
from web3 import Web3

from fl_node.chain.node import LATEST, REQUEST_TIMEOUT, AlreadySent, Node, NoMethod, NonceUsed, NotYet, Underpriced
from fl_node.chain.rpc import Request
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, Reverted
from fl_node.runtime import recursion
from fl_node.runtime.waiting import wait_until

recursion.restore()

TRANSFER_GAS = 21_000
GAS_MARGIN = 1.5
"""Gas limit divided by the estimate: transactions that come first can raise the cost. Unused gas costs nothing."""
PRIORITY_FEE = 1
MAX_FEE = 100 * 10**9
"""Fees in wei per gas: the least that a sealer accepts, and a limit far above the base fee of an idle chain. Both are
raised if the chain charges more."""
RECEIPT_PATIENCE = 10.0
RECEIPT_BLOCKS = 3
"""Seconds and blocks, whichever takes longer, to wait for a block with a transaction; then the caller decides again.
"""
LOOK_AGAIN = 0.5
"""Seconds after which a receipt is requested again although no block was reported."""
SEALED_PATIENCE = 120.0
SEALED_BLOCKS = 10
"""Seconds and blocks, whichever takes longer, to wait for a block with a contract or a transfer: sealers may have to
connect first."""
_TIP: Request = ("eth_maxPriorityFeePerGas", [])
READY_PATIENCE = 2.0
"""Seconds to wait for a node to seal blocks or to be in sync before a transaction is sent."""


@dataclass(frozen=True)
class Receipt:
    """A transaction in a block."""

    transaction: str
    block: int
    gas: int
    contract: str | None = None


class Sender(Node):
    """A node's RPC and the account that signs transactions."""

    def __init__(self, rpc: str, account: LocalAccount | None = None, timeout: float = REQUEST_TIMEOUT) -> None:
        super().__init__(rpc, timeout)
        self.account = account
        self._has_all_methods = True
        """Whether the node has every method of :meth:`_fees_if_ready`, as Geth with Clique does."""

    @property
    def address(self) -> str:
        """The address of the account that signs.

        Raises
        ------
        ConfigError
            No key is set.
        """
        if self.account is None:
            raise ConfigError("no key; set --key to the key file of an account")
        return str(self.account.address)

    def nonce(self) -> int:
        """Return the number of the account's next transaction, without counting pending transactions."""
        return self.quantity(self.ask(("eth_getTransactionCount", [self.address, "latest"]))[0])

    def send_noop(self) -> None:
        """Send a no-op transaction, so that a sealer creates a block.

        When two sealers create a block of equal weight at once, each keeps its own, and a transaction that only one
        of the blocks contains stays out of the other until the next block decides between them. Nothing is sent while
        two transactions of the account are pending, or if the chain creates blocks without transactions.
        """
        if self.pace().is_steady:
            return
        latest, pending = self.ask(*(("eth_getTransactionCount", [self.address, at]) for at in ("latest", "pending")))
        nonce = self.quantity(pending)
        if self.account and nonce - self.quantity(latest) < 2:
            with contextlib.suppress(AlreadySent, Underpriced, NonceUsed):
                self._submit(self._sign(self.account, self.address, "0x", TRANSFER_GAS, nonce))

    def send_until_sealed(
        self, name: str, to: str | None, data: Any, gas: int, *, nonce: int | None = None, value: int = 0
    ) -> Receipt:
        """Send a transaction until a block includes it.

        All attempts have the same nonce, so that only one of them takes effect. If another transaction of the account
        uses the nonce, the next attempt has a new one.

        Parameters
        ----------
        name
            The name of the transaction for the error message, such as "the contract".
        to, data, gas, value
            As for :meth:`send`.
        nonce
            The transaction's number; the account's next number if None.

        Raises
        ------
        ChainError
            No block included the transaction in time.
        ConfigError
            No key is set.
        """
        nonce, patience = self.nonce() if nonce is None else nonce, self.patience(SEALED_PATIENCE, SEALED_BLOCKS)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            is_used = self.nonce() > nonce
            if receipt := self.send(to, data, gas, nonce, value):
                return receipt
            if is_used:  # by another transaction of this account
                nonce = self.nonce()
        raise ChainError(
            f"chain at {self.rpc}: {name} is in no block after {patience:g} s; are the sealing nodes running?"
        )

    def patience(self, seconds: float, blocks: int) -> float:
        """Return the given seconds, or the time of so many blocks if that is longer."""
        return max(seconds, blocks * self.pace().seconds)

    def send(
        self, to: str | None, data: Any, gas: int, nonce: int, value: int = 0, *, simulate: bool = False
    ) -> Receipt | None:
        """Sign and send a transaction, and wait briefly for the block that includes it.

        Parameters
        ----------
        to
            The receiver's address; None deploys a contract.
        data
            The encoded call, or the contract's code.
        gas
            The gas limit; raised if the chain charges more.
        nonce
            The transaction's number.
        value
            The amount to transfer, in wei.
        simulate
            Call the contract without a transaction first; nothing is sent that it refuses.

        Returns
        -------
        Receipt or None
            None if no block included it in time, or if another transaction used its nonce.

        Raises
        ------
        ConfigError
            No key is set.
        ContractError
            The contract refuses the call.
        ChainError
            The node does not seal or is not in sync, or a pending transaction with the same nonce can't be replaced.
        """
        account = self.account
        if account is None:
            raise ConfigError("no key; set --key to the key file of an account")
        first: list[Request] = []
        if simulate:
            first = [("eth_call", [{"from": account.address, "to": to, "data": data}, "latest"])]
        tip, fee = self._fees_if_ready(first)
        gas = self._gas(gas, {"from": account.address, "to": to, "data": data, "value": hex(value)})
        for _ in range(20):
            signed = self._sign(account, to, data, gas, nonce, value, tip, fee)
            try:
                self._submit(signed)
            except Underpriced:
                # A pending transaction has this nonce; a higher fee replaces it.
                tip, fee = tip * 5 // 4 + 1, fee * 5 // 4
                continue
            except NonceUsed:
                # A block contains this transaction, or another that the caller does not know of yet.
                return self._receipt(signed.hash, patience=0.0)
            except AlreadySent:
                pass
            receipt = self._receipt(signed.hash, self.patience(RECEIPT_PATIENCE, RECEIPT_BLOCKS))
            if receipt is None:
                self.send_noop()
            return receipt
        raise ChainError(f"chain at {self.rpc}: can't replace a pending transaction of {account.address}")

    def _gas(self, limit: int, call: dict[str, Any]) -> int:
        """Return the gas limit of a transaction: ``limit`` on Clique (London's rules), else at least the estimate.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        """
        if self.is_clique:
            return limit
        try:
            (estimate,) = self.ask(("eth_estimateGas", [{key: value for key, value in call.items() if value}]))
        except ChainUnreachable:
            raise
        except ChainError:  # no estimates on an embedded chain, or for a transaction that is in a block already
            return limit
        return max(limit, int(self.quantity(estimate) * GAS_MARGIN))

    def _fees_if_ready(self, first: Sequence[Request]) -> tuple[int, int]:
        """Return the tip and the maximum fee that a transaction offers now, in wei per gas.

        Parameters
        ----------
        first
            Requests to make before, in the same batch if possible; their errors are raised.

        Raises
        ------
        ChainError
            The node does not seal or is not in sync.
        """
        if self._has_all_methods:
            try:
                *_, is_mining, tip, head = self.ask(*first, ("eth_mining", []), _TIP, LATEST)
                if is_mining is True:
                    return self._fees(tip, head)
            except NoMethod:
                self._has_all_methods = False
        if first:
            self.ask(*first)
        # A transaction that reaches Clique (period 0) before the node seals may stay pending until the next one.
        # A node that syncs pauses for a moment.
        if not wait_until(self.is_ready, READY_PATIENCE, 0.01):
            reason = "the node does not seal yet" if self.is_clique else "the node is not in sync yet"
            raise ChainError(f"chain at {self.rpc}: {reason}")
        tip = None
        with contextlib.suppress(NoMethod):
            (tip,) = self.ask(_TIP)
        return self._fees(tip, self.ask(LATEST)[0])

    def _fees(self, suggested: str | None, head: Any) -> tuple[int, int]:
        tip = PRIORITY_FEE if suggested is None else max(PRIORITY_FEE, self.quantity(suggested))
        base = self.quantity(head["baseFeePerGas"]) if head and "baseFeePerGas" in head else 0
        return tip, max(MAX_FEE, 2 * base + tip)

    def _sign(
        self,
        account: LocalAccount,
        to: str | None,
        data: Any,
        gas: int,
        nonce: int,
        value: int = 0,
        tip: int = PRIORITY_FEE,
        fee: int = MAX_FEE,
    ) -> SignedTransaction:
        transaction: dict[str, Any] = {
            "type": 2,
            "chainId": self.chain_id(),
            "nonce": nonce,
            "gas": gas,
            "maxPriorityFeePerGas": tip,
            "maxFeePerGas": fee,
            "value": value,
            "data": data,
        }
        if to is not None:
            transaction["to"] = to
        return account.sign_transaction(transaction)

    def _submit(self, signed: SignedTransaction) -> None:
        self.ask(("eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()]))

    def _receipt(self, transaction: Any, patience: float) -> Receipt | None:
        hash_ = "0x" + bytes(transaction).hex()
        deadline = time.monotonic() + patience
        pause = 0.004
        while True:
            mark = self.news.mark() if self.news is not None and self.news.is_alive else None
            if receipt := self._sealed_receipt(hash_):
                break
            if time.monotonic() >= deadline:
                return None
            if self.news is None or mark is None:
                time.sleep(pause)
                pause = min(pause * 1.3, 0.1)
            else:
                self.news.wait(mark, LOOK_AGAIN)
        if self.quantity(receipt.get("status")) == 0:
            raise Reverted(f"transaction {hash_} failed in its block")
        contract = receipt.get("contractAddress")
        return Receipt(
            hash_,
            self.quantity(receipt.get("blockNumber")),
            self.quantity(receipt.get("gasUsed")),
            Web3.to_checksum_address(contract) if contract else None,
        )

    def _sealed_receipt(self, transaction: str) -> dict[str, Any] | None:
        try:
            receipt, height = self.ask(("eth_getTransactionReceipt", [transaction]), ("eth_blockNumber", []))
        except NotYet:
            return None
        # Geth returns a receipt a moment before its block is the latest block, from which the state is read.
        is_there = receipt and self.quantity(receipt.get("blockNumber")) <= self.quantity(height)
        return receipt if is_there else None
