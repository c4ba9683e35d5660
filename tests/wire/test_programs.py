"""Programs that nobody here wrote, unmodified, against the local service over TLS: pools, jobs, tasks, files, nodes."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.runner import LocalService
from tests.support import installed
from tests.support.polling import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PROGRAMS = Path(__file__).resolve().parents[1] / "support" / "programs"
IMAGE = "--image canonical:ubuntu-24_04-lts:server --node-agent-sku-id 'batch.node.ubuntu 24.04'"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service that speaks TLS."""
    running = runner.launch(tmp_path_factory.mktemp("programs") / "data", ["--tls"])
    yield running
    running.stop()
    assert "Traceback" not in (running.data / "service.log").read_text()


# --- the Azure CLI


@dataclass
class Az:
    """`az batch`, one command after the other.

    :param process: the Azure CLI.
    """

    process: subprocess.Popen[str] = field(repr=False)

    def ask(self, words: str) -> tuple[int, str, str]:
        """Run a command; its exit code, output and error."""
        put, get = self.process.stdin, self.process.stdout
        assert put is not None
        assert get is not None
        put.write(json.dumps(["batch", *shlex.split(words)]) + "\n")
        put.flush()
        code, output, error = json.loads(get.readline())
        return code, output, error

    def __call__(self, words: str) -> Any:
        """Run a command that succeeds; what it printed, read as JSON."""
        code, output, error = self.ask(words)
        assert code == 0, f"az batch {words}: {error}"
        return json.loads(output) if output.strip() else None

    def refused(self, words: str) -> str:
        """Run a command that the service refuses; the code of its error."""
        code, _, error = self.ask(words)
        assert code, f"az batch {words} was taken"
        return error.partition(")")[0].strip("(")


