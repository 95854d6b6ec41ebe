#!/usr/bin/python
"""Make a Geth node's keys on its host, and return their public part."""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: geth_keys
short_description: Make a Geth node's keys
description:
  - Makes the account that seals, its password, and the node's key, unless they are there. They never leave the host.
  - Returns the public part, C(sealer) and C(node), and keeps it in public.json.
options:
  folder:
    description: Geth's data directory.
    type: path
    default: /var/lib/geth
  user:
    description: The local user that owns it.
    type: str
    default: geth
"""


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "default": "/var/lib/geth"},
            "user": {"type": "str", "default": "geth"},
        },
        supports_check_mode=True,
    )
    folder, user = module.params["folder"], module.params["user"]
    public = os.path.join(folder, "public.json")
    if os.path.exists(public):
        with open(public) as file:
            module.exit_json(changed=False, **json.load(file))
    if module.check_mode:
        module.exit_json(changed=True)
    password, node_key = os.path.join(folder, "password"), os.path.join(folder, "nodekey")
    for path, size in ((password, 16), (node_key, 32)):
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            write(path, os.urandom(size).hex(), user)
    as_user = ["runuser", "--user=" + user, "--"]
    if not accounts(folder):
        # The password lies beside the key file, so a slow key derivation would protect nothing.
        command = ["geth", "account", "new", "--datadir", folder, "--lightkdf", "--password", password]
        module.run_command([*as_user, *command], check_rc=True, umask=0o077)
    told = {"sealer": "0x" + accounts(folder)[0].rpartition("--")[2], "node": identity(module, as_user, node_key)}
    write(public, json.dumps(told), user)
    module.exit_json(changed=True, **told)


def accounts(folder):
    """Return the key files."""
    return sorted(glob.glob(os.path.join(folder, "keystore", "UTC--*")))


def identity(module, as_user, node_key):
    """Return the public part of the node's key, which only a running Geth tells."""
    scratch = tempfile.mkdtemp()
    try:
        shutil.chown(scratch, as_user[1].partition("=")[2])
        quiet = ["--nodiscover", "--maxpeers", "0", "--port", "0", "--ipcdisable", "--authrpc.port", "0"]
        small = ["--cache", "16", "--verbosity", "0", "--exec", "admin.nodeInfo.enode", "console"]
        command = [*as_user, "geth", "--datadir", scratch, "--nodekey", node_key, *quiet, *small]
        _, output, _ = module.run_command(command, check_rc=True, data="")
    finally:
        shutil.rmtree(scratch)
    found = re.search("[0-9a-f]{128}", output)
    if found is None:
        module.fail_json(msg="Geth did not tell its identity: " + output.strip())
    return found.group(0)


def write(path, text, user):
    """Write a file that its owner alone can read, whole or not at all."""
    owner = pwd.getpwnam(user)
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchown(file.fileno(), owner.pw_uid, owner.pw_gid)
        file.write(text)
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main()
