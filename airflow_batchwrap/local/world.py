"""The state and all that may be done with it, put together for those who serve it: the API, the page, the process.

Nothing in `control` knows of this: each lifecycle gets what it stands on, and those below it.
"""

from __future__ import annotations

from airflow_batchwrap.local.config import Config
from airflow_batchwrap.local.control.autoscaler import Autoscaler
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.jobs import Jobs
from airflow_batchwrap.local.control.nodes import Nodes
from airflow_batchwrap.local.control.pools import Pools
from airflow_batchwrap.local.control.preparations import Preparations
from airflow_batchwrap.local.control.retention import Retention
from airflow_batchwrap.local.control.schedules import Schedules
from airflow_batchwrap.local.control.tasks import Tasks
from airflow_batchwrap.local.node.run import Run
from airflow_batchwrap.local.store import Store


class World(Base):
    """The state, and its lifecycles.

    :param config: how the service was started.
    :param store: where the state is kept.
    """

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        self.preparations = Preparations(self)
        self.task_control = Tasks(self, self.preparations)
        self.node_control = Nodes(self, self.task_control, self.preparations)
        self.pool_control = Pools(self, self.node_control, self.task_control)
        self.job_control = Jobs(self, self.pool_control, self.task_control, self.preparations)
        self.schedule_control = Schedules(self, self.job_control, self.pool_control)
        self.autoscaler = Autoscaler(self, self.pool_control)
        self.retention = Retention(self)

    def runs(self) -> list[Run]:
        """All that runs now, or ran last.

        :return: the runs; some may be over.
        """
        return [*self.task_control.runs(), *self.node_control.runs(), *self.preparations.runs()]
