"""Pools and jobs: made once, taken over, left alone, removed; whatever becomes of the tries in between."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from airflow_batchwrap.local.runner import LocalService
    from tests.support.bench import Bench

ECHO = "def do_action(engine, *args):\n    return list(args)\n"
Own = Callable[[], set[tuple[str, str]]]
SLOW = "import time\ndef do_action(engine, *args):\n    time.sleep(60)\n"


@pytest.fixture
def own(bench: Bench, client: BatchClient) -> Own:
    """Return the bench's pools and jobs that nobody has asked to delete."""

    def look() -> set[tuple[str, str]]:
        living = "state eq 'active'"
        found = [("pool", item.id) for item in client.list_pools(filter=living)]
        found += [("job", item.id) for item in client.list_jobs(filter=living)]
        return {item for item in found if item[1].startswith(bench.dag.dag_id)}

    return look


def both(workspace: dict[str, Any]) -> set[tuple[str, str]]:
    return {("pool", workspace["pool_id"]), ("job", workspace["job_id"])}


def create(bench: Bench, **arguments: Any) -> Any:
    from airflow_batchwrap import CreatePoolOperator

    task_id = arguments.pop("task_id", "create")
    return bench.make(CreatePoolOperator, task_id, **{"pool_config": {}, **arguments})


def delete(bench: Bench, workspace: Any) -> Any:
    from airflow_batchwrap import DeletePoolOperator

    return bench.run(bench.make(DeletePoolOperator, workspace=workspace))


def test_a_set_up_whose_worker_died_is_gone_on_with_and_so_is_a_cleared_one(bench: Bench, own: Own) -> None:
    shut, gate = bench.gate()
    operator = create(bench, pool_config={"start_task": shut}, retries=1)
    bench.submit(operator)
    first = own()
    gate.touch()
    workspace = bench.run(operator, try_number=2)
    assert both(workspace) == first == own()
    # A person clears a step, and Airflow its set-up with it: the same pool and job, other steps may run there.
    assert bench.run(operator, try_number=3, cleared=2) == {**workspace, "epoch": 2}
    assert own() == first
    # And once more with another configuration, which needs another pool.
    operator.pool_config = operator.pool_config.override(start_task="true")
    other = bench.run(operator, try_number=4, cleared=3)
    assert own() == both(other)
    assert first.isdisjoint(own())
    assert delete(bench, other) == {"pool_id": other["pool_id"], "job_id": other["job_id"]}
    # After the teardown everything is new.
    again = bench.run(operator, try_number=5, cleared=4)
    assert own() == both(again)
    delete(bench, again)
    assert own() == set()


def test_a_set_up_that_fails_leaves_nothing_and_the_next_try_is_not_in_its_way(
    bench: Bench, own: Own, client: BatchClient
) -> None:
    from airflow_batchwrap import NoCapacity, PoolError

    for deferrable in (True, False):
        operator = create(
            bench,
            task_id=f"create_{deferrable}",
            pool_config={"start_task": "exit 3"},
            retries=1,
            deferrable=deferrable,
        )
        for number in (1, 2):
            with pytest.raises(PoolError, match="exit code 3"):
                bench.run(operator, try_number=number)
            assert own() == set()
    late = create(bench, task_id="late", pool_config={"start_task": "sleep 30", "pool_wait_timeout": "1 s"}, retries=1)
    for number, left in ((1, 2), (2, 0)):
        with pytest.raises(NoCapacity, match=r"not ready within 0.0167 min.*Raise pool_wait_timeout"):
            bench.run(late, try_number=number)
        assert len(own()) == left


def test_a_cleared_set_up_that_fails_removes_what_it_made_before(bench: Bench, own: Own) -> None:
    from airflow_batchwrap import ConfigError

    operator = create(bench, retries=1)
    workspace = bench.run(operator)
    assert own() == both(workspace)
    operator.inputs = "gone.txt"
    # Airflow runs no teardown after it, and the pool would stay.
    with pytest.raises(ConfigError, match=r"gone\.txt"):
        bench.run(operator, try_number=2, cleared=1)
    assert own() == set()


