"""Every operation of the data plane, reached by Azure's client, the synchronous and the asynchronous one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from azure.batch import BatchClient
from azure.batch.aio import BatchClient as AsyncClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy

from airflow_batchwrap.local.api.app import HANDLERS
from airflow_batchwrap.local.wire import routes
from airflow_batchwrap.local.wire.errors import BatchError

if TYPE_CHECKING:
    from tests.support.wire import Wire

Reached = list[tuple[str, int]]


class Recorder(SansIOHTTPPolicy[Any, Any]):
    """Notes which operations a client reached, and what they answered."""

    def __init__(self, reached: Reached) -> None:
        self._reached = reached

    def on_request(self, request: Any) -> None:
        """Note what is asked."""
        operation, _ = routes.find(request.http_request.method, urlsplit(request.http_request.url).path)
        self._reached.append((operation.name, 0))

    def on_response(self, request: Any, response: Any) -> None:
        """Note an answer."""
        self._reached.append((self._reached.pop()[0], response.http_response.status_code))


@dataclass
class Place:
    """Where an operation is tried: what it needs is made when it is asked for."""

    wire: Wire
    shared: str

    def node(self, *, own: bool = False, state: str = "") -> tuple[str, str]:
        """A pool and its node; one of its own, where it is to be changed."""
        pool = self.wire.pool() if own else self.shared
        node = next(iter(self.wire.client.list_nodes(pool))).id
        if state == "deallocated":
            options: Any = {"nodeDeallocateOption": "requeue"}
            self.wire.client.begin_deallocate_node(pool, node, options, polling_interval=0).wait()
        elif state == "disabled":
            self.wire.client.disable_node_scheduling(pool, node, _body(nodeDisableSchedulingOption="requeue"))
        elif state:
            self.wire.client.create_node_user(pool, node, _body(name=state))
        return pool, node

    def leaving(self) -> tuple[str, Any]:
        """A pool, and what takes its node out of it."""
        pool, node = self.node(own=True)
        return pool, _body(nodeList=[node])

    def busy(self) -> str:
        """A pool that is being resized, and stays so: a node is to go once its task has ended."""
        pool = self.wire.pool()
        job = self.wire.job(pool)
        self.wire.state(job, self.wire.add(job, "/bin/sleep 600"), "running")
        options: Any = {"targetDedicatedNodes": 0, "nodeDeallocationOption": "taskcompletion"}
        self.wire.client._resize_pool_internal(pool, options)
        return pool

    def scaled(self) -> str:
        """A pool with autoscale."""
        pool = self.wire.pool(0)
        self.wire.client.enable_pool_auto_scale(pool, _body(autoScaleFormula="$TargetDedicatedNodes = 0;"))
        return pool

    def job(self, **more: Any) -> str:
        """A job of its own."""
        return self.wire.job(self.shared, **more)

    def disabled(self) -> str:
        """A disabled job."""
        job, options = self.job(), _body(disableTasks="wait")
        self.wire.client.begin_disable_job(job, options, polling_interval=0).wait()
        return job

    def task(self, command: str = "/bin/true", **more: Any) -> tuple[str, str]:
        """A completed task."""
        job = self.job()
        return job, self.wire.run(job, command, **more).id

    def running(self) -> tuple[str, str]:
        """A running task."""
        job = self.job()
        task = self.wire.add(job, "/bin/sleep 600")
        self.wire.state(job, task, "running")
        return job, task

    def schedule(self, *, disabled: bool = False) -> str:
        """A job schedule that has created its job."""
        name = self.wire.name("schedule")
        self.wire.client.create_job_schedule(self.schedule_body(name))
        self.wire.until(lambda: list(self.wire.client.list_jobs_from_schedule(name)))
        if disabled:
            self.wire.client.disable_job_schedule(name)
        return name

    def schedule_body(self, name: str = "") -> Any:
        """What is needed to create a job schedule."""
        specification = {"poolInfo": {"poolId": self.shared}}
        return {"id": name or self.wire.name("schedule"), "schedule": {}, "jobSpecification": specification}

    def file(self) -> tuple[str, str, str]:
        """A file of a completed task."""
        return (*self.task(), "stdout.txt")

    def node_file(self) -> tuple[str, str, str]:
        """A file of a node."""
        job, task = self.task("/bin/sh -c 'echo x > $AZ_BATCH_NODE_SHARED_DIR/file'")
        info = self.wire.client.get_task(job, task).node_info
        assert info is not None
        return self.shared, str(info.node_id), "shared/file"

    def application(self) -> str:
        """An application with one version."""
        (self.wire.service.data / "applications" / "app" / "1.0").mkdir(parents=True, exist_ok=True)
        return "app"

    def multiple(self) -> tuple[str, str]:
        """A multi-instance task on two nodes."""
        job = self.wire.job(self.wire.pool(2, enable_inter_node_communication=True))
        settings: Any = {"numberOfInstances": 2, "coordinationCommandLine": "/bin/true"}
        return job, self.wire.run(job, "/bin/true", multi_instance_settings=settings).id


def _body(**properties: Any) -> Any:
    return properties


def _new(stem: str, **more: Any) -> Callable[[Place], tuple[Any, ...]]:
    return lambda place: ({"id": place.wire.name(stem), **more},)


#: For each operation, what its method is called with, in the order of its parameters.
TABLE: dict[str, Callable[[Place], tuple[Any, ...]]] = {
    "list_applications": lambda place: (),
    "get_application": lambda place: (place.application(),),
    "list_pool_usage_metrics": lambda place: (),
    "create_pool": lambda place: (place.wire.pool_options(place.wire.name("pool"), 0),),
    "list_pools": lambda place: (),
    "delete_pool": lambda place: (place.wire.pool(1),),
    "pool_exists": lambda place: (place.shared,),
    "get_pool": lambda place: (place.shared,),
    "update_pool": lambda place: (place.wire.pool(0), {"metadata": [{"name": "a", "value": "1"}]}),
    "disable_pool_auto_scale": lambda place: (place.scaled(),),
    "enable_pool_auto_scale": lambda place: (place.wire.pool(0), {"autoScaleFormula": "$TargetDedicatedNodes = 0;"}),
    "evaluate_pool_auto_scale": lambda place: (place.scaled(), {"autoScaleFormula": "$TargetDedicatedNodes = 1;"}),
    "resize_pool": lambda place: (place.wire.pool(0), {"targetDedicatedNodes": 1}),
    "stop_pool_resize": lambda place: (place.busy(),),
    "replace_pool_properties": lambda place: (
        place.wire.pool(0),
        {"metadata": [], "applicationPackageReferences": []},
    ),
    "remove_nodes": lambda place: place.leaving(),
    "list_supported_images": lambda place: (),
    "list_pool_node_counts": lambda place: (),
    "delete_job": lambda place: (place.job(),),
    "get_job": lambda place: (place.job(),),
    "update_job": lambda place: (place.job(), {"priority": 7}),
    "replace_job": lambda place: (place.job(), {"poolInfo": {"poolId": place.shared}, "priority": 7}),
    "disable_job": lambda place: (place.job(), {"disableTasks": "requeue"}),
    "enable_job": lambda place: (place.disabled(),),
    "terminate_job": lambda place: (place.job(), {"terminateReason": "enough"}),
    "create_job": lambda place: _new("job", poolInfo={"poolId": place.shared})(place),
    "list_jobs": lambda place: (),
    "list_jobs_from_schedule": lambda place: (place.schedule(),),
    "list_job_preparation_and_release_task_status": lambda place: (
        place.job(job_preparation_task=_body(commandLine="/bin/true")),
    ),
    "get_job_task_counts": lambda place: (place.job(),),
    "job_schedule_exists": lambda place: (place.schedule(),),
    "delete_job_schedule": lambda place: (place.schedule(),),
    "get_job_schedule": lambda place: (place.schedule(),),
    "update_job_schedule": lambda place: (place.schedule(), {"metadata": [{"name": "a", "value": "1"}]}),
    "replace_job_schedule": lambda place: (place.schedule(), place.schedule_body()),
    "disable_job_schedule": lambda place: (place.schedule(),),
    "enable_job_schedule": lambda place: (place.schedule(disabled=True),),
    "terminate_job_schedule": lambda place: (place.schedule(),),
    "create_job_schedule": lambda place: (place.schedule_body(),),
    "list_job_schedules": lambda place: (),
    "create_task": lambda place: (place.job(), {"id": "t", "commandLine": "/bin/true"}),
    "list_tasks": lambda place: (place.job(),),
    "create_task_collection": lambda place: (place.job(), {"value": [{"id": "t", "commandLine": "/bin/true"}]}),
    "delete_task": lambda place: place.task(),
    "get_task": lambda place: place.task(),
    "replace_task": lambda place: (*place.running(), {"constraints": {"maxTaskRetryCount": 1}}),
    "list_subtasks": lambda place: place.multiple(),
    "terminate_task": lambda place: place.running(),
    "reactivate_task": lambda place: place.task("/bin/false"),
    "delete_task_file": lambda place: place.file(),
    "download_task_file": lambda place: place.file(),
    "get_task_file_properties": lambda place: place.file(),
    "list_task_files": lambda place: place.task(),
    "create_node_user": lambda place: (*place.node(own=True), {"name": "someone"}),
    "delete_node_user": lambda place: (*place.node(own=True, state="someone"), "someone"),
    "replace_node_user": lambda place: (*place.node(own=True, state="someone"), "someone", {"password": "Other-1!"}),
    "get_node": lambda place: place.node(),
    "reboot_node": lambda place: (*place.node(own=True), {"nodeRebootOption": "requeue"}),
    "start_node": lambda place: place.node(own=True, state="deallocated"),
    "reimage_node": lambda place: (*place.node(own=True), {"nodeReimageOption": "requeue"}),
    "deallocate_node": lambda place: (*place.node(own=True), {"nodeDeallocateOption": "requeue"}),
    "disable_node_scheduling": lambda place: (*place.node(own=True), {"nodeDisableSchedulingOption": "requeue"}),
    "enable_node_scheduling": lambda place: place.node(own=True, state="disabled"),
    "get_node_remote_login_settings": lambda place: place.node(),
    "upload_node_logs": lambda place: (
        *place.node(),
        {"containerUrl": "http://127.0.0.1:9/logs?sig=x", "startTime": "2026-01-01T00:00:00Z"},
    ),
    "list_nodes": lambda place: (place.shared,),
    # Nothing is installed on this machine, so that no node has an extension.
    "get_node_extension": lambda place: (*place.node(), "none"),
    "list_node_extensions": lambda place: place.node(),
    "delete_node_file": lambda place: place.node_file(),
    "download_node_file": lambda place: place.node_file(),
    "get_node_file_properties": lambda place: place.node_file(),
    "list_node_files": lambda place: place.node(),
}
#: What is answered in place of a success.
ABSENT = {"get_node_extension": 404, "list_pool_usage_metrics": 400}


@pytest.fixture(scope="module")
def place(wire: Wire) -> Place:
    """Where the operations are tried, on a pool whose node nobody changes."""
    return Place(wire, wire.pool(1, 64))


def method(client: object, operation: str) -> Callable[..., Any]:
    """The client's public method for an operation."""
    found: Callable[..., Any] | None = getattr(client, operation, None) or getattr(client, f"begin_{operation}", None)
    assert found is not None, operation
    return found


