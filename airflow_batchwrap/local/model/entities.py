"""All entities, for those who need several kinds."""

from airflow_batchwrap.local.model.entity import Entity, Execution
from airflow_batchwrap.local.model.jobs import Job, NodeJob, Task
from airflow_batchwrap.local.model.pools import Node, Pool
from airflow_batchwrap.local.model.schedules import JobSchedule

__all__ = ["Entity", "Execution", "Job", "JobSchedule", "Node", "NodeJob", "Pool", "Task"]
