"""The wire's words as plain text: states, times, failures."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow_batchwrap.hooks.errors import scrub


def text(value: object) -> str:
    """Return the wire's word for an SDK enum member or string; empty for None."""
    return "" if value is None else str(getattr(value, "value", value))


def moment(value: datetime | None) -> str:
    """Return a time as text; empty for None."""
    return value.isoformat() if value else ""


def failure_text(failure: Any) -> str:
    """Return an SDK failure information's message and details as one line."""
    return explained(failure.message, failure.details)


def explained(message: str | None, pairs: Any) -> str:
    """Return a message of Azure's and the name-and-value pairs beside it as one line, scrubbed."""
    details = [f"{pair.name}: {pair.value}" for pair in pairs or () if pair.value]
    return scrub("; ".join(part for part in ((message or "").strip(), *details) if part))[:2000]
