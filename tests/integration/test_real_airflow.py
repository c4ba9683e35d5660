"""A real Airflow, as `batchwrap up` starts it, runs the quickstart; `batchwrap demo` tells of a run that fails.

Everything goes through the console script in processes of its own, as a person would do it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import BlobServiceClient

from airflow_batchwrap.config import PoolConfig
from airflow_batchwrap.hooks.models import pool_options
from airflow_batchwrap.local import runner
from airflow_batchwrap.naming import INSTANCE, MAKER
from airflow_batchwrap.stack import azurite, process, report, state
from airflow_batchwrap.stack.rest import AirflowClient, TaskInstance
from airflow_batchwrap.stack.state import Record
from tests.support.polling import until

DAGS = Path(__file__).resolve().parents[2] / "dags"
COMPONENTS = {"azurite", "batch", "api-server", "dag-processor", "scheduler", "triggerer"}

# On two cores shared with other tests a start takes half a minute, and three times that where more goes on.
pytestmark = pytest.mark.timeout(500)


def batchwrap(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script to its end."""
    command = [sys.executable, "-m", "airflow_batchwrap.cli", *arguments]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, cwd=cwd, stdin=null, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            said, errors = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            # Told to end, it stops what it started.
            process.terminate()
            said, errors = process.communicate(timeout=60)
            raise AssertionError(f"{arguments} did not end in 400 s. It said: {said}{errors}") from None
        return subprocess.CompletedProcess(command, process.returncode, said, errors)


def left_running(folder: Path) -> list[str]:
    """Name the processes that still work below a state directory."""
    found = [f"{each.pid} {each.name()}" for each in state.what_is_left(folder.resolve())]
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(each.cwd()).is_relative_to(folder.resolve()):
                found.append(f"{each.pid} {each.name()} {each.cmdline()}")
    return found


@dataclass(frozen=True)
class Up:
    """What `batchwrap up` left running."""

    cwd: Path
    printed: str
    client: AirflowClient
    record: Record
    password: str
    #: What a killed process left behind; `down` is to end it.
    orphans: list[psutil.Process] = field(default_factory=list)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    cwd: Path = tmp_path_factory.mktemp("up")
    shutil.copytree(DAGS / "quickstart", cwd / "dags/quickstart")
    try:
        done = batchwrap("up", cwd=cwd)
        assert done.returncode == 0, done.stderr
        record = Record.read(cwd / ".batchwrap/up")
        password = re.search(r"password '([^']+)'", done.stdout)
        assert record is not None
        assert password is not None
        with AirflowClient(record.addresses["airflow"], "admin", password[1]) as client:
            running = Up(cwd, done.stdout, client, record, password[1])
            yield running
    finally:
        down = batchwrap("down", cwd=cwd)
    assert (down.returncode, down.stdout.splitlines()[-1]) == (0, "Stopped.")
    assert left_running(cwd / ".batchwrap/up") == []
    # By number, since an ordinary user may not look into Airflow's processes.
    assert [each.pid for each in running.orphans if not process.ended(each.pid)] == []
    assert batchwrap("down", cwd=cwd).stdout == "Nothing runs.\n"


@pytest.fixture(scope="module")
def quickstart(up: Up) -> report.Run:

    def known() -> bool:
        assert up.client.import_errors() == []
        return up.client.knows("quickstart")

    until(known, "the DAG quickstart", 60, pause=0.2)
    run = report.Run(up.client, "quickstart", up.client.trigger("quickstart"))
    state = up.client.wait_for_run(run.dag_id, run.run_id, timeout=180)
    logs = {task.task_id: run.log(task)[-20:] for task in tasks_of(run).values() if task.state == "failed"}
    assert state == "success", logs
    return run


def tasks_of(run: report.Run) -> dict[str, TaskInstance]:
    """The run's tasks by the last part of their ids."""
    return {task.task_id.rpartition(".")[2]: task for task in run.client.task_instances(run.dag_id, run.run_id)}


def test_every_task_succeeded_in_order(quickstart: report.Run) -> None:
    tasks = tasks_of(quickstart)
    assert list(tasks) == ["create_pool", "1_extract", "2_score", "3_report", "fetch_results", "clean_up"]
    assert {task.state for task in tasks.values()} == {"success"}


