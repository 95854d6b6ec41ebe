"""A node of the testbed in a container: Geth, IPFS, and a role for each run that is deployed.

``node.py run`` runs them until Geth or IPFS ends or the container is stopped. ``node.py train PLAN``, on the header,
deploys a run for all learners, waits for its end, and writes its report below ``/var/lib/fl-node/runs``.

The nodes meet in ``/shared``: each writes its public keys there, the first one the genesis and the swarm key.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fl_node.nodes import configuration
from fl_node.nodes.geth import GethNode
from fl_node.nodes.ipfs import IpfsNode, new_swarm_key

HOME = Path("/var/lib/fl-node")
SHARED = Path("/shared")
RUNS = HOME / "runs"
GETH, IPFS = Path("/usr/local/bin/geth"), Path("/usr/local/bin/ipfs")
GETH_PORT, RPC_PORT, IPFS_PORT, API_PORT = 30303, 8545, 4001, 5001
START_PATIENCE = 300.0
END_PATIENCE = 30.0
STUCK = 10
HOPELESS = (2, 3, 6, STUCK)
"""Exit codes (``fl-node --help``): of a run that can't go on, and of all roles that would only fail again."""
PAUSE = 0.5


def main() -> None:
    """Run one of the two commands."""
    if sys.argv[1:] == ["run"]:
        sys.exit(run(os.environ["NODE"], addresses()))
    if sys.argv[1:2] == ["train"]:
        sys.exit(train(sys.argv[2:]))
    sys.exit("usage: node.py run | node.py train PLAN [options of fl-node deploy]")


def addresses() -> dict[str, str]:
    """Return the address of each node; the first one is the header. End the program if this node is not there."""
    nodes: dict[str, str] = {}
    for pair in os.environ["NODES"].split(","):
        name, _, address = pair.strip().partition("=")
        if not name or not address:
            sys.exit(f"node.py: {pair!r} in NODES should be NAME=ADDRESS")
        nodes[name] = address
    if os.environ["NODE"] not in nodes:
        sys.exit(f"node.py: {os.environ['NODE']} is not in NODES, which has {', '.join(nodes)}")
    return nodes


# What the nodes tell each other


def share(name: str, text: str) -> None:
    """Write a file for the other nodes, whole or not at all."""
    partial = SHARED / f".{name}.{os.environ['NODE']}"
    partial.write_text(text)
    partial.replace(SHARED / name)


def shared(name: str) -> str:
    """Return a file of another node as soon as it is there."""
    wait(lambda: (SHARED / name).exists(), f"{name} of another node")
    return (SHARED / name).read_text()


def wait(ready: Callable[[], bool], what: str) -> None:
    """Wait for something, and end the program if it does not come."""
    deadline = time.monotonic() + START_PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"node.py: waited {START_PATIENCE:.0f} s for {what}")
        time.sleep(PAUSE)


# The programs


