"""The compiled contract: its code, its read-only functions, and its custom errors."""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

from eth_abi.exceptions import DecodingError
from web3 import Web3
from web3.contract.contract import Contract

from fl_node.artifacts import cid
from fl_node.runtime import recursion

recursion.restore()

ARTIFACT = "FederatedLearning.json"


@functools.cache
def artifact() -> dict[str, Any]:
    """Return the compiled contract (``abi`` and ``bytecode``) of this package."""
    packaged = resources.files("fl_node") / ARTIFACT
    checkout = Path(__file__).parents[2] / "contracts" / ARTIFACT
    text = packaged.read_text() if packaged.is_file() else checkout.read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@functools.cache
def encoder() -> type[Contract]:
    """Return web3's class of the contract, which encodes calls and decodes events without a node.

    Web3 takes longer to make the class than a node to answer a call, so all contracts share it.
    """
    return Web3().eth.contract(abi=artifact()["abi"], bytecode=artifact()["bytecode"])


def _selector(name: str, types: list[str]) -> bytes:
    """Return the first four bytes of a call or a custom error: the start of its signature's hash."""
    return bytes(Web3.keccak(text=f"{name}({','.join(types)})")[:4])


@functools.cache
def signatures() -> dict[str, tuple[bytes, list[str], list[str]]]:
    """Return the selector, argument types and result types of each read-only function, by name."""
    return {
        entry["name"]: (
            _selector(entry["name"], [a["type"] for a in entry["inputs"]]),
            [a["type"] for a in entry["inputs"]],
            [a["type"] for a in entry["outputs"]],
        )
        for entry in artifact()["abi"]
        if entry["type"] == "function" and entry["stateMutability"] == "view"
    }


WORD = 32
"""Bytes of an argument in a transaction's input."""
SET_LOCAL_WEIGHT, SET_GLOBAL_WEIGHT, OPEN_MASKS = "setLocalWeight", "setGlobalWeight", "openMasks"
"""The functions that publish a file."""


@functools.cache
def _publications() -> dict[bytes, tuple[str, int]]:
    """Return each function that publishes a file, and where the file's digest is in the input, by selector."""
    return {
        _selector(entry["name"], [a["type"] for a in entry["inputs"]]): (
            entry["name"],
            4 + WORD * [a["name"] for a in entry["inputs"]].index("hash"),
        )
        for entry in artifact()["abi"]
        if entry["type"] == "function" and entry["name"] in (SET_LOCAL_WEIGHT, SET_GLOBAL_WEIGHT, OPEN_MASKS)
    }


def publication(call: bytes) -> tuple[str, str] | None:
    """Return the function that a call publishes a file with, and the CID of the file; None if it publishes none.

    Parameters
    ----------
    call
        The input of the transaction: the function's selector and its arguments, 32 bytes each.
    """
    name, start = _publications().get(call[:4], ("", 0))
    digest = call[start : start + WORD]
    return (name, cid.from_digest(digest)) if name and len(digest) == WORD else None


@functools.cache
def _errors() -> dict[str, tuple[str, list[str]]]:
    """Return the name and the argument types of each custom error, by the hexadecimal digits of its selector."""
    types = {
        entry["name"]: [argument["type"] for argument in entry["inputs"]]
        for entry in artifact()["abi"]
        if entry["type"] == "error"
    }
    return {_selector(name, of).hex(): (name, of) for name, of in types.items()}


def custom_error(message: str, revert: object) -> tuple[str, str]:
    """Return the error message for a reverted call, and the name of its custom error or an empty string.

    Parameters
    ----------
    message
        The node's message; used if the data are not a custom error of the contract.
    revert
        The data of the revert, in hexadecimal digits, if the node sent them.
    """
    data = revert.removeprefix("0x") if isinstance(revert, str) else ""
    if data[:8] in _errors():
        name, types = _errors()[data[:8]]
        try:
            values = encoder().w3.codec.decode(types, bytes.fromhex(data)[4:])
        except (DecodingError, ValueError, OverflowError):  # the node's word, which may be anything
            return f"the contract reverted: {name}", name
        arguments = ", ".join(f"0x{v.hex()}" if isinstance(v, bytes) else str(v) for v in values)
        return f"the contract reverted: {name}({arguments})", name
    return f"the contract reverted: {message}", ""
