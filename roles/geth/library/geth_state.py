#!/usr/bin/python
"""Read the state of a Geth node on its host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.geth_ipc import GethError, balance, call, signers

DOCUMENTATION = """
module: geth_state
short_description: Read the state of a Geth node
description: >-
  Returns C(genesis) (the hash of block 0), C(height), C(peers), C(mining), C(signers), and C(without_ether), those of
  the C(accounts) that own none. Changes nothing.
options:
  accounts:
    description: Accounts whose balance to look at.
    type: list
    elements: str
    default: []
  ipc:
    description: Geth's socket.
    type: path
    default: /var/lib/geth/geth.ipc
"""


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "accounts": {"type": "list", "elements": "str", "default": []},
            "ipc": {"type": "path", "default": "/var/lib/geth/geth.ipc"},
        },
        supports_check_mode=True,
    )
    ipc = module.params["ipc"]
    try:
        module.exit_json(
            changed=False,
            genesis=call(ipc, "eth_getBlockByNumber", "0x0", False)["hash"],
            height=int(call(ipc, "eth_blockNumber"), 16),
            peers=int(call(ipc, "net_peerCount"), 16),
            mining=call(ipc, "eth_mining"),
            signers=signers(ipc),
            without_ether=[account for account in module.params["accounts"] if balance(ipc, account) == 0],
        )
    except GethError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
