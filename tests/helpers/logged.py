"""The events that roles have logged in this process."""

from __future__ import annotations

from typing import Any

import pytest


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the events that were logged, in order: the name under ``event``, and the fields."""
    return [{"event": record.event, **record.fields} for record in caplog.records if hasattr(record, "event")]
