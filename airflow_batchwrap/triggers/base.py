"""What the triggers of this package share: an event always comes, and an end by a person reaches the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_batchwrap.exceptions import AccessDenied, BatchWrapError, TryAgain
from airflow_batchwrap.triggers.events import Event
from airflow_batchwrap.triggers.patience import Patience, said_of
from airflow_batchwrap.waiting import pause_after

if TYPE_CHECKING:
    from azure.batch.aio import BatchClient

    from airflow_batchwrap.hooks.batch import BatchWrapHook


_LAST_LOOK = 5.0  # seconds that a look may take even where the deadline has passed meanwhile
# Seconds from a trigger's start to its event, at least: Airflow 3.3 fails a task that is back before its scheduler has
# heard from the executor that its worker let go of it, which takes some seconds on a busy machine.
_SOONEST = 3.0


_endings: set[asyncio.Task[None]] = set()


class WaitTrigger(BaseTrigger):
    """Look at something again and again until it calls for the operator, or the deadline has passed.

    The event always comes: where looking itself fails for good, the event carries the reason, so that the operator
    cleans up as after any failure. (A trigger that raised would fail the task behind the operator's back.)

    A subclass names its kind of event, adds its own arguments, and looks::

        class JobTrigger(WaitTrigger):
            event = JobEvent
            arguments = (*WaitTrigger.arguments, "job_id")

            async def look(self, hook, client): ...

    :param deadline: seconds since 1970, absolute: a moved or restarted trigger waits no longer for it.
    :param poll_interval: the longest pause between two looks, in seconds.
    :param resume: handed back in the event: what the operator needs to go on.
    :param identity: which Airflow task waits: ``dag_id``, ``run_id``, ``task_id``, ``map_index``. Without it nothing is
        ended on the service when the task is.
    """

    event: ClassVar[type[Event]] = Event  # the kind of event that it fires
    arguments: tuple[str, ...] = (
        "deadline",
        "poll_interval",
        "azure_batch_conn_id",
        "wasb_conn_id",
        "resume",
        "identity",
    )

    def __init__(
        self,
        *,
        deadline: float,
        poll_interval: float,
        azure_batch_conn_id: str,
        wasb_conn_id: str,
        resume: dict[str, Any],
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.deadline = deadline
        self.poll_interval = poll_interval
        self.azure_batch_conn_id = azure_batch_conn_id
        self.wasb_conn_id = wasb_conn_id
        self.resume = resume
        self.identity = identity
        self.ended_as = ""  # the state that Airflow has the task in, once a person has ended it

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what makes this trigger again."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in self.arguments}

    async def look(self, hook: BatchWrapHook, client: BatchClient) -> Event | None:
        """Look once; return the event that ends the wait, or None to go on waiting.

        Not abstract: a trigger that overrides :meth:`wait`, as that of a step does, looks at nothing by itself.
        """
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire."""
        began = time.monotonic()
        try:
            event = await self.wait()
        except BatchWrapError as error:
            event = self.event.failed(str(error))
        except Exception as error:
            self.log.exception("Waiting failed")
            event = self.event.failed(f"Waiting failed in the triggerer: {type(error).__name__}")
        if self.task_instance is not None:  # in `dag.test()` there is none, and no scheduler
            await asyncio.sleep(_SOONEST - (time.monotonic() - began))
        yield TriggerEvent({"resume": self.resume, **event.to_json()})  # type: ignore[no-untyped-call]

    async def wait(self) -> Event:
        """Look again and again; return the event that ends the wait, ``late`` where the deadline has passed."""
        from airflow_batchwrap.hooks.batch import BatchWrapHook

        hook = BatchWrapHook(self.azure_batch_conn_id, self.wasb_conn_id)
        began, patience = time.monotonic(), Patience()
        async with AsyncExitStack() as stack:
            client: BatchClient | None = None
            while True:
                try:
                    # The client tries again by itself, for minutes where the service is busy.
                    async with asyncio.timeout(max(self.deadline - time.time(), _LAST_LOOK)):
                        if client is None:
                            client = await stack.enter_async_context(hook.async_batch())
                        if (event := await self.look(hook, client)) is not None:
                            return event
                    patience.renew()
                except TimeoutError:
                    self.log.warning("The Batch account did not answer before the deadline")
                except TryAgain as error:  # a missed look fails nothing; the deadline does
                    self.log.warning("%s", error)
                except Exception as error:
                    if not patience.lasts(error):
                        raise
                    self.log.warning("%s", said_of(error))
                    if isinstance(error, AccessDenied):
                        await stack.aclose()  # the next look signs in anew
                        client = None
                left = self.deadline - time.time()
                if left <= 0:
                    return self.event.late()
                await asyncio.sleep(min(pause_after(time.monotonic() - began, self.poll_interval), left))

    # --- an end by a person

    def ends_in(self, state: str) -> bool:
        """Return whether the Airflow task's state says to end what is waited for."""
        from airflow_batchwrap.triggers.cancel import was_ended

        return was_ended(state, deferred=True)

    async def end(self, hook: BatchWrapHook) -> None:
        """End on the service what is waited for; nothing by default."""

    async def on_kill(self) -> None:
        """End what is waited for, if a person has ended the Airflow task.

        Airflow also calls this where the trigger has moved to another triggerer, and where a new try has begun before
        the old trigger went: then the state says so, and the work goes on. It cancels the trigger once more each second
        until it is gone, this method included (3.3.2), so what is to be done here is done beside it.
        """
        ending = asyncio.create_task(self._end_if_ended())
        _endings.add(ending)  # the loop itself would forget it
        ending.add_done_callback(_endings.discard)
        await asyncio.shield(ending)

    async def _end_if_ended(self) -> None:
        from airflow_batchwrap.hooks.batch import BatchWrapHook
        from airflow_batchwrap.triggers.cancel import TIME_OF_TRIGGER, TaskIdentity, state_in_time

        if not self.identity:
            return
        state = await asyncio.to_thread(state_in_time, TaskIdentity(**self.identity).state, TIME_OF_TRIGGER)
        if not self.ends_in(state):
            self.log.info("Left the work alone: Airflow has the task as %s", state)
            return
        self.ended_as = state
        try:
            await self.end(BatchWrapHook(self.azure_batch_conn_id, self.wasb_conn_id))
        except BatchWrapError as error:
            self.log.warning("%s It ends with its job, by its wall clock, or by the sweep.", error)
