"""A multi-instance task: a coordination command on each of several nodes, then the task's own command on the first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from airflow_batchwrap.local.model.states import Ending
from airflow_batchwrap.local.node import process
from airflow_batchwrap.local.node.blob import BlobClient
from airflow_batchwrap.local.node.run import Outcome, Run, Work

#: The port in AZ_BATCH_MASTER_NODE (Learn: compute node environment variables).
MASTER_PORT = 6000


def variables(addresses: Sequence[str], index: int, directory: str) -> dict[str, str]:
    """The variables that a multi-instance task's commands find beside those of any task.

    :param addresses: the nodes' addresses, the primary's first.
    :param index: which of the nodes this is.
    :param directory: the task's directory on it.
    :return: the variables.
    """
    return {
        "AZ_BATCH_NODE_LIST": ";".join(addresses),
        "AZ_BATCH_HOST_LIST": ",".join(addresses),
        "AZ_BATCH_MASTER_NODE": f"{addresses[0]}:{MASTER_PORT}",
        "AZ_BATCH_IS_CURRENT_NODE_MASTER": "true" if index == 0 else "false",
        "AZ_BATCH_TASK_SHARED_DIR": directory,
    }


class Gang(Run):
    """The run of a multi-instance task on all of its nodes; what ends it on one ends it on all.

    :param work: the task's own work, on the first node.
    :param coordination: the work of the coordination command on each node, the first one's first.
    :param blobs: what transfers.
    :param started: called with the process of the task's own command.
    :param coordinated: called with the number of a node and how its coordination command ended.
    """

    def __init__(
        self,
        work: Work,
        coordination: Sequence[Work],
        blobs: BlobClient,
        started: Callable[[process.Child], None],
        coordinated: Callable[[int, Outcome], None],
    ) -> None:
        # The working directory holds what the coordination command made, and its output comes first.
        super().__init__(replace(work, keep=True, how="append"), blobs, started)
        self._parts = [Run(replace(part, how="linger"), blobs) for part in coordination]
        self._coordinated = coordinated

    def stop(self, reason: Ending) -> None:
        """End the run, on all nodes.

        :param reason: as of `Run.stop`.
        """
        super().stop(reason)
        for part in self._parts:
            part.stop(reason)

    async def _execute(self, work: Work, timer: asyncio.TimerHandle | None) -> Outcome:
        try:
            outcomes = await asyncio.gather(*(self._coordinate(index) for index in range(len(self._parts))))
            if self.reason is not None:
                return Outcome(None, self._failure(None))
            if failed := [
                outcome for outcome in outcomes if outcome.failure and outcome.failure["code"] != "TaskEnded"
            ]:
                return failed[0]
            return await super()._execute(work, timer)
        finally:
            # A coordination command leaves what it started running: that is what it is there for.
            for part in self._parts:
                await process.HELPER.clear(part.work.directory)

    async def _coordinate(self, index: int) -> Outcome:
        outcome = await self._parts[index].execute()
        self._coordinated(index, outcome)
        if outcome.failure is not None:
            for part in self._parts:
                part.stop(Ending.TERMINATED)
        return outcome
