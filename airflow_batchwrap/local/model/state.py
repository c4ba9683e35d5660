"""All that the service knows: its pools, jobs and job schedules, and by them nodes and tasks."""

from __future__ import annotations

from airflow_batchwrap.local.model.entities import Job, JobSchedule, Node, Pool
from airflow_batchwrap.local.model.registry import Registry
from airflow_batchwrap.local.model.states import JobState, ScheduleState


class State:
    """The entities, by their ids."""

    def __init__(self) -> None:
        self.pools: Registry[Pool] = Registry()
        self.jobs: Registry[Job] = Registry()
        self.schedules: Registry[JobSchedule] = Registry()

    def node(self, pool_id: str | None, node_id: str | None) -> Node | None:
        """Find a node.

        :param pool_id: its pool's id.
        :param node_id: its id.
        :return: the node, None where it is gone.
        """
        pool = self.pools.get(pool_id or "")
        return pool.nodes.get(node_id or "") if pool else None

    def active(self) -> int:
        """How many jobs and job schedules count against the quota.

        :return: the number.
        """
        jobs = sum(job.state not in (JobState.COMPLETED, JobState.DELETING) for job in self.jobs)
        schedules = (schedule.state for schedule in self.schedules)
        return jobs + sum(state not in (ScheduleState.COMPLETED, ScheduleState.DELETING) for state in schedules)