@pytest.fixture(scope="module")
def az(secure: LocalService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Az]:
    """The Azure CLI, as it comes from its registry."""
    python = installed.python("azure-cli", ["azure-cli==2.91.0"])
    home = tmp_path_factory.mktemp("az")
    quiet = {"AZURE_CONFIG_DIR": str(home / "azure"), "AZURE_CORE_COLLECT_TELEMETRY": "0"}
    with (
        (home / "errors").open("w") as errors,
        subprocess.Popen(
            [str(python), "-W", "ignore", str(PROGRAMS / "az.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=installed.environment(secure, home, AZURE_CORE_ONLY_SHOW_ERRORS="1", **quiet),
        ) as process,
    ):
        yield Az(process)


def az_pool(az: Az, name: str, nodes: int = 1) -> list[str]:
    """A pool of the Azure CLI's; the ids of its nodes, once they are idle."""
    az(f"pool create --id {name} {IMAGE} --vm-size Standard_D2s_v3 --target-dedicated-nodes {nodes}")

    def idle() -> list[str]:
        ids = az(f"node list --pool-id {name} --filter \"state eq 'idle'\" --query [].id")
        return list(ids) if len(ids) == nodes else []

    return until(idle)


def test_az_does_pools_jobs_tasks_and_files(az: Az, tmp_path: Path) -> None:
    az_pool(az, "one", 2)
    shown = az("pool show --pool-id one --query [id,state,allocationState,currentDedicatedNodes]")
    assert shown == ["one", "active", "steady", 2]
    assert az("pool supported-images list --query 'length(@)'") > 0
    assert az("pool node-counts list --query [].[poolId,dedicated.idle]") == [["one", 2]]

    az("job create --id j --pool-id one --priority 3 --metadata a=b")
    az("job set --job-id j --priority 7")
    assert az("job show --job-id j --query [priority,metadata[0].value]") == [7, "b"]
    command = shlex.quote("/bin/sh -c 'echo hello; echo oops >&2'")
    added = az(f"task create --job-id j --task-id hello --command-line {command}")
    assert (added["id"], added["constraints"]["maxTaskRetryCount"]) == ("hello", 0)
    many = tmp_path / "many.json"
    tasks = [{"id": f"m{number}", "commandLine": "/bin/true"} for number in range(150)]
    tasks += [{"id": "bad", "commandLine": "/bin/false"}, {"id": "slow", "commandLine": "/bin/sleep 600"}]
    many.write_text(json.dumps(tasks))
    assert {one["status"].lower() for one in az(f"task create --job-id j --json-file {many}")} == {"success"}
    counts = "job task-counts show --job-id j --query taskCounts.[completed,succeeded,failed,running]"
    until(lambda: az(counts) == [152, 151, 1, 1], lambda: str(az(counts)), timeout=60)
    assert az("task list --job-id j --query 'length(@)'") == 153
    failed = 'task list --job-id j --filter "executionInfo/exitCode eq 1" --select id,state'
    assert az(failed) == [{"id": "bad", "state": "completed"}]
    assert az("task show --job-id j --task-id hello --query [state,executionInfo.exitCode]") == ["completed", 0]

    files = az("task file list --job-id j --task-id hello --recursive --query [].name")
    assert sorted(files) == ["certs", "stderr.txt", "stdout.txt", "wd"]
    for name, text in {"stdout.txt": "hello\n", "stderr.txt": "oops\n"}.items():
        az(f"task file download --job-id j --task-id hello --file-path {name} --destination {tmp_path / name}")
        assert (tmp_path / name).read_text() == text
    az("task file delete --job-id j --task-id hello --file-path stderr.txt --yes")

    az("task stop --job-id j --task-id slow")
    ended = "task show --job-id j --task-id slow --query [state,executionInfo.failureInfo.code]"
    until(lambda: az(ended) == ["completed", "TaskEnded"], lambda: str(az(ended)))
    az("task reactivate --job-id j --task-id bad")
    assert az.refused("task reset --job-id j --task-id hello --max-task-retry-count 2") == "TaskCompleted"
    az("task delete --job-id j --task-id hello --yes")
    assert az.refused("task show --job-id j --task-id hello") == "TaskNotFound"
    az("job disable --job-id j --disable-tasks requeue")
    until(lambda: az("job show --job-id j --query state") == "disabled")
    az("job enable --job-id j")
    az("job stop --job-id j --terminate-reason enough")
    ended = "job show --job-id j --query [state,executionInfo.terminateReason]"
    until(lambda: az(ended) == ["completed", "enough"], lambda: str(az(ended)))

    az("pool resize --pool-id one --target-dedicated-nodes 1")
    until(lambda: az("node list --pool-id one --query 'length(@)'") == 1)
    formula = "'$TargetDedicatedNodes = 0;'"
    refused = az.refused(f"pool autoscale evaluate --pool-id one --auto-scale-formula {formula}")
    assert refused == "OperationNotValidOnPool"
    az(f"pool autoscale enable --pool-id one --auto-scale-formula {formula} --auto-scale-evaluation-interval PT6M")
    assert az(f"pool autoscale evaluate --pool-id one --auto-scale-formula {formula}")["results"].startswith("$T")
    az("pool autoscale disable --pool-id one")
    az("job delete --job-id j --yes")
    az("pool delete --pool-id one --yes")
    until(lambda: az("job list --query [].id") == [] and "one" not in az("pool list --query [].id"))


def test_az_does_nodes(az: Az, tmp_path: Path) -> None:
    first, second = az_pool(az, "nodes", 2)
    node = f"--pool-id nodes --node-id {first}"
    assert az(f"node show {node} --query state") == "idle"
    assert set(az(f"node file list {node} --query [].name")) >= {"shared", "startup", "workitems"}
    az(f"node file download {node} --file-path volatile/agent.log --destination {tmp_path / 'agent.log'}")
    assert (tmp_path / "agent.log").read_text()
    az(f"node user create {node} --name me --password x1Y#abcdef")
    az(f"node user reset {node} --user-name me --password x1Y#abcdefg")
    az(f"node user delete {node} --user-name me --yes")
    assert az(f"node remote-login-settings show {node}")["remoteLoginPort"]
    az(f"node scheduling disable {node}")
    assert az(f"node show {node} --query schedulingState") == "disabled"
    az(f"node scheduling enable {node}")
    az(f"node reboot {node}")
    until(lambda: az(f"node show {node} --query state") == "idle")
    az(f"node delete --pool-id nodes --node-list {first}")
    until(lambda: az("node list --pool-id nodes --query [].id") == [second])
    az("pool delete --pool-id nodes --yes")
    until(lambda: "nodes" not in az("pool list --query [].id"))


def test_az_does_job_schedules(az: Az) -> None:
    az_pool(az, "schedules")
    later = "--recurrence-interval PT1H --do-not-run-until 2100-01-01T00:00:00Z"
    az(f"job-schedule create --id s --pool-id schedules {later}")
    assert az("job-schedule show --job-schedule-id s --query [id,state]") == ["s", "active"]
    az("job-schedule set --job-schedule-id s --recurrence-interval PT2H")
    az("job-schedule disable --job-schedule-id s")
    assert az("job-schedule list --query [].[id,state]") == [["s", "disabled"]]
    az("job-schedule enable --job-schedule-id s")
    az("job-schedule stop --job-schedule-id s")
    az("job-schedule delete --job-schedule-id s --yes")
    az("pool delete --pool-id schedules --yes")
    until(lambda: az("job-schedule list --query [].id") == [] and "schedules" not in az("pool list --query [].id"))


# --- @azure/batch


def test_azure_batch_of_npm(secure: LocalService, tmp_path: Path) -> None:
    modules = installed.javascript("azure-batch-js", ["@azure/batch@10.2.0"])
    done = subprocess.run(
        [str(installed.NODE), "--no-deprecation", str(PROGRAMS / "batch.js")],
        check=False,
        capture_output=True,
        text=True,
        env=installed.environment(secure, tmp_path, NODE_PATH=str(modules)),
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    everything = "$TargetDedicatedNodes=3;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue"
    assert json.loads(done.stdout) == {
        "images": True,
        "pool": ["active", "steady", 2, [{"name": "a", "value": "1"}]],
        "exists": [True, [404, "PoolNotFound"]],
        "patched": [{"name": "b", "value": "2"}],
        "counts": [["js-pool", 2]],
        "added": [100, ["success"]],
        "taken": [409, "TaskExists"],
        "counted": [100, 1],
        "task": ["completed", 0, "success"],
        "failed": ["failure", "FailureExitCode"],
        "filtered": ["t0"],
        "listed": [5, 101],
        "output": "hello world\n",
        "errors": "oops\n",
        "part": "world",
        "length": 12,
        "files": ["certs", "stderr.txt", "stdout.txt", "wd", "wd/deep", "wd/deep/file"],
        "nodeFiles": ["applications", "fsmounts", "shared", "startup", "volatile", "workitems"],
        "stale": [412, "ConditionNotMet"],
        "ended": "TaskEnded",
        "gone": [404, "TaskNotFound"],
        "schedules": [["js-schedule", "active"]],
        "reason": "enough",
        "evaluated": everything,
        "left": [[404, "JobNotFound"], [404, "PoolNotFound"]],
    }
