"""What must hold on every host: chain, swarm, firewall, keys, units."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.helpers import port_scan

from .conftest import ADDRESSES, NAMES, Testbed

UNITS = ["geth", "ipfs", "fl-header", "fl-learner"]

LONG = 240.0
"""Seconds in which a host is as it should be again, however busy the machine is."""

SCAN = Path(port_scan.__file__).read_text()


def unit_of(name: str) -> str:
    return "fl-header" if name == "header" else "fl-learner"


# Chain


def test_one_genesis_and_all_hosts_may_seal(provisioned: Testbed) -> None:
    hashes = {provisioned.ask(name, "eth.getBlock(0).hash") for name in NAMES}
    assert len(hashes) == 1
    sealers = {
        json.loads(provisioned.host(name).file("/var/lib/geth/public.json").content_string)["sealer"]
        for name in NAMES
    }
    for name in NAMES:
        assert set(json.loads(provisioned.ask(name, "JSON.stringify(clique.getSigners())"))) == sealers
        assert provisioned.ask(name, "eth.mining") is True


def test_each_host_has_all_others_as_peers_and_nobody_else(provisioned: Testbed) -> None:
    nodes = {
        name: json.loads(provisioned.host(name).file("/var/lib/geth/public.json").content_string)["node"]
        for name in NAMES
    }
    for name in NAMES:
        peers = json.loads(provisioned.ask(name, "JSON.stringify(admin.peers.map(function(p) { return p.enode }))"))
        keys = {re.match(r"enode://([0-9a-f]+)@", enode)[1] for enode in peers}  # type: ignore[index]
        assert keys == set(nodes.values()) - {nodes[name]}


# Swarm


def ipfs(host: Host, command: str, *arguments: str) -> str:
    return host.check_output(f"runuser --user=ipfs -- env IPFS_PATH=/var/lib/ipfs ipfs {command}", *arguments)


def add(host: Host, content: str) -> str:
    command = "printf %s | runuser --user=ipfs -- env IPFS_PATH=/var/lib/ipfs ipfs add --quiet --cid-version=1 -"
    return host.check_output(command, content).strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_added_on_one_host_is_read_on_every_other(provisioned: Testbed, name: str) -> None:
    content = f"from {name}"
    cid = add(provisioned.host(name), content)
    for reader in NAMES:
        assert ipfs(provisioned.host(reader), "cat %s", cid).strip() == content


def test_no_host_knows_a_public_peer(host: Host) -> None:
    assert ipfs(host, "bootstrap list") == ""
    peers = ipfs(host, "swarm peers").split()
    assert len({peer.rpartition("/")[2] for peer in peers}) == len(NAMES) - 1
    assert {peer.split("/")[2] for peer in peers} < set(ADDRESSES.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_node_tells_others_its_address_of_the_inventory_alone(provisioned: Testbed, name: str) -> None:
    told = json.loads(ipfs(provisioned.host(name), "id"))["Addresses"]
    assert {address.rpartition("/p2p/")[0] for address in told} == {f"/ip4/{ADDRESSES[name]}/tcp/4001"}


def test_a_daemon_without_the_swarm_key_gets_nothing(provisioned: Testbed) -> None:
    cid = add(provisioned.host("header"), "for members alone")
    host = provisioned.host("learner-1")
    peer = ipfs(provisioned.host("header"), "id --format=%s", "<id>").strip()
    script = f"""
