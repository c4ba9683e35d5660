"""What a command on a node needs to run: its directory, its environment, its files."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.model.entities import Job, Node, Task
from airflow_batchwrap.local.node import container, endpoints, environment, gang, packages
from airflow_batchwrap.local.node.layout import job_directory, relative_task_directory
from airflow_batchwrap.local.node.run import NO_LIMIT, Work
from airflow_batchwrap.local.wire import times

#: They are the same for thousands of tasks on a node, and are only read.
_OF_NODE = functools.lru_cache(maxsize=4096)(environment.of_node)


def of_job(base: Base, job: Job, node: Node, body: dict[str, Any], wall_clock: str) -> Work:
    """The work of a job preparation or release task.

    :param base: the state.
    :param job: the job.
    :param node: the node.
    :param body: the preparation or release task.
    :param wall_clock: how long it may take.
    :return: the work.
    """
    root = base.root(node)
    directory = job_directory(root, job.id) / body["id"]
    variables = {
        **of_node(base, node),
        **environment.of_task(directory),
        "AZ_BATCH_JOB_ID": job.id,
        "AZ_BATCH_TASK_ID": body["id"],
    }
    if job.body["jobPreparationTask"] is not body:
        variables |= _preparation(job, root)
    variables |= environment.settings(job.body.get("commonEnvironmentSettings"), body.get("environmentSettings"))
    return Work(
        body["commandLine"],
        directory,
        root,
        variables,
        body.get("resourceFiles", []),
        wall_clock=times.parse_duration(wall_clock),
        how="detach",
        container=_container(base, job, node, body, directory),
    )


def of_node(base: Base, node: Node) -> dict[str, str]:
    """The variables every command on a node finds.

    :param base: the state.
    :param node: the node.
    :return: the variables.
    """
    config = base.config
    root = base.root(node)
    variables = environment.base() | _OF_NODE(config.account, config.url, node.pool.id, node.id, node.dedicated, root)
    if endpoints.of_pool(node.pool.body, node.index, node.address):
        variables[endpoints.ADDRESS] = node.address
    if references := node.pool.body.get("applicationPackageReferences"):
        variables |= packages.variables(config.data, root, references)
    return variables


def of_task(base: Base, task: Task, node: Node) -> Work:
    """The work of a task.

    :param base: the state.
    :param task: the task.
    :param node: the node.
    :return: the work.
    """
    body, job, root = json.loads(task.body), task.job, base.root(node)
    directory = root / relative_task_directory(job.id, task.id)
    variables = {
        **of_node(base, node),
        **environment.of_task(directory),
        "AZ_BATCH_JOB_ID": job.id,
        "AZ_BATCH_TASK_ID": task.id,
    }
    if "jobPreparationTask" in job.body:
        variables |= _preparation(job, root)
    variables |= environment.settings(job.body.get("commonEnvironmentSettings"), body.get("environmentSettings"))
    wall_clock = body["constraints"].get("maxWallClockTime")
    bring = None
    if references := body.get("applicationPackageReferences"):
        variables = packages.variables(base.config.data, root, references) | variables
        bring = packages.bringing(base.config.data, root, references)
    return Work(
        body["commandLine"],
        directory,
        root,
        variables,
        body.get("resourceFiles", []),
        body.get("outputFiles", []),
        times.parse_duration(wall_clock) if wall_clock else NO_LIMIT,
        bring=bring,
        container=_container(base, job, node, body, directory),
    )


def _container(base: Base, job: Job, node: Node, body: dict[str, Any], directory: Path) -> container.Container | None:
    root = base.root(node)
    preparation = _preparation(job, root)["AZ_BATCH_JOB_PREP_DIR"] if "jobPreparationTask" in job.body else None
    settings = body.get("containerSettings")
    return container.of_task(settings, directory, root, preparation, supported=node.pool.contains)


def of_gang(base: Base, task: Task, nodes: list[Node]) -> tuple[Work, list[Work]]:
    """The work of a multi-instance task.

    :param base: the state.
    :param task: the task.
    :param nodes: its nodes, the primary's first.
    :return: the task's own work, on the first, and that of its coordination command on each.
    """
    settings = json.loads(task.body)["multiInstanceSettings"]
    addresses = [node.address for node in nodes]
    own: list[Work] = []
    for index, node in enumerate(nodes):
        work = of_task(base, task, node)
        shared = gang.variables(addresses, index, str(work.directory))
        own.append(replace(work, variables={**shared, **work.variables}))
    coordination = [
        Work(
            settings["coordinationCommandLine"],
            work.directory,
            work.root,
            work.variables,
            settings.get("commonResourceFiles", []),
            beside=True,
        )
        for work in own
    ]
    return own[0], coordination


def _preparation(job: Job, root: Any) -> dict[str, str]:
    directory = job_directory(root, job.id) / job.body["jobPreparationTask"]["id"]
    return {"AZ_BATCH_JOB_PREP_DIR": str(directory), "AZ_BATCH_JOB_PREP_WORKING_DIR": str(directory / "wd")}
