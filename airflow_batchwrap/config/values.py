"""Small types of values that several configurations share."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

# Task slots that a node can have: https://learn.microsoft.com/en-us/dotnet/api/azure.compute.batch.batchpool.taskslotspernode
MOST_SLOTS = 256
# Of a pool, before Azure gives up: https://learn.microsoft.com/rest/api/batchservice/pool/resize (resizeTimeout)
SHORTEST_RESIZE = timedelta(minutes=5)


def _not_a_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("use a whole number")
    return value


Count = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1)]


def matching(pattern: str, remedy: str) -> AfterValidator:
    """Return a check that a whole text matches a pattern, without regard to case, with words for where it does not."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.IGNORECASE):
            raise ValueError(remedy)
        return value

    return AfterValidator(check)
