"""Run a whole manifest as one Airflow task: its entries are Batch tasks, submitted in bulk into a job of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap import metrics
from airflow_batchwrap.config import Manifest
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, PoolError, StepTimeout, TryAgain
from airflow_batchwrap.links.pool import JobLink, PoolLink, push_pool_links
from airflow_batchwrap.naming import digest, result_folder
from airflow_batchwrap.operators.bodies import Bodies
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.operators.rounds import Round, allowed_failures, claim_job, fingerprint_of, left_of
from airflow_batchwrap.operators.rows import Row, count, entries_of, from_data, to_file
from airflow_batchwrap.operators.settlement import Settlement
from airflow_batchwrap.operators.submission import plain_values
from airflow_batchwrap.operators.superseded import leave_if_superseded
from airflow_batchwrap.triggers.cancel import TaskIdentity, state_in_time, was_ended
from airflow_batchwrap.waiting import TRIGGER_PADDING, pause_after
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context
    from azure.batch.models import ResourceFile

_NOTED = "batchwrap_manifest"  # state store: the last round that Airflow has heard of
_STOPPED = "The manifest was ended with its Airflow task."


class RunBatchManifestOperator(JobOperator):
    """Run all entries of a manifest as Batch tasks, tens of thousands of them; the XCom is a reference to their table.

    The table has one row for each entry, as JSON lines: ``entry`` (its number, from 0), ``step``, ``command``,
    ``args``, ``state`` (succeeded, failed, cancelled, not_submitted, missing), ``attempt``, ``job_id``,
    ``batch_task_id``, ``exit_code``, ``node_id``, ``failure``, ``started``, ``ended``, ``output_prefix`` and ``value``.
    The XCom holds its ``container``, ``blob``, ``size`` and ``sha256``, and how many entries there are in each state.
    ``BatchWrapHook().table_rows(xcom)`` reads it.

    A retry of the task submits the entries that did not succeed, as their next attempt, and no other.

    :param manifest: a Manifest, the path of a task.json relative to the DAG file, a dict of its keys, or a list of
        entries, such as what an earlier task returned.
    :param workspace: what a set-up task returned: its pool, archive and inputs are used, in a job of the manifest's.
    :param pool_id: run on this pool as it is, with ``steps`` and ``inputs``, instead of a workspace.
    :param max_failures: how many entries may fail without failing the task: a whole number, or a share of them such as
        ``"2%"`` or 0.02. What still runs is ended once more have failed.
    :param values: read what the steps returned into the table, one blob for each entry. A command's value is the last
        line of its stdout.
    :param keep_output: keep stdout and stderr of every entry; False keeps them of those that fail, which spares two
        uploads for each of the others.
    :param threads: how many requests submit entries at a time.
    :param environment: environment variables for the entries. Templates in them are rendered, and their values shown
        nowhere.
    :param step_timeout: how long an entry may take from its start on a node.
    :param task_slots: how many of a node's task slots an entry takes.
    """

    operator_extra_links = (PoolLink(), JobLink())
    template_fields: Sequence[str] = (
        *JobOperator.template_fields,
        "manifest",
        "workspace",
        "pool_id",
        "max_failures",
        "threads",
        "step_timeout",
        "task_slots",
    )
    setting_names: Sequence[str] = (*JobOperator.setting_names, "step_timeout", "task_slots")

    def __init__(
        self,
        *,
        manifest: Any,
        workspace: Any = None,
        pool_id: str | None = None,
        max_failures: float | str = 0,
        values: bool = False,
        keep_output: bool = True,
        threads: int | str = 8,
        environment: Mapping[str, str] | None = None,
        step_timeout: timedelta | str = timedelta(hours=24),
        task_slots: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = str(manifest) if isinstance(manifest, Path) else manifest
        self.workspace = workspace
        self.pool_id = pool_id
        self.max_failures = max_failures
        self.values = values
        self.keep_output = keep_output
        self.threads = threads
        self.environment = dict(environment or {})
        self.step_timeout = step_timeout
        self.task_slots = task_slots
        # What this process has done so far; nothing of it outlives a deferral.
        self._running = ""
        self._identity: TaskIdentity | None = None
        self._stopped = False

    # --- Airflow's side

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit what is missing, and wait."""
        began, epoch = time.time(), self.epoch(context)
        self._identity = TaskIdentity(**self.identity(context))
        self._running, self._stopped = "", False
        noted = self._noted(context, epoch)
        if noted is not None and not noted["failed"]:
            self.log.info("An earlier try has run the manifest to its end")
            result: dict[str, Any] = noted["result"]
            return result
        turn: Round | None = None
        try:
            turn = self._begin(context, epoch, noted)
            deadline = turn.began + self.settings.job_wall_clock.total_seconds()
            if self.execution_timeout and self.deferrable:
                # Airflow forgets it while a task is deferred.
                deadline = min(deadline, began + self.execution_timeout.total_seconds())
            inline = min(deadline, time.time() + self.settings.inline_wait.total_seconds())
            event = self._wait(turn, inline if self.deferrable else deadline)
            if self._stopped and event is None:
                raise StepTimeout(_STOPPED)
            if event is None and self.deferrable and time.time() < deadline:
                self._defer(context, turn, deadline)
            return self._settle(context, turn, event or {"late": True})
        except (Exception, AirflowTaskTimeout) as error:
            if not self._stopped:
                leave_if_superseded(context, self.log)
            self._identity = None  # Airflow calls on_kill after a timeout as well
            if isinstance(error, AirflowTaskTimeout) and turn is not None and not self._stopped:
                self._give_up(context, turn)
            self._close(context, error)
            raise

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        turn = Round.from_json(event["resume"]["round"])
        self._running, self._stopped = turn.job_id, False
        try:
            return self._settle(context, turn, event)
        except (Exception, AirflowTaskTimeout) as error:
            leave_if_superseded(context, self.log)
            # A timeout while the results were read: another try reads them in less time than it would take to make them
            # again.
            self._close(context, TryAgain() if isinstance(error, AirflowTaskTimeout) else error)
            raise

    def on_kill(self) -> None:
        """End the manifest's job and nothing else, if a person has ended the Airflow task; one request does."""
        task = self._identity
        if task is None or self._stopped:
            return
        state = state_in_time(task.state)
        if not was_ended(state):
            self.log.info("Left the manifest's job alone: Airflow has its task as %s", state)
            return
        self._stopped = True
        self.log.info("Ending the manifest: its Airflow task was ended (%s)", state)
        if self._running:
            self._remove(self._running)

    # --- a round, to where all its entries are submitted

    def _begin(self, context: Context, epoch: int, noted: dict[str, Any] | None) -> Round:
        """Open this round's job, or the one that an earlier try opened, and submit what is not there."""
        if bool(self.workspace) == bool(self.pool_id):
            raise ConfigError(
                f"Task {self.task_id!r} needs either a workspace, which a set-up task returns, or a pool_id, not both."
            )
        manifest = self._manifest(context)
        self.output_container = self.output_container or manifest.output_container
        workspace, resource_files = self._workspace(context, epoch)
        rows = entries_of(manifest, workspace.steps)
        params = plain_values(dict(context.get("params") or {}), "the DAG run's params")
        rendered = self.render_template(self.environment, context)
        environment = {str(name): str(value) for name, value in rendered.items()}
        fingerprint = fingerprint_of(workspace, rows, params, environment)
        number, allowed = 1, allowed_failures(self.max_failures, len(rows), self.task_id)
        if noted is not None:
            number = int(noted["round"]) + 1
            before = from_data(self.hook.table_rows(noted["result"]))
            self.log.info("Submitting again what did not succeed: %s", count(before))
            rows = left_of(rows, before)
        job_id, began, state = claim_job(self, context, workspace, resource_files, epoch, number, fingerprint)
        self._running = job_id
        if self._stopped:
            raise StepTimeout(_STOPPED)
        context["ti"].xcom_push(key="batch", value={"pool_id": workspace.pool_id, "job_id": job_id})
        push_pool_links(context, self.hook, replace(workspace, job_id=job_id))
        group = workspace.group if self.workspace else self.group
        folder = f"{workspace.output_prefix}/{result_folder(self.task_id, group, self.map_index(context))}"
        rows = [row if row.is_over else row.placed(self.task_id, epoch, job_id, folder) for row in rows]
        todo = [row for row in rows if not row.is_over]
        with to_file(rows) as plan:
            ref = self.hook.upload_stream(workspace.output_container, f"{folder}/plan-e{epoch}-{number}.jsonl", plan)
        if state != "ended":
            bodies = Bodies(
                self.hook,
                workspace,
                self.settings,
                environment=environment,
                params=params,
                context={**self.identity(context), "try_number": context["ti"].try_number},
                keep_output=self.keep_output,
            )
            there = self.hook.task_ids(job_id) if state == "found" else set()
            self._submit(job_id, [row for row in todo if row.batch_task_id not in there], len(todo), bodies)
        return Round(
            workspace.pool_id,
            job_id,
            epoch,
            number,
            began,
            len(todo),
            allowed,
            workspace.output_container,
            folder,
            ref,
        )

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

    def _workspace(self, context: Context, epoch: int) -> tuple[Workspace, list[ResourceFile]]:
        """Return where the manifest runs, still without a job, and what its nodes need first."""
        named = self.settings.output_container
        if self.workspace:
            workspace = Workspace.from_xcom(self.workspace)
            if named and named != workspace.output_container:
                self.hook.ensure_container(named)
                # A container that was named may serve many DAGs.
                prefix = f"{digest(self.dag_id)}/{workspace.output_prefix}"
                workspace = replace(workspace, output_container=named, output_prefix=prefix)
            return workspace, self._bring(workspace.inputs)[0]
        pool = self.hook.find_pool(str(self.pool_id))
        if pool is None or pool.state != "active":
            problem = "does not exist" if pool is None else f"is {pool.state}"
            raise PoolError(f"Pool {self.pool_id!r} {problem}. Check pool_id, or create one with CreatePoolOperator.")
        archive, files = self.pack(context), self.input_files(context)
        return self.lay_out(context, Workspace(pool.entity_id, False, "", epoch), archive, files)

    def _submit(self, job_id: str, missing: list[Row], expected: int, bodies: Bodies) -> None:
        before = expected - len(missing)
        if before:
            self.log.info("Found %s of %s Batch tasks, which an earlier try submitted", before, expected)
        began = time.monotonic()

        def tell(done: int) -> None:
            rate = done / max(0.001, time.monotonic() - began)
            self.log.info("Submitted %s of %s entries to job %s, %.0f a second", before + done, expected, job_id, rate)

        try:
            threads = int(self.threads)
        except ValueError:
            raise ConfigError(f"Task {self.task_id!r}: threads = {self.threads!r} is no whole number.") from None
        if missing:
            self.hook.create_tasks(job_id, missing, bodies, threads=threads, tell=tell, stopped=lambda: self._stopped)
            metrics.timing(metrics.SUBMIT_TIME, time.monotonic() - began, dag_id=self.dag_id, task_id=self.task_id)
        if self._stopped:
            raise StepTimeout(_STOPPED)

    # --- the wait

    def _wait(self, turn: Round, until: float) -> dict[str, Any] | None:
        """Look at the job until there is something to say; return what a trigger's event would say, None in the end."""
        from airflow_batchwrap.hooks.manifest import JobWatch, judge_stall

        began = time.monotonic()
        watch = JobWatch(turn.expected, turn.allowed, self.log)
        while not self._stopped:
            try:
                answer = watch.judge(self.hook.count_tasks(turn.job_id))
                if answer in ("beyond", "gone"):
                    return {answer: True}
                if answer == "prove" and not self.hook.has_work(turn.job_id):
                    return {"over": True}
                if answer == "ask":
                    said = judge_stall(self.hook.view_wait(turn.job_id, turn.pool_id))
                    if said is not None:
                        return said
            except TryAgain as error:  # a missed look fails nothing; the deadline does
                self.log.warning("%s", error)
            left = until - time.time()
            if left <= 0:
                return None
            time.sleep(min(pause_after(time.monotonic() - began, self.settings.poll_interval.total_seconds()), left))
        return None

    def _defer(self, context: Context, turn: Round, deadline: float) -> None:
        from airflow_batchwrap.triggers.manifest import ManifestTrigger

        trigger = ManifestTrigger(
            pool_id=turn.pool_id,
            job_id=turn.job_id,
            expected=turn.expected,
            allowed=turn.allowed,
            deadline=deadline,
            poll_interval=self.settings.poll_interval.total_seconds(),
            identity=self.identity(context),
            resume={"round": turn.to_json()},
            **self.connections(),
        )
        timeout = timedelta(seconds=max(0.0, deadline - time.time()) + TRIGGER_PADDING)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    # --- the end

    def _settle(self, context: Context, turn: Round, event: dict[str, Any]) -> dict[str, Any]:
        """Write the table, remember that Airflow hears of this round, end the job; return the table's reference.

        :raises BatchWrapError: too many entries failed, or the manifest did not come to its end.
        """
        if error := event.get("error"):
            raise ConfigError(error)
        limit, name = self.settings.job_wall_clock, "job_wall_clock"
        if self.execution_timeout and self.execution_timeout < limit:
            limit, name = self.execution_timeout, "execution_timeout"
        settlement = Settlement(
            hook=self.hook,
            log=self.log,
            pool_id=turn.pool_id,
            job_id=turn.job_id,
            container=turn.container,
            table=f"{turn.folder}/table-e{turn.epoch}-{turn.number}.jsonl",
            rows=from_data(self.hook.table_rows(asdict(turn.plan))),
            allowed=turn.allowed,
            max_failures=str(self.max_failures),
            values=self.values,
            limit=f"{name} ({limit})",
        )
        result, failure = settlement.settle(event)
        context["task_state_store"].set(
            _NOTED, {"epoch": turn.epoch, "round": turn.number, "failed": failure is not None, "result": result}
        )
        context["ti"].xcom_push(key="table", value=result)  # of a manifest that failed, too
        self._remove(turn.job_id)
        if failure is not None:
            raise failure
        return result

    def _give_up(self, context: Context, turn: Round) -> None:
        """End and report what Airflow's execution_timeout has cut short."""
        try:
            self._settle(context, turn, {"late": True})
        except BatchWrapError as error:
            self.log.error("%s", error)

    def _close(self, context: Context, error: BaseException) -> None:
        """End the job after a failure, unless the next try goes on where this one stopped."""
        ti = context["ti"]
        if isinstance(error, TryAgain) and not self._stopped and ti.try_number <= ti.max_tries:
            return
        if self._running:
            # This one and no other: where the task was cleared, its next try may have made another.
            self._remove(self._running)
        elif self.has_made and (left := self.remove_made(context, "job")):
            self.log.error("Left behind: %s", "; ".join(left))

    def _remove(self, job_id: str) -> None:
        """Delete the manifest's job; what is being told is worth more than a failure to do so."""
        try:
            if self.hook.delete_job(job_id):
                self.log.info("Removed job %s", job_id)
        except BatchWrapError as error:
            self.log.warning("%s It ends by its wall clock, or by the sweep.", error)

    @property
    def scope(self) -> str:
        """The manifest's job is its own, and named so."""
        return self.task_id

    def _noted(self, context: Context, epoch: int) -> dict[str, Any] | None:
        """Return what is known of this epoch's last round that Airflow has heard of."""
        stored: Any = context["task_state_store"].get(_NOTED)
        return stored if isinstance(stored, dict) and stored.get("epoch") == epoch else None
