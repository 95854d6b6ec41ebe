"""The genesis of a Clique network: the same for the same members, whoever makes it."""

from __future__ import annotations

import json

import pytest

from fl_node.nodes import CHAIN_ID
from fl_node.nodes.configuration import genesis
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY


def test_accounts_own_ether_and_sealers_have_code_and_own_nothing() -> None:
    content = json.loads(genesis(CHAIN_ID, [ALICE.address, BOB.address], [HEADER.address]))
    owned = {"balance": hex(10**24)}
    sealing = {"balance": "0x0", "code": "0xfe"}
    names = {owner: owner.address[2:].lower() for owner in (ALICE, BOB, HEADER)}
    assert content["alloc"] == {names[HEADER]: owned, names[ALICE]: sealing, names[BOB]: sealing}
    assert content["config"]["chainId"] == CHAIN_ID
    assert content["extraData"] == "0x" + "0" * 64 + "".join(sorted([names[ALICE], names[BOB]])) + "0" * 130


def test_the_genesis_depends_neither_on_the_order_nor_on_the_case_of_addresses() -> None:
    first = genesis(CHAIN_ID, [ALICE.address, BOB.address], [HEADER.address, MALLORY.address])
    second = genesis(CHAIN_ID, [BOB.address.lower(), ALICE.address], [MALLORY.address.lower(), HEADER.address])
    assert first == second


@pytest.mark.parametrize(
    ("sealers", "accounts"),
    [
        ([ALICE.address, ALICE.address.lower()], [HEADER.address]),
        ([ALICE.address], [HEADER.address, HEADER.address.lower()]),
        ([ALICE.address], [HEADER.address, ALICE.address.lower()]),
    ],
    ids=["two sealers", "two accounts", "sealer and account"],
)
def test_an_address_that_is_given_twice_is_refused(sealers: list[str], accounts: list[str]) -> None:
    with pytest.raises(ValueError, match="is given twice; all sealers and accounts should be different"):
        genesis(CHAIN_ID, sealers, accounts)
