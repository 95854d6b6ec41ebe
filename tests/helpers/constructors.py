"""Constructors of a deployer's own: they leave the genuine code behind, and another state or log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fl_node.chain.client import DEPLOY_GAS, Chain
from fl_node.chain.contract import Terms

STATE = 1
"""The slot of `_state`: the header's address in the lowest bytes, then ballot, votes, serials and rounds."""
VOTES = 1 << (160 + 32)
"""One vote there."""
_CODECOPY, _MSTORE, _SSTORE, _LOG, _RETURN = b"\x39", b"\x52", b"\x55", 0xA0, b"\xf3"


def _push(value: bytes) -> bytes:
    return bytes([0x5F + len(value)]) + value


def _word(number: int) -> bytes:
    return _push(number.to_bytes(32, "big"))


def genuine_code(chain: Chain, plan_cid: str, terms: Terms) -> bytes:
    """Deploy the genuine contract, and return what stands on chain."""
    address = chain.web3.to_checksum_address(str(chain.deploy(plan_cid, terms).contract))
    return bytes(chain.web3.eth.get_code(address))


def returning(runtime: bytes, before: bytes = b"") -> str:
    """Return creation code that executes something and leaves this code behind."""

    def copying(at: int) -> bytes:
        return _word(len(runtime)) + _word(at) + _word(0) + _CODECOPY + _word(len(runtime)) + _word(0) + _RETURN

    return "0x" + (before + copying(len(before) + len(copying(0))) + runtime).hex()


def storing(chain: Chain, slots: Mapping[int, int] = MappingProxyType({})) -> bytes:
    """Return code that stores what the genuine constructor does, the account as header, or other values in slots."""
    state = {STATE: int(chain.address, 16), 2: 1} | slots
    return b"".join(_word(value) + _word(slot) + _SSTORE for slot, value in state.items())


def logging(topics: Sequence[bytes], data: bytes) -> bytes:
    """Return code that puts an event into the log."""
    code = _push(data) + _word(0) + _MSTORE if data else b""
    code += b"".join(_push(one) for one in reversed(topics))
    return code + _word(len(data)) + _word(0) + bytes([_LOG + len(topics)])


def deploy(chain: Chain, code: str) -> str:
    """Deploy creation code, and return the contract's address."""
    return str(chain.send_until_sealed("the contract", None, code, DEPLOY_GAS).contract)
