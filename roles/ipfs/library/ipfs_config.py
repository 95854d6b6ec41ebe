#!/usr/bin/python
"""Put settings into the configuration of an IPFS repository on its host."""

from __future__ import annotations

import json
import os

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ipfs_config
short_description: Put settings into an IPFS repository's configuration
description:
  - A section keeps what the settings don't name, and the node its identity, whose private key never leaves the host.
  - Returns C(peer_id), the node's public identity.
options:
  repository:
    description: The repository's folder.
    type: path
    default: /var/lib/ipfs
  settings:
    description: The settings by section. Without them the module only reads.
    type: dict
"""


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"repository": {"type": "path", "default": "/var/lib/ipfs"}, "settings": {"type": "dict"}},
        supports_check_mode=True,
    )
    path = os.path.join(module.params["repository"], "config")
    try:
        with open(path) as file:
            config = json.load(file)
        peer_id = config["Identity"]["PeerID"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        module.fail_json(msg=f"{path} is not the configuration of an IPFS node: {error}")
    wanted = merged(config, module.params["settings"] or {})
    if wanted != config and not module.check_mode:
        owner = os.stat(path)
        with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            json.dump(wanted, file, indent=2)
        os.replace(path + ".new", path)
    sections = sorted(name for name in wanted if wanted[name] != config.get(name))
    module.exit_json(changed=wanted != config, peer_id=peer_id, sections=sections)


def merged(config, settings):
    """Return the configuration with the settings in it."""
    result = dict(config)
    for section, values in settings.items():
        result[section] = dict(config.get(section) or {}, **values) if isinstance(values, dict) else values
    return result


if __name__ == "__main__":
    main()
