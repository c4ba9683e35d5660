"""Lists: pages, filters, selected properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from tests.support.raw import signed

if TYPE_CHECKING:
    from tests.support.wire import Wire


@pytest.fixture(scope="module")
def many(wire: Wire, pool: str) -> str:
    """A job with 30 tasks that ended in different ways."""
    job = wire.job(pool, display_name="it's many")
    tasks = [
        m.BatchTaskCreateOptions(id=f"{'ab'[n % 2]}{n:02}", command_line=f"/bin/sh -c 'exit {n % 3}'")
        for n in range(30)
    ]
    wire.client.create_task_collection(job, m.BatchTaskGroup(task_values=tasks))
    wire.until(lambda: wire.client.get_job_task_counts(job).task_counts.completed == 30)
    return job


def ids(wire: Wire, job: str, filter: str) -> list[str]:  # noqa: A002 - as the client calls it
    """The ids of the tasks a filter keeps."""
    return [task.id for task in wire.client.list_tasks(job, filter=filter)]


def test_pages_follow_each_other(wire: Wire, many: str) -> None:
    pages: Any = wire.client.list_tasks(many, max_results=7).by_page()
    sizes: list[int] = []
    seen: list[str] = []
    for page in pages:
        found = [task.id for task in page]
        sizes.append(len(found))
        seen += found
    assert sizes == [7, 7, 7, 7, 2]
    assert len(set(seen)) == 30


def test_pages_of_a_list_that_shrinks_skip_nothing(wire: Wire, pool: str) -> None:
    job = wire.job(pool)
    names = [wire.add(job, "/bin/true", id=f"t{n}") for n in range(6)]
    pages: Iterator[Any] = wire.client.list_tasks(job, max_results=2).by_page()
    assert [task.id for task in next(pages)] == names[:2]
    wire.client.delete_task(job, names[0])
    wire.client.delete_task(job, names[3])
    assert [task.id for page in pages for task in page] == [names[2], names[4], names[5]]


def test_filter_keeps_its_pages(wire: Wire, many: str) -> None:
    found = wire.client.list_tasks(many, filter="startswith(id, 'a')", max_results=4, select=["id"])
    assert len([task.id for task in found]) == 15


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("state eq 'completed'", 30),
        ("state ne 'completed'", 0),
        ("executionInfo/exitCode eq 0", 10),
        ("executionInfo/exitCode ge 1", 20),
        ("executionInfo/exitCode gt 1", 10),
        ("executionInfo/exitCode lt 1", 10),
        ("executionInfo/exitCode le 1", 20),
        ("executionInfo/result eq 'failure' and startswith(id, 'a')", 10),
        ("executionInfo/exitCode eq 1 or executionInfo/exitCode eq 2", 20),
        ("startswith(id,'a') and (executionInfo/exitCode eq 1 or executionInfo/exitCode eq 2)", 10),
        ("id eq 'a00'", 1),
        ("id gt 'b'", 15),
        ("not startswith(id, 'a')", 15),
        ("creationTime gt 2020-01-01T00:00:00Z", 30),
        ("creationTime lt datetime'2020-01-01T00:00:00Z'", 0),
        ("executionInfo/result ne null", 30),
        ("lastModifiedTime gt 2020-01-01T00:00:00Z", 30),
    ],
)
def test_filters(wire: Wire, many: str, expression: str, count: int) -> None:
    assert len(ids(wire, many, expression)) == count


def test_filter_on_jobs_pools_and_nodes(wire: Wire, pool: str, many: str) -> None:
    client = wire.client
    assert [job.id for job in client.list_jobs(filter=f"id eq '{many}' and executionInfo/poolId eq '{pool}'")] == [many]
    assert [one.id for one in client.list_pools(filter=f"id eq '{pool}' and state eq 'active'")] == [pool]
    assert len(list(client.list_nodes(pool, filter="state ne 'offline'"))) == 2


def test_filter_by_what_a_list_does_not_have(wire: Wire, pool: str, many: str) -> None:
    client = wire.client
    lists: list[Callable[[], object]] = [
        lambda: list(client.list_jobs(filter="displayName eq 'it''s many'")),
        lambda: list(client.list_nodes(pool, filter="isDedicated eq true")),
        lambda: ids(wire, many, "executionInfo/failureInfo/code eq 'FailureExitCode'"),
        lambda: ids(wire, many, "startswith(state, 'a')"),
    ]
    for listed in lists:
        with pytest.raises(HttpResponseError, match="InvalidQueryParameterValue") as caught:
            listed()
        assert caught.value.status_code == 400


@pytest.mark.parametrize(
    "expression", ["state eq", "state is 'x'", "(state eq 'x'", "'x'", "state eq 'x", "eq eq eq ;"]
)
def test_filter_that_cannot_be_read(wire: Wire, many: str, expression: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        ids(wire, many, expression)
    assert caught.value.status_code == 400
    assert "InvalidQueryParameterValue" in str(caught.value)


def test_select_brings_no_more(wire: Wire, pool: str, many: str) -> None:
    client = wire.client
    task = next(iter(client.list_tasks(many, select=["id", "state"])))
    assert set(task.as_dict()) == {"id", "state"}
    task = next(iter(client.list_tasks(many, select=["id", "commandLine", "executionInfo"])))
    assert set(task.as_dict()) == {"id", "commandLine", "executionInfo"}
    one = client.get_task(many, "a00", select=["state"]).as_dict()
    one.pop("odata.metadata", None)
    assert one == {"state": "completed"}
    assert set(next(iter(client.list_pools(select=["id"]))).as_dict()) == {"id"}
    assert set(next(iter(client.list_nodes(pool, select=["state"]))).as_dict()) == {"state"}
    assert set(next(iter(client.list_jobs(select=["id", "priority"]))).as_dict()) == {"id", "priority"}


def test_expand_is_taken(wire: Wire, many: str) -> None:
    assert wire.client.get_job(many, expand=["stats"]).id == many


@pytest.mark.parametrize(
    "path",
    [
        "/pools", "/pools/{pool}", "/jobs", "/jobs/{job}", "/jobs/{job}/tasks", "/jobs/{job}/tasks/{task}",
        "/jobschedules", "/pools/{pool}/nodes", "/pools/{pool}/nodes/{node}", "/pools/{pool}/nodes/{node}/extensions",
        "/jobs/{job}/jobpreparationandreleasetaskstatus", "/jobs/{job}/tasks/{task}/subtasksinfo",
    ],
)  # fmt: skip
def test_what_is_not_shown_cannot_be_selected(wire: Wire, pool: str, job: str, path: str) -> None:
    task = wire.run(job, "/bin/true").id
    path = path.format(pool=pool, job=job, task=task, node=next(iter(wire.client.list_nodes(pool))).id)
    for names in ("colour", "url,colour", "Id", "executionInfo/exitCode", "*"):
        status, answer = signed(wire.service, "GET", path, {"$select": names})
        assert (status, answer["code"]) == (400, "InvalidQueryParameterValue")
    for names in ("", " , ", "nodeId" if "status" in path else "vmExtension" if "extensions" in path else "state"):
        # A job without a preparation task has none of these statuses, whatever is asked of them.
        assert signed(wire.service, "GET", path, {"$select": names})[0] == (409 if path.endswith("status") else 200)
