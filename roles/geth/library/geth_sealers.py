#!/usr/bin/python
"""Make a list of accounts the sealers of a Clique chain, by votes."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.geth_ipc import GethError, balance, call, signers

DOCUMENTATION = """
module: geth_sealers
short_description: Vote for the sealers of a Clique chain
description:
  - Proposes on this node what makes the C(wanted) accounts the sealers. Votes count when blocks are sealed and more
    than half of the sealers agree, so first propose on all nodes, then call it with C(payer) on one node at a time.
  - With a C(payer) that owns ether it sends transactions, so that blocks are sealed, until the wanted accounts seal.
options:
  wanted:
    description: The accounts that should seal.
    type: list
    elements: str
    required: true
  payer:
    description: The account of this host that pays for transactions. Without it the module only proposes.
    type: str
  fund:
    description: The command that gives ether of the payer to the accounts in C(accounts).
    type: list
    elements: str
  accounts:
    description: Accounts that get ether first, such as those that joined.
    type: list
    elements: str
  ipc:
    description: Geth's socket.
    type: path
    default: /var/lib/geth/geth.ipc
"""

MOST_BLOCKS = 60


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "wanted": {"type": "list", "elements": "str", "required": True},
            "payer": {"type": "str"},
            "fund": {"type": "list", "elements": "str"},
            "accounts": {"type": "list", "elements": "str"},
            "ipc": {"type": "path", "default": "/var/lib/geth/geth.ipc"},
        },
        required_by={"payer": ["fund", "accounts"]},
        supports_check_mode=True,
    )
    try:
        run(module, module.params["ipc"], sorted(account.lower() for account in module.params["wanted"]))
    except GethError as error:
        module.fail_json(msg=str(error))


def run(module, ipc, wanted):
    """Propose or vote."""
    found = signers(ipc)
    if found == wanted or module.check_mode:
        module.exit_json(changed=found != wanted, signers=found)
    payer = module.params["payer"]
    if payer is None:
        for account in set(wanted) ^ set(found):
            call(ipc, "clique_propose", account, account in wanted)
        module.exit_json(changed=True, signers=found)
    if balance(ipc, payer) == 0:
        module.exit_json(changed=False, signers=found)
    fund, accounts = module.params["fund"], module.params["accounts"]
    module.run_command([*fund, *accounts], check_rc=True)
    for _ in range(MOST_BLOCKS):
        found = signers(ipc)
        if found == wanted:
            module.exit_json(changed=True, signers=found)
        module.run_command([*fund, "--always", "--ether", "0.000001", *accounts], check_rc=True)
    module.fail_json(
        msg="the sealers are {} and should be {}: more than half of them must be up to vote".format(
            ", ".join(found), ", ".join(wanted)
        )
    )


if __name__ == "__main__":
    main()
