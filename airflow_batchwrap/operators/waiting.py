"""One way to wait: begin, look on the worker for a while, defer what lasts, and settle what came of it."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap.attempts.superseded import leave_if_superseded
from airflow_batchwrap.attempts.trying import Try
from airflow_batchwrap.exceptions import BatchWrapError, TryAgain
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.triggers.cancel import TaskIdentity, state_in_time, was_ended
from airflow_batchwrap.triggers.events import Event
from airflow_batchwrap.waiting import Deadline, look_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from airflow_batchwrap.triggers.base import WaitTrigger

W = TypeVar("W", bound=Try)
E = TypeVar("E", bound=Event)


class WaitingOperator(BatchWrapOperator, Generic[W, E]):
    """An operator that has something done on the service and waits for it, on the worker or in the triggerer.

    A subclass says what is particular to it, on a :class:`Try` of its own:

    - :meth:`new_try`, made when Airflow calls the operator, and :meth:`resumed` of what came back from the triggerer;
    - :meth:`begin`: ask for it, and set the deadline;
    - :meth:`look` at it once, on the worker; :meth:`trigger`, which does so in the triggerer;
    - :meth:`settle`: the value of the task, or the error;
    - :meth:`end` it where a person has ended the task, :meth:`give_up` where Airflow's ``execution_timeout`` has, and
      :meth:`undo` what a failed try leaves.
    """

    event: ClassVar[type[Event]] = Event
    looks_before_deferring: ClassVar[bool] = True  # also where inline_wait is 0

    # The try that this process works on. An attribute of the class: Airflow is slow to set attributes of an operator.
    _try: Any = None

    # --- what a subclass says

    @abstractmethod
    def new_try(self, context: Context) -> W:
        """Return a try that has done nothing yet."""

    @abstractmethod
    def resumed(self, context: Context, resume: Mapping[str, Any]) -> W:
        """Return the try that goes on after a deferral.

        :param resume: what :meth:`resume` of the worker before returned.
        """

    @abstractmethod
    def begin(self, work: W) -> E | None:
        """Ask the service for what is wanted, and set ``work.deadline``.

        :return: the event that ends the wait, where there is nothing to wait for; else None.
        """

    @abstractmethod
    def look(self, work: W) -> E | None:
        """Look once, on the worker; return the event that ends the wait, or None to go on.

        :raises TryAgain: the service does not answer; the wait goes on.
        """

    @abstractmethod
    def trigger(self, work: W, **common: Any) -> WaitTrigger:
        """Return the trigger that goes on looking.

        :param common: the arguments that all triggers have.
        """

    @abstractmethod
    def resume(self, work: W) -> dict[str, Any]:
        """Return what :meth:`resumed` needs, as plain JSON values."""

    @abstractmethod
    def settle(self, work: W, event: E) -> Any:
        """Return the value of the task.

        :raises BatchWrapError: there is none.
        """

    def end(self, work: W) -> None:
        """End on the service what the task waits for: a person has ended the task (``work.ended``)."""

    def give_up(self, work: W) -> None:
        """End and report what Airflow's ``execution_timeout`` has cut short."""

    def undo(self, work: W, error: BaseException) -> None:
        """Remove what the failed try leaves, as far as no other try goes on with it."""

    def close(self, work: W) -> None:
        """Remove what a try that succeeded needs no more."""

    def ended_error(self, work: W) -> BatchWrapError:
        """Return the error of a wait that a person has ended."""
        return BatchWrapError(f"Waiting was ended with the Airflow task ({work.ended}).")

    def inline_until(self, work: W, asked: float) -> float:
        """Return until when the worker waits, in seconds since 1970.

        :param asked: the time that ``inline_wait`` gives.
        """
        return asked

    # --- Airflow's side

    def execute(self, context: Context) -> Any:
        """Begin, and wait."""
        work = self.new_try(context)
        return self._run(work, lambda: self._begin_and_wait(work))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        resume = event["resume"]
        work = self.resumed(context, resume)
        work.is_resumed = True
        if deadline := resume.get("deadline"):
            work.deadline = Deadline.from_json(deadline)
        return self._run(work, lambda: self.go_on(work, self.event.from_json(event)))  # type: ignore[arg-type]

    def go_on(self, work: W, event: E) -> Any:
        """Settle what the trigger has seen the end of."""
        return self.settle(work, event)

    def on_kill(self) -> None:
        """End the work on the service and nothing else, if a person has ended the Airflow task.

        A worker that is shut down leaves it alone: the task's next try finds it. So does one that cannot learn in time
        what has become of the task; a new epoch, the teardown or the sweep ends the work then.
        """
        work: W | None = self._try
        if work is None or work.ended or not work.can_be_ended:
            return
        state = state_in_time(TaskIdentity(**self.identity(work.context)).state)
        if not was_ended(state):
            self.log.info("Left the work on the service alone: Airflow has its task as %s", state)
            return
        work.ended = state
        self.log.info("Ending the work on the service: its Airflow task was ended (%s)", state)
        self.end(work)

    # --- the parts

    def deadline(self, work: W, start: float, name: str) -> Deadline:
        """Return when the wait ends: by a setting, or by Airflow's ``execution_timeout``, whichever is sooner.

        :param start: what the setting counts from, in seconds since 1970.
        :param name: the setting, such as ``job_wall_clock``.
        """
        return self.or_execution_timeout(work, Deadline.after(start, name, getattr(self.settings, name)))

    def or_execution_timeout(self, work: W, deadline: Deadline) -> Deadline:
        """Return a deadline, or Airflow's ``execution_timeout`` where that is sooner."""
        if self.execution_timeout is None:
            return deadline
        own = Deadline.after(work.began, "execution_timeout", self.execution_timeout)
        if self.deferrable:
            return deadline.or_sooner(own)  # Airflow forgets it while a task is deferred
        # On a worker Airflow itself ends the task then, and the message names it.
        return Deadline(deadline.at, own.name, own.limit) if own.at < deadline.at else deadline

    def _run(self, work: W, go: Callable[[], Any]) -> Any:
        """Run one part of a try. This is the order on failure, for all operators that wait.

        1. A try that another one has replaced leaves without a word: what it undid, the other one would miss.
        2. What Airflow's timeout has cut short is ended on the service.
        3. From now on there is nothing for ``on_kill`` to end: Airflow calls it after a timeout as well.
        4. What the try leaves is removed, as far as no other try goes on with it.
        """
        self._try = work
        try:
            value = go()
        except (Exception, AirflowTaskTimeout) as error:
            if not work.ended:
                leave_if_superseded(work.context, self.log)
                if isinstance(error, AirflowTaskTimeout):
                    self.give_up(work)
                work.can_be_ended = False
            self.undo(work, error)
            raise
        self.close(work)
        return value

    def _begin_and_wait(self, work: W) -> Any:
        event = self.begin_or_be_refused(work)
        return self.settle_or_refuse(work, event) if event is not None else self._wait(work)

    def _wait(self, work: W) -> Any:
        """Wait on the worker, then in the triggerer; return the value of the task."""
        event, inline = None, self.settings.inline_wait.total_seconds()
        asked = time.time() + inline
        if inline or self.looks_before_deferring or not self.deferrable:
            event = look_until(
                lambda: self.look_or_ask(work),
                lambda: self.inline_end(work, asked) if self.deferrable else self._deadline_of(work).at,
                longest=self.settings.poll_interval.total_seconds(),
                log=self.log,
                stopped=lambda: work.ended,
            )
        if event is None and work.ended:
            self.end(work)  # once more: it may have come just then
            raise self.ended_error(work)
        deadline = self._deadline_of(work)
        if event is None and self.deferrable and not deadline.has_passed:
            self.put_off(work, deadline)
        return self.settle_or_refuse(work, event if event is not None else self.event.late())  # type: ignore[arg-type]

    @staticmethod
    def _deadline_of(work: W) -> Deadline:
        assert work.deadline is not None, "begin() sets it"  # noqa: S101
        return work.deadline

    def of_every_trigger(self, work: W, deadline: Deadline, resume: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that all triggers have."""
        return {
            "deadline": deadline.at,
            "poll_interval": self.settings.poll_interval.total_seconds(),
            "identity": self.identity(work.context),
            "resume": resume,
            **self.connections(),
        }

    # --- what an operator whose request can be refused for want of room does besides: RoomOperator

    def begin_or_be_refused(self, work: W) -> E | None:
        """Begin."""
        return self.begin(work)

    def look_or_ask(self, work: W) -> E | None:
        """Look."""
        return self.look(work)

    def inline_end(self, work: W, asked: float) -> float:
        """Return until when the worker of a deferrable task waits, in seconds since 1970."""
        at = self._deadline_of(work).at
        return min(at, self.inline_until(work, min(at, asked)))

    def settle_or_refuse(self, work: W, event: E) -> Any:
        """Settle."""
        return self.settle(work, event)

    def put_off(self, work: W, deadline: Deadline) -> None:
        """Defer: the triggerer goes on looking."""
        resume = {**self.resume(work), "deadline": deadline.to_json()}
        trigger = self.trigger(work, **self.of_every_trigger(work, deadline, resume))
        self.defer(trigger=trigger, method_name="execute_complete", timeout=deadline.of_trigger)

    @staticmethod
    def looking_failed(event: E) -> BatchWrapError:
        """Return the error of a wait in which looking failed: the next try adopts what there is, and looks again."""
        return TryAgain(event.error)
