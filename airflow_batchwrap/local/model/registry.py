"""Entities by id, in the order they were created, and in the order of their ids."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from sortedcontainers import SortedList

#: How many ids are looked up at once: what is added or removed between two looks does not shift the rest.
_AT_ONCE = 100


class _Entity(Protocol):
    @property
    def uid(self) -> int: ...
    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=_Entity)


class Registry(Generic[E]):
    """Entities by their id, whose case does not count, and by their number, which only rises.

    Removing leaves a gap in the order, closed when the gaps outnumber the rest, so that a page of a list that is
    being changed neither repeats nor skips what stays.
    """

    __slots__ = ("_by_id", "_names", "_order")

    def __init__(self) -> None:
        self._by_id: dict[str, E] = {}
        self._order: list[E] = []
        # Ids in lower case. Sorted as they come: a hundred thousand of them sorted at once would stall the loop.
        self._names: SortedList[str] = SortedList()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._by_id.values()))

    def get(self, name: str) -> E | None:
        """Find an entity.

        :param name: its id, in any case.
        :return: the entity, or None.
        """
        return self._by_id.get(name.lower())

    def add(self, entity: E) -> None:
        """Take an entity in; its number is above all present ones.

        :param entity: the entity.
        """
        name = entity.id.lower()
        if name not in self._by_id:
            self._names.add(name)
        self._by_id[name] = entity
        self._order.append(entity)

    def remove(self, entity: E) -> None:
        """Let an entity go; one that is not there is no error.

        :param entity: the entity.
        """
        name = entity.id.lower()
        if self._by_id.get(name) is entity:
            del self._by_id[name]
            self._names.remove(name)
        if len(self._order) > 2 * len(self._by_id) + 16:
            self._order = list(self._by_id.values())

    def after(self, uid: int) -> Iterator[E]:
        """The entities created after another one.

        :param uid: that one's number; 0 for all.
        :return: them, oldest first.
        """
        order = self._order
        for index in range(bisect_right(order, uid, key=lambda entity: entity.uid), len(order)):
            entity = order[index]
            if self._by_id.get(entity.id.lower()) is entity:
                yield entity

    def beyond(self, name: str) -> Iterator[E]:
        """The entities whose ids come after another one, in the order of their ids, whose case does not count.

        So the real service lists pools, jobs and tasks (all 33 recorded lists of pools, and all of tasks).

        :param name: that id; empty for all.
        :return: them, by id.
        """
        last = name.lower()
        while names := list(islice(self._names.irange(last, inclusive=(False, True)), _AT_ONCE)):
            for last in names:
                # It may have gone since the names were looked up.
                if (entity := self._by_id.get(last)) is not None:
                    yield entity
