"""Job schedules."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow_batchwrap.local.model import transitions
from airflow_batchwrap.local.model.entity import Entity, Row, pack
from airflow_batchwrap.local.model.states import ScheduleState
from airflow_batchwrap.local.model.transitions import Table


class JobSchedule(Entity):
    """A job schedule, which creates jobs one after the other."""

    __slots__ = ("body", "ended", "job", "last", "number", "pool_id")

    TABLE: ClassVar[Table] = transitions.JOB_SCHEDULE
    FIELDS = ("ended", "job", "last", "number", "pool_id")

    def __init__(self, uid: int, name: str, body: dict[str, Any], moment: float | None = None) -> None:
        super().__init__(uid, name, moment)
        self.begin(ScheduleState.ACTIVE, self.created)
        self.body = body
        self.ended: float | None = None
        #: The id of its latest job.
        self.job: str | None = None
        #: The latest occurrence that has had its job; -1 before the first.
        self.last = -1
        #: How many jobs it has created.
        self.number = 0
        #: The pool that all its jobs share, where it was made for them.
        self.pool_id: str | None = None

    def row(self) -> Row:
        """The schedule as a row of the store."""
        return (self.uid, "jobschedule", 0, pack(self.body), self.pack_state())
