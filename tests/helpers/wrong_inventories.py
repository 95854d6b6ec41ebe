"""Inventories and variables with one mistake each, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = """testbed:
  vars: {ansible_user: vagrant}
  children:
    headers:
      hosts:
        header: {ansible_host: 192.168.56.10}
    learners:
      hosts:
        learner-1: {ansible_host: 192.168.56.11, node_id: 1}
        learner-2: {ansible_host: 192.168.56.12, node_id: 2}
"""


@dataclass(frozen=True)
class Wrong:
    """A mistake: what stands in the place of what, or a whole file, and the words that must be said of it."""

    says: tuple[str, ...]
    old: str = ""
    new: str = ""
    content: bytes | None = None
    name: str = "lab.yml"

    def file(self) -> bytes:
        """Return the inventory."""
        if self.content is not None:
            return self.content
        assert self.old in GOOD
        return GOOD.replace(self.old, self.new, 1).encode()


def settings(line: str) -> str:
    return f"vars: {{ansible_user: vagrant, {line}}}"


VARS = "vars: {ansible_user: vagrant}"
FIRST = "learner-1: {ansible_host: 192.168.56.11, node_id: 1}"
WRONG = {
    "no ansible_host": Wrong(("learner-1 has no address", "ansible_host"), "{ansible_host: 192.168.56.11, ", "{"),
    "a name and no address": Wrong(
        ("learner-1 has the address 'lab.example', which is not IPv4", "testbed_address"),
        "192.168.56.11",
        "lab.example",
    ),
    "IPv6": Wrong(("learner-1 has the address 'fd00::11', which is IPv6",), "192.168.56.11", '"fd00::11"'),
    "an address with a line end": Wrong((r"'192.168.56.11\r'",), "192.168.56.11", '"192.168.56.11\\r"'),
    "a part of an address": Wrong(("'192.168.56', which is not IPv4",), "192.168.56.11", "192.168.56"),
    "loopback": Wrong(("127.0.0.1, by which other hosts can't reach it",), "192.168.56.11", "127.0.0.1"),
    **{
        f"the address {address}": Wrong(
            (f"learner-1 has the address {address}, by which other hosts can't reach it",), "192.168.56.11", address
        )
        for address in ("0.0.0.0", "0.1.2.3", "127.8.8.8", "169.254.7.7", "224.0.0.1", "240.0.0.1", "255.255.255.255")
    },
    "one address twice": Wrong(("learner-1 and learner-2 have one address",), "56.12", "56.11"),
    "an address that is a template": Wrong(("learner-1", "address"), "192.168.56.11", '"{{ nobody }}"'),
    "no group testbed": Wrong(
        ("no group testbed", "headers and learners should be its children"), "testbed:", "lab:"
    ),
    "no headers": Wrong(("no header", "(it is in header)"), "headers:", "header:"),
    "an unknown group": Wrong(
        ("no learner", "learner-1 is in testbed", "(it is in learner)"), "    learners:", "    learner:"
    ),
    "two headers": Wrong(
        ("2 headers (header, other)",),
        "header: {ansible_host: 192.168.56.10}",
        "header: {ansible_host: 192.168.56.10}\n        other: {ansible_host: 192.168.56.9}",
    ),
    "a header that learns": Wrong(("header is in headers and in learners",), FIRST, f"{FIRST}\n        header: {{}}"),
    "a learner outside of testbed": Wrong(
        ("learner-1 is in learners, but not in testbed",),
        GOOD,
        "headers: {hosts: {header: {ansible_host: 192.168.56.10}}}\n"
        "learners: {hosts: {learner-1: {ansible_host: 192.168.56.11, node_id: 1}}}\n"
        "testbed: {children: {headers: {}}}\n",
    ),
    "a host named localhost": Wrong(("a host is named localhost", "another name"), "learner-1:", "localhost:"),
    "a host named 127.0.0.1": Wrong(("a host is named 127.0.0.1", "another name"), "learner-1:", "127.0.0.1:"),
    "a host name with a space": Wrong(("'learner 1' is not a host name",), "learner-1:", "learner 1:"),
    "a host name that is a template": Wrong(("is not a host name",), "learner-1:", '"{{ 7 }}":'),
    "a host name with a slash": Wrong(("'../x' is not a host name",), "learner-1:", "../x:"),
    "no node_id": Wrong(("learner-1 has no node_id", "1, 2, 3"), ", node_id: 1", ""),
    "node_id a text": Wrong(("learner-1 has node_id '1'", "without quotes"), "node_id: 1", 'node_id: "1"'),
    "node_id a word": Wrong(("learner-1 has node_id 'one'", "1, 2, 3"), "node_id: 1", "node_id: one"),
    "node_id zero": Wrong(("learner-1 has node_id 0",), "node_id: 1", "node_id: 0"),
    "one node_id twice": Wrong(("learner-1 and learner-2 have one node_id, 1",), "node_id: 2", "node_id: 1"),
    "node_ids a text": Wrong(
        ("learner-1 has node_ids '1, 3'", "a list, such as [1, 2, 3]"), "node_id: 1", 'node_ids: "1, 3"'
    ),
    "node_ids a number": Wrong(("learner-1 has node_ids 1: it should be a list",), "node_id: 1", "node_ids: 1"),
    "node_ids empty": Wrong(("learner-1 has node_ids []: it should be a list",), "node_id: 1", "node_ids: []"),
    "a word in node_ids": Wrong(("learner-1 has 'x' in node_ids",), "node_id: 1", "node_ids: [1, x]"),
    "a node_id twice in node_ids": Wrong(("learner-1 has node_id 1 twice",), "node_id: 1", "node_ids: [1, 1]"),
    "a node_id in two lists": Wrong(
        ("learner-1 and learner-2 have one node_id, 2",), "node_id: 1", "node_ids: [1, 2]"
    ),
    "a gap between lists": Wrong(("node_id 3 is nobody's, learner-1 has 4",), "node_id: 1", "node_ids: [1, 4]"),
    "learners without an end": Wrong(
        ("learner-1 has 1000000000000 learners: a run has at most 1000",), "node_id: 1", "learners: 1000000000000"
    ),
    "a port of SSH that is none": Wrong(
        ("learner-1 has ansible_port -1", "1 to 65535"), "node_id: 1", "node_id: 1, ansible_port: -1"
    ),
    "a port of SSH that is a truth": Wrong(
        ("learner-1 has ansible_port True", "1 to 65535"), "node_id: 1", "node_id: 1, ansible_port: true"
    ),
    "a user that is an option": Wrong(
        ("learner-1 has ansible_user '-oProxyCommand=x'",), "node_id: 1", "node_id: 1, ansible_user: -oProxyCommand=x"
    ),
    "a user with a line end": Wrong(
        ("learner-1 has ansible_user 'vagrant",), "node_id: 1", 'node_id: 1, ansible_user: "vagrant\\r"'
    ),
    "a host named like a group": Wrong(("a host is named headers", "the name of a group"), "learner-1:", "headers:"),
    "names that differ in upper case": Wrong(
        ("Learner-2 and learner-2 differ in nothing but upper case",), "learner-1:", "Learner-2:"
    ),
    "a host name that is a number": Wrong(("line 9: host 7 should be a text", "quotes"), "learner-1:", "7:"),
    "a host name that is nothing": Wrong(("line 9: host null should be a text",), "learner-1:", "null:"),
    "an empty part of a host name": Wrong(("'a..b' is not a host name",), "learner-1:", "a..b:"),
    "a host name with an umlaut": Wrong(("'lärner' is not a host name",), "learner-1:", "lärner:"),
    "learners a text": Wrong(("learner-1 has learners '3'", "without quotes"), "node_id: 1", 'learners: "3"'),
    "no learners": Wrong(("learner-1 has learners 0: it should be the number",), "node_id: 1", "learners: 0"),
    "too many learners": Wrong(
        ("learner-1 has 1001 learners: a run has at most 1000",), "node_id: 1", "learners: 1001"
    ),
    "more learners than a run has": Wrong(
        ("the hosts have 1001 learners: a run has at most 1000",), "node_id: 1", "learners: 1000"
    ),
    "node_id and learners": Wrong(
        ("learner-1 has node_id and learners: it should have one of them",), "node_id: 1", "node_id: 1, learners: 3"
    ),
    "a gap": Wrong(("node_id 2 is nobody's, learner-2 has 3",), "node_id: 2", "node_id: 3"),
    "a host twice": Wrong(("line 10", "'learner-1' stands in line 9 already"), "learner-2:", "learner-1:"),
    "hosts of a group misspelt": Wrong(
        ("group learners has 'host'",), "learners:\n      hosts:", "learners:\n      host:"
    ),
    "a list of hosts": Wrong(
        ("hosts of group headers should be a mapping",),
        "        header: {ansible_host: 192.168.56.10}",
        "        - header",
    ),
    "a tab": Wrong(("line 6 is indented by a tab", "spaces"), "        header", "\theader"),
    "not YAML": Wrong(("line 7 is not YAML",), "192.168.56.10}", "192.168.56.10"),
    "a list": Wrong(("is not a tree of groups",), content=b"- header\n- learner-1\n"),
    "empty": Wrong(("is empty",), content=b"\n"),
    "not UTF-8": Wrong(("line 1", "0xfc is not UTF-8"), content=b"# Pr\xfcfung\n" + GOOD.encode()),
    "UTF-16": Wrong(("is UTF-16", "UTF-8"), content=GOOD.encode("utf-16")),
    "a port that is none": Wrong(("testbed_geth_port is 0", "1 to 65535"), VARS, settings("testbed_geth_port: 0")),
    "a port that is a word": Wrong(("testbed_ipfs_port is 'open'",), VARS, settings("testbed_ipfs_port: open")),
    "one port twice": Wrong(
        ("testbed_geth_port and testbed_ipfs_port are both 4001",), VARS, settings("testbed_geth_port: 4001")
    ),
    "a chain id that is a word": Wrong(("testbed_chain_id is 'mine'",), VARS, settings("testbed_chain_id: mine")),
    "modules that are no list": Wrong(
        ("testbed_modules is 'mine.py'", "should be a list", 'such as ["mine.py"]'),
        VARS,
        settings("testbed_modules: mine.py"),
    ),
    "a folder with a line end": Wrong(
        (r"testbed_data_dir is '/data\r'",), VARS, settings('testbed_data_dir: "/data\\r"')
    ),
    "a folder with a space": Wrong(("testbed_ca_bundle is '/ca '",), VARS, settings('testbed_ca_bundle: "/ca "')),
    "a key that is not there": Wrong(
        ("ansible_ssh_private_key_file is /nowhere/key", "no such file"),
        VARS,
        settings("ansible_ssh_private_key_file: /nowhere/key"),
    ),
}

RIGHT = {
    "as it should be": GOOD.encode(),
    "line ends of Windows": GOOD.replace("\n", "\r\n").encode(),
    "a byte-order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "names and the address for others": GOOD.replace(
        "ansible_host: 192.168.56.11", 'ansible_host: "fd00::11", testbed_address: 192.168.56.11'
    ).encode(),
    "hosts of the site's own": (GOOD + "printers: {hosts: {paper_1: {}}}\n").encode(),
    "a name with dots": GOOD.replace("learner-1:", "room-1.lab.example:").encode(),
}
"""Inventories that nothing is wrong with."""