@pytest.mark.parametrize("kind", ["step", "manifest"])
def test_a_cleared_set_up_that_fails_leaves_what_other_steps_run_on(bench: Bench, own: Own, kind: str) -> None:
    from airflow_batchwrap import ConfigError, RunBatchManifestOperator, RunBatchTaskOperator

    operator = create(bench, retries=1)
    workspace = bench.run(operator)
    shut, gate = bench.gate()
    work: Any
    if kind == "step":
        work = bench.make(RunBatchTaskOperator, "sibling", command=f"{shut}; echo 7", workspace=workspace)
    else:
        entries = [{"command": shut}]
        work = bench.make(RunBatchManifestOperator, "sibling", manifest=entries, workspace=workspace)
    sibling = bench.submit(work)
    there = own()
    assert both(workspace) <= there
    operator.inputs = "gone.txt"
    with pytest.raises(ConfigError, match=r"gone\.txt"):
        bench.run(operator, try_number=2, cleared=1)
    assert own() == there
    gate.touch()
    result = sibling.finish()
    assert result == "7" if kind == "step" else result["succeeded"] == 1
    delete(bench, workspace)
    assert own() == set()


def test_two_set_ups_of_one_group_do_not_touch_each_other(bench: Bench, own: Own, pool: str) -> None:
    from airflow_batchwrap import UsePoolOperator

    one, other = (bench.make(UsePoolOperator, f"group.use_{name}", pool_id=pool) for name in ("one", "other"))
    workspaces = [bench.run(one), bench.run(other)]
    assert len(own()) == 2
    assert workspaces[0]["job_id"] != workspaces[1]["job_id"]
    assert bench.run(one, try_number=2) == workspaces[0]
    for workspace in workspaces:
        delete(bench, workspace)


def test_a_pool_of_that_id_is_refused_where_it_is_anothers(bench: Bench, pool: str, client: BatchClient) -> None:
    from airflow_batchwrap import PoolError

    before = client.get_pool(pool).as_dict()
    with pytest.raises(PoolError, match="exists already and is not this run's"):
        bench.run(create(bench, pool_id=pool))
    assert client.get_pool(pool).as_dict() == before


def test_a_named_pool_without_steps_is_created_once_and_deleted_by_its_id(bench: Bench, own: Own) -> None:
    from airflow_batchwrap import ConfigError, DeletePoolOperator

    name = f"{bench.dag.dag_id}-mine"
    operator = create(bench, pool_id=name, pool_config=None)
    workspace = bench.run(operator)
    assert bench.xcoms.items() >= {"pool_id": name, "job_id": workspace["job_id"]}.items()
    assert (workspace["pool_id"], workspace["owns_pool"], workspace["steps"]) == (name, True, [])
    assert bench.run(operator, try_number=2) == workspace
    with pytest.raises(ConfigError, match="both a workspace and the pool_id"):
        bench.run(bench.make(DeletePoolOperator, workspace=workspace, pool_id=name))
    by_id = bench.make(DeletePoolOperator, pool_id=name)
    assert bench.run(by_id) == {"job_id": None, "pool_id": name}
    assert bench.run(by_id) == {"job_id": None, "pool_id": None}
    assert delete(bench, workspace) == {"job_id": workspace["job_id"], "pool_id": None}
    assert delete(bench, workspace) == {"job_id": None, "pool_id": None}
    assert own() == set()


def test_repurposing_removes_what_is_over_and_nothing_else(bench: Bench, pool: str, client: BatchClient) -> None:
    from azure.batch import models as m

    from airflow_batchwrap import RepurposePoolOperator, RunBatchTaskOperator, UsePoolOperator

    bench.steps(_1_echo=ECHO, _2_slow=SLOW)
    take = bench.make(RepurposePoolOperator, "take", pool_id=pool, steps="steps")
    other = bench.make(UsePoolOperator, "other_workflow", pool_id=pool, steps="steps")
    run = bench.make(RunBatchTaskOperator, "run", step="1_echo.py")
    foreign = f"foreign-{bench.dag.dag_id}"
    client.create_job(m.BatchJobCreateOptions(id=foreign, pool_info=m.BatchPoolInfo(pool_id=pool)))
    jobs = {name: bench.run(take, run_id=name)["job_id"] for name in ("over", "busy", "between", "unknown")}
    jobs["other"] = bench.run(other, run_id="over")["job_id"]
    run.workspace = bench.run(take, run_id="over")
    bench.run(run, run_id="over")
    run.workspace, run.step = bench.run(take, run_id="busy"), "2_slow.py"
    bench.submit(run, run_id="busy")
    bench.runs |= {"over": "failed", "busy": "success", "between": "running"}
    del bench.runs["unknown"]

    workspace = bench.run(take, run_id="now")
    left = {job.id for job in client.list_jobs(filter="state eq 'active'")}
    assert jobs["over"] not in left
    assert left >= {jobs["busy"], jobs["between"], jobs["unknown"], jobs["other"], foreign, workspace["job_id"]}
    assert bench.run(take, run_id="now", try_number=2) == workspace
    client.begin_delete_job(foreign)


