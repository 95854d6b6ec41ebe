"""A role's access to the chain: a node's RPC, the role's account, and contracts."""

from __future__ import annotations

from dataclasses import astuple

from web3 import Web3

from fl_node.artifacts import cid
from fl_node.chain.abi import encoder
from fl_node.chain.contract import Contract, Terms
from fl_node.chain.transactions import TRANSFER_GAS, Receipt, Sender
from fl_node.errors import ChainError, ConfigError
from fl_node.runtime import recursion

recursion.restore()

DEPLOY_GAS = 4_000_000


class Chain(Sender):
    """The chain through one node, with the account that signs; deploys and opens contracts."""

    def deploy(self, plan_cid: str, terms: Terms, nonce: int | None = None) -> Receipt:
        """Deploy the contract for a plan; the account that signs becomes its header.

        Parameters
        ----------
        plan_cid
            The CID of the plan.
        terms
            The plan's settings that the contract enforces.
        nonce
            The transaction's number; the account's next number if None.

        Raises
        ------
        ChainError
            No block included the transaction in time.
        """
        with self.errors():
            data = encoder().constructor(cid.to_digest(plan_cid), astuple(terms)).data_in_transaction
        return self.send_until_sealed("the contract", None, data, DEPLOY_GAS, nonce=nonce)

    def transfer(self, address: str, wei: int) -> Receipt:
        """Transfer ether from this account to another.

        Raises
        ------
        ChainError
            No block included the transaction in time, or the account owns too little.
        """
        if (owned := self.balance(self.address)) <= wei:
            raise ChainError(f"chain at {self.rpc}: {self.address} owns {owned} wei, too little to send {wei}")
        receiver = Web3.to_checksum_address(address)
        return self.send_until_sealed(f"the transfer to {address}", receiver, "0x", TRANSFER_GAS, value=wei)

    def contract(self, address: str) -> Contract:
        """Return the contract at an address.

        Raises
        ------
        ChainError
            There is no contract of this kind at the address.
        ConfigError
            The text is not an address.
        """
        if not address.startswith("0x") or not Web3.is_address(address):
            raise ConfigError(f"contract {address!r} should be an address, 0x and 40 hexadecimal digits")
        with self.errors():
            code = self.web3.eth.get_code(Web3.to_checksum_address(address))
        if not code:
            raise ChainError(f"chain at {self.rpc}: no contract at {address}")
        return Contract(self, Web3.to_checksum_address(address))
