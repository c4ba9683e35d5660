"""Operations on tasks."""

from __future__ import annotations

import json
from typing import Any

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.api.jobs import open_job
from airflow_batchwrap.local.model import statistics
from airflow_batchwrap.local.model.entities import Job, Task
from airflow_batchwrap.local.model.rules import commands
from airflow_batchwrap.local.model.rules import tasks as rules
from airflow_batchwrap.local.model.rules.values import legal_id
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: a collection holds at most 100 tasks.
MOST_TASKS = 100


def _add(call: Call, job: Job, body: dict[str, Any]) -> Task:
    name = legal_id(body.pop("id"))
    rules.prepare(job, body)
    if job.tasks.get(name) is not None:
        raise BatchError("TaskExists")
    for kind in ("jobPreparationTask", "jobReleaseTask"):
        if kind in job.body and job.body[kind]["id"].lower() == name.lower():
            raise BatchError(f"TaskIdSameAs{kind[0].upper()}{kind[1:]}")
    return call.world.task_control.add(job, name, body)


async def create_task(call: Call) -> Reply:
    """Add a task to a job."""
    open_job(call)
    body = await call.body("BatchTaskCreateOptions")
    task = _add(call, open_job(call), body)
    return await call.accept(task, views.url_of(call.base, task))


async def create_task_collection(call: Call) -> Reply:
    """Add up to 100 tasks; each succeeds or fails by itself."""
    open_job(call)
    bodies = await call.bodies("BatchTaskCreateOptions", MOST_TASKS)
    job = open_job(call)
    value: list[dict[str, Any]] = []
    for body in bodies:
        name = body["id"]
        try:
            task = _add(call, job, body)
        except BatchError as error:
            status = "ClientError" if error.status < 500 else "ServerError"
            value.append({"status": status, "taskId": name, "error": error.inner(call.request_id)})
        else:
            value.append(
                {
                    "status": "Success",
                    "taskId": task.id,
                    "eTag": task.etag,
                    "lastModified": times.iso(task.modified),
                    "location": views.url_of(call.base, task),
                }
            )
    await call.world.store.commit()
    return Reply({"odata.metadata": f"{call.base}/$metadata#taskaddresult", "value": value})


def _view(call: Call, task: Task, names: frozenset[str] | None) -> dict[str, Any]:
    shown = views.task(call.base, task, names)
    if call.expanded("stats", names) and (stats := statistics.of_task(task, views.url_of(call.base, task))):
        shown["stats"] = stats
    return shown


async def list_tasks(call: Call) -> Reply:
    """List a job's tasks."""
    job = call.job()
    return await call.listing("tasks", job.tasks.beyond, lambda task, names: _view(call, task, names))


async def get_task(call: Call) -> Reply:
    """Show a task."""
    task = call.task()
    call.conditions(task)
    return await call.show(task, _view(call, task, call.selected()))


async def replace_task(call: Call) -> Reply:
    """Replace a task's constraints; what is not sent takes its default."""
    body = await call.body("BatchTask")
    task = call.task()
    call.conditions(task)
    if task.state == "completed":
        raise BatchError("TaskCompleted")
    given = {"constraints": body.get("constraints", {})}
    commands.constraints(given, task.job.body["constraints"]["maxTaskRetryCount"])
    task.body = json.dumps({**json.loads(task.body), **given}, separators=(",", ":")).encode()
    task.changed()
    call.world.store.touch(task)
    return await call.accept(task)


async def delete_task(call: Call) -> Reply:
    """Delete a task with its files; a running one is ended."""
    task = call.task()
    call.conditions(task)
    await call.world.task_control.forget(task)
    await call.world.store.commit()
    return Reply()


async def list_subtasks(call: Call) -> Reply:
    """List a multi-instance task's subtasks, the primary left out; of any other task there are none."""
    task = call.task()
    names = call.selected()
    value = [views.subtask(call.base, task, kept) for kept in task.subtasks or ()]
    if names is not None:
        value = [{name: part for name, part in one.items() if name in names} for one in value]
    await call.world.store.settle(task.uid)
    return Reply({"odata.metadata": f"{call.base}/$metadata#subtasks", "value": value})


async def terminate_task(call: Call) -> Reply:
    """End a task: a running one is killed, a waiting one never runs."""
    task = call.task()
    call.conditions(task)
    if task.state == "completed":
        raise BatchError("TaskCompleted")
    call.world.task_control.terminate(task)
    return await call.accept(task)


async def reactivate_task(call: Call) -> Reply:
    """Queue a failed task once more."""
    task = call.task()
    call.conditions(task)
    open_job(call)
    if task.state != "completed":
        raise BatchError("TaskNotCompleted")
    if task.result == "success":
        raise BatchError("TaskSucceeded")
    call.world.task_control.reactivate(task)
    return await call.accept(task)
