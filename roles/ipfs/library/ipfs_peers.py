#!/usr/bin/python
"""Connect an IPFS node to the other nodes of its swarm."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ipfs_peers
short_description: Connect an IPFS node to the other nodes of its swarm
description:
  - Dials the peers that it is not connected to; in check mode it only looks.
  - Returns C(missing), addresses without a connection, and C(strangers), connected peers that are not among C(peers).
options:
  peers:
    description: The multiaddresses of all other nodes, each with its identity.
    type: list
    elements: str
    required: true
  repository:
    description: The repository's folder.
    type: path
    default: /var/lib/ipfs
  user:
    description: The local user that owns it.
    type: str
    default: ipfs
"""


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "peers": {"type": "list", "elements": "str", "required": True},
            "repository": {"type": "path", "default": "/var/lib/ipfs"},
            "user": {"type": "str", "default": "ipfs"},
        },
        supports_check_mode=True,
    )
    wanted = {address.rpartition("/")[2]: address for address in module.params["peers"]}
    missing = [address for peer, address in sorted(wanted.items()) if peer not in connected(module)]
    changed = bool(missing)
    if missing and not module.check_mode:
        for address in missing:
            ask(module, "swarm", "connect", address)
        missing = [address for peer, address in sorted(wanted.items()) if peer not in connected(module)]
    strangers = sorted(connected(module) - set(wanted))
    module.exit_json(changed=changed, missing=missing, strangers=strangers)


def connected(module):
    """Return the identities of the connected nodes; two that dialled each other at once have two connections."""
    code, output, error = ask(module, "swarm", "peers")
    if code != 0:
        module.fail_json(msg="IPFS does not answer: " + error.strip().rpartition("\n")[2])
    return {line.rpartition("/")[2] for line in output.split()}


def ask(module, *arguments):
    """Ask the node; return exit code, output and error."""
    prefix = ["timeout", "20", "runuser", "--user=" + module.params["user"], "--"]
    environment = ["env", "IPFS_PATH=" + module.params["repository"]]
    return module.run_command([*prefix, *environment, "ipfs", *arguments])


if __name__ == "__main__":
    main()
