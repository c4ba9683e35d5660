"""Run one step, or one command, as one Batch task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap import metrics
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, PoolError, StepFailed, StepTimeout, TryAgain
from airflow_batchwrap.hooks.output import OutputTail
from airflow_batchwrap.links.step import BatchTaskLink, ResultsLink, push_task_links
from airflow_batchwrap.naming import Attempt, BatchTaskKey, result_folder, step_family, step_id
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.operators.outcome import Outcome
from airflow_batchwrap.operators.progress import Follower
from airflow_batchwrap.operators.submission import Submission, choose_attempt, plain_values
from airflow_batchwrap.operators.superseded import leave_if_superseded
from airflow_batchwrap.steps import driver_arguments
from airflow_batchwrap.triggers.cancel import TaskIdentity, state_in_time, was_ended
from airflow_batchwrap.waiting import TRIGGER_PADDING
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.views import TaskView

_REPORTED = "batchwrap_reported"  # state store: the attempts of each epoch whose failure Airflow has heard of
_UNSET: Any = object()


class RunBatchTaskOperator(JobOperator):
    """Run one step file, or one command, as one Batch task; its return value is the XCom.

    :param step: the step file's name in the workspace's archive; with ``pool_id``, its path relative to the DAG file.
    :param command: a command line for a shell on the node, instead of a step; its XCom is the last line of stdout.
    :param args: positional arguments of ``do_action``: a string, which is split as a shell splits words, or a list.
    :param value: what the step before returned, instead of ``args``: the single argument, or none where it is None.
    :param workspace: what a set-up task returned.
    :param pool_id: run on this pool as it is, in a job of its own that ends with the task, instead of a workspace.
    :param environment: environment variables for the step. Templates in them are rendered, and their values shown
        nowhere: neither in logs nor among Airflow's rendered fields.
    :param step_timeout: how long the step may take from its start on a node; Batch ends it then. For how long it may
        wait for a node as well, ``job_wall_clock`` is the limit.
    :param task_slots: how many of a node's task slots it takes.

    A command finds the workflow's inputs in the folder ``$AZ_BATCH_JOB_PREP_WORKING_DIR/inputs``.
    """

    template_fields: Sequence[str] = (
        *JobOperator.template_fields,
        "step",
        "command",
        "args",
        "value",
        "workspace",
        "pool_id",
        "step_timeout",
        "task_slots",
    )
    setting_names: Sequence[str] = (*JobOperator.setting_names, "step_timeout", "task_slots")
    operator_extra_links = (BatchTaskLink(), ResultsLink())

    step: str | Path | None
    command: str | None
    args: Any
    has_value: bool
    value: Any
    workspace: Any
    pool_id: str | None
    environment: dict[str, str]
    step_timeout: timedelta | str
    task_slots: int | str

    # What this process has done so far; nothing of it outlives a deferral. Of the class: see `keep`.
    _running: tuple[BatchTaskKey, Attempt] | None = None
    _identity: TaskIdentity | None = None
    _stopped = False
    _began = 0.0
    _told = ""
    _tail = OutputTail()

    def __init__(
        self,
        *,
        step: str | Path | None = None,
        command: str | None = None,
        args: Any = None,
        value: Any = _UNSET,
        workspace: Any = None,
        pool_id: str | None = None,
        environment: Mapping[str, str] | None = None,
        step_timeout: timedelta | str = timedelta(hours=24),
        task_slots: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.keep(
            step=step,
            command=command,
            args=args,
            has_value=value is not _UNSET,
            value=None if value is _UNSET else value,
            workspace=workspace,
            pool_id=pool_id,
            environment=dict(environment or {}),
            step_timeout=step_timeout,
            task_slots=task_slots,
        )

    # --- Airflow's side

    def execute(self, context: Context) -> Any:
        """Submit, or adopt what an earlier try submitted, and wait."""
        self._check()
        settings, epoch, began = self.settings, self.epoch(context), time.time()
        self._identity = TaskIdentity(**self.identity(context))
        self._running, self._stopped, self._told, self._tail = None, False, "", OutputTail()
        workspace: Workspace | None = None
        try:
            workspace = self._workspace(context, epoch)
            key, attempt, created, found = self._submit(context, workspace, epoch)
            self._began = time.time()
            # What an earlier try submitted may be over by now. A deferral that ends at once would meet a race in
            # Airflow, which fails a task that is back before its scheduler has heard that it went.
            event: dict[str, Any] | None = {"view": found.to_json()} if found is not None and found.over else None
            # Queueing included, which step_timeout is not: that one is Batch's to watch.
            deadline = created + settings.job_wall_clock.total_seconds()
            if self.execution_timeout and self.deferrable:
                # Airflow forgets it while a task is deferred.
                deadline = min(deadline, began + self.execution_timeout.total_seconds())
            inline = settings.inline_wait.total_seconds() if self.deferrable else float("inf")
            # 0 defers at once, without a look.
            if event is None and inline:
                event = self._wait(workspace, key, min(deadline, time.time() + inline))
            if self._stopped and event is None:
                self._terminate(key)  # once more: it may have been submitted just then
                raise StepTimeout(f"Waiting for Batch task {key} was ended with the Airflow task.")
            if event is None and self.deferrable and time.time() < deadline:
                self._defer(context, workspace, key, attempt, deadline)
            result = self._finish(context, workspace, key, attempt, event or {"late": True})
        except (Exception, AirflowTaskTimeout) as error:
            if self._stopped:
                raise
            leave_if_superseded(context, self.log)
            if isinstance(error, AirflowTaskTimeout) and workspace is not None:
                self._give_up(context, workspace)
            self._identity = None  # Airflow calls on_kill after a timeout as well
            self._close(context)
            raise
        self._close(context)
        return result

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the wait in the triggerer."""
        resume = event["resume"]
        workspace = Workspace.from_xcom(resume["workspace"])
        key = BatchTaskKey(workspace.job_id, resume["batch_task_id"])
        self._told, self._tail = resume.get("told", ""), OutputTail.from_json(event.get("output"))
        try:
            result = self._finish(context, workspace, key, Attempt(*resume["attempt"]), event)
        except (Exception, AirflowTaskTimeout):
            leave_if_superseded(context, self.log)
            self._close(context, resumed=True)
            raise
        self._close(context, resumed=True)
        return result

    def on_kill(self) -> None:
        """Terminate this Batch task and no other, if a person has ended the Airflow task.

        A worker that is shut down leaves it alone: the task's next try finds it. So does one that cannot learn in time
        what has become of the task; a new epoch, the teardown or the sweep ends the work then.
        """
        task = self._identity
        if task is None or self._stopped:
            return
        state = state_in_time(task.state)
        key = self._running[0] if self._running else "that would come"
        if was_ended(state):
            self._stopped = True
            self.log.info("Terminating Batch task %s: its Airflow task was ended (%s)", key, state)
            if self._running is not None:
                self._terminate(self._running[0])
        else:
            self.log.info("Left Batch task %s alone: Airflow has its task as %s", key, state)

    # --- the parts

    def _check(self) -> None:
        """Refuse arguments that do not go together.

        :raises ConfigError: they do not.
        """
        if bool(self.step) == bool(self.command):
            raise ConfigError(f"Task {self.task_id!r} needs either a step or a command, and not both.")
        if bool(self.workspace) == bool(self.pool_id):
            raise ConfigError(
                f"Task {self.task_id!r} needs either a workspace, which a set-up task returns, or a pool_id, not both."
            )

    def _workspace(self, context: Context, epoch: int) -> Workspace:
        if self.workspace:
            return Workspace.from_xcom(self.workspace)
        pool = self.hook.find_pool(str(self.pool_id))
        if pool is None or pool.state != "active":
            problem = "does not exist" if pool is None else f"is {pool.state}"
            raise PoolError(f"Pool {self.pool_id!r} {problem}. Check pool_id, or create one with CreatePoolOperator.")
        if self.step:
            self.steps = Path(self.step).parent
        archive, files = self.pack(context), self.input_files(context)
        return self.open_workspace(context, Workspace(pool.entity_id, False, "", epoch), archive, files)

    @property
    def scope(self) -> str:
        """A step that runs alone is its own scope: its job must not be taken for its group's."""
        return super().scope if self.workspace else self.task_id

    def _submit(
        self, context: Context, workspace: Workspace, epoch: int
    ) -> tuple[BatchTaskKey, Attempt, float, TaskView | None]:
        """Submit this attempt once.

        :return: where it is, which it is, when it was created (seconds since 1970), and what was found where an earlier
            try submitted it.
        """
        from airflow_batchwrap.hooks import models

        began, family = time.monotonic(), step_family(self.task_id, self.map_index(context))
        found = {
            attempt: view
            for task_id, view in self.hook.view_tasks(workspace.job_id, family).items()
            if (attempt := Attempt.parse(task_id[len(family) :])) is not None
        }
        for older, view in found.items():
            if older.epoch < epoch and not view.over:
                self._terminate(self._key(context, workspace, older))
        attempt, existing = choose_attempt(found, epoch, self._reported(context, epoch))
        key = self._key(context, workspace, attempt)
        submission = self._submission(context, workspace, attempt)
        if self._stopped:
            raise StepTimeout("The step was not submitted: its Airflow task was ended.")
        self._running = key, attempt
        if existing is None and self.hook.create_task(workspace.job_id, submission.build(self.hook, key.batch_task_id)):
            self.log.info("Submitted Batch task %s to pool %s", key, workspace.pool_id)
            metrics.timing(metrics.SUBMIT_TIME, time.monotonic() - began, **self._tags)
            created = time.time()
        else:
            task = self.hook.find_task(key)
            if task is None:
                raise TryAgain(f"Batch task {key} was there and is gone: its job is being deleted. Try again.")
            prints = [item.value for item in task.environment_settings or () if item.name == models.FINGERPRINT_ENV]
            if prints != [submission.fingerprint()]:
                raise ConfigError(
                    f"Batch task {key} exists with another archive, arguments, inputs or parameters. Clear the task, "
                    "which ends the old one and starts over."
                )
            self.log.info("Found Batch task %s, which an earlier try submitted", key)
            created = task.creation_time.timestamp() if task.creation_time else time.time()
        self._push(context, workspace, key)
        push_task_links(context, self.hook, workspace, key)
        return key, attempt, created, existing

    def _submission(self, context: Context, workspace: Workspace, attempt: Attempt) -> Submission:
        step = Path(self.step).name if self.step else ""
        if step and step not in workspace.steps:
            raise ConfigError(
                f"Step {step!r} is not among the steps that the set-up packed: {', '.join(workspace.steps) or 'none'}. "
                "Clear the set-up task, which packs the folder again, or start a new run."
            )
        passed_on = [] if self.value is None else [self.value]
        arguments = passed_on if self.has_value else driver_arguments(self.args)
        ti = context["ti"]
        return Submission(
            workspace=workspace,
            step=step,
            command=self.command or "",
            arguments=plain_values(arguments, f"the arguments of {self._name!r}"),
            params=plain_values(dict(context.get("params") or {}), "the DAG run's params"),
            context={
                "dag_id": self.dag_id,
                "run_id": str(context["run_id"]),
                "task_id": self.task_id,
                "map_index": self.map_index(context),
                "try_number": ti.try_number,
                "attempt": attempt.number,
            },
            output_prefix=self._prefix(context, workspace, attempt),
            settings=self.settings,
            environment=self._environment(context),
        )

    def _environment(self, context: Context) -> dict[str, str]:
        """Render the environment here: what is a template field is shown by Airflow."""
        rendered = self.render_template(self.environment, context)
        return {str(name): str(value) for name, value in rendered.items()}

    def _follower(self, workspace: Workspace, key: BatchTaskKey) -> Follower:
        return Follower(
            self.hook, key, workspace.pool_id, self.log, lambda: self._stopped, tail=self._tail, told=self._told
        )

    def _wait(self, workspace: Workspace, key: BatchTaskKey, until: float) -> dict[str, Any] | None:
        """Look at the Batch task until it is over; return what a trigger's event would say, None where time is up."""
        follower = self._follower(workspace, key)
        try:
            return follower.wait(until, self.settings.poll_interval.total_seconds())
        finally:
            self._told = follower.told

    def _defer(
        self, context: Context, workspace: Workspace, key: BatchTaskKey, attempt: Attempt, deadline: float
    ) -> None:
        from airflow_batchwrap.triggers.step import BatchTaskTrigger

        trigger = BatchTaskTrigger(
            pool_id=workspace.pool_id,
            job_id=key.job_id,
            batch_task_id=key.batch_task_id,
            began=self._began,
            told=self._told,
            output=self._tail.to_json(),
            deadline=deadline,
            poll_interval=self.settings.poll_interval.total_seconds(),
            identity=self.identity(context),
            resume={
                # Without what is not needed any more: there may be thousands of inputs.
                "workspace": replace(workspace, inputs=(), archive=None).to_xcom(),
                "batch_task_id": key.batch_task_id,
                "attempt": list(attempt.order),
            },
            **self.connections(),
        )
        timeout = timedelta(seconds=max(0.0, deadline - time.time()) + TRIGGER_PADDING)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    def _finish(
        self, context: Context, workspace: Workspace, key: BatchTaskKey, attempt: Attempt, event: dict[str, Any]
    ) -> Any:
        """Return the step's value.

        :raises BatchWrapError: it did not succeed.
        """
        from airflow_batchwrap.hooks.views import PreparationView, Stuck, TaskView

        outcome = self._outcome(context, workspace, key, attempt)
        error: BatchWrapError
        if event.get("error"):
            # Looking failed, and nothing is known of the Batch task: another try of this task adopts it.
            raise ConfigError(event["error"])
        if event.get("stuck"):
            preparation = event["stuck"]["preparation"]
            stuck = Stuck(event["stuck"]["why"], PreparationView(**preparation) if preparation else None)
            error = outcome.stuck(stuck)
            self._terminate(key)
        elif event.get("late"):
            self._terminate(key)
            error = outcome.late()
        else:
            view = TaskView(**event["view"])
            metrics.batch_task_times(view.created, view.started, view.ended, rerun=view.reruns > 0, **self._tags)
            self._push(context, workspace, key, view)
            self._follower(workspace, key).finish(view, outcome.container, outcome.prefix)
            if not view.succeeded:
                error = outcome.error(view)
            else:
                try:
                    return outcome.value()
                except StepFailed as failed:
                    error = failed
        self._report(context, attempt)
        raise error

    def _outcome(self, context: Context, workspace: Workspace, key: BatchTaskKey, attempt: Attempt) -> Outcome:
        limit, name = self.settings.job_wall_clock, "job_wall_clock"
        if self.execution_timeout and self.execution_timeout < limit:
            limit, name = self.execution_timeout, "execution_timeout"
        return Outcome(
            hook=self.hook,
            key=key,
            pool_id=workspace.pool_id,
            name=self._name,
            is_step=bool(self.step),
            own_job=not self.workspace,
            container=workspace.output_container,
            prefix=self._prefix(context, workspace, attempt),
            limit=f"{name} ({limit})",
            step_limit=f"step_timeout ({self.settings.step_timeout})",
        )

    def _give_up(self, context: Context, workspace: Workspace) -> None:
        """End and report what Airflow's execution_timeout has cut short: the next try makes a new attempt."""
        if self._running is None:
            return
        key, attempt = self._running
        self._terminate(key)
        self.log.error("%s", self._outcome(context, workspace, key, attempt).late())
        self._report(context, attempt)

    def _terminate(self, key: BatchTaskKey) -> None:
        """End a Batch task; what is being told is worth more than a failure to do so."""
        try:
            self.hook.terminate_task(key)
        except BatchWrapError as error:
            self.log.warning("%s It ends with its job, or by its wall clock.", error)

    def _close(self, context: Context, resumed: bool = False) -> None:
        """End the job where it is this task's own; a workspace's is the teardown's to end."""
        if self.workspace or not (self.has_made or resumed):
            return
        leave_if_superseded(context, self.log)
        if left := self.remove_made(context, "job"):
            self.log.error("Left behind: %s", "; ".join(left))

    # --- small things

    @property
    def _tags(self) -> dict[str, str]:
        """What tells this task's metrics from others', where the backend knows tags."""
        return {"dag_id": self.dag_id, "task_id": self.task_id}

    @property
    def _name(self) -> str:
        return Path(self.step).stem if self.step else self.task_id.rpartition(".")[2]

    def _key(self, context: Context, workspace: Workspace, attempt: Attempt) -> BatchTaskKey:
        return BatchTaskKey(workspace.job_id, step_id(self.task_id, self.map_index(context), attempt))

    def _prefix(self, context: Context, workspace: Workspace, attempt: Attempt) -> str:
        group = workspace.group if self.workspace else self.group
        return f"{workspace.output_prefix}/{result_folder(self.task_id, group, self.map_index(context))}/{attempt}"

    def _reported(self, context: Context, epoch: int) -> list[int]:
        stored = context["task_state_store"].get(_REPORTED)
        pairs = [pair for pair in stored if isinstance(pair, list)] if isinstance(stored, list) else []
        return [int(str(pair[1])) for pair in pairs if pair[0] == epoch]

    def _report(self, context: Context, attempt: Attempt) -> None:
        """Remember that Airflow hears of this attempt's failure now, so that the next try makes a new attempt."""
        store = context["task_state_store"]
        stored = store.get(_REPORTED)
        store.set(_REPORTED, [*(stored if isinstance(stored, list) else []), list(attempt.order)])

    @staticmethod
    def _push(context: Context, workspace: Workspace, key: BatchTaskKey, view: TaskView | None = None) -> None:
        """Leave, for people and links, where the step runs."""
        found = {
            "pool_id": workspace.pool_id,
            "job_id": key.job_id,
            "batch_task_id": key.batch_task_id,
            "node_id": view.node_id if view else None,
            "exit_code": view.exit_code if view else None,
        }
        context["ti"].xcom_push(key="batch", value=found)
