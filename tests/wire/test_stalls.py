"""The service's loop is kept from nobody for long: 50 ms at most in one turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import models as m

from tests.support import stalls
from tests.support.raw import signed
from tests.support.stalls import Watched
from tests.support.wire import Services, Wire

#: Nodes of a pool, and tasks that get a place at once.
MANY = 1000


def _count(wire: Wire, pool: str, state: str) -> int:
    (counts,) = [one for one in wire.client.list_pool_node_counts() if one.pool_id == pool]
    assert counts.dedicated is not None
    return int(getattr(counts.dedicated, state))


def test_thousand_nodes_and_placements_stall_nothing(services: Services, tmp_path: Path) -> None:
    with stalls.watched(services, tmp_path / "data") as watched:
        wire, client = watched.wire, watched.wire.client
        client.create_pool(wire.pool_options("many", MANY))
        wire.until(lambda: _count(wire, "many", "idle") == MANY, 60)
        assert len(list(client.list_nodes("many"))) == MANY
        watched.no_stall()

        # All of them wait for a pool's slots, which are enabled in one request.
        job = wire.job("many")
        client._disable_job_internal(job, m.BatchJobDisableOptions(disable_tasks="wait"))
        client.create_tasks(job, [m.BatchTaskCreateOptions(id=f"t{one}", command_line="true") for one in range(MANY)])
        watched.forget()
        client._enable_job_internal(job)
        wire.until(lambda: client.get_job_task_counts(job).task_counts.succeeded == MANY, 120)
        watched.no_stall()

        assert len(list(client.list_tasks(job, filter="startswith(id, 't1')"))) == 111
        assert len(list(client.list_tasks(job))) == MANY
        watched.no_stall()

        watched.forget()
        client._resize_pool_internal("many", m.BatchPoolResizeOptions(target_dedicated_nodes=0))
        wire.until(lambda: client.get_pool("many").allocation_state == "steady", 120)
        watched.no_stall()
        assert client.get_pool("many").current_dedicated_nodes == 0


@pytest.fixture(scope="module")
def watched(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service whose loop is watched."""
    with stalls.watched(services, tmp_path_factory.mktemp("stalls") / "data") as found:
        yield found


def _fill(wire: Wire, tasks: int, at_once: int, **more: object) -> str:
    """Add tasks that wait for a pool, and return their job."""
    job = wire.job("nowhere")
    for first in range(0, tasks, at_once):
        names = range(first, min(first + at_once, tasks))
        body = {"value": [{"id": f"t{name}", "commandLine": "true", **more} for name in names]}
        status, answer = signed(wire.service, "POST", f"/jobs/{job}/addtaskcollection", body=body)
        assert status == 200, answer
        assert {one["status"] for one in answer["value"]} == {"Success"}
    return job


def test_first_list_and_statistics_of_many_tasks_stall_nothing(watched: Watched) -> None:
    wire, tasks = watched.wire, 20_000
    job = _fill(wire, tasks, 100)
    watched.forget()
    first = signed(wire.service, "GET", f"/jobs/{job}/tasks", {"maxresults": "2"})[1]["value"]
    assert [task["id"] for task in first] == ["t0", "t1"]
    stats = signed(wire.service, "GET", f"/jobs/{job}", {"$expand": "stats"})[1]["stats"]
    # All of them have waited since they were added.
    assert float(stats["waitTime"].removeprefix("PT").removesuffix("S")) > 0
    listed = signed(wire.service, "GET", "/jobs", {"$expand": "stats", "$select": "id,stats"})[1]["value"]
    assert [one["id"] for one in listed if "stats" in one] == [one["id"] for one in listed]
    watched.no_stall()


def test_list_of_large_tasks_stalls_nothing(watched: Watched) -> None:
    environment = [{"name": f"N{number}", "value": "x" * 1000} for number in range(25)]
    job = _fill(watched.wire, 400, 30, environmentSettings=environment)
    watched.forget()
    status, answer = signed(watched.wire.service, "GET", f"/jobs/{job}/tasks")
    assert status == 200
    assert len(answer["value"]) == 400
    assert all(task["environmentSettings"] == environment for task in answer["value"])
    watched.no_stall()


def test_body_of_many_parts_stalls_nothing(watched: Watched) -> None:
    service, job = watched.wire.service, watched.wire.job("nowhere")
    files = [{"httpUrl": f"http://a/{number}", "filePath": f"{number}"} for number in range(18_000)]
    watched.forget()
    status, answer = signed(
        service, "POST", f"/jobs/{job}/tasks", body={"id": "t", "commandLine": "a", "resourceFiles": files}
    )
    # It is checked as a whole, and refused for its size.
    assert (status, answer["code"]) == (400, "InvalidPropertyValue"), answer
    watched.no_stall()