def test_steps_ran_on_a_node_and_passed_their_values_on(quickstart: report.Run) -> None:
    tasks = tasks_of(quickstart)
    batch = {name: quickstart.xcom(tasks[name], "batch") for name in ("1_extract", "2_score", "3_report")}
    assert {each["exit_code"] for each in batch.values()} == {0}
    assert len({each["pool_id"] for each in batch.values()}) == 1
    assert all(each["node_id"].startswith("tvmps_") for each in batch.values())
    value = quickstart.xcom(tasks["3_report"])
    assert value["ranking"] == ["cellar", "north", "south"]
    assert report.final_value(quickstart, list(tasks.values())) == value
    assert quickstart.xcom(tasks["3_report"], "no such key") is None


def blob_key(up: Up) -> str:
    """The key of Azurite's account: one of its own, and not the published one."""
    return azurite.key_file(up.cwd / ".batchwrap/up/azurite").read_text().strip()


def test_what_a_step_prints_is_in_its_log(quickstart: report.Run) -> None:
    log = "\n".join(quickstart.log(tasks_of(quickstart)["1_extract"]))
    assert "kept 350 readings of 3 sensors, dropped 10" in log


def test_fetched_files_are_the_blobs(up: Up, quickstart: report.Run) -> None:
    files: list[dict[str, Any]] = quickstart.xcom(tasks_of(quickstart)["fetch_results"])
    assert {Path(each["path"]).name for each in files} == {"clean.csv", "report.json"}
    endpoint = up.record.addresses["azurite"]
    account = azurite.AzuriteService(endpoint, 0, Path(), blob_key(up))
    with BlobServiceClient.from_connection_string(account.connection_string) as client:
        blobs = {
            blob.name: client.get_blob_client(container.name, blob.name).download_blob().readall()
            for container in client.list_containers()
            for blob in client.get_container_client(container.name).list_blobs()
        }
    for each in files:
        content = Path(each["path"]).read_bytes()
        assert Path(each["path"]).is_relative_to(up.cwd.resolve() / ".batchwrap/up/results")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each["size"], each["sha256"])
        assert content in [data for name, data in blobs.items() if each["blob"].endswith(name)]


def test_links_of_a_task(up: Up, quickstart: report.Run) -> None:
    for name, task in tasks_of(quickstart).items():
        links = up.client.links(quickstart.dag_id, quickstart.run_id, task.task_id)
        page = f"{up.record.addresses['batch']}/ui"
        if name == "create_pool":
            assert links["Batch pool"] == f"{page}/pools/{quickstart.xcom(task, 'pool_id')}"
            assert links["Batch job"] == f"{page}/jobs/{quickstart.xcom(task, 'job_id')}"
        elif name[0].isdigit():
            batch = quickstart.xcom(task, "batch")
            address = f"{page}/jobs/{batch['job_id']}/tasks/{batch['batch_task_id']}"
            assert links == {"Batch task": address, "Result files": f"{address}#files"}
        else:
            assert not any(links.values())


def test_rendering_for_a_person(quickstart: report.Run) -> None:
    tasks = list(tasks_of(quickstart).values())
    table = report.table(quickstart, tasks)
    cells = [list(column.cells) for column in table.columns]
    assert len(cells[0]) == len(tasks)
    row = dict(zip(map(str, cells[0]), zip(*cells[3:], strict=True), strict=True))
    node, code = next(value for name, value in row.items() if name.endswith("1_extract"))
    assert code == "0"
    assert 10 < len(str(node)) < 30
    assert len(report.fetched_files(quickstart, tasks)) == 2
    assert report.failures(quickstart, tasks) == []


