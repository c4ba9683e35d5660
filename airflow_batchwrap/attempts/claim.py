"""One pool and one job for one set-up, whatever became of its earlier tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import BatchWrapError, PoolError, TryAgain
from airflow_batchwrap.naming import CONTENT as CONTENT
from airflow_batchwrap.naming import INSTANCE, setup_order, setup_suffix
from airflow_batchwrap.naming import MAKER as MAKER

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.views import EntityView

_SAME_ID_TRIES = 20  # ids that Azure may still hold, being deleted, from earlier tries of one set-up


@dataclass(frozen=True)
class Claim:
    """What a set-up needs to have exactly one of: a pool, or a job.

    :param noun: "pool" or "job".
    :param family: what the ids of all that this set-up made begin with.
    :param epoch: the set-up's.
    :param maker: the metadata by which it knows its own.
    :param content: the metadata by which an earlier one is known to fit still.
    :param find: entities by the beginning of their id.
    :param make: makes one of an id; False where the id is taken.
    :param delete: asks for one's end.
    """

    noun: str
    family: str
    epoch: int
    maker: str
    content: str
    find: Callable[[str], Sequence[EntityView]]
    make: Callable[[str], bool]
    delete: Callable[[str], bool]
    log: Any

    def take(self) -> str:
        """Return the id of the one there is, or of a new one; delete what earlier tries made and left.

        Airflow clears the set-up with any of its workflow's steps. While the pool and the job live, they are the same
        ones: steps that were not cleared still run there.

        :raises TryAgain: the service does not answer, or holds the ids of earlier tries, being deleted.
        """
        found = self.find(self.family)
        own = sorted((item for item in found if self._order(item) != (0, 0)), key=self._order, reverse=True)
        fitting = next((item for item in own if self._fits(item)), None)
        for item in own:
            if item is not fitting and item.state != "deleting" and item.metadata.get(MAKER) == self.maker:
                self.delete(item.entity_id)
                self.log.info("Removed %s %s, which an earlier try made and left", self.noun, item.entity_id)
        if fitting is not None:
            self.log.info("Found %s %s, which an earlier try made", self.noun, fitting.entity_id)
            return fitting.entity_id
        return self._new({item.entity_id.lower() for item in found})

    def foresee(self) -> str:
        """Return the id that :meth:`take` is about to return, as far as can be told; nothing is made or deleted."""
        found = self.find(self.family)
        own = sorted((item for item in found if self._order(item) != (0, 0)), key=self._order, reverse=True)
        if (fitting := next((item for item in own if self._fits(item)), None)) is not None:
            return fitting.entity_id
        taken = {item.entity_id.lower() for item in found}
        ids = [self.family + setup_suffix(self.epoch, number) for number in range(1, _SAME_ID_TRIES + 1)]
        return next((entity_id for entity_id in ids if entity_id.lower() not in taken), ids[-1])

    def take_named(self, entity_id: str) -> str:
        """Return ``entity_id``, made now or by an earlier try of the same set-up.

        :raises PoolError: somebody else has one of that id.
        :raises TryAgain: an earlier one of that id is still being deleted.
        """
        if self._made(entity_id):
            self.log.info("Made %s %s", self.noun, entity_id)
            return entity_id
        there = next((item for item in self.find(entity_id) if item.entity_id.lower() == entity_id.lower()), None)
        if there is not None and self._fits(there):
            self.log.info("Found %s %s, which an earlier try made", self.noun, entity_id)
            return there.entity_id
        if there is not None and there.state == "active":
            if there.metadata.get(MAKER) != self.maker:
                whose = there.metadata.get(INSTANCE)
                by = f" (made by the Airflow {whose!r})" if whose else ""
                raise PoolError(
                    f"Pool {entity_id!r} exists already and is not this run's{by}. Use RepurposePoolOperator for it, "
                    "or leave pool_id out to have one derived from the run."
                )
            self.delete(there.entity_id)  # made for another configuration, before the set-up was cleared
        raise TryAgain(
            f"Pool {entity_id!r} is being deleted, and Azure frees its id only then. Try again in some minutes, or "
            "leave pool_id out to have one derived from the run."
        )

    def _new(self, taken: set[str]) -> str:
        for number in range(1, _SAME_ID_TRIES + 1):
            entity_id = self.family + setup_suffix(self.epoch, number)
            if entity_id.lower() in taken:
                continue  # Azure frees an id minutes after its entity is deleted
            if self._made(entity_id):
                self.log.info("Made %s %s", self.noun, entity_id)
                return entity_id
        raise TryAgain(
            f"No free id for a {self.noun}: Azure still holds {_SAME_ID_TRIES} of earlier tries, such as "
            f"{self.family + setup_suffix(self.epoch)!r}, being deleted. Try again in some minutes."
        )

    def _made(self, entity_id: str) -> bool:
        try:
            return self.make(entity_id)
        except TryAgain as error:
            # The answer was lost, and perhaps nothing else: what was made must not be left behind.
            try:
                there = next((item for item in self.find(entity_id) if item.entity_id == entity_id), None)
            except BatchWrapError:
                raise TryAgain(f"{error} {self.noun.capitalize()} {entity_id!r} may exist all the same.") from None
            if there is None:
                raise
            return self._fits(there)

    def _fits(self, item: EntityView) -> bool:
        found = item.metadata
        return item.state == "active" and found.get(MAKER) == self.maker and found.get(CONTENT) == self.content

    def _order(self, item: EntityView) -> tuple[int, int]:
        return setup_order(item.entity_id[len(self.family) :]) or (0, 0)
