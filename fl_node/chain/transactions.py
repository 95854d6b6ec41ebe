"""Transactions: signed here with the account of the role, sent, and followed into a block.

Geth needs no unlocked account for them.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from eth_account.datastructures import SignedTransaction
from eth_account.signers.local import LocalAccount
from web3 import Web3

from fl_node.chain.node import REQUEST_TIMEOUT, AlreadySent, Node, NoMethod, NonceUsed, NotYet, Underpriced
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, Reverted
from fl_node.runtime import recursion
from fl_node.runtime.waiting import wait_until

recursion.restore()

TRANSFER_GAS = 21_000
GAS_MARGIN = 1.5
"""A gas limit is so many times the estimate, for other transactions may come first. Unused gas costs nothing."""
PRIORITY_FEE = 1
MAX_FEE = 100 * 10**9
"""Fees in wei a gas: the least that a sealer takes, and a bound far above any base fee of an idle chain. Both are
higher where the chain asks for more."""
RECEIPT_PATIENCE = 10.0
RECEIPT_BLOCKS = 3
"""Seconds and blocks, whichever takes longer, after which a transaction that is in no block is given back to the
caller, who looks again."""
SEALED_PATIENCE = 120.0
SEALED_BLOCKS = 10
"""Seconds and blocks in which a contract or a transfer must be in a block: sealers may have to find each other first.
"""
READY_PATIENCE = 2.0
"""Seconds that a node has to seal or to be in sync before a transaction is given back to the caller unsent."""


@dataclass(frozen=True)
class Receipt:
    """A transaction in a block."""

    transaction: str
    block: int
    gas: int
    contract: str | None = None


class Sender(Node):
    """A node's RPC, and the account that signs."""

    def __init__(self, rpc: str, account: LocalAccount | None = None, timeout: float = REQUEST_TIMEOUT) -> None:
        super().__init__(rpc, timeout)
        self.account = account

    @property
    def address(self) -> str:
        """The address of the account that signs.

        Raises
        ------
        ConfigError
            There is no key to sign with.
        """
        if self.account is None:
            raise ConfigError("no key; set --key to the key file of an account")
        return str(self.account.address)

    def nonce(self) -> int:
        """Return the number of the account's next transaction, not counting those that wait for a block."""
        return self.quantity(self.ask(("eth_getTransactionCount", [self.address, "latest"]))[0])

    def send_noop(self) -> None:
        """Send a no-op transaction, so that some sealer makes a block.

        Two blocks of equal weight can follow one another: then each node keeps its own, and what only one of them
        holds is sealed by nobody when those who may seal have sealed it already. The next block decides. Nothing is
        sent while two transactions of the account wait as it is, nor where blocks come without transactions.
        """
        if self.pace().is_steady:
            return
        latest, pending = self.ask(*(("eth_getTransactionCount", [self.address, at]) for at in ("latest", "pending")))
        number = self.quantity(pending)
        if self.account and number - self.quantity(latest) < 2:
            with contextlib.suppress(AlreadySent, Underpriced, NonceUsed):
                self._hand_in(self._sign(self.account, self.address, "0x", TRANSFER_GAS, number))

    def send_until_sealed(
        self, what: str, to: str | None, data: Any, gas: int, *, nonce: int | None = None, value: int = 0
    ) -> Receipt:
        """Send a transaction until a block includes it.

        All attempts have the same nonce, so that the transaction counts only once. If another transaction of the
        account takes the nonce, the next attempt has a new one.

        Parameters
        ----------
        what
            What is sent, for the error message.
        to, data, gas, value
            As for :meth:`send`.
        nonce
            The transaction's number; the account's next number if None.

        Raises
        ------
        ChainError
            No block included it in time.
        ConfigError
            There is no key to sign with.
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
            f"chain at {self.rpc}: {what} is in no block after {patience:g} s; do the nodes that seal blocks run?"
        )

    def patience(self, seconds: float, blocks: int) -> float:
        """Return the seconds to wait for what takes so many seconds or so many blocks, whichever is longer."""
        return max(seconds, blocks * self.pace().seconds)

    def send(self, to: str | None, data: Any, gas: int, nonce: int, value: int = 0) -> Receipt | None:
        """Sign and send a transaction, and wait briefly for the block that includes it.

        Parameters
        ----------
        to
            The receiver's address; None deploys a contract.
        data
            The encoded call, or the contract's code.
        gas
            The gas limit; more is allowed where the chain's rules charge more.
        nonce
            The transaction's number.
        value
            The amount to transfer, in wei.

        Returns
        -------
        Receipt or None
            None if no block included it in time, or if another transaction with its number came first.

        Raises
        ------
        ConfigError
            There is no key to sign with.
        ChainError
            The node does not seal or is not in sync, or a pending transaction with the same number can't be replaced.
        """
        account = self.account
        if account is None:
            raise ConfigError("no key; set --key to the key file of an account")
        # A transaction that reaches Clique (period 0) before it seals may wait for the next one to be sealed.
        # A node that catches up with the others pauses for a moment.
        if not wait_until(self.is_ready, READY_PATIENCE, 0.01):
            reason = "the node does not seal yet" if self.is_clique else "the node is not in sync yet"
            raise ChainError(f"chain at {self.rpc}: {reason}")
        gas = self._gas(gas, {"from": account.address, "to": to, "data": data, "value": hex(value)})
        tip, fee = self._fees()
        for _ in range(20):
            signed = self._sign(account, to, data, gas, nonce, value, tip, fee)
            try:
                self._hand_in(signed)
            except Underpriced:
                # Another transaction with this number waits: ours replaces it when it pays more.
                tip, fee = tip * 5 // 4 + 1, fee * 5 // 4
                continue
            except NonceUsed:
                # This very transaction is in a block, or another that the caller does not know of yet.
                return self._receipt(signed.hash, patience=0.0)
            except AlreadySent:
                pass
            receipt = self._receipt(signed.hash, self.patience(RECEIPT_PATIENCE, RECEIPT_BLOCKS))
            if receipt is None:
                self.send_noop()
            return receipt
        raise ChainError(f"chain at {self.rpc}: can't replace a pending transaction of {account.address}")

    def _gas(self, enough: int, call: dict[str, Any]) -> int:
        """Return the gas limit of a transaction: ``enough`` by London's rules, which Clique keeps, else as estimated.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        """
        if self.is_clique:
            return enough
        try:
            (estimate,) = self.ask(("eth_estimateGas", [{key: value for key, value in call.items() if value}]))
        except ChainUnreachable:
            raise
        except ChainError:  # an embedded chain has no estimates; a transaction that is in a block is refused
            return enough
        return max(enough, int(self.quantity(estimate) * GAS_MARGIN))

    def _fees(self) -> tuple[int, int]:
        """Return the tip and the highest fee that a transaction offers now, in wei a gas."""
        tip = PRIORITY_FEE
        with contextlib.suppress(NoMethod):
            tip = max(tip, self.quantity(self.ask(("eth_maxPriorityFeePerGas", []))[0]))
        (head,) = self.ask(("eth_getBlockByNumber", ["latest", False]))
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

    def _hand_in(self, signed: SignedTransaction) -> None:
        self.ask(("eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()]))

    def _receipt(self, transaction: Any, patience: float) -> Receipt | None:
        name = "0x" + bytes(transaction).hex()
        deadline = time.monotonic() + patience
        pause = 0.004
        while not (found := self._receipt_now(name)):
            if time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 1.3, 0.1)
        if int(found["status"], 16) == 0:
            raise Reverted(f"transaction {name} failed in its block")
        contract = found["contractAddress"]
        return Receipt(
            name,
            int(found["blockNumber"], 16),
            int(found["gasUsed"], 16),
            Web3.to_checksum_address(contract) if contract else None,
        )

    def _receipt_now(self, transaction: str) -> dict[str, Any] | None:
        try:
            found, height = self.ask(("eth_getTransactionReceipt", [transaction]), ("eth_blockNumber", []))
        except NotYet:
            return None
        # Geth shows a receipt a moment before its block is the latest, which all else is read from.
        return found if found and int(found["blockNumber"], 16) <= int(height, 16) else None
