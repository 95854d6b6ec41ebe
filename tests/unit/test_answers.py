"""The forms of a node's answers."""

from __future__ import annotations

from typing import Any

import pytest

from fl_node.chain import answers

ADDRESS, HASH = "0x" + "Ab" * 20, "0x" + "0c" * 32
LOG = {
    "address": ADDRESS,
    "blockHash": HASH,
    "blockNumber": "0x10",
    "data": "0x",
    "logIndex": "0x0",
    "removed": False,
    "topics": [HASH, HASH],
    "transactionHash": HASH,
    "transactionIndex": "0x1",
}
BLOCK = {"number": None, "hash": None, "timestamp": "0x5", "extraData": "0x00", "transactions": [], "sha3Uncles": 7}
RECEIPT = {"from": ADDRESS, "to": None, "blockNumber": "0x1", "gasUsed": "0x5208", "contractAddress": None}
TRANSACTION = {"from": ADDRESS, "to": None, "nonce": "0x0", "input": "0x60", "blockNumber": None}
WRONG = [5, True, 1.5, "", "x", "0xzz", "0x-1", "0x0\n", "0x" + "f" * 65, [], {"a": 1}]
RIGHT = [
    ("eth_getLogs", []),
    ("eth_getLogs", [LOG]),
    ("eth_getBlockByNumber", None),
    ("eth_getBlockByNumber", BLOCK),
    ("eth_getTransactionReceipt", RECEIPT),
    ("eth_getTransactionByHash", TRANSACTION),
    ("eth_getCode", "0x"),
    ("eth_somethingElse", {"a": [1]}),
]


@pytest.mark.parametrize(("method", "result"), RIGHT)
def test_what_a_node_answers_is_right(method: str, result: Any) -> None:
    answers.check(method, result)


@pytest.mark.parametrize("value", [None, *WRONG])
@pytest.mark.parametrize("field", [field for field in LOG if field != "removed"])
def test_a_log_with_a_wrong_field_is_named(field: str, value: Any) -> None:
    if (field, value) == ("topics", []):
        return  # the contract of the run decides whether an event may have none
    for entry in (LOG | {field: value}, {name: LOG[name] for name in LOG if name != field}):
        with pytest.raises(ValueError, match=field):
            answers.check("eth_getLogs", [LOG, entry])


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    ("method", "result", "field"),
    [
        *(("eth_getBlockByNumber", BLOCK, field) for field in ("number", "hash", "timestamp", "extraData")),
        *(("eth_getTransactionReceipt", RECEIPT, field) for field in ("from", "to", "blockNumber", "gasUsed")),
        *(("eth_getTransactionByHash", TRANSACTION, field) for field in ("from", "nonce", "input")),
    ],
)
def test_an_object_with_a_wrong_field_is_named(method: str, result: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        answers.check(method, result | {field: value})


@pytest.mark.parametrize("method", sorted({method for method, _ in RIGHT[:-1]}))
@pytest.mark.parametrize("result", [5, "x", [5], [[]], True, {}])
def test_what_is_of_another_type_is_named(method: str, result: Any) -> None:
    with pytest.raises(ValueError, match=method):
        answers.check(method, result)