def expected(operation: str) -> tuple[str, int]:
    """What is to be reached."""
    return operation, ABSENT.get(operation, routes.OPERATIONS[operation].status)


def test_table_is_complete() -> None:
    assert set(TABLE) == set(routes.OPERATIONS)
    assert len(TABLE) == 72


def test_no_operation_is_missing() -> None:
    assert set(routes.OPERATIONS) - set(HANDLERS) == set()


@pytest.fixture(scope="module")
def client(wire: Wire) -> Iterator[tuple[BatchClient, Reached]]:
    """A client that notes what it reaches."""
    reached: Reached = []
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    with BatchClient(wire.service.url, credential, retry_total=0, per_call_policies=[Recorder(reached)]) as made:
        yield made, reached


@pytest.mark.parametrize("operation", TABLE)
def test_operation_is_reached(place: Place, client: tuple[BatchClient, Reached], operation: str) -> None:
    arguments = TABLE[operation](place)
    made, reached = client
    reached.clear()
    call = method(made, operation)
    try:
        if call.__name__.startswith("begin_"):
            call(*arguments, polling_interval=0.01).wait()
        elif isinstance(answer := call(*arguments), Iterator):
            list(answer)
    except HttpResponseError as error:
        # The client lets its policies see no answer that is an error.
        reached.append((reached.pop()[0], error.status_code or 0))
    assert expected(operation) in reached


