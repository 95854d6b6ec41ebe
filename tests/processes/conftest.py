"""What several test files need: an embedded chain that is served, and unused ports."""

from tests.helpers.chain import free_port, rpc

__all__ = ["free_port", "rpc"]
