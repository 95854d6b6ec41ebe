"""What several test files need: an embedded chain that is served, and unused ports."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.helpers.chain import free_port, rpc, serve

__all__ = ["free_port", "rpc", "serve"]

# A machine that trains beside the tests is no reason for one to fail.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")