def test_using_a_pool_changes_nothing_on_it(bench: Bench, pool: str, client: BatchClient) -> None:
    from airflow_batchwrap import UsePoolOperator

    before = client.get_pool(pool).as_dict()
    # Its id in other letters: Batch does not mind the case.
    workspace = bench.run(bench.make(UsePoolOperator, pool_id=pool.upper()))
    assert workspace["pool_id"] == pool
    assert delete(bench, workspace) == {"job_id": workspace["job_id"], "pool_id": None}
    assert client.get_pool(pool).as_dict() == before


class Unreliable(ThreadingHTTPServer):
    """Pass everything on to the service, but lose answers and refuse requests as a test says.

    :ivar lost: method and path of requests that are passed on and get no answer.
    :ivar refused: method and path of requests that get an error.
    :ivar busy: how many requests are told that the service is busy.
    """

    def __init__(self, service: LocalService) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.service = urllib.parse.urlsplit(service.url).netloc
        self.lost = self.refused = ("", "-")
        self.busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Unreliable

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.busy > 0:
            self.server.busy -= 1
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self._is(self.server.refused):
            self.send_error(400)
            return
        connection = http.client.HTTPConnection(self.server.service)
        connection.request(self.command, self.path, body or None, {**self.headers, "Host": self.server.service})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if self._is(self.server.lost):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT = do_PATCH = _pass  # noqa: N815

    def _is(self, request: tuple[str, str]) -> bool:
        return self.command == request[0] and self.path.startswith(request[1])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def unreliable(connections: None, local_service: LocalService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unreliable]:
    """The service, behind something that loses answers; the connection leads there."""
    server = Unreliable(local_service)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    conn = json.loads(os.environ["AIRFLOW_CONN_AZURE_BATCH_DEFAULT"])
    conn["extra"] = {"account_url": server.url}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(conn))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("what", ["/pools", "/jobs"])
def test_what_was_made_is_found_where_the_answer_was_lost(
    bench: Bench, unreliable: Unreliable, own: Own, what: str
) -> None:
    unreliable.lost = "POST", what
    workspace = bench.run(create(bench))
    assert own() == both(workspace)
    delete(bench, workspace)


def test_the_pool_is_deleted_where_the_job_cannot_be(bench: Bench, unreliable: Unreliable, own: Own) -> None:
    from airflow_batchwrap import TryAgain

    workspace = bench.run(create(bench))
    unreliable.refused = "DELETE", "/jobs"
    with pytest.raises(TryAgain, match=f"Left behind: job {workspace['job_id']}"):
        delete(bench, workspace)
    assert own() == {("job", workspace["job_id"])}
    unreliable.refused = "", "-"
    assert delete(bench, workspace) == {"job_id": workspace["job_id"], "pool_id": None}
    assert own() == set()


def test_the_job_is_deleted_where_the_pool_cannot_be(bench: Bench, unreliable: Unreliable, own: Own) -> None:
    from airflow_batchwrap import TryAgain

    workspace = bench.run(create(bench))
    unreliable.refused = "DELETE", "/pools"
    with pytest.raises(TryAgain, match=f"Left behind: pool {workspace['pool_id']}"):
        delete(bench, workspace)
    assert own() == {("pool", workspace["pool_id"])}
    unreliable.refused = "", "-"
    assert delete(bench, workspace) == {"job_id": None, "pool_id": workspace["pool_id"]}
    assert own() == set()


def test_a_busy_service_is_waited_for(
    bench: Bench, unreliable: Unreliable, own: Own, capfd: pytest.CaptureFixture[str]
) -> None:
    shut, gate = bench.gate()
    begun = bench.submit(create(bench, pool_config={"start_task": shut}))
    gate.touch()
    unreliable.busy = 5  # the client itself asks 4 times
    delete(bench, begun.finish())
    assert "busy or failing (503)" in "".join(capfd.readouterr())
    assert own() == set()
