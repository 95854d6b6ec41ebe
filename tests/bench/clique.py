"""How soon a transaction is seen on another node of a Clique network of three."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from fl_node.chain.client import Chain
from fl_node.chain.transactions import MAX_FEE, PRIORITY_FEE
from fl_node.errors import ProcessError
from fl_node.protocol.names import learner_name
from tests.bench.nodes import nodes
from tests.bench.results import Part, Row, percentile, say

PAUSE = 0.002
PATIENCE = 60.0
COLD = 50
TRANSFER_GAS = 21_000


def measure(*, quick: bool) -> Part:
    """Send transactions from alternating nodes, from a cold start on, and then with one sealer down."""
    part = Part("Clique: seconds until a transaction is seen on another node, three sealers")
    count, down = (150, 20) if quick else (1000, 100)
    with nodes(2) as network:
        chains = [network.chain(name) for name in network.names]
        say(f"{count} transactions from alternating nodes, from a cold start on")
        times = _send(chains, count)
        part.rows += _rows(f"{count} transactions", times, 0.05, 0.1)
        part.rows.append(Row(f"the first {COLD} of them, the slowest", max(times[:COLD]), "s", 1.0))
        gone = learner_name(2)
        network.backend.children[f"{gone} geth"].stop()
        say(f"{down} transactions with one sealer down")
        rest = [chain for name, chain in zip(network.names, chains, strict=True) if name != gone]
        times = _send(rest, down)
        part.rows += _rows(f"{down} transactions with one sealer down", times, None, None)
    return part


def _send(chains: Sequence[Chain], count: int) -> list[float]:
    nonces = [chain.nonce() for chain in chains]
    times = []
    for number in range(count):
        sender = number % len(chains)
        times.append(_seconds_until_seen(chains[sender], chains[(sender + 1) % len(chains)], nonces[sender]))
        nonces[sender] += 1
    return times


def _seconds_until_seen(sender: Chain, observer: Chain, nonce: int) -> float:
    """Send a transaction and return the seconds until its block is the latest of another node."""
    assert sender.account is not None
    signed = sender.account.sign_transaction(
        {
            "type": 2,
            "chainId": sender.chain_id(),
            "nonce": nonce,
            "gas": TRANSFER_GAS,
            "maxPriorityFeePerGas": PRIORITY_FEE,
            "maxFeePerGas": MAX_FEE,
            "value": 0,
            "to": sender.address,
        }
    )
    start = time.monotonic()
    sender.ask(("eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()]))
    # The count is read from the observer's latest block, as are the roles' calls.
    count = ("eth_getTransactionCount", [sender.address, "latest"])
    while int(observer.ask(count)[0], 16) <= nonce:
        if time.monotonic() - start > PATIENCE:
            raise ProcessError(f"a transaction is not seen after {PATIENCE:g} s")
        time.sleep(PAUSE)
    return time.monotonic() - start


def _rows(name: str, times: Sequence[float], median: float | None, tail: float | None) -> list[Row]:
    detail = {"count": len(times), "mean": statistics.fmean(times)}
    return [
        Row(f"{name}, p50", statistics.median(times), "s", median, detail),
        Row(f"{name}, p99", percentile(times, 99), "s", tail),
        Row(f"{name}, the slowest", max(times), "s", 1.0),
    ]
