"""Why a wait ended: what a trigger hands to the operator that goes on, as JSON between two processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from airflow_batchwrap.hooks.manifest import Stall
from airflow_batchwrap.hooks.views import Stuck, TaskView, Verdict


@dataclass(frozen=True, kw_only=True)
class Event:
    """The end of a wait.

    Each kind of wait has a subclass, whose ``kind`` has more values than these.

    :param kind: ``late``: the deadline has passed; ``error``: looking itself failed for good.
    :param error: the reason of an ``error``.
    """

    kind: str
    error: str = ""

    @classmethod
    def late(cls) -> Self:
        """The event of a deadline that has passed."""
        return cls(kind="late")

    @classmethod
    def failed(cls, error: str) -> Self:
        """The event of a wait in which looking failed for good."""
        return cls(kind="error", error=error)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        data: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote; keys of others are left alone.

        :raises pydantic.ValidationError: it is no event of this kind.
        """
        event: Self = _adapter(cls).validate_python(dict(data))
        return event


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """The end of the wait for one Batch task.

    :param kind: ``over``: the Batch task has ended, or is gone; ``stuck``: it can never start.
    :param view: of ``over``: what the service says of it.
    :param stuck: of ``stuck``: the reason.
    :param output: how far its output is in the log, as :meth:`OutputTail.to_json` has it.
    """

    kind: Literal["over", "stuck", "late", "error"]
    view: TaskView | None = None
    stuck: Stuck | None = None
    output: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class PoolEvent(Event):
    """The end of the wait for a pool's nodes.

    :param kind: ``judged``: the pool is ready, or cannot become ready.
    :param verdict: of ``judged``.
    """

    kind: Literal["judged", "late", "error"]
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class RoomEvent(Event):
    """The end of a pause, after the service had no room for what was asked of it.

    :param kind: ``again``: it is to be asked for once more.
    """

    kind: Literal["again", "late", "error"]


@dataclass(frozen=True, kw_only=True)
class ResizeEvent(Event):
    """The end of the wait for a resize; the operator looks at the pool itself.

    :param kind: ``changed``: the resize is done, cannot be done, or can be asked for again.
    """

    kind: Literal["changed", "late", "error"]


@dataclass(frozen=True, kw_only=True)
class ManifestEvent(Event):
    """The end of the wait for a manifest's job.

    :param kind: ``over``: all Batch tasks have ended; ``beyond``: more have failed than may; ``gone``: the job was
        deleted; ``ended``: the job ended before its Batch tasks did; ``stuck``: none of them can ever start.
    :param reason: of ``ended``: what the service gives as the reason.
    :param stuck: of ``stuck``: the reason.
    """

    kind: Literal["over", "beyond", "gone", "ended", "stuck", "late", "error"]
    reason: str = ""
    stuck: Stuck | None = None

    @classmethod
    def of_stall(cls, stall: Stall | None) -> ManifestEvent | None:
        """Return the event of a job in which nothing runs; None where it may still go on."""
        return None if stall is None else cls(kind=stall.kind, reason=stall.reason, stuck=stall.stuck)


_adapters: dict[type[Event], TypeAdapter[Any]] = {}  # made on first use


def _adapter(kind: type[Event]) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]
