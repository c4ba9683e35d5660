"""Run one step, or one command, as one Batch task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap import metrics
from airflow_batchwrap.attempts.attempt import Attempts, Submitted, end_task
from airflow_batchwrap.attempts.belongings import Belongings
from airflow_batchwrap.attempts.confidential import split_confidential
from airflow_batchwrap.attempts.outcome import Outcome
from airflow_batchwrap.attempts.progress import Follower
from airflow_batchwrap.attempts.reported import ReportedAttempts
from airflow_batchwrap.attempts.retrying import is_tried_again
from airflow_batchwrap.attempts.submission import Submission, plain_values
from airflow_batchwrap.attempts.superseded import leave_if_superseded
from airflow_batchwrap.attempts.trying import Try
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, StepFailed, StepTimeout
from airflow_batchwrap.hooks.output import OutputTail
from airflow_batchwrap.links.step import BatchTaskLink, ResultsLink, push_task_links
from airflow_batchwrap.naming import Attempt, BatchTaskKey, result_folder
from airflow_batchwrap.operators.base import Setting, Templated
from airflow_batchwrap.operators.jobs import JobOperator
from airflow_batchwrap.steps import driver_arguments
from airflow_batchwrap.triggers.events import StepEvent
from airflow_batchwrap.waiting import Deadline
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.views import TaskView
    from airflow_batchwrap.triggers.base import WaitTrigger

_UNSET: Any = object()


@dataclass
class StepTry(Try):
    """One try of a step.

    :param workspace: where it runs; None until that is known.
    :param running: the Batch task that this try has submitted, or is about to.
    :param belongings: the job, where it is this task's own.
    :param waited_since: when the wait for the Batch task began, in seconds since 1970.
    :param tail: how far its output is in the log.
    :param last_state: the last of its states that is in the log.
    """

    workspace: Workspace | None = None
    running: tuple[BatchTaskKey, Attempt] | None = None
    belongings: Belongings | None = None
    waited_since: float = 0.0
    tail: OutputTail = field(default_factory=OutputTail)
    last_state: str = ""
    follower: Follower | None = None

    @property
    def place(self) -> tuple[Workspace, BatchTaskKey, Attempt]:
        """Where the step runs, and as which attempt."""
        if self.workspace is None or self.running is None:
            raise RuntimeError("The step was not submitted yet.")
        return self.workspace, *self.running


class RunBatchTaskOperator(JobOperator[StepTry, StepEvent]):
    """Run one step file, or one command, as one Batch task; its return value is the XCom.

    :param step: the step file's name in the workspace's archive; with ``pool_id``, its path relative to the DAG file.
    :param command: a command line for a shell on the node, instead of a step; its XCom is the last line of stdout.
    :param args: positional arguments of ``do_action``, or of the program that the step is: a string, which is split as
        a shell splits words, or a list.
    :param value: what the step before returned, instead of ``args``: the single argument, or none where it is None.
    :param workspace: what a set-up task returned.
    :param pool_id: run on this pool as it is, in a job of its own that ends with the task, instead of a workspace.
    :param environment: environment variables for the step. Templates in them are rendered, and their values are neither
        in a log nor among Airflow's rendered fields; but Batch shows them to whoever may read its account.
    :param secrets: environment variables too, by name, whose values travel in a file that the node fetches: Batch does
        not show them. Their templates, such as ``{{ conn.my_db.password }}``, are rendered when the step is submitted.
    :param step_timeout: how long the step may take from its start on a node; Batch ends it then. For how long it may
        wait for a node as well, ``job_wall_clock`` is the limit.
    :param task_slots: how many of a node's task slots it takes.
    :param java_options: options of the Java virtual machine for a step that is a jar, such as ``-Xmx2g``: a string,
        which is split as a shell splits words, or a list.

    A command finds the workflow's inputs in the folder ``$AZ_BATCH_JOB_PREP_WORKING_DIR/inputs``.
    """

    operator_extra_links = (BatchTaskLink(), ResultsLink())
    event = StepEvent
    looks_before_deferring = False  # where inline_wait is 0, a step is deferred as soon as it is submitted

    def __init__(
        self,
        *,
        step: Templated[str | Path | None] = None,
        command: Templated[str | None] = None,
        args: Templated[Any] = None,
        value: Templated[Any] = _UNSET,
        workspace: Templated[Any] = None,
        pool_id: Templated[str | None] = None,
        environment: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        step_timeout: Setting[timedelta | str] = timedelta(hours=24),
        task_slots: Setting[int | str] = 1,
        java_options: Setting[str | Sequence[str]] = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.command = command
        self.args = args
        self.value = None if value is _UNSET else value
        self.has_value = value is not _UNSET
        self.workspace = workspace
        self.pool_id = pool_id
        self.environment = dict(environment or {})
        self.secrets = dict(secrets or {})
        self.step_timeout = step_timeout
        self.task_slots = task_slots
        self.java_options = java_options

    # --- the wait

    def new_try(self, context: Context) -> StepTry:
        """Return a try that has done nothing yet."""
        return StepTry(context)

    def resumed(self, context: Context, resume: Mapping[str, Any]) -> StepTry:
        """Return the try that goes on after the wait in the triggerer."""
        work = StepTry(context, last_state=resume.get("last_state", ""))
        work.workspace = Workspace.from_xcom(resume["workspace"])
        work.running = BatchTaskKey(work.workspace.job_id, resume["batch_task_id"]), Attempt(*resume["attempt"])
        if not self.workspace:
            work.belongings = self.belongings(context)
            work.belongings.has_made = True
        return work

    def resume(self, work: StepTry) -> dict[str, Any]:
        """Return where the step runs."""
        workspace, key, attempt = work.place
        return {
            # Without what is not needed any more: there may be thousands of inputs.
            "workspace": replace(workspace, inputs=(), archive=None).to_xcom(),
            "batch_task_id": key.batch_task_id,
            "attempt": list(attempt.order),
            "last_state": work.last_state,
        }

    def begin(self, work: StepTry) -> StepEvent | None:
        """Submit the step, or adopt what an earlier try submitted."""
        self._check()
        epoch, began = self.epoch(work.context), time.monotonic()
        work.workspace = self._workspace(work, epoch)
        submitted = self._submit(work, work.workspace, epoch)
        if submitted.found is None:
            metrics.timing(metrics.SUBMIT_TIME, time.monotonic() - began, **self._tags)
        self._push(work.context, work.workspace, submitted.key)
        push_task_links(work.context, self.hook, work.workspace, submitted.key)
        # Queueing included, which step_timeout is not: that one is Batch's to watch.
        work.deadline = self.deadline(work, submitted.created, "job_wall_clock")
        work.waited_since = time.time()
        work.follower = self._follower(work)
        # What an earlier try submitted may be over by now. A deferral that ends at once would meet a race in Airflow,
        # which fails a task that is back before its scheduler has heard that it went.
        found = submitted.found
        return StepEvent(kind="over", view=found) if found is not None and found.over else None

    def look(self, work: StepTry) -> StepEvent | None:
        """Look at the Batch task, and log what it prints."""
        work.follower = follower = work.follower or self._follower(work)
        try:
            return follower.look()
        finally:
            work.last_state = follower.last_state

    def trigger(self, work: StepTry, **common: Any) -> WaitTrigger:
        """Return what looks at the Batch task in the triggerer."""
        from airflow_batchwrap.triggers.step import BatchTaskTrigger

        workspace, key, _ = work.place
        return BatchTaskTrigger(
            pool_id=workspace.pool_id,
            job_id=key.job_id,
            batch_task_id=key.batch_task_id,
            began=work.waited_since,
            last_state=work.last_state,
            output=work.tail.to_json(),
            **common,
        )

    # --- the end

    def settle(self, work: StepTry, event: StepEvent) -> Any:
        """Return the step's value.

        :raises BatchWrapError: it did not succeed.
        """
        if event.kind == "error":
            raise self.looking_failed(event)
        if event.output is not None:
            work.tail = OutputTail.from_json(event.output)
        outcome = self._outcome(work)
        _, key, attempt = work.place
        error: BatchWrapError
        if event.view is not None:
            self._see_it_off(work, outcome, event.view)
            if event.view.succeeded:
                try:
                    return outcome.value()
                except StepFailed as failed:
                    error = failed
            else:
                error = outcome.error(event.view)
        else:
            end_task(self.hook, key, self.log)
            error = outcome.stuck(event.stuck) if event.stuck is not None else outcome.late()
        # Just before the failure is raised: the next try makes a new attempt.
        ReportedAttempts(work.context).add(attempt)
        raise error

    def end(self, work: StepTry) -> None:
        """Terminate this Batch task and no other."""
        if work.running is not None:
            end_task(self.hook, work.running[0], self.log)

    def ended_error(self, work: StepTry) -> BatchWrapError:
        """Return the error of a step that a person has ended."""
        if work.running is None:
            return StepTimeout("Waiting for room for a job was ended with the Airflow task.")
        _, key, _ = work.place
        return StepTimeout(f"Waiting for Batch task {key} was ended with the Airflow task.")

    def give_up(self, work: StepTry) -> None:
        """End and report what Airflow's execution_timeout has cut short: the next try makes a new attempt."""
        if work.running is None or work.workspace is None:
            return
        key, attempt = work.running
        end_task(self.hook, key, self.log)
        self.log.error("%s", self._outcome(work).late())
        ReportedAttempts(work.context).add(attempt)

    def undo(self, work: StepTry, error: BaseException) -> None:
        """End the job where it is this task's own and no other try goes on in it."""
        if not work.ended and not is_tried_again(error, work.context):
            self._remove_own_job(work)

    def close(self, work: StepTry) -> None:
        """End the job where it is this task's own, unless another try has taken it over."""
        if work.belongings is not None and work.belongings.has_made:
            leave_if_superseded(work.context, self.log)
            self._remove_own_job(work)

    # --- what is submitted

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

    def _workspace(self, work: StepTry, epoch: int) -> Workspace:
        if self.workspace:
            workspace = Workspace.from_xcom(self.workspace)
            self.check_slots(workspace.pool_id)
            return workspace
        bare = self.workspace_on(str(self.pool_id), epoch)
        self.check_slots(bare.pool_id)
        if self.step:
            self.steps = Path(self.step).parent
        archive, files = self.pack(work.context), self.input_files(work.context)
        work.belongings = self.belongings(work.context)
        return self.opening(work.context, work.belongings).workspace(bare, archive, files)

    @property
    def scope(self) -> str:
        """A step that runs alone is its own scope: its job must not be taken for its group's."""
        return super().scope if self.workspace else self.task_id

    def _submit(self, work: StepTry, workspace: Workspace, epoch: int) -> Submitted:
        def begin(key: BatchTaskKey, attempt: Attempt) -> None:
            if work.ended:
                raise StepTimeout("The step was not submitted: its Airflow task was ended.")
            work.running = key, attempt

        attempts = Attempts(
            hook=self.hook,
            job_id=workspace.job_id,
            pool_id=workspace.pool_id,
            task_id=self.task_id,
            map_index=self.map_index(work.context),
            epoch=epoch,
            reported=ReportedAttempts(work.context),
            log=self.log,
        )
        return attempts.submit(lambda attempt: self._submission(work, workspace, attempt), begin)

    def _submission(self, work: StepTry, workspace: Workspace, attempt: Attempt) -> Submission:
        step = Path(self.step).name if self.step else ""
        if step and step not in workspace.steps:
            raise ConfigError(
                f"Step {step!r} is not among the steps that the set-up packed: {', '.join(workspace.steps) or 'none'}. "
                "Clear the set-up task, which packs the folder again, or start a new run."
            )
        passed_on = [] if self.value is None else [self.value]
        arguments = passed_on if self.has_value else driver_arguments(self.args)
        environment = self._environment(work.context)
        every_param = plain_values(dict(work.context.get("params") or {}), "the DAG run's params")
        params, confidential = split_confidential(self, work.context, every_param, environment)
        return Submission(
            workspace=workspace,
            step=step,
            command=self.command or "",
            arguments=plain_values(arguments, f"the arguments of {self._name!r}"),
            params=params,
            context={**self.identity(work.context), "try_number": work.number, "attempt": attempt.number},
            output_prefix=self._prefix(work.context, workspace, attempt),
            settings=self.settings,
            maker=self.maker(work.context),
            environment=environment,
            confidential=replace(confidential, params={}) if self.command else confidential,
        )

    def _environment(self, context: Context) -> dict[str, str]:
        """Render the environment here: what is a template field is shown by Airflow."""
        rendered = self.render_template(self.environment, context)
        return {str(name): str(value) for name, value in rendered.items()}

    # --- what came of it

    def _see_it_off(self, work: StepTry, outcome: Outcome, view: TaskView) -> None:
        """Measure and log what is still to be of a Batch task that is over."""
        workspace, key, _ = work.place
        metrics.batch_task_times(view.created, view.started, view.ended, rerun=view.reruns > 0, **self._tags)
        self._push(work.context, workspace, key, view)
        follower = work.follower or self._follower(work)
        follower.finish(view, outcome.container, outcome.prefix)

    def _follower(self, work: StepTry) -> Follower:
        workspace, key, _ = work.place
        return Follower(self.hook, key, workspace.pool_id, self.log, tail=work.tail, last_state=work.last_state)

    def _outcome(self, work: StepTry) -> Outcome:
        workspace, key, attempt = work.place
        limit = work.deadline or Deadline.after(work.began, "job_wall_clock", self.settings.job_wall_clock)
        return Outcome(
            hook=self.hook,
            key=key,
            pool_id=workspace.pool_id,
            name=self._name,
            is_step=bool(self.step),
            own_job=not self.workspace,
            container=workspace.output_container,
            prefix=self._prefix(work.context, workspace, attempt),
            limit=str(limit),
            step_limit=f"step_timeout ({self.settings.step_timeout})",
        )

    def _remove_own_job(self, work: StepTry) -> None:
        if work.belongings is None or not work.belongings.has_made:
            return
        if left := work.belongings.remove("job"):
            self.log.error("Left behind: %s", "; ".join(left))

    # --- small things

    @property
    def _tags(self) -> dict[str, str]:
        """What parts this task's metrics from others', where the backend knows tags."""
        return {"dag_id": self.dag_id, "task_id": self.task_id}

    @property
    def _name(self) -> str:
        return Path(self.step).stem if self.step else self.task_id.rpartition(".")[2]

    def _prefix(self, context: Context, workspace: Workspace, attempt: Attempt) -> str:
        group = workspace.group if self.workspace else self.group
        return f"{workspace.output_prefix}/{result_folder(self.task_id, group, self.map_index(context))}/{attempt}"

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
