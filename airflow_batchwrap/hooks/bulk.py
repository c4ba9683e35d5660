"""Very many Batch tasks at once: submitted in bulk, counted, listed, and ended with their job."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from airflow_batchwrap.exceptions import ConfigError, Throttled, TryAgain
from airflow_batchwrap.hooks.blobs import hash_stream
from airflow_batchwrap.hooks.errors import code_of, scrub
from airflow_batchwrap.hooks.manifest import Counts
from airflow_batchwrap.hooks.taskviews import TaskView
from airflow_batchwrap.hooks.words import text
from airflow_batchwrap.workspace import BlobRef

if TYPE_CHECKING:
    from azure.batch import BatchClient
    from azure.batch.aio import BatchClient as AsyncBatchClient
    from azure.batch.models import BatchError

_MOST_TASKS = 100  # in one request; https://learn.microsoft.com/en-us/javascript/api/@azure-rest/batch/batchtaskgroup
_VIEW_SELECT = ["id", "state", "executionInfo", "nodeInfo"]
_PATIENCE = 300.0  # seconds without a single success before the submission is given up for this try
_LONGEST_BACK_OFF = 60.0  # seconds
_CONNECT_TIMEOUT = 10.0  # seconds
_READ_TIMEOUT = 60.0  # seconds: twice what Batch gives itself for a request
_LOG_EVERY = 5.0  # seconds
_ASK_EVERY = 0.5  # seconds between two questions whether to leave the rest
_NO_POLLING = 24 * 3600  # seconds: the SDK's poller reads the job again in a thread of its own, for nobody

Body = dict[str, Any]
T = TypeVar("T")


class BulkCalls:
    """The part of BatchWrapHook that deals with thousands of Batch tasks in a job of their own."""

    if TYPE_CHECKING:

        @property
        def batch(self) -> BatchClient: ...

        def batch_call(self, doing: str) -> AbstractContextManager[None]: ...

        def _upload(self, ref: BlobRef, data: bytes | IO[bytes], metadata: Mapping[str, str] | None = None) -> None: ...

        def stream_blob(self, container: str, blob: str) -> Iterator[bytes]: ...

    def create_tasks(
        self,
        job_id: str,
        items: Sequence[T],
        build: Callable[[T], Body],
        *,
        threads: int,
        log_progress: Callable[[int], None] = lambda done: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> int:
        """Submit Batch tasks, 100 in a request, side by side; one that is there already counts as submitted.

        Each request may be sent again: the ids are the caller's, and Batch takes an id once. After 429, or another sign
        of a busy service, all threads pause together, as long as the service asks.

        :param items: what the tasks are made from.
        :param build: makes a task's body, as JSON; called in the threads.
        :param threads: how many requests at a time.
        :param log_progress: called every few seconds with how many are there.
        :param stopped: asked now and then whether to leave the rest.
        :return: how many were new.
        :raises ConfigError: Batch refuses some of them.
        :raises TryAgain: the service has taken nothing for five minutes.
        """

        def send(bodies: list[Body]) -> list[Any] | None:
            with self.batch_call(f"submit {len(bodies)} Batch tasks to job {job_id!r}"):
                try:
                    # A plain dict: the SDK's models take three times as long to write down.
                    group: Any = {"value": bodies}
                    answer = self.batch.create_task_collection(
                        job_id,
                        group,
                        retry_total=0,
                        connection_timeout=_CONNECT_TIMEOUT,
                        read_timeout=_READ_TIMEOUT,
                    )
                except Exception as error:
                    too_large = code_of(error) == "RequestBodyTooLarge" or getattr(error, "status_code", 0) == 413
                    if too_large and len(bodies) > 1:
                        return None
                    raise
            return list(answer.result_values or ())

        return _Submission(job_id, items, build, send).run(threads, log_progress, stopped)

    def count_tasks(self, job_id: str) -> Counts | None:
        """Return how many Batch tasks of a job are in which state; None where the job is gone."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"count the Batch tasks of job {job_id!r}"):
            try:
                return Counts.of(self.batch.get_job_task_counts(job_id))
            except ResourceNotFoundError:
                return None

    async def acount_tasks(self, client: AsyncBatchClient, job_id: str) -> Counts | None:
        """Return what :meth:`count_tasks` does, without blocking."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"count the Batch tasks of job {job_id!r}"):
            try:
                return Counts.of(await client.get_job_task_counts(job_id))
            except ResourceNotFoundError:
                return None

    async def ahas_work(self, client: AsyncBatchClient, job_id: str) -> bool:
        """Return whether a job has a Batch task that is not over, without blocking."""
        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            async for _ in client.list_tasks(job_id, select=["id"], filter="state ne 'completed'", max_results=1):
                return True
        return False

    def task_ids(self, job_id: str) -> set[str]:
        """Return the ids of a job's Batch tasks, 1,000 in a request."""
        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            return {str(task.id) for task in self.batch.list_tasks(job_id, select=["id"])}

    def view_job(self, job_id: str) -> dict[str, TaskView]:
        """Return the states of all of a job's Batch tasks by id, 1,000 in a request; none where the job is gone."""
        from azure.core.exceptions import ResourceNotFoundError

        with self.batch_call(f"list the Batch tasks of job {job_id!r}"):
            try:
                return {str(task.id): TaskView.of(task) for task in self.batch.list_tasks(job_id, select=_VIEW_SELECT)}
            except ResourceNotFoundError:
                return {}

    def terminate_job(self, job_id: str, reason: str) -> bool:
        """End a job and with it what runs of its Batch tasks; what waits in it never runs.

        :param reason: what the job will show for it.
        :return: whether it was there to end.
        """
        from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

        with self.batch_call(f"terminate job {job_id!r}"):
            try:
                # Without options azure-batch 15.1 fails before it sends anything; their model has no public name.
                options: Any = {"terminateReason": reason}
                self.batch.begin_terminate_job(job_id, options, polling_interval=_NO_POLLING)
            except ResourceNotFoundError:
                return False
            except ResourceExistsError as error:
                if code_of(error) in ("JobCompleted", "JobBeingTerminated", "JobBeingDeleted"):
                    return False
                raise
        return True

    def upload_stream(self, container: str, blob: str, source: IO[bytes]) -> BlobRef:
        """Upload what a file holds, over what was there."""
        source.seek(0)
        sha256, size = hash_stream(source)
        ref = BlobRef(container, blob, size, sha256)
        source.seek(0)
        self._upload(ref, source)
        return ref

    def table_rows(self, table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a manifest's table, for code that runs in Airflow.

        :param table: what ``RunBatchManifestOperator`` returned.
        :raises ConfigError: the table is no longer there, or is another.
        """
        container, blob = str(table["container"]), str(table["blob"])
        digest = hashlib.sha256()
        with tempfile.TemporaryFile() as target:
            for chunk in self.stream_blob(container, blob):
                digest.update(chunk)
                target.write(chunk)
            if digest.hexdigest() != table["sha256"]:
                raise ConfigError(
                    f"Blob {blob!r} of container {container!r} is not the table that the manifest left. Run it again."
                )
            target.seek(0)
            for line in target:
                yield json.loads(line)


class _Submission(Generic[T]):
    """One submission of many Batch tasks: threads that take from one list, and pause together."""

    def __init__(
        self,
        job_id: str,
        items: Sequence[T],
        build: Callable[[T], Body],
        send: Callable[[list[Body]], list[Any] | None],
    ) -> None:
        self._job_id = job_id
        self._left = deque(items)
        self._build, self._send = build, send
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._most = _MOST_TASKS
        self._done = self._new = 0
        self._resume_at = 0.0
        self._refusals = 0
        self._last_success = time.monotonic()

    def run(self, threads: int, log_progress: Callable[[int], None], stopped: Callable[[], bool]) -> int:
        logged = time.monotonic()
        pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="batchwrap-submit")
        try:
            pending = {pool.submit(self._work) for _ in range(max(1, threads))}
            while pending:
                over, pending = wait(pending, timeout=_ASK_EVERY, return_when=FIRST_EXCEPTION)
                for thread in over:
                    thread.result()
                if stopped():
                    break
                if not pending or time.monotonic() - logged >= _LOG_EVERY:
                    logged = time.monotonic()
                    log_progress(self._done)
        finally:
            # Airflow's execution_timeout comes as an exception into this thread: the others end with it.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return self._new

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                taken = [self._left.popleft() for _ in range(min(self._most, len(self._left)))]
            if not taken:
                return
            self._deliver([self._build(item) for item in taken])

    def _deliver(self, bodies: list[Body]) -> None:
        """Send until each of these is there."""
        pending = [bodies]
        while pending and not self._stop.is_set():
            self._pause()
            chunk = pending.pop()
            try:
                answers = self._send(chunk)
            except TryAgain as error:
                self._back_off(error)
                pending.append(chunk)
                continue
            if answers is None:  # the request was too large
                half = len(chunk) // 2
                with self._lock:
                    self._most = min(self._most, half)
                pending += [chunk[half:], chunk[:half]]
                continue
            again = self._settle(answers)
            if again:
                failed = [body for body in chunk if body["id"] in again]
                self._back_off(Throttled(f"Batch could not take {len(failed)} Batch tasks of job {self._job_id!r}."))
                pending.append(failed)

    def _settle(self, answers: list[Any]) -> set[str]:
        """Count what is there; return the ids of those to send again.

        :raises ConfigError: Batch refuses some.
        """
        again: set[str] = set()
        refused: list[str] = []
        new = there = 0
        for answer in answers:
            code = str(answer.error.code) if answer.error else ""
            status = text(answer.status).lower()
            if status == "success":
                new += 1
            elif code == "TaskExists":
                there += 1
            elif status == "servererror":
                again.add(str(answer.task_id))
            else:
                refused.append(f"{answer.task_id!r}: {code}: {_reason(answer.error)}")
        with self._lock:
            self._new += new
            self._done += new + there
            if new or there:
                self._refusals = 0
                self._last_success = time.monotonic()
        if refused:
            raise ConfigError(
                f"Batch refuses {len(refused)} of {len(answers)} Batch tasks of job {self._job_id!r}, such as "
                f"{refused[0]}. Mend what they have in common: environment, task_slots, times or arguments."
            )
        return again

    def _pause(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0 and not self._stop.wait(left):
            pass

    def _back_off(self, error: TryAgain) -> None:
        """Let all threads pause, as long as the service asks, or else longer each time.

        :raises TryAgain: that has been going on for too long.
        """
        asked = getattr(error, "retry_after", None)
        with self._lock:
            now = time.monotonic()
            if now - self._last_success > _PATIENCE:
                raise error
            if now >= self._resume_at:  # threads that meet one busy moment together count once
                self._refusals += 1
            pause = asked or min(_LONGEST_BACK_OFF, 0.25 * 2**self._refusals)
            self._resume_at = max(self._resume_at, now + pause * random.uniform(1.0, 1.2))  # noqa: S311 - no secret


def _reason(error: BatchError | None) -> str:
    """Return why Batch refuses one of many Batch tasks: the sentence of its message, and the values beside it."""
    message = error.message.value if error and error.message else ""
    lines = (message or "").strip().splitlines()
    values = [f"{item.key}: {item.value}" for item in (error.error_values if error else None) or () if item.value]
    return scrub("; ".join([*lines[:1], *values]))[:1000] or "no message"
