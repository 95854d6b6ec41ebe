"""Values that could not be written to a host's configuration, each named in one line before any host is touched."""

import re

import pytest
import yaml

from tests.helpers.checkout import ROOT, load

module = load("ansible/filter_plugins/variable_problems.py")

KEY = "0123456789abcdef" * 4


def problems(**variables):
    return module.variable_problems(["a", "b"], {"a": variables, "b": variables})


GOOD = {
    "ipfs_swarm_key": ["", KEY, KEY.upper()],
    "testbed_bundle_sha256": ["", KEY],
    "geth_port": [1, 65535, "30304"],
    "geth_metrics_port": [0],
    "geth_rpc_users": [["root", "fl-node", 1000, "1000", "jan.kowalski", "_apt"]],
    "base_extra_open_ports": [[], [80, "443"]],
    "base_packages": [["ca-certificates", "g++", "libstdc++6"]],
    "testbed_apt_mirror": ["", "http://mirror.example/debian", "https://me:secret@[::1]:8080/x"],
    "testbed_binaries_mirror": ["", "https://mirror.example", "/srv/my mirror", "file:///srv"],
    "testbed_data_dir": ["", "/srv/my data"],
    "testbed_modules": [[], ["/srv/my module.py"]],
    "fl_node_ids": [[], [3, 1], list(range(1, 129))],
    "fl_node_cpu_quota": ["", "25%", "150%"],
    "fl_node_memory_max": ["", "700M", "2G", "20%"],
    "fl_node_dashboard_listen": ["127.0.0.1", "0.0.0.0", "::1"],
    "fl_node_rpc": ["http://127.0.0.1:8545"],
    "fl_node_store": ["/ip4/127.0.0.1/tcp/5001"],
    "base_peers": [["10.0.0.1"]],
}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_can_be_used_is_taken(variable, value):
    assert problems(**{variable: value}) == []


BAD = {
    "ipfs_swarm_key": [
        KEY[:-1],
        KEY + "0",
        KEY[:-1] + "g",
        KEY + "\n",
        " " + KEY,
        "0x" + KEY[2:],
        "0" * 64,
        int("1" * 64),
        f"/key/swarm/psk/1.0.0/\n/base16/\n{KEY}\n",
        "１" * 64,
        True,
        None,
        [KEY],
    ],
    "testbed_bundle_sha256": [KEY[:-1], "sha256:" + KEY, KEY + "\n", int("1" * 64), None],
    "geth_port": [0, 65536, -1, "", "80; accept", "8545 ", 1.5, True, None, [1], "٣"],
    "geth_chain_id": [0, "0x1", 2**64],
    "geth_rpc_users": ["root", [], ["root }; accept"], ["a b"], [""], [None], [-1], ["Root"], ["x\ny"], [2**32]],
    "ipfs_api_users": [["root, nobody"], {"root": 1}],
    "fl_node_dashboard_users": [["*"], ["!="]],
    "base_extra_open_ports": [80, "80", ["80-90"], [0], [True]],
    "base_packages": ["nftables", ["nftables; reboot"], ["-y"], ["$(id)"], []],
    "base_peers": [["10.0.0.300"], ["lab.example"], ["10.0.0.0/8"], ["::1"], []],
    "testbed_apt_mirror": [
        "mirror.example",
        "http://",
        "http://a b/",
        'http://a";x',
        "http://a\nb",
        "http://a:x/",
        7,
    ],
    "testbed_http_proxy": ["http://proxy:99999", "socks5://proxy", 'http://p";\nAPT::x "y'],
    "testbed_binaries_mirror": ["ftp://a", "http://a b"],
    "testbed_data_dir": ["/srv\n/data", 7, None, "/srv\r"],
    "testbed_modules": ["/srv/x.py", [7], ["/srv\n"]],
    "fl_node_ids": [3, "1, 2", [0], ["one"], [1001]],
    "fl_node_memory_max": ["700", "700 M", "0G", "1G\nUser=root", 700],
    "fl_node_cpu_quota": ["25", "0%", "25%\nUser=root", 25],
    "fl_node_dashboard_listen": ["localhost", "127.0.0.1 --x", "fe80::1%eth0", ""],
    "fl_node_rpc": ["http://127.0.0.1:8545; id", "http://$(id)", "http://`id`", "", "127.0.0.1:8545"],
    "fl_node_store": ["http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001 x", "/ip4/1.2.3.4/tcp/99999", "/srv/files"],
}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_can_not_be_used_is_named_with_what_would_be_right(variable, value):
    (problem,) = problems(**{variable: value})
    assert problem.startswith(f"{variable} ")
    assert "should" in problem or "quotes" in problem
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "\n", f"/key/swarm/psk/1.0.0/\n/base16/\n{KEY}\n", int("1" * 63)])
def test_no_part_of_a_secret_is_shown(key):
    (problem,) = problems(ipfs_swarm_key=key)
    assert "0123" not in problem
    assert "1111" not in problem