@pytest.fixture
async def async_client(wire: Wire) -> AsyncIterator[tuple[AsyncClient, Reached]]:
    """An asynchronous client that notes what it reaches."""
    reached: Reached = []
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    async with AsyncClient(wire.service.url, credential, retry_total=0, per_call_policies=[Recorder(reached)]) as made:
        yield made, reached


@pytest.mark.parametrize("operation", TABLE)
async def test_operation_is_reached_asynchronously(
    place: Place, async_client: tuple[AsyncClient, Reached], operation: str
) -> None:
    arguments = TABLE[operation](place)
    made, reached = async_client
    call = method(made, operation)
    try:
        if call.__name__.startswith("begin_"):
            answer = await (await call(*arguments, polling_interval=0.01)).wait()
        elif inspect.isawaitable(answer := call(*arguments)):
            answer = await answer
        if isinstance(answer, AsyncIterator):
            async for _ in answer:
                pass
    except HttpResponseError as error:
        # The client lets its policies see no answer that is an error.
        reached.append((reached.pop()[0], error.status_code or 0))
    assert expected(operation) in reached


def test_error_codes_of_documentation_have_their_statuses() -> None:
    assert {code: BatchError(code).status for code in ("ConditionNotMet", "ServerBusy", "RequestBodyTooLarge")} == {
        "ConditionNotMet": 412,
        "ServerBusy": 503,
        "RequestBodyTooLarge": 413,
    }
