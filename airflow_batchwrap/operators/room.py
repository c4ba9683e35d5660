"""Wait for room: what a quota refuses now is asked for again, and no worker is held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.exceptions import NoCapacity
from airflow_batchwrap.hooks.poolwatch import pause_for_room
from airflow_batchwrap.operators.waiting import E, W, WaitingOperator
from airflow_batchwrap.triggers.events import RoomEvent
from airflow_batchwrap.waiting import Deadline

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.triggers.base import WaitTrigger

_SHORTEST_SAID = 0.5  # seconds


class RoomOperator(WaitingOperator[W, E]):
    """The part of a waiting operator that begins again where there was no room.

    Whether there is room only the request itself can tell. So :meth:`begin` is called again, with longer and longer
    pauses, until it raises no ``NoCapacity`` or ``pool_wait_timeout`` is over. It has to find what it made before.
    """

    # --- what a subclass says

    def room_deadline(self, work: W) -> Deadline:
        """Return until when room is waited for."""
        limit = self.settings.pool_wait_timeout
        return self.or_execution_timeout(work, Deadline.after(work.began, "pool_wait_timeout", limit))

    def kept(self, work: W) -> dict[str, Any]:
        """Return what :meth:`asking_again` needs, as plain JSON values."""
        return {}

    def asking_again(self, context: Context, kept: Mapping[str, Any]) -> W:
        """Return the try that asks again after a deferral.

        :param kept: what :meth:`kept` of the worker before returned.
        """
        return self.new_try(context)

    def room_trigger(self, work: W, **common: Any) -> WaitTrigger:
        """Return what waits in the triggerer until it is time to ask again."""
        from airflow_batchwrap.triggers.pool import RoomTrigger

        return RoomTrigger(again_at=work.again_at, **common)

    # --- the wait

    def begin_or_be_refused(self, work: W) -> E | None:
        """Begin; where there is no room, note why and when to ask again."""
        try:
            event = self.begin(work)
        except NoCapacity as error:
            work.refused = str(error)
            work.deadline = work.deadline or self.room_deadline(work)
            pause = pause_for_room(work.asked, self.settings.poll_interval.total_seconds())
            pause = min(pause, work.deadline.left)
            work.asked, work.again_at = work.asked + 1, time.time() + pause
            if pause >= _SHORTEST_SAID:  # else the time is over, and the error says so
                self.log.warning("%s Asking again in %.0f s.", error, pause)
            return None
        if work.refused:
            self.log.info("There is room now")
            work.refused = ""
        return event

    def look_or_ask(self, work: W) -> E | None:
        """Look at what was begun; ask again for what there was no room for."""
        if not work.refused:
            return self.look(work)
        return self.begin_or_be_refused(work) if time.time() >= work.again_at else None

    def inline_end(self, work: W, asked: float) -> float:
        """Return until when the worker waits: not for room, where the triggerer can."""
        return 0.0 if work.refused else super().inline_end(work, asked)

    def settle_or_refuse(self, work: W, event: E) -> Any:
        """Settle what was begun.

        :raises NoCapacity: there was no room for it until the deadline.
        """
        if work.refused and event.kind != "error":
            raise NoCapacity(f"{work.refused} It was waited for until {work.deadline} was over.")
        return super().settle_or_refuse(work, event)

    def put_off(self, work: W, deadline: Deadline) -> None:
        """Defer; where there is no room, until it is time to ask again."""
        if not work.refused:
            super().put_off(work, deadline)
            return
        room = {"began": work.began, "refused": work.refused, "asked": work.asked, "again_at": work.again_at}
        resume = {"kept": self.kept(work), "room": room, "deadline": deadline.to_json()}
        trigger = self.room_trigger(work, **self.of_every_trigger(work, deadline, resume))
        self.defer(trigger=trigger, method_name="ask_again", timeout=deadline.of_trigger)

    def ask_again(self, context: Context, event: dict[str, Any]) -> Any:
        """Begin again, after a wait in the triggerer."""
        resume = event["resume"]
        work = self.asking_again(context, resume["kept"])
        for name, value in resume["room"].items():
            setattr(work, name, value)
        work.deadline = Deadline.from_json(resume["deadline"])
        if RoomEvent.from_json(event).kind == "error":
            self.log.warning("%s", event["error"])  # it was only a pause
        return self._run(work, lambda: self._begin_and_wait(work))
