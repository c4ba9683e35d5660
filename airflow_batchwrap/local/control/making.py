"""How pools and jobs come to be: by a client, by a job that asks for a pool, by a job schedule."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from airflow_batchwrap.local.control.world import World
from airflow_batchwrap.local.model.entities import Job, JobSchedule, Pool
from airflow_batchwrap.local.model.rules import jobs, pools, scaling
from airflow_batchwrap.local.model.rules.values import invalid
from airflow_batchwrap.local.node import packages
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: a pool has at most 10 application package references.
MOST_PACKAGES = 10
#: What a job manager has that no other task has, and its id.
_MANAGING = frozenset({"id", "killJobOnCompletion", "runExclusive", "allowLowPriorityNode"})


def packages_known(world: World, body: dict[str, Any]) -> None:
    """Check that there are the application packages that a pool refers to.

    :param world: the state.
    :param body: the pool's body.
    :raises BatchError: one is missing.
    """
    references = body.get("applicationPackageReferences", [])
    if len(references) > MOST_PACKAGES:
        raise invalid("applicationPackageReferences", f"a pool can have {MOST_PACKAGES} at most.")
    for reference in references:
        try:
            packages.find(world.config.data, reference)
        except packages.PackageMissing as error:
            raise BatchError("InvalidApplicationPackageReferences", f"An application package: {error}.") from None


def pool(world: World, name: str, body: dict[str, Any]) -> Pool:
    """Create a pool; its nodes come by and by.

    :param world: the state.
    :param name: its id.
    :param body: what it is to be, fit for ``BatchPoolCreateOptions`` (or a job's pool specification) but for the id.
    :return: the pool.
    :raises BatchError: it cannot be, or there is one of this id.
    """
    pools.prepare(body)
    packages_known(world, body)
    formula = scaling.of_new(body)
    dedicated, low_priority = body.pop("targetDedicatedNodes", 0), body.pop("targetLowPriorityNodes", 0)
    if (existing := world.pools.get(name)) is not None:
        raise BatchError("PoolBeingDeleted" if existing.state == "deleting" else "PoolExists")
    most = world.config.quotas.pools
    if most is not None and (count := len(world.pools)) >= most:
        raise BatchError("PoolQuotaReached", f"The account has {count} pools, as many as it may: delete some.")
    made = Pool(world.store.next_uid(), name, body)
    world.pools.add(made)
    world.store.touch(made)
    if formula is None:
        world.node_control.resize(made, dedicated, low_priority)
    else:
        world.autoscaler.begin(made, formula)
    return made


def within_quota(world: World) -> None:
    """Check that one more job or job schedule may be active.

    :param world: the state.
    :raises BatchError: it may not.
    """
    active = sum(job.state not in ("completed", "deleting") for job in world.jobs)
    active += sum(schedule.state not in ("completed", "deleting") for schedule in world.schedules)
    if active >= world.config.quotas.jobs:
        raise BatchError(
            "ActiveJobAndScheduleQuotaReached",
            f"{active} jobs and job schedules are active, which is as many as may be: terminate or delete some.",
        )


def job(world: World, name: str, body: dict[str, Any], schedule: JobSchedule | None = None) -> Job:
    """Create a job, with the pool it asks for and its job manager.

    :param world: the state.
    :param name: its id.
    :param body: the rest of it, as a client gives it.
    :param schedule: the job schedule it is of, if any.
    :return: the job.
    :raises BatchError: it cannot be.
    """
    jobs.prepare(body, scheduled=schedule is not None)
    if (existing := world.jobs.get(name)) is not None:
        raise BatchError("JobBeingDeleted" if existing.state == "deleting" else "JobExists")
    if world.schedules.get(name) is not None:
        raise BatchError("JobScheduleWithSameIdExists")
    present = world.pools.get(body["poolInfo"].get("poolId", ""))
    if present is not None and present.state == "deleting":
        raise BatchError("PoolBeingDeleted")
    within_quota(world)
    auto_pool = _auto_pool(world, body["poolInfo"].get("autoPoolSpecification"), schedule)
    made = Job(world.store.next_uid(), name, body)
    made.auto_pool, made.schedule = auto_pool, schedule.uid if schedule else None
    world.jobs.add(made)
    world.store.touch(made)
    if "jobManagerTask" in body:
        manager = {key: value for key, value in body["jobManagerTask"].items() if key not in _MANAGING}
        world.scheduler.add(made, body["jobManagerTask"]["id"], manager)
    world.job_control.watch(made)
    return made


def _auto_pool(world: World, specification: dict[str, Any] | None, schedule: JobSchedule | None) -> str | None:
    if specification is None:
        return None
    shared = schedule if specification["poolLifetimeOption"] == "jobschedule" else None
    if shared is not None and (present := world.pools.get(shared.pool_id or "")) and present.state == "active":
        return present.id
    prefix = specification.get("autoPoolIdPrefix")
    name = f"{prefix}_{uuid.uuid4()}" if prefix else str(uuid.uuid4())
    name = name[: len(name) - 36] + name[-36:].upper()
    pool(world, name, copy.deepcopy(specification["pool"]))
    if shared is not None:
        shared.pool_id = name
    return name