def test_no_password_of_a_proxy_is_shown():
    assert "secret" not in problems(testbed_http_proxy="http://me:secret@proxy:99999")[0]


def test_a_key_that_only_one_host_has_is_refused():
    lines = module.variable_problems(["a", "b"], {"a": {"ipfs_swarm_key": KEY}, "b": {}})
    assert lines == ["ipfs_swarm_key differs between hosts: should be the same on all of them"]


def test_a_mistake_of_one_host_names_it():
    assert module.variable_problems(["a", "b"], {"a": {"geth_port": 0}, "b": {"geth_port": 1}}) == [
        "geth_port is 0: should be a whole number from 1 to 65535 (on a)"
    ]


def test_two_services_on_one_port_are_named():
    assert problems(testbed_rpc_port=8551) == [
        "testbed_rpc_port and geth_authrpc_port are both 8551: each needs a port of its own"
    ]


def test_a_host_whose_name_could_not_be_written_to_a_unit_is_named():
    assert len(module.variable_problems(["50%h x"], {"50%h x": {}})) == 1


def test_every_variable_that_a_role_takes_is_checked():
    taken = set()
    for role in ("base", "controller", "geth", "ipfs", "fl_node"):
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
        options = specs["argument_specs"]["main"]["options"]
        # Ansible itself checks these.
        taken |= {name for name, option in options.items() if option["type"] != "bool" and "choices" not in option}
    # Names of groups, and what other roles found out.
    apart = {"geth_group", "ipfs_group", "geth_accounts", "controller_platforms"}
    assert taken - apart - set(module.CHECKS) == set()


def options(*names):
    return load("ansible/filter_plugins/option_problems.py").option_problems(str(ROOT), names)


def test_options_and_variables_that_the_playbooks_know_are_taken():
    known = [
        "fl_plan",
        "fl_settings",
        "testbed_data_dir",
        "base_packages",
        "geth_port",
        "fl_node_dashboard",
        "node_id",
    ]
    assert options(*known, "ansible_user", "vm_memory", "site_rack") == []


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("plan", "fl_plan"),
        ("run", "fl_run"),
        ("confirm", "fl_confirm"),
        ("settings", "fl_settings"),
        ("setting", "fl_settings"),
        ("fl_scenarios", "fl_scenario"),
        ("testbed_datadir", "testbed_data_dir"),
        ("geth_ports", "geth_port"),
    ],
)
def test_a_wrong_name_is_named_with_the_right_one(wrong, meant):
    (problem,) = options("fl_run", wrong)
    assert problem.startswith(f"-e {wrong}: ")
    assert problem.endswith(f"{meant}?")


def test_a_name_that_is_like_no_other_is_named_with_those_there_are():
    (problem,) = options("rounds")
    assert problem.startswith("-e rounds: ")
    assert "fl_settings" in problem
    assert "site_" in problem


def test_every_option_of_the_playbooks_is_in_use_and_none_is_without_a_prefix():
    content = "".join(path.read_text() for path in (ROOT / "ansible").rglob("*.yml"))
    path = ROOT / "ansible" / "filter_plugins" / "option_problems.py"
    names = re.findall(r'^    "(fl_\w+)",$', path.read_text(), re.MULTILINE)
    assert names
    used = set(re.findall(r"\bfl_(?!node_)[a-z_]+\b", content))
    assert set(names) <= used
    assert set(re.findall(r"-e ([a-z]\w*)=", content)) - {
        "testbed_bundle",
        "testbed_data_dir",
        "testbed_bundle_sha256",
    } <= set(names)
