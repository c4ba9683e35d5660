"""The local Batch service with Azure's own client for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.credentials import AzureNamedKeyCredential

from airflow_batchwrap.local.runner import LocalService
from tests.support.polling import until

T = TypeVar("T")


class Services(Protocol):
    """Starts a service, or starts it again, on a data directory."""

    def __call__(self, data: Path, *arguments: str) -> Wire:
        """Start it.

        :param arguments: further words for `batchwrap local serve`.
        """


@dataclass
class Wire:
    """A service, a client of it, and the few steps most tests begin with."""

    service: LocalService
    client: BatchClient
    _number: int = 0

    def name(self, stem: str) -> str:
        """An id that no other test uses."""
        self._number += 1
        return f"{stem}-{self._number}"

    def root(self, node: str | None) -> Path:
        """A node's directory on this machine."""
        return self.service.data / "nodes" / str(node).split("_")[1][:12]

    def until(self, look: Callable[[], T], timeout: float = 20.0) -> T:
        """Look until there is something to see; what it waited for is said by the look's own source."""
        return until(look, timeout=timeout)

    def pool_options(self, name: str, nodes: int = 1, slots: int = 1, **more: Any) -> m.BatchPoolCreateOptions:
        """What is needed to create a pool."""
        image = m.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")
        machine = m.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
        more.setdefault("target_dedicated_nodes", nodes)
        return m.BatchPoolCreateOptions(
            id=name,
            vm_size="Standard_D2s_v3",
            virtual_machine_configuration=machine,
            task_slots_per_node=slots,
            **more,
        )

    def pool(self, nodes: int = 1, slots: int = 1, **more: Any) -> str:
        """A pool with its nodes idle."""
        name = self.name("pool")
        self.client.create_pool(self.pool_options(name, nodes, slots, **more))
        self.nodes(name, nodes, "idle")
        return name

    def nodes(self, pool: str, count: int, *states: str) -> list[m.BatchNode]:
        """The nodes of a pool, once there are so many and all are in one of these states."""

        def look() -> list[m.BatchNode] | None:
            nodes = list(self.client.list_nodes(pool))
            steady = self.client.get_pool(pool).allocation_state == "steady"
            fine = steady and len(nodes) == count and all(node.state in states for node in nodes)
            return nodes if fine else None

        if count:
            return self.until(look) or []
        self.until(lambda: not list(self.client.list_nodes(pool)))
        return []

    def job(self, pool: str, **more: Any) -> str:
        """A job on a pool."""
        name = self.name("job")
        self.client.create_job(m.BatchJobCreateOptions(id=name, pool_info=m.BatchPoolInfo(pool_id=pool), **more))
        return name

    def add(self, job: str, command: str, **more: Any) -> str:
        """A task of a job."""
        name = more.pop("id", None) or self.name("task")
        self.client.create_task(job, m.BatchTaskCreateOptions(id=name, command_line=command, **more))
        return str(name)

    def state(self, job: str, task: str, state: str) -> m.BatchTask:
        """A task, once it is in a state."""

        def look() -> m.BatchTask | None:
            found = self.client.get_task(job, task)
            return found if found.state == state else None

        found = self.until(look)
        assert found is not None
        return found

    def run(self, job: str, command: str, **more: Any) -> m.BatchTask:
        """A task that has completed."""
        return self.state(job, self.add(job, command, **more), "completed")

    def text(self, job: str, task: str, path: str = "stdout.txt") -> str:
        """The text of a task's file."""
        return b"".join(self.client.download_task_file(job, task, path)).decode()

    def terminate(self, job: str, reason: str = "enough") -> None:
        """End a job, and wait until it has ended."""
        options: Any = {"terminateReason": reason}
        self.client.begin_terminate_job(job, options, polling_interval=0).wait()

    def job_state(self, job: str, state: str) -> m.BatchJob:
        """A job, once it is in a state."""

        def look() -> m.BatchJob | None:
            found = self.client.get_job(job)
            return found if found.state == state else None

        found = self.until(look)
        assert found is not None
        return found


def connect(service: LocalService, key: str | None = None) -> BatchClient:
    """Azure's client for a service, without its retries: an error is to be seen at once."""
    credential = AzureNamedKeyCredential(service.account, key or service.key)
    verify = str(service.authority) if service.authority else True
    return BatchClient(service.url, credential, retry_total=0, connection_verify=verify)