set -e
export IPFS_PATH=/tmp/stranger IPFS_TELEMETRY=off
rm -rf $IPFS_PATH
ipfs init --empty-repo >/dev/null
ipfs bootstrap rm --all >/dev/null
ipfs config --json Addresses '{{"API": "/ip4/127.0.0.1/tcp/5901", "Gateway": [], "Swarm": ["/ip4/0.0.0.0/tcp/4901"]}}'
ipfs config --json AutoConf.Enabled false
ipfs config --json DNS.Resolvers '{{}}'
ipfs config --json Routing '{{"Type": "none", "DelegatedRouters": []}}'
ipfs config --json Ipns.DelegatedPublishers '[]'
ipfs daemon >/tmp/stranger.log 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon || true; rm -rf $IPFS_PATH' EXIT
for i in $(seq 480); do grep -q 'Daemon is ready' /tmp/stranger.log && break; sleep 0.5; done
grep -q 'Daemon is ready' /tmp/stranger.log && echo daemon up
ipfs swarm connect /ip4/{ADDRESSES["header"]}/tcp/4001/p2p/{peer} >/dev/null 2>&1 && echo connected
# Else timeout sends its signal twice, to the process and to its group, and the second makes ipfs write a line.
timeout --foreground 8 ipfs cat {cid} 2>/dev/null && echo read
ipfs swarm peers
true
"""
    assert host.check_output("bash -c %s", script).split("\n") == ["daemon up"]


# Ports


@pytest.mark.parametrize("name", NAMES)
def test_from_another_host_only_ssh_and_the_peers_ports_are_open(provisioned: Testbed, name: str) -> None:
    neighbour = provisioned.host(NAMES[(NAMES.index(name) + 1) % len(NAMES)])
    users = {"root": "all", "fl-node": "peers", "geth": "peers", "ipfs": "peers"}
    scans = [
        f"echo {user} $(runuser --user={user} -- python3 -c %s {ADDRESSES[name]} {ports}) &"
        for user, ports in users.items()
    ]
    lines = neighbour.check_output(" ".join([*scans, "wait"]), *[SCAN] * len(scans)).splitlines()
    assert sorted(lines) == ["fl-node 22", "geth 22 30303", "ipfs 22 4001", "root 22"]


@pytest.mark.parametrize("name", NAMES)
def test_from_outside_the_inventory_only_ssh_is_open(provisioned: Testbed, name: str) -> None:
    assert port_scan.open_ports(ADDRESSES[name], port_scan.PORTS) == [22]


def test_rpc_and_api_listen_on_loopback_alone(host: Host) -> None:
    listening = host.check_output("ss --no-header --tcp --listening --numeric").splitlines()
    open_to_all = {
        line.split()[3].rpartition(":")[2]
        for line in listening
        if not re.search(r"127\.0\.0\.\d+[%\w]*:|\[::1\]:", line)
    }
    assert open_to_all <= {"22", "30303", "4001"}
    assert {"127.0.0.1:8545", "127.0.0.1:5001"} <= {line.split()[3] for line in listening}


POST = """
import json, sys, urllib.request
body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": sys.argv[1], "params": json.loads(sys.argv[2])}).encode()
request = urllib.request.Request("http://127.0.0.1:8545", body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"


def rpc(host: Host, method: str, *params: object, user: str = "root") -> dict[str, object]:
    reply = host.run(f"runuser --user={user} -- python3 -c %s %s %s", POST, method, json.dumps(params))
    return json.loads(reply.stdout) if reply.rc == 0 else {"error": reply.stderr.strip().splitlines()[-1]}


@pytest.mark.parametrize(
    "method", ["personal_listAccounts", "admin_nodeInfo", "debug_getBadBlocks", "clique_propose", "miner_stop"]
)
def test_what_governs_a_node_is_not_served(provisioned: Testbed, method: str) -> None:
    assert "does not exist" in str(rpc(provisioned.host("header"), method)["error"])


def test_other_local_users_do_not_reach_the_rpc(host: Host) -> None:
    assert "result" in rpc(host, "eth_blockNumber", user="fl-node")
    assert "error" in rpc(host, "eth_blockNumber", user="nobody")


API = """
import sys, urllib.request
for command in sys.argv[1:]:
    try:
        urllib.request.urlopen("http://127.0.0.1:5001/api/v0/" + command, b"", timeout=20).read()
        print(command)
    except OSError:
        pass
"""


def test_ipfs_obeys_no_local_user_but_those_of_the_testbed(host: Host) -> None:
    harmless = ["id", "config?arg=Addresses.API", "repo/stat"]
    for user in ("fl-node", "fl-dashboard", "ipfs", "root"):
        asked = host.check_output(f"runuser --user={user} -- python3 -c %s %s %s %s", API, *harmless)
        assert asked.split("\n") == harmless, user
    before = host.check_output("systemctl show ipfs --property=MainPID --value")
    asked = host.run("runuser --user=nobody -- python3 -c %s %s repo/gc shutdown", API, "config?arg=Bootstrap&arg=x")
    assert (asked.rc, asked.stdout) == (0, "")
    assert host.check_output("systemctl show ipfs --property=MainPID --value") == before


LISTENERS = """
import socket, subprocess
for line in subprocess.run(["ss", "-Hltn"], stdout=subprocess.PIPE, text=True).stdout.splitlines():
    address, _, port = line.split()[3].rpartition(":")
    if address == "127.0.0.11":
        continue  # Docker's own names
    everywhere = address in ("*", "0.0.0.0", "[::]")
    for at in ("127.0.0.1", "::1") if everywhere else (address.partition("%")[0].strip("[]"),):
        try:
            socket.create_connection((at, int(port)), 5).close()
            print(port)
        except OSError:
            pass
"""


def test_another_local_user_reaches_ssh_and_nothing_else(host: Host) -> None:
    reached = host.check_output("runuser --user=nobody -- python3 -c %s", LISTENERS).split()
    assert set(reached) <= {"22", "53"}, "besides SSH and names"


# The firewall


FIREWALL = "/usr/local/lib/fl-testbed/fl-firewall"


def test_the_firewall_survives_whatever_is_done_to_nftables(provisioned: Testbed) -> None:
    host = provisioned.host("learner-1")
    for verb in ("start", "reload", "restart", "stop"):
        host.check_output("systemctl %s nftables", verb)
        assert host.check_output(f"{FIREWALL} check") == "complete", verb
    for unit in ("fl-firewall", "geth", "ipfs"):
        assert host.service(unit).is_running


def test_a_firewall_that_is_gone_is_said_and_comes_back(
    provisioned: Testbed, eventually: Callable[[Callable[[], Any], float], Any]
) -> None:
    host = provisioned.host("learner-1")
    # Else it may be back before anybody has looked.
    host.check_output("systemctl stop fl-firewall-watch && nft flush ruleset")
    try:
        checks = json.loads(host.run("runuser --user=fl-node -- fl-node doctor --json").stdout)
        (firewall,) = [check for check in checks if check["what"] == "firewall"]
        assert firewall["state"] == "wrong"
        status = provisioned.play("status")
        assert status.code != 0
        assert "firewall not complete: the table inet fl_testbed is missing" in re.sub(r"\s+", " ", status.output)
    finally:
        host.check_output("systemctl start fl-firewall-watch")
    assert eventually(lambda: host.run(f"{FIREWALL} check").rc == 0, LONG)


def test_with_an_unknown_user_in_the_rules_nothing_starts_and_nothing_is_open(provisioned: Testbed) -> None:
    host = provisioned.host("learner-1")
    host.check_output(
        "echo add rule inet fl_testbed output meta skuid stranger reject >/etc/fl-testbed/firewall.d/x.nft"
    )
    try:
        # As at a boot: stopped, no table, then everything is to start.
        host.check_output("systemctl stop fl-firewall")
        assert host.run("nft list table inet fl_testbed").rc != 0
        assert host.run("systemctl start geth ipfs").rc != 0
        for unit in ("fl-firewall", "geth", "ipfs"):
            assert not host.service(unit).is_running
        assert host.run(f"{FIREWALL} check").stdout.startswith("not complete: the rules are not loaded")
        open_ports = provisioned.host("learner-2").check_output(f"python3 -c %s {ADDRESSES['learner-1']} peers", SCAN)
        assert open_ports == "22"
    finally:
        host.check_output("rm /etc/fl-testbed/firewall.d/x.nft; systemctl start fl-firewall geth ipfs")
    assert host.check_output(f"{FIREWALL} check") == "complete"


def test_the_sealing_account_can_not_be_spent(provisioned: Testbed) -> None:
    host = provisioned.host("learner-1")
    account = json.loads(host.file("/var/lib/geth/public.json").content_string)["sealer"]
    assert rpc(host, "eth_getCode", account, "latest")["result"] == "0xfe"
    cheap = {
        "from": account,
        "to": account,
        "value": "0x0",
        "gas": "0x5208",
        "maxFeePerGas": "0x8",
        "maxPriorityFeePerGas": "0x1",
    }
    rpc(host, "eth_sendTransaction", cheap, user="fl-node")
    host.check_output("runuser --user=fl-node -- fl-node fund --always --ether 0.001 %s", "0x" + "12" * 20)
    assert rpc(host, "eth_getTransactionCount", account, "latest")["result"] == "0x0"


# Logins


def test_a_key_is_the_only_way_in(host: Host) -> None:
    offered = host.run(
        "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o PreferredAuthentications=none "
        "vagrant@127.0.0.1 true || true"
    )
    assert "Permission denied (publickey)." in offered.stderr
    for user in ("vagrant", "root"):
        assert host.check_output("passwd --status %s", user).split()[1] == "L"


BOXES = {
    "cloud-init's file": "echo PasswordAuthentication yes >sshd_config.d/50-cloud-init.conf",
    "no folder of files": "sed -i '/^Include/d' sshd_config; rm -r sshd_config.d",
    "its own first": "sed -i '1i PasswordAuthentication yes\\nPermitRootLogin yes' sshd_config",
    "a user's own": "printf 'Match User vagrant\\nPasswordAuthentication yes\\n' >>sshd_config",
}


@pytest.mark.parametrize("box", BOXES)
def test_whatever_a_box_comes_with_keys_alone_are_left(provisioned: Testbed, box: str) -> None:
    script = (provisioned.root / "vagrant" / "authorize.sh").read_text()
    # In its own view of /etc, so that the host stays as it is.
    inside = f"""set -e
mount --make-rprivate /
cp -a /etc /tmp/box && mount --bind /tmp/box /etc && cd /etc/ssh
systemctl() {{ :; }}
echo vagrant:vagrant | chpasswd
rm -f sshd_config.d/*
{BOXES[box]}
for time in first second; do (
{script}
) || exit 1; done
passwd --status vagrant
sshd -T -C user=vagrant,host=x,addr=192.0.2.1 | grep -E '^(password|kbdinteractive)authentication|^permitrootlogin'
"""
    host = provisioned.host("learner-2")
    key = (provisioned.root / ".vagrant" / "testbed_key.pub").read_text().strip()
    output = host.run(
        "unshare --mount --propagation private bash -c %s authorize.sh %s; rm -rf /tmp/box", inside, key
    ).stdout
    assert output.split("\n")[0].startswith("vagrant L ")
    assert set(output.strip().split("\n")[1:]) == {
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin no",
    }


# Keys


@pytest.mark.parametrize(
    ("file", "user"),
    [
        ("/var/lib/fl-node/role.key", "fl-node"),
        ("/var/lib/geth/nodekey", "geth"),
        ("/var/lib/geth/password", "geth"),
        ("/var/lib/ipfs/swarm.key", "ipfs"),
        ("/var/lib/ipfs/config", "ipfs"),
    ],
)
def test_private_keys_are_their_services_alone(host: Host, file: str, user: str) -> None:
    key_file = host.file(file)
    assert (key_file.user, oct(key_file.mode)) == (user, "0o600")


def test_the_keystore_is_geths_alone(host: Host) -> None:
    (name,) = host.check_output("ls /var/lib/geth/keystore").split()
    key_file = host.file(f"/var/lib/geth/keystore/{name}")
    assert (key_file.user, oct(key_file.mode)) == ("geth", "0o600")
    assert oct(host.file("/var/lib/geth").mode) == "0o700"


def test_no_key_is_in_the_journal(host: Host) -> None:
    journal = host.check_output("journalctl --no-pager --output=cat")
    for file in ("/var/lib/fl-node/role.key", "/var/lib/geth/nodekey", "/var/lib/geth/password"):
        assert host.check_output("cat %s", file).strip() not in journal


# Units


@pytest.mark.parametrize("name", NAMES)
def test_units_have_users_of_their_own_and_little_exposure(provisioned: Testbed, name: str) -> None:
    host = provisioned.host(name)
    units = [("geth", "geth"), ("ipfs", "ipfs"), (unit_of(name), "fl-node")]
    units += [("fl-dashboard", "fl-dashboard") if name == "header" else ("fl-standby", "fl-node")]
    for unit, user in units:
        assert host.check_output("systemctl show %s --property=User --value", unit) == user
        # A standby header is started with its learner.
        assert host.service(unit).is_enabled or unit == "fl-standby"
        verdict = host.check_output("systemd-analyze security %s --no-pager | tail -1", unit)
        exposure = re.search(r": ([\d.]+) ", verdict)
        assert exposure is not None, verdict
        assert float(exposure[1]) <= 4.0, verdict


def test_libraries_are_compiled_already_for_a_role_can_not_keep_what_it_compiles(host: Host) -> None:
    for module in ("tensorflow/python/framework/ops", "keras/src/models/model", "fl_node/roles/header"):
        folder, _, name = module.rpartition("/")
        compiled = f"/opt/fl-node/venv/lib/python3*/site-packages/{folder}/__pycache__/{name}.*.pyc"
        host.check_output(f"ls {compiled}")


def test_the_live_page_is_served_on_the_headers_loopback_and_can_read_no_key(provisioned: Testbed) -> None:
    host = provisioned.host("header")
    assert "<h1" in host.check_output("python3 -c %s %s", GET, "http://127.0.0.1:8090/")
    listening = [line.split()[3] for line in host.check_output("ss --no-header -tln").splitlines()]
    assert [address for address in listening if address.endswith(":8090")] == ["127.0.0.1:8090"]
    process = host.check_output("systemctl show fl-dashboard --property=MainPID --value")
    for file in ("/var/lib/fl-node/role.key", "/var/lib/geth/nodekey", "/var/lib/ipfs/swarm.key"):
        # As root in the page's own view of the files: they are not there for anybody.
        assert host.run("nsenter --target=%s --mount -- cat %s", process, file).rc != 0
        assert host.run("runuser --user=fl-dashboard -- cat %s", file).rc != 0
    assert not provisioned.host("learner-1").file("/etc/systemd/system/fl-dashboard.service").exists


def test_geth_and_ipfs_have_metrics_on_loopback(host: Host) -> None:
    for port in (6060, 5001):
        metrics = host.check_output("python3 -c %s %s", GET, f"http://127.0.0.1:{port}/debug/metrics/prometheus")
        assert re.search("^(p2p_peers|ipfs_p2p_peers_total)", metrics, re.MULTILINE)


@pytest.mark.parametrize("unit", ["geth", "ipfs"])
def test_a_unit_that_was_killed_comes_back(
    provisioned: Testbed, unit: str, eventually: Callable[[Callable[[], Any], float], Any]
) -> None:
    host = provisioned.host("learner-2")
    ask = "systemctl show %s --property=MainPID --value"
    before = host.check_output(ask, unit)
    host.check_output("kill -9 %s", before)
    assert eventually(
        lambda: host.check_output(ask, unit) not in ("0", before) and host.service(unit).is_running, LONG
    )


def test_nothing_has_failed(host: Host) -> None:
    assert host.check_output("systemctl --failed --no-legend") == ""


def test_logs_are_in_the_journal(host: Host) -> None:
    assert "Starting peer-to-peer node" in host.check_output("journalctl --unit=geth --no-pager --output=cat")
    assert "Daemon is ready" in host.check_output("journalctl --unit=ipfs --no-pager --output=cat")


def test_doctor_finds_nothing_wrong(host: Host, eventually: Callable[[Callable[[], Any], float], Any]) -> None:
    def checks() -> list[dict[str, str]]:
        return list(json.loads(host.run("runuser --user=fl-node -- fl-node doctor --peers 2 --json").stdout))

    # Peers of a node that was killed just now find it again after some seconds.
    eventually(lambda: all(check["state"] != "wrong" for check in checks()), LONG)
    assert [check for check in checks() if check["state"] == "wrong"] == []


def test_a_host_that_is_rebooted_comes_back_by_itself(
    provisioned: Testbed, eventually: Callable[[Callable[[], Any], float], Any]
) -> None:
    height = provisioned.ask("learner-1", "eth.blockNumber")
    provisioned.vagrant("halt", "learner-1").must()
    provisioned.vagrant("up", "learner-1", "--no-provision", "--provider=docker").must()
    provisioned.forget("learner-1")
    host = provisioned.host("learner-1")
    # SSH answers before all units have started.
    assert eventually(lambda: all(host.service(unit).is_running for unit in ("fl-firewall", "geth", "ipfs")), LONG)
    assert eventually(lambda: provisioned.ask("learner-1", "net.peerCount") == 2, LONG)
    assert provisioned.ask("learner-1", "eth.blockNumber") >= height
    started = {
        unit: int(host.check_output("systemctl show %s --property=ActiveEnterTimestampMonotonic --value", unit))
        for unit in ("fl-firewall", "geth", "ipfs")
    }
    assert started["fl-firewall"] < min(started["geth"], started["ipfs"])
    with socket.socket() as closed:
        closed.settimeout(2)
        assert closed.connect_ex((ADDRESSES["learner-1"], 8545)) != 0