def test_everything_listens_on_loopback_alone(up: Up) -> None:
    everyone = state.what_is_left((up.cwd / ".batchwrap/up").resolve())
    addresses = set()
    for each in everyone:
        try:
            listening = [one for one in each.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue  # one that has ended meanwhile listens nowhere
        except psutil.AccessDenied:
            # One that ends, or one of Airflow's that holds secrets: its own user may not look at it; root's run does.
            continue
        addresses |= {one.laddr.ip for one in listening}
    assert addresses == {"127.0.0.1"}


def test_airflow_wants_a_log_in(up: Up) -> None:
    url = up.record.addresses["airflow"]
    assert httpx.get(f"{url}/api/v2/dags", trust_env=False).status_code == httpx.codes.UNAUTHORIZED
    wrong = httpx.post(f"{url}/auth/token", json={"username": "admin", "password": "admin"}, trust_env=False)
    assert wrong.status_code == httpx.codes.UNAUTHORIZED


def test_up_again_tells_where_it_runs(up: Up) -> None:
    again = batchwrap("up", cwd=up.cwd)
    assert again.returncode == 0
    assert "Already running" in again.stdout
    assert up.record.addresses["airflow"] in again.stdout
    assert Record.read(up.cwd / ".batchwrap/up") == up.record


def test_secrets_stay_out_of_logs(up: Up, quickstart: report.Run) -> None:
    key = (up.cwd / ".batchwrap/up/batch/key").read_text().strip()
    secrets = {"Batch key": key, "blob key": blob_key(up), "SAS": "sig="}
    logs = [path for path in (up.cwd / ".batchwrap/up").rglob("*.log") if path.is_file()]
    assert any("task_id=" in str(path) for path in logs), quickstart.run_id
    found = [(name, path) for path in logs for name, secret in secrets.items() if secret in path.read_text()]
    assert found == []


def test_the_sweep_removes_what_a_run_left(up: Up, quickstart: report.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    service = runner.attach(up.cwd / ".batchwrap/up/batch")
    assert service is not None
    client = BatchClient(service.url, AzureNamedKeyCredential(service.account, service.key))
    extra = {"account_url": service.url}
    connection = {"conn_type": "azure_batch", "login": service.account, "password": service.key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_BATCH_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("BATCHWRAP_AIRFLOW_URL", up.record.addresses["airflow"])
    monkeypatch.setenv("BATCHWRAP_AIRFLOW_PASSWORD", up.password)
    first = batchwrap("sweep", "--user", "admin", cwd=up.cwd)
    shown = re.search(r"What the Airflow '(\w+)' made", first.stdout)
    assert shown, first
    for name, run_id, instance in (
        ("orphan", quickstart.run_id, shown[1]),
        ("unknown", "a run of long ago", shown[1]),
        ("others", quickstart.run_id, "the-other"),
        ("nobodys", quickstart.run_id, ""),
    ):
        marks = {
            MAKER: "x",
            "dag_id": quickstart.dag_id,
            "run_id": run_id,
            **({INSTANCE: instance} if instance else {}),
        }
        client.create_pool(pool_options(name, PoolConfig(), "batch.node.ubuntu 24.04", marks))

    dry = batchwrap("sweep", "--user", "admin", cwd=up.cwd)
    assert dry.returncode == 0, dry
    summary = "4 pools and jobs of batchwrap: 1 would go, 3 of them stay (2 not this Airflow's); nothing was removed"
    assert summary in dry.stdout
    assert re.search(r"^would go +pool orphan .*its run is over", dry.stdout, re.MULTILINE)
    assert re.search(r"^stays +pool unknown .*not known to this Airflow", dry.stdout, re.MULTILINE)
    done = batchwrap("sweep", "--user", "admin", "--delete", cwd=up.cwd)
    assert re.search(r"^removed +pool orphan ", done.stdout, re.MULTILINE), done
    left = sorted(pool.id for pool in client.list_pools(filter="state eq 'active'"))
    assert left == ["nobodys", "others", "unknown"]
    for name in left:
        client.begin_delete_pool(name)
    client.close()


def test_status_reports_a_component_that_died(up: Up) -> None:
    """The last one to use what runs: it breaks it. The workers of the killed scheduler are ended by the fixture."""
    fine = batchwrap("status", cwd=up.cwd)
    assert fine.returncode == 0, fine.stdout
    assert set(re.findall(r"^│ ([a-z-]+) ", fine.stdout, re.MULTILINE)) == COMPONENTS
    scheduler = up.record.airflow["scheduler"]
    workers = psutil.Process(scheduler.pid).children(recursive=True)
    os.kill(scheduler.pid, signal.SIGKILL)
    until(lambda: scheduler.process() is None, "the scheduler's end")
    up.orphans.extend(each for each in workers if each.is_running())
    assert up.orphans, "no worker of the LocalExecutor outlived the scheduler: this shows nothing"
    broken = batchwrap("status", cwd=up.cwd)
    assert broken.returncode == 1
    assert re.search(r"^│ scheduler +│ died", broken.stdout, re.MULTILINE)


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """A folder with a DAG whose second step fails."""
    steps = tmp_path / "dags/steps"
    steps.mkdir(parents=True)
    (steps / ".airflowignore").write_text("*\n")
    (steps / "1_fine.py").write_text("def do_action(engine):\n    return 20\n")
    (steps / "2_breaks.py").write_text(
        textwrap.dedent(
            """
            import sys
            def do_action(engine, value):
                print("the kettle is cold", file=sys.stderr)
                raise ValueError(f"no tea for {value}")
            """
        )
    )
    (tmp_path / "dags/breaks.py").write_text(
        textwrap.dedent(
            """
            from airflow.sdk import DAG
            from airflow_batchwrap import BatchWorkflow, PoolConfig

            with DAG("breaks", schedule=None):
                BatchWorkflow("tea", steps="steps", pool_config=PoolConfig(), default_args={"retries": 0})
            """
        )
    )
    return tmp_path


def test_demo_of_a_run_that_fails_names_the_step(failing: Path) -> None:
    done = batchwrap("demo", "--dag", "breaks", cwd=failing)
    assert done.returncode == 1
    assert "2_breaks failed" in done.stderr
    assert "no tea for 20" in done.stderr
    assert "the kettle is cold" in done.stderr
    assert re.search(r"tea\.1_fine .*success", done.stdout)
    assert re.search(r"tea\.2_breaks .*failed", done.stdout)
    assert re.search(r"tea\.clean_up .*success", done.stdout)
    (folder,) = (failing / ".batchwrap").iterdir()
    assert left_running(folder) == []


def test_demo_with_an_identity_alone(tmp_path: Path) -> None:
    (tmp_path / "dags/steps").mkdir(parents=True)
    (tmp_path / "dags/steps/1_fine.py").write_text("def do_action(engine):\n    return 20\n")
    (tmp_path / "dags/fine.py").write_text(
        textwrap.dedent(
            """
            from airflow.sdk import DAG
            from airflow_batchwrap import BatchWorkflow, PoolConfig

            with DAG("fine", schedule=None):
                BatchWorkflow("tea", steps="steps", pool_config=PoolConfig())
            """
        )
    )
    done = batchwrap("demo", "--dag", "fine", "--tls", "--keep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Value: 20" in done.stdout
    (folder,) = (tmp_path / ".batchwrap").iterdir()
    assert left_running(folder) == []
    # Over TLS, and with no key: a kept identity is all that there is to sign in with.
    assert "https://" in (folder / "azurite.log").read_text()
    key = (folder / "batch/key").read_text().strip()
    for log in [*folder.glob("*.log"), *(folder / "airflow").rglob("*.log")]:
        assert key not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(failing: Path, number: signal.Signals) -> None:
    demo = started_demo(failing)
    folder = next((failing / ".batchwrap").iterdir())
    demo.send_signal(number)
    assert demo.wait(60) == 128 + number
    assert left_running(folder) == []


def test_killed_demo_is_cleared_away_by_down(failing: Path) -> None:
    demo = started_demo(failing)
    folder = next((failing / ".batchwrap").iterdir())
    demo.kill()
    demo.wait(60)
    assert left_running(folder) != []
    assert batchwrap("down", cwd=failing).stdout.splitlines()[-1] == "Stopped."
    assert left_running(folder) == []


def listen_to_ctrl_c() -> None:
    """As in a terminal, also where these tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started_demo(cwd: Path) -> subprocess.Popen[bytes]:
    """Start a demo and return while it starts Airflow."""
    command = [sys.executable, "-m", "airflow_batchwrap.cli", "demo", "--dag", "breaks"]
    demo = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=listen_to_ctrl_c,
    )

    def starting() -> bool:
        assert demo.poll() is None
        states = list((cwd / ".batchwrap").glob("*/state.json"))
        return bool(states and json.loads(states[0].read_text())["airflow"])

    until(starting, "a demo that starts its Airflow", 60)
    return demo
