"""What a task's exit conditions ask for once it has ended."""

from __future__ import annotations

import json
from typing import Any

from airflow_batchwrap.local.model.jobs import Task
from airflow_batchwrap.local.model.states import JobAction


def _conditions(task: Task) -> dict[str, Any]:
    if b'"exitConditions":' not in task.body:
        return {}
    return dict(json.loads(task.body).get("exitConditions") or {})


def job_action(task: Task) -> JobAction:
    """What becomes of the job of a task.

    :param task: the completed task.
    :return: none unless the job performs its tasks' exit options.
    """
    if task.job.body["onTaskFailure"] != "performexitoptionsjobaction":
        return JobAction.NONE
    usual = JobAction.NONE if task.failure is None else JobAction.TERMINATE
    return JobAction(exit_options(_conditions(task), task).get("jobAction", usual))


def satisfies(task: Task) -> bool:
    """Whether those that wait for a task may run.

    :param task: the completed task.
    :return: whether they may.
    """
    usual = "satisfy" if task.failure is None else "block"
    return str(exit_options(_conditions(task), task).get("dependencyAction", usual)) == "satisfy"


def exit_options(conditions: dict[str, Any], task: Task) -> dict[str, Any]:
    """The options that match how a task ended.

    :param conditions: the task's exitConditions.
    :param task: the completed task.
    :return: the first that match of: its exit code, a range, a failed upload, an error before it ran; else the default.
    """
    code = task.exit_code
    default: dict[str, Any] = conditions.get("default", {})
    if code is not None:
        for mapping in conditions.get("exitCodes", ()):
            if mapping["code"] == code:
                return dict(mapping["exitOptions"])
        for mapping in conditions.get("exitCodeRanges", ()):
            if mapping["start"] <= code <= mapping["end"]:
                return dict(mapping["exitOptions"])
    failure = (task.failure or {}).get("code", "")
    if failure.startswith("FileUpload"):
        return dict(conditions.get("fileUploadError", default))
    if code is None and failure and failure != "TaskEnded":
        return dict(conditions.get("preProcessingError", default))
    # Exit code 0 without a failure takes the usual way, which the default does not speak for.
    return dict(default) if failure else {}