def prepare(name: str, nodes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Create the node's keys and its configuration; return the commands of Geth and IPFS."""
    account = command(["fl-node", "key", os.environ["FL_NODE_KEY"]])
    geth, ipfs = GethNode(HOME / "geth"), IpfsNode(HOME / "ipfs")
    geth.p2p_port, geth.http_port, ipfs.swarm_port, ipfs.api_port = GETH_PORT, RPC_PORT, IPFS_PORT, API_PORT
    geth.prepare()
    if not ipfs.initialised:
        command(ipfs.init_command(IPFS), ipfs.environment)
    own = {
        "account": account,
        "sealer": geth.sealer,
        "enode": geth.enode.replace("127.0.0.1", nodes[name]),
        "ipfs": ipfs.address.replace("127.0.0.1", nodes[name]),
    }
    share(f"{name}.json", json.dumps(own))
    known: dict[str, dict[str, str]] = {node: json.loads(shared(f"{node}.json")) for node in nodes}
    if name == next(iter(nodes)) and not (SHARED / "genesis.json").exists():
        sealers, accounts = ([node[key] for node in known.values()] for key in ("sealer", "account"))
        share("swarm.key", new_swarm_key())
        share("genesis.json", configuration.genesis(geth.chain_id, sealers, accounts))
    shared("genesis.json")
    if not geth.initialised:
        command(geth.init_command(GETH, SHARED / "genesis.json"))
    others = [node for node in nodes if node != name]
    return geth_command(geth, [known[node]["enode"] for node in others]), ipfs_command(
        ipfs, own["ipfs"], [known[node]["ipfs"] for node in others]
    )


def geth_command(geth: GethNode, peers: Sequence[str]) -> list[str]:
    """Write Geth's configuration, which listens to the other containers, and return its command."""
    arguments = geth.command(GETH, peers)
    path = geth.folder / "config.toml"
    path.write_text(path.read_text().replace(f"127.0.0.1:{GETH_PORT}", f"0.0.0.0:{GETH_PORT}"))
    return arguments


def ipfs_command(ipfs: IpfsNode, address: str, peers: Sequence[str]) -> list[str]:
    """Write IPFS's configuration, which listens to the other containers, and return its command."""
    arguments = ipfs.command(IPFS, (SHARED / "swarm.key").read_text(), [])
    settings = configuration.Ipfs(
        folder=str(ipfs.folder),
        listen=f"/ip4/0.0.0.0/tcp/{IPFS_PORT}",
        address=address,
        api_port=API_PORT,
        peers=peers,
    ).settings
    path = ipfs.folder / "config"
    path.write_text(json.dumps(configuration.merged(json.loads(path.read_text()), settings), indent=2))
    return arguments


def command(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return its output; end the program if it fails."""
    everything = {**os.environ, **(environment or {})}
    ended = subprocess.run(words, env=everything, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"node.py: {' '.join(words[:2])}: {(ended.stderr or ended.stdout).strip()[-2000:]}")
    return ended.stdout.strip()


def listens(port: int) -> bool:
    """Return whether a program of this container accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def run(name: str, nodes: Mapping[str, str]) -> int:
    """Run the node until Geth or IPFS ends, or the container is stopped; return the exit code."""
    stopped = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stopped.set())
    geth, ipfs = prepare(name, nodes)
    swarm = {**os.environ, **configuration.ipfs_environment(str(HOME / "ipfs"))}
    started: list[subprocess.Popen[bytes] | Role] = [subprocess.Popen(geth)]
    try:
        started.append(subprocess.Popen(ipfs, env=swarm))
        wait(lambda: stopped.is_set() or all(map(listens, (RPC_PORT, API_PORT))), "Geth and IPFS")
        role = Role("header" if name == next(iter(nodes)) else "learner")
        started.append(role)
        while not stopped.wait(PAUSE):
            if any(program.poll() is not None for program in started[:2]):
                return 1  # the engine starts the container again
            role.follow(SHARED / "contract")
        return 0
    finally:
        for program in reversed(started):
            stop(program)


class Role:
    """The process of the header or a learner for the run that was deployed last."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._contract = ""
        self._process: subprocess.Popen[bytes] | None = None

    def follow(self, file: Path) -> None:
        """Start the role when there is a new contract, and again if it failed and may work the next time."""
        contract = file.read_text().strip() if file.exists() else ""
        code = self.poll()
        if contract != self._contract:
            stop(self)
            self._contract = contract
        elif code is None or code == 0 or code in HOPELESS:
            return
        if contract:
            self._process = subprocess.Popen(["fl-node", self._name, "--contract", contract])

    def poll(self) -> int | None:
        """Return the exit code, or None while the role runs or was never started."""
        return self._process.poll() if self._process else None

    def terminate(self) -> None:
        """Ask the role to end."""
        if self._process:
            self._process.terminate()

    def kill(self) -> None:
        """End the role."""
        if self._process:
            self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the role."""
        return self._process.wait(timeout) if self._process else 0


def stop(program: subprocess.Popen[bytes] | Role) -> None:
    """Ask a program to end, and end it if it does not."""
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


# Runs


def train(arguments: Sequence[str]) -> int:
    """Deploy a run for all learners, wait until it ends or can't go on, write its report; return the exit code."""
    _, *learners = addresses()
    accounts = [json.loads(shared(f"{learner}.json"))["account"] for learner in learners]
    chosen = [f"--learner={number}={account}" for number, account in enumerate(accounts, 1)]
    deploy = ["fl-node", "deploy", *arguments, f"--set=learners={len(learners)}", *chosen, "--json"]
    deployed = json.loads(command(deploy))
    contract = deployed["contract"]
    share("contract", contract)
    print(f"the contract of the run is {contract}", flush=True)
    while not (state := json.loads(command(["fl-node", "status", "--contract", contract, "--json"])))["ended"]:
        if state["stuck"]:
            print(f"the run can't go on: {state['stuck']}", flush=True)
            break
        print(f"round {state['round']}", flush=True)
        time.sleep(10)
    report = ["fl-node", "report", "--contract", contract, "--output", str(RUNS / contract)]
    code = subprocess.run(report, check=False).returncode
    return code if state["ended"] else code or STUCK


if __name__ == "__main__":
    main()
