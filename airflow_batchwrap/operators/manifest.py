"""Run a whole manifest as one Airflow task: its entries are Batch tasks, submitted in bulk into a job of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap import metrics
from airflow_batchwrap.attempts.belongings import Belongings, delete_job
from airflow_batchwrap.attempts.confidential import Confidential, split_confidential
from airflow_batchwrap.attempts.opening import Opening
from airflow_batchwrap.attempts.retrying import is_tried_again
from airflow_batchwrap.attempts.submission import plain_values
from airflow_batchwrap.attempts.trying import Try
from airflow_batchwrap.config import Manifest
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, StepTimeout, TryAgain
from airflow_batchwrap.links.pool import JobLink, PoolLink, push_pool_links
from airflow_batchwrap.manifests.bodies import Bodies
from airflow_batchwrap.manifests.noted import CUT_SHORT, NotedRound
from airflow_batchwrap.manifests.rounds import (
    Round,
    RoundJob,
    allowed_failures,
    claim_job,
    fingerprint_of,
    left_of,
    same_entries,
)
from airflow_batchwrap.manifests.rows import Row, count, entries_of, from_data, to_file
from airflow_batchwrap.manifests.settlement import Settlement
from airflow_batchwrap.naming import result_folder
from airflow_batchwrap.operators.base import Setting, Templated
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.triggers.cancel import was_ended_for_good
from airflow_batchwrap.triggers.events import ManifestEvent
from airflow_batchwrap.triggers.manifest import CLEARED
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

    from airflow_batchwrap.hooks.manifest import JobWatch
    from airflow_batchwrap.triggers.base import WaitTrigger

_ENDED = "The manifest was ended with its Airflow task."

Rerun = Literal["failed", "all"]


@dataclass
class ManifestTry(Try):
    """One try of a manifest.

    :param noted: the last round that is over; None before the first.
    :param job_id: the job of this try's round; empty until it is open.
    :param belongings: what the task has made in this run.
    :param round: what this try waits for.
    :param watch: how far it has come, where the worker waits.
    """

    noted: NotedRound | None = None
    job_id: str = ""
    belongings: Belongings | None = None
    round: Round | None = None
    watch: JobWatch | None = None

    @property
    def current(self) -> Round:
        """The round, once it is submitted."""
        if self.round is None:
            raise RuntimeError("The manifest was not submitted yet.")
        return self.round


class RunBatchManifestOperator(JobOperator[ManifestTry, ManifestEvent]):
    """Run all entries of a manifest as Batch tasks, tens of thousands of them; the XCom is a reference to their table.

    The table has one row for each entry, as JSON lines: ``entry`` (its number, from 0), ``step``, ``command``,
    ``args``, ``state`` (succeeded, failed, cancelled, not_submitted, missing), ``attempt``, ``job_id``,
    ``batch_task_id``, ``exit_code``, ``node_id``, ``failure``, ``started``, ``ended``, ``output_prefix`` and ``value``.
    The XCom holds its ``container``, ``blob``, ``size`` and ``sha256``, and how many entries there are in each state.
    ``BatchWrapHook().table_rows(xcom)`` reads it.

    A retry of the task, and a clear of it, submit the entries that did not succeed, as their next attempt, and no
    other.

    :param manifest: a Manifest, the path of a task.json relative to the DAG file, a dict of its keys, or a list of
        entries, such as what an earlier task returned.
    :param workspace: what a set-up task returned: its pool, archive and inputs are used, in a job of the manifest's.
    :param pool_id: run on this pool as it is, with ``steps`` and ``inputs``, instead of a workspace.
    :param max_failures: how many entries may fail without failing the task: a whole number, or a share of them such as
        ``"2%"`` or 0.02. What still runs is ended once more have failed.
    :param rerun: what a person's clear of the task runs: ``failed``, the entries that did not succeed, or ``all``.
    :param values: read what the steps returned into the table, one blob for each entry. A command's value is the last
        line of its stdout.
    :param keep_output: keep stdout and stderr of every entry; False keeps them of those that fail, which spares two
        uploads for each of the others.
    :param threads: how many requests submit entries at a time.
    :param environment: environment variables for the entries. Templates in them are rendered, and their values are
        neither in a log nor among Airflow's rendered fields; but Batch shows them to whoever may read its account.
    :param secrets: environment variables too, by name, whose values travel in a file that the nodes fetch: Batch does
        not show them. Their templates are rendered when the entries are submitted.
    :param step_timeout: how long an entry may take from its start on a node.
    :param task_slots: how many of a node's task slots an entry takes.
    :param java_options: options of the Java virtual machine for entries whose step is a jar: a string, or a list.
    """

    operator_extra_links = (PoolLink(), JobLink())
    event = ManifestEvent

    def __init__(
        self,
        *,
        manifest: Templated[Any],
        workspace: Templated[Any] = None,
        pool_id: Templated[str | None] = None,
        max_failures: Templated[float | str] = 0,
        rerun: Templated[Rerun] = "failed",
        values: bool = False,
        keep_output: bool = True,
        threads: Templated[int | str] = 8,
        environment: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        step_timeout: Setting[timedelta | str] = timedelta(hours=24),
        task_slots: Setting[int | str] = 1,
        java_options: Setting[str | Sequence[str]] = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = str(manifest) if isinstance(manifest, Path) else manifest
        self.workspace = workspace
        self.pool_id = pool_id
        self.max_failures = max_failures
        self.rerun = rerun
        self.values = values
        self.keep_output = keep_output
        self.threads = threads
        self.environment = dict(environment or {})
        self.secrets = dict(secrets or {})
        self.step_timeout = step_timeout
        self.task_slots = task_slots
        self.java_options = java_options

    def execute(self, context: Context) -> Any:
        """Run what is to be run; return what an earlier try has brought to its end, where Airflow never heard of it."""
        noted = NotedRound.load(context)
        if noted is not None and not noted.failed and not noted.was_cleared_since(context):
            self.log.info("An earlier try has run the manifest to its end")
            return noted.result
        return super().execute(context)

    # --- the wait

    def new_try(self, context: Context) -> ManifestTry:
        """Return a try that has done nothing yet."""
        return ManifestTry(context, noted=NotedRound.load(context))

    def resumed(self, context: Context, resume: Mapping[str, Any]) -> ManifestTry:
        """Return the try that goes on after the wait in the triggerer."""
        of = Round.from_json(resume["round"])
        return ManifestTry(context, round=of, job_id=of.job_id)

    def resume(self, work: ManifestTry) -> dict[str, Any]:
        """Return what the try after the wait has to know: the round."""
        return {"round": work.current.to_json()}

    def begin(self, work: ManifestTry) -> ManifestEvent | None:
        """Open this round's job, or the one that an earlier try opened, and submit what is not there."""
        epoch = self.epoch(work.context)
        rows_of, workspace, resource_files = self._what_to_run(work, epoch)
        environment = self._environment(work.context)
        every_param = plain_values(dict(work.context.get("params") or {}), "the DAG run's params")
        params, confidential = split_confidential(self, work.context, every_param, environment)
        allowed = allowed_failures(self.max_failures, len(rows_of), self.task_id)
        fingerprint = fingerprint_of(workspace, rows_of, params, environment, confidential, self.settings)
        rows, number = self._rows_left(work, rows_of)
        if work.noted is not None and all(row.is_over for row in rows):
            self.log.info("All entries have succeeded already")
            return ManifestEvent(kind="over")
        job = claim_job(
            self._opening(work), workspace, resource_files, epoch=epoch, number=number, fingerprint=fingerprint
        )
        self._running_in(work, workspace, job)
        folder = self._folder(work, workspace)
        rows = [replace(row, attempt=row.attempt + job.number - number) for row in rows]
        rows = [row if row.is_over else row.placed(self.task_id, job.epoch, job.job_id, folder) for row in rows]
        todo = [row for row in rows if not row.is_over]
        with to_file(rows) as plan:
            name = f"{folder}/plan-e{job.epoch}-{job.number}.jsonl"
            ref = self.hook.upload_stream(workspace.output_container, name, plan)
        if job.state != "ended":
            bodies = self._bodies(work, workspace, environment, params, confidential)
            there = self.hook.task_ids(job.job_id)
            self._submit(work, [row for row in todo if row.batch_task_id not in there], len(todo), bodies)
        work.round = Round(
            workspace.pool_id,
            job.job_id,
            job.epoch,
            job.number,
            job.began,
            len(todo),
            allowed,
            workspace.output_container,
            folder,
            ref,
        )
        if job.state == "ended" and job.epoch < epoch:
            self._note_cut_short(work)
            return self.begin(work)
        work.deadline = self.deadline(work, job.began, "job_wall_clock")
        return None

    def look(self, work: ManifestTry) -> ManifestEvent | None:
        """Count the Batch tasks, and look closer where the counts ask for it."""
        from airflow_batchwrap.hooks.manifest import JobWatch, judge_stall

        of = work.current
        work.watch = watch = work.watch or JobWatch(of.expected, of.allowed, self.log)
        answer = watch.judge(self.hook.count_tasks(of.job_id))
        if answer in ("beyond", "gone"):
            return ManifestEvent(kind=answer)
        if answer == "prove" and not self.hook.has_work(of.job_id):
            return ManifestEvent(kind="over")
        if answer == "ask":
            return ManifestEvent.of_stall(judge_stall(self.hook.view_wait(of.job_id, of.pool_id)))
        return None

    def trigger(self, work: ManifestTry, **common: Any) -> WaitTrigger:
        """Return what counts the Batch tasks in the triggerer."""
        from airflow_batchwrap.triggers.manifest import ManifestTrigger

        of = work.current
        return ManifestTrigger(pool_id=of.pool_id, job_id=of.job_id, expected=of.expected, allowed=of.allowed, **common)

    # --- the end

    def settle(self, work: ManifestTry, event: ManifestEvent) -> dict[str, Any]:
        """Write the table, note that Airflow hears of this round, end the job; return the table's reference.

        :raises BatchWrapError: too many entries failed, or the manifest did not come to its end.
        """
        if event.kind == "error":
            raise self.looking_failed(event)
        context = work.context
        if work.round is None and work.noted is not None:  # nothing was left to run
            replace(work.noted, failed=False, max_tries=context["ti"].max_tries).save(context)
            return work.noted.result
        of = work.current
        result, failure = self._settlement(work, of).settle(event)
        NotedRound(of.number, failure is not None, result, context["ti"].max_tries).save(context)
        context["ti"].xcom_push(key="table", value=result)  # of a manifest that failed, too
        self._remove(work, of.job_id)
        if failure is not None:
            raise failure
        return result

    def end(self, work: ManifestTry) -> None:
        """End the manifest's job and nothing else; one request does.

        Where the task was cleared, the job stays as it ended: the next try reads in it what has succeeded.
        """
        if not work.job_id:
            return
        if was_ended_for_good(work.ended):
            self._remove(work, work.job_id)
            return
        try:
            self.hook.terminate_job(work.job_id, CLEARED)
        except BatchWrapError as error:
            self.log.warning("%s The next try goes on in it.", error)

    def ended_error(self, work: ManifestTry) -> BatchWrapError:
        """Return the error of a manifest that a person has ended."""
        return StepTimeout(_ENDED)

    def give_up(self, work: ManifestTry) -> None:
        """End and report what Airflow's execution_timeout has cut short.

        One that came while the results were read ends nothing: the next try reads them in less time than it takes to
        make them again.
        """
        if work.round is None or work.is_resumed:
            return
        try:
            self.settle(work, ManifestEvent.late())
        except BatchWrapError as error:
            self.log.error("%s", error)

    def undo(self, work: ManifestTry, error: BaseException) -> None:
        """End the job after a failure, unless the next try goes on where this one stopped."""
        if isinstance(error, AirflowTaskTimeout) and work.is_resumed:
            error = TryAgain()  # only the results were still to be read
        goes_on = not was_ended_for_good(work.ended) if work.ended else is_tried_again(error, work.context)
        if goes_on:
            return
        if work.job_id:
            # This one and no other: where the task was cleared, its next try may have made another.
            self._remove(work, work.job_id)
        elif work.belongings is not None and work.belongings.has_made and (left := work.belongings.remove("job")):
            self.log.error("Left behind: %s", "; ".join(left))

    # --- what is run

    def _what_to_run(self, work: ManifestTry, epoch: int) -> tuple[list[Row], Workspace, list[ResourceFile]]:
        """Return all entries as rows, where they run, still without a job, and what its nodes need first."""
        if bool(self.workspace) == bool(self.pool_id):
            raise ConfigError(
                f"Task {self.task_id!r} needs either a workspace, which a set-up task returns, or a pool_id, not both."
            )
        if self.rerun not in ("failed", "all"):
            raise ConfigError(f'Task {self.task_id!r}: rerun = {self.rerun!r}: use "failed" or "all".')
        manifest = self._manifest(work.context)
        self.output_container = self.output_container or manifest.output_container
        workspace, resource_files = self._workspace(work, epoch)
        return entries_of(manifest, workspace.steps), workspace, resource_files

    def _manifest(self, context: Context) -> Manifest:
        given = self.manifest
        if isinstance(given, Manifest):
            return given
        if isinstance(given, str):
            return Manifest.from_json(self.dag_folder(context) / given)
        source = f"The manifest of task {self.task_id!r}"
        if isinstance(given, Mapping):
            return Manifest.from_dict(dict(given), source=source)
        if isinstance(given, Sequence):
            return Manifest.from_dict({"tasks": list(given)}, source=source)
        raise ConfigError(
            f"{source} is a {type(given).__name__}: give a Manifest, the path of a task.json, or a list of entries."
        )

    def _workspace(self, work: ManifestTry, epoch: int) -> tuple[Workspace, list[ResourceFile]]:
        named, opening = self.settings.output_container, self._opening(work)
        if not self.workspace:
            bare = self.workspace_on(str(self.pool_id), epoch)
            self.check_slots(bare.pool_id)
            return opening.lay_out(bare, self.pack(work.context), self.input_files(work.context))
        workspace = Workspace.from_xcom(self.workspace)
        self.check_slots(workspace.pool_id)
        if named and named != workspace.output_container:
            self.hook.ensure_container(named)
            # A container that was named may serve many DAGs.
            prefix = f"{opening.belongings.maker.folder}/{workspace.output_prefix}"
            workspace = replace(workspace, output_container=named, output_prefix=prefix)
        return workspace, opening.bring_again(workspace)

    def _opening(self, work: ManifestTry) -> Opening:
        work.belongings = work.belongings or self.belongings(work.context)
        return self.opening(work.context, work.belongings)

    def _rows_left(self, work: ManifestTry, rows: list[Row]) -> tuple[list[Row], int]:
        """Return the rows of this round, and its number: after a round that is over, what did not succeed in it."""
        noted = work.noted
        if noted is None:
            return rows, 1
        before = from_data(self.hook.table_rows(noted.result))
        cleared = noted.was_cleared_since(work.context)
        if cleared and (self.rerun == "all" or not same_entries(rows, before)):
            # Attempts go on counting, so that no result is written over.
            last = max((row.attempt for row in before), default=0)
            return [replace(row, attempt=last + 1) for row in rows], noted.number + 1
        self.log.info("Submitting again what did not succeed: %s", count(before))
        return left_of(rows, before), noted.number + 1

    def _note_cut_short(self, work: ManifestTry) -> None:
        """Note what came of a round whose job was ended, as by a clear of the task: what succeeded in it stays so."""
        of = work.current
        self.log.info("Job %s was ended before the task was cleared, or with it: what succeeded there stays", of.job_id)
        result, _ = self._settlement(work, of).settle(ManifestEvent(kind="ended", reason=CLEARED))
        work.noted = NotedRound(of.number, failed=True, result=result, max_tries=CUT_SHORT)
        work.noted.save(work.context)
        self._remove(work, of.job_id)
        work.round, work.job_id = None, ""

    def _environment(self, context: Context) -> dict[str, str]:
        rendered = self.render_template(self.environment, context)
        return {str(name): str(value) for name, value in rendered.items()}

    # --- how it is submitted

    def _running_in(self, work: ManifestTry, workspace: Workspace, job: RoundJob) -> None:
        """Say where it runs; from now on a person's end of the task ends the job."""
        work.job_id = job.job_id
        if work.ended:
            raise StepTimeout(_ENDED)
        work.context["ti"].xcom_push(key="batch", value={"pool_id": workspace.pool_id, "job_id": job.job_id})
        push_pool_links(work.context, self.hook, replace(workspace, job_id=job.job_id))

    def _folder(self, work: ManifestTry, workspace: Workspace) -> str:
        group = workspace.group if self.workspace else self.group
        return f"{workspace.output_prefix}/{result_folder(self.task_id, group, self.map_index(work.context))}"

    def _bodies(
        self,
        work: ManifestTry,
        workspace: Workspace,
        environment: Mapping[str, str],
        params: Mapping[str, Any],
        confidential: Confidential,
    ) -> Bodies:
        return Bodies(
            self.hook,
            replace(workspace, job_id=work.job_id),
            self.settings,
            environment=environment,
            params=params,
            context={**self.identity(work.context), "try_number": work.number},
            keep_output=self.keep_output,
            maker=self._opening(work).belongings.maker,
            confidential=confidential,
        )

    def _submit(self, work: ManifestTry, missing: list[Row], expected: int, bodies: Bodies) -> None:
        before = expected - len(missing)
        if before:
            self.log.info("Found %s of %s Batch tasks, which an earlier try submitted", before, expected)
        began = time.monotonic()

        def log_progress(done: int) -> None:
            rate = done / max(0.001, time.monotonic() - began)
            line = "Submitted %s of %s entries to job %s, %.0f a second"
            self.log.info(line, before + done, expected, work.job_id, rate)

        try:
            threads = int(self.threads)
        except ValueError:
            raise ConfigError(f"Task {self.task_id!r}: threads = {self.threads!r} is no whole number.") from None
        if missing:
            self.hook.create_tasks(
                work.job_id,
                missing,
                bodies,
                threads=threads,
                log_progress=log_progress,
                stopped=lambda: bool(work.ended),
            )
            metrics.timing(metrics.SUBMIT_TIME, time.monotonic() - began, dag_id=self.dag_id, task_id=self.task_id)
        if work.ended:
            raise StepTimeout(_ENDED)

    # --- small things

    def _settlement(self, work: ManifestTry, of: Round) -> Settlement:
        return Settlement(
            hook=self.hook,
            log=self.log,
            pool_id=of.pool_id,
            job_id=of.job_id,
            container=of.container,
            table=f"{of.folder}/table-e{of.epoch}-{of.number}.jsonl",
            rows=from_data(self.hook.table_rows(asdict(of.plan))),
            allowed=of.allowed,
            max_failures=str(self.max_failures),
            values=self.values,
            limit=str(work.deadline or f"job_wall_clock ({self.settings.job_wall_clock})"),
        )

    def _remove(self, work: ManifestTry, job_id: str) -> None:
        """Delete the manifest's job; where that fails it ends later, and what the caller has to say goes first."""
        try:
            if delete_job(self.hook, self._opening(work).belongings.maker, job_id):
                self.log.info("Removed job %s", job_id)
        except BatchWrapError as error:
            self.log.warning("%s It ends by its wall clock, or by the sweep.", error)

    @property
    def scope(self) -> str:
        """The manifest's job is its own, and named so."""
        return self.task_id
