"""One try of an Airflow task, as far as this process has come with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_batchwrap.waiting import Deadline

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass
class Try:
    """What one try has done so far: made when Airflow calls the operator, and gone with the process.

    What has to outlive a deferral travels with the trigger, and what has to outlive the try is on the service.

    :param began: seconds since 1970.
    :param deadline: of the wait; None until there is something to wait for.
    :param ended: the state that Airflow has the task in, once a person has ended it; empty until then.
    :param is_resumed: whether it came back from the triggerer.
    :param refused: why there was no room for what the try asked for; empty where there was.
    :param asked: how often there was no room.
    :param again_at: when to ask again, in seconds since 1970.
    :param can_be_ended: whether ``on_kill`` still has something to end: Airflow calls it after a timeout as well.
    """

    context: Context
    began: float = field(default_factory=time.time)
    deadline: Deadline | None = None
    is_resumed: bool = False
    ended: str = ""
    can_be_ended: bool = True
    refused: str = ""
    asked: int = 0
    again_at: float = 0.0

    @property
    def number(self) -> int:
        """Airflow's number of this try, from 1."""
        return self.context["ti"].try_number
