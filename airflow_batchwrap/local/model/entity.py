"""What all entities have in common, and how they are kept."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from airflow_batchwrap.local.model.states import ExecutionState, Result
from airflow_batchwrap.local.model.transitions import Stateful
from airflow_batchwrap.local.wire import times

#: One row: number, kind, number of the parent, what the client sent (None where it is kept already), what became of it.
Row = tuple[int, str, int, bytes | None, bytes]

_encode = json.JSONEncoder(separators=(",", ":")).encode


def pack(value: Any) -> bytes:
    """A value as it is kept.

    :param value: what JSON can hold.
    :return: JSON, with no space in it.
    """
    return _encode(value).encode()


@dataclass
class Execution:
    """How a start, preparation or release task went on one node."""

    started: float
    state: ExecutionState = ExecutionState.RUNNING
    ended: float | None = None
    exit_code: int | None = None
    failure: dict[str, Any] | None = None
    retries: int = 0
    last_retry: float | None = None
    result: Result | None = None
    container: dict[str, str] | None = None

    @classmethod
    def of(cls, kept: dict[str, Any] | None) -> Execution | None:
        """Take up what was kept.

        :param kept: its fields; None where there was none.
        :return: it.
        """
        if kept is None:
            return None
        execution = cls(**kept)
        execution.state = ExecutionState(execution.state)
        execution.result = Result(execution.result) if execution.result else None
        return execution

    def finish(
        self, exit_code: int | None, failure: dict[str, Any] | None, container: dict[str, str] | None = None
    ) -> None:
        """Note how it ended.

        :param exit_code: the command's exit code; None where it never ran.
        :param failure: Batch's failureInfo; None where it succeeded.
        :param container: Batch's containerInfo; None where it had no container.
        """
        self.container = container
        self.state, self.ended = ExecutionState.COMPLETED, times.now()
        self.exit_code, self.failure = exit_code, failure
        self.result = Result.FAILURE if failure else Result.SUCCESS

    def retry(self) -> None:
        """Begin once more."""
        self.retries += 1
        self.started = self.last_retry = times.now()


class Entity(Stateful):
    """What clients address by an id and may change.

    :param uid: the number under which it is kept.
    :param name: its id.
    :param moment: when it was created, seconds since the epoch.
    """

    __slots__ = ("created", "id", "modified", "revision", "uid")

    #: What of the entity is kept beside its body.
    FIELDS: ClassVar[tuple[str, ...]] = ()
    #: Which of it are words of an enumeration that is more than its words.
    ENUMS: ClassVar[dict[str, type[StrEnum]]] = {}
    _COMMON: ClassVar[tuple[str, ...]] = ("id", "created", "modified", "revision")
    _STATE: ClassVar[tuple[str, ...]] = ("state", "since", "previous", "previous_since")
    _values: ClassVar[Callable[[Any], tuple[Any, ...]]]

    def __init_subclass__(cls) -> None:
        """Prepare for `pack_state`, which is on the way of every change."""
        cls._values = operator.attrgetter(*cls._COMMON, *cls._STATE, *cls.FIELDS)

    def __init__(self, uid: int, name: str, moment: float | None = None) -> None:
        self.uid = uid
        self.id = name
        self.created = self.modified = times.now() if moment is None else moment
        self.revision = 0

    @property
    def etag(self) -> str:
        """The entity tag, without quotes; it follows changes by clients, not the state."""
        return times.etag(self.modified, self.revision)

    @property
    def place(self) -> str:
        """Where it stands in a list: these are in the order of their ids, whose case does not count."""
        return self.id.lower()

    def changed(self) -> None:
        """Note that a client changed it."""
        self.modified = times.now()
        self.revision += 1

    def pack_state(self) -> bytes:
        """What is kept beside the body.

        :return: JSON.
        """
        return pack(type(self)._values(self))

    def restore(self, state: bytes) -> None:
        """Take up what was kept.

        :param state: what `pack_state` gave.
        """
        for name, value in zip(self._COMMON + self._STATE + self.FIELDS, json.loads(state), strict=True):
            kind = self.ENUMS.get(name)
            setattr(self, name, value if kind is None or value is None else kind(value))
