"""What several test files need: an embedded chain that is served, and unused ports."""

from __future__ import annotations

from tests.helpers.chain import free_port, rpc, serve

__all__ = ["free_port", "rpc", "serve"]
