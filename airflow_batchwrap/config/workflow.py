"""How a workflow runs: the ``workflow`` section of ``batch.json``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from airflow_batchwrap.config.base import ConfigFile
from airflow_batchwrap.config.durations import Duration
from airflow_batchwrap.config.manifest import check_container_name
from airflow_batchwrap.config.values import MOST_SLOTS, Count, Positive
from airflow_batchwrap.exceptions import ConfigError

# A Batch task's life: https://learn.microsoft.com/azure/batch/batch-quota-limit
_LONGEST_TASK = timedelta(days=180)


class WorkflowConfig(ConfigFile):
    """The times, retries and places of a workflow; docs/configuration.md lists them."""

    noun: ClassVar[str] = "workflow configuration"
    aliases: ClassVar[Mapping[str, str]] = {"TASK_OUTPUT_CONTAINER": "output_container", "required_slots": "task_slots"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "idle_minutes": "it is the pool's: put it beside vm_size, outside the workflow section."
    }

    if TYPE_CHECKING:  # not one typed keyword for each field: values may be templates, and keys have other names

        def __init__(self, /, **data: Any) -> None: ...

    pool_wait_timeout: Duration = timedelta(minutes=30)
    job_wall_clock: Duration = timedelta(days=7)
    step_timeout: Duration = Field(
        # A job of two hours is asked for by naming its time alone.
        default_factory=lambda given: min(timedelta(hours=24), given.get("job_wall_clock", timedelta(hours=24)))
    )
    inline_wait: Duration = timedelta(seconds=10)
    poll_interval: Duration = timedelta(seconds=15)
    sas_extra: Duration = timedelta(days=1)
    batch_retries: Count = 0
    task_slots: Annotated[Positive, Field(le=MOST_SLOTS)] = 1
    java_options: str = ""
    output_container: str | None = None
    retention_days: Positive | None = None
    unused_for: Duration | None = timedelta(days=30)

    @field_validator("pool_wait_timeout", "step_timeout", "job_wall_clock", "poll_interval")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("must be more than 0")
        return value

    @field_validator("step_timeout", "job_wall_clock")
    @classmethod
    def _within_azure(cls, value: timedelta) -> timedelta:
        if value > _LONGEST_TASK:
            raise ValueError("Batch ends every task after 180 days: use no more")
        return value

    @field_validator("java_options", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return shlex.join(value)
        if not isinstance(value, str):
            raise ValueError('use a text, such as "-Xmx2g -Dcolour=blue", or an array of such')
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"it cannot be split into words: {error}: close the quote") from None
        return value

    @field_validator("output_container")
    @classmethod
    def _legal(cls, value: str | None) -> str | None:
        return None if value is None else check_container_name(value)

    @classmethod
    def _own_part(cls, data: dict[str, Any], source: str) -> dict[str, Any]:
        part = data.get("workflow", {})
        if not isinstance(part, dict):
            raise ConfigError(f"{source}: workflow: use a JSON object: {{...}}.")
        return part

    def _merged(self, before: dict[str, Any]) -> dict[str, Any]:
        return {**before, "workflow": self.to_dict()}

    def _problems(self) -> list[str]:
        if {"step_timeout", "job_wall_clock"} & set(self._late) or self.step_timeout <= self.job_wall_clock:
            return []
        return [
            f"step_timeout ({self.step_timeout}) is longer than job_wall_clock ({self.job_wall_clock}), which ends all "
            "steps of the run: raise job_wall_clock, or lower step_timeout."
        ]
