"""The forms of a node's answers: what is checked before web3 or this package reads them.

Types and fields follow the JSON-RPC specification of Ethereum (https://ethereum.github.io/execution-apis). Fields
that nothing here reads are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
_Fields = Mapping[str, re.Pattern[str]]

_LOG: _Fields = {
    "address": ADDRESS,
    "blockHash": _HASH,
    "blockNumber": QUANTITY,
    "data": _DATA,
    "logIndex": QUANTITY,
    "transactionHash": _HASH,
    "transactionIndex": QUANTITY,
}
_BLOCK: _Fields = {
    "baseFeePerGas": QUANTITY,
    "difficulty": QUANTITY,
    "extraData": _DATA,
    "gasLimit": QUANTITY,
    "gasUsed": QUANTITY,
    "hash": _HASH,
    "miner": ADDRESS,
    "number": QUANTITY,
    "parentHash": _HASH,
    "timestamp": QUANTITY,
}
_RECEIPT: _Fields = {
    "blockHash": _HASH,
    "blockNumber": QUANTITY,
    "contractAddress": ADDRESS,
    "from": ADDRESS,
    "gasUsed": QUANTITY,
    "status": QUANTITY,
    "to": ADDRESS,
}
_TRANSACTION: _Fields = {
    "blockNumber": QUANTITY,
    "from": ADDRESS,
    "hash": _HASH,
    "input": _DATA,
    "nonce": QUANTITY,
    "to": ADDRESS,
}
_OBJECTS: Mapping[str, tuple[_Fields, frozenset[str]]] = {
    "eth_getBlockByHash": (_BLOCK, frozenset({"timestamp"})),
    "eth_getBlockByNumber": (_BLOCK, frozenset({"timestamp"})),
    "eth_getTransactionByHash": (_TRANSACTION, frozenset({"from", "nonce"})),
    "eth_getTransactionReceipt": (_RECEIPT, frozenset({"from"})),
}
"""By method the fields of its object, and those that are never missing."""


def check(method: str, result: object) -> None:
    """Check the result of a request.

    Parameters
    ----------
    method
        The method of the request.
    result
        Its result, as decoded from JSON.

    Raises
    ------
    ValueError
        It does not have the form that the specification gives the method's results; the message names the field.
    """
    if method == "eth_getLogs":
        if not isinstance(result, list):
            raise ValueError(f"{method}: should be a list of logs")
        for entry in result:
            _check_fields(f"{method}: a log", entry, _LOG, _LOG.keys())
            topics = entry.get("topics")
            if not isinstance(topics, list) or not all(_is(topic, _HASH) for topic in topics):
                raise ValueError(f"{method}: a log has invalid topics")
    elif method in _OBJECTS and result is not None:
        fields, required = _OBJECTS[method]
        _check_fields(f"{method}: the result", result, fields, required)
        for entry in _whole_transactions(result):
            _check_fields(f"{method}: a transaction", entry, _TRANSACTION, {"from", "hash", "input", "nonce"})
    elif method == "eth_getCode" and not _is(result, _DATA):
        raise ValueError(f"{method}: the result is not hexadecimal data")


def _whole_transactions(result: object) -> list[object]:
    """Return the transactions of a block that come whole; the others are hashes."""
    transactions = result.get("transactions") if isinstance(result, dict) else None
    return [entry for entry in transactions if not isinstance(entry, str)] if isinstance(transactions, list) else []


def _check_fields(name: str, value: object, fields: _Fields, required: Collection[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    for field, pattern in fields.items():
        entry = value.get(field)
        if (entry is not None or field in required) and not _is(entry, pattern):
            raise ValueError(f"{name} has an invalid {field}")


def _is(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
