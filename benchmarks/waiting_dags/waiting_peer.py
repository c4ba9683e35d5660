"""What the benchmark compares with: an operator whose trigger fires by itself, at a moment set before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent


class AtMoment(BaseTrigger):
    """Fire at a moment.

    :param moment: seconds since 1970.
    """

    def __init__(self, moment: float) -> None:
        super().__init__()
        self.moment = moment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger again."""
        return f"{__name__}.AtMoment", {"moment": self.moment}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until then."""
        await asyncio.sleep(max(0.0, self.moment - time.time()))
        yield TriggerEvent(self.moment)


class FireOperator(BaseOperator):
    """Defer, and end when the trigger has fired; the XCom is the moment.

    :param seconds: how long after its start.
    """

    def __init__(self, *, seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Any) -> None:
        """Defer."""
        self.defer(trigger=AtMoment(time.time() + self.seconds), method_name="execute_complete")

    def execute_complete(self, context: Any, event: float) -> float:
        """Go on."""
        return event
