"""The accounts of learners as a header names them: those that a contract registers."""

from __future__ import annotations

from collections.abc import Mapping

from fl_node.errors import ConfigError
from fl_node.protocol.names import learner_label

_NOBODY = "0x" + "0" * 40
"""The address that stands for no account."""


def check(learners: Mapping[int, str], header: str = "") -> None:
    """Check that a contract can register these accounts.

    Parameters
    ----------
    learners
        The address of each learner's account, by nodeId.
    header
        The address of the account that deploys the contract, if it is known.

    Raises
    ------
    ConfigError
        Two learners have the same account, or the account of a learner is the header's or nobody's.
    """
    owners: dict[str, int] = {}
    for node_id, account in learners.items():
        wrong = f"--learner {node_id}={account}: "
        if account == _NOBODY:
            raise ConfigError(f"{wrong}the zero address is no account")
        if account.lower() == header.lower():
            raise ConfigError(f"{wrong}this is the header's account; a learner needs an account of its own")
        if (first := owners.setdefault(account.lower(), node_id)) != node_id:
            raise ConfigError(f"{wrong}{learner_label(first)} has this account already")
