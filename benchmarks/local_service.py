"""How fast the local Batch service is: against xargs in the same run, and in raw figures.

    python benchmarks/local_service.py                     # all of it, about fifteen minutes
    python benchmarks/local_service.py throughput --tasks 2000

The machine this runs on counts for more than the code: only ratios within one run compare. docs/benchmarks.md tells how
each figure is taken.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from rich.console import Console
from rich.table import Table

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.runner import LocalService

VERSION = "2025-06-01"
JSON = "application/json; odata=minimalmetadata"
NODES, SLOTS = 2, 4
MIB = 1024 * 1024


class Raw:
    """A signed client on one kept-alive connection, which costs next to nothing itself.

    :param service: the service.
    """

    def __init__(self, service: LocalService) -> None:
        self._account, self._key = service.account, base64.b64decode(service.key)
        self._connection = http.client.HTTPConnection(urlsplit(service.url).netloc)

    def __call__(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Send a request; what is not a success raises."""
        data = b"" if body is None else json.dumps(body).encode()
        query = {
            **{
                ("$" + name if name in ("filter", "select", "skiptoken") else name): text
                for name, text in query.items()
            }
        }
        query["api-version"] = VERSION
        date = formatdate(usegmt=True)
        kind = JSON if data else ""
        length = str(len(data)) if data or method not in ("GET", "HEAD") else ""
        lines = [
            method,
            "",
            "",
            length,
            "",
            kind,
            "",
            "",
            "",
            "",
            "",
            "",
            f"ocp-date:{date}",
            f"/{self._account}{path}",
        ]
        lines += [f"{name}:{query[name]}" for name in sorted(query)]
        digest = hmac.new(self._key, "\n".join(lines).encode(), hashlib.sha256).digest()
        headers = {"ocp-date": date, "Authorization": f"SharedKey {self._account}:{base64.b64encode(digest).decode()}"}
        if data:
            headers |= {"Content-Type": kind, "Content-Length": length}
        text = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        self._connection.request(method, f"{path}?{text}", data or None, headers)
        answer = self._connection.getresponse()
        payload = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {payload[:300].decode()}")
        return json.loads(payload) if payload and payload[:1] == b"{" else payload


class Bench:
    """One service, in a directory of its own, and what is measured on it."""

    def __init__(self, service: LocalService) -> None:
        self.service = service
        self.raw = Raw(service)
        self.process = psutil.Process(service.pid)
        #: Where the service notes the turns of its loop that take 10 ms and more, in the part that asks for them.
        self.turns = service.data.with_name("turns")
        self._jobs = 0

    def pool(self, name: str = "pool", nodes: int = NODES) -> None:
        """Nodes of four slots; returns once all are idle."""
        image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
        machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}
        body = {"id": name, "vmSize": "standard_d2s_v3", "virtualMachineConfiguration": machine}
        self.raw("POST", "/pools", {**body, "targetDedicatedNodes": nodes, "taskSlotsPerNode": SLOTS})
        while True:
            (counts,) = self.raw("GET", "/nodecounts", filter=f"poolId eq '{name}'")["value"]
            if counts["dedicated"]["idle"] == nodes:
                return
            time.sleep(0.01)

    def job(self, pool: str = "pool") -> str:
        """A job of its own."""
        self._jobs += 1
        name = f"job-{self._jobs}"
        self.raw("POST", "/jobs", {"id": name, "poolInfo": {"poolId": pool}})
        return name

    def add(self, job: str, tasks: int, command: str = "/bin/true") -> float:
        """Add tasks, a hundred in a request; how long that took, in seconds."""
        began = time.perf_counter()
        for first in range(0, tasks, 100):
            names = range(first, min(first + 100, tasks))
            body = {"value": [{"id": f"task-{number}", "commandLine": command} for number in names]}
            answer = self.raw("POST", f"/jobs/{job}/addtaskcollection", body)
            _check(all(one["status"].lower() == "success" for one in answer["value"]), "a task was not added")
        return time.perf_counter() - began

    def done(self, job: str, tasks: int) -> None:
        """Wait until so many tasks have succeeded."""
        while True:
            counts = self.raw("GET", f"/jobs/{job}/taskcounts")["taskCounts"]
            if counts["succeeded"] == tasks:
                return
            _check(not counts["failed"], "a task failed")
            left = tasks - counts["succeeded"]
            time.sleep(min(0.25, 0.002 + left * 0.0002))

    def longest_turn(self, since: float) -> tuple[float, float]:
        """The longest turn of the service's loop since a time, and the work in the hardest one, in milliseconds."""
        now = time.time()
        while self.turns.stat().st_mtime <= now:  # it moves on with each answer of the loop
            time.sleep(0.01)
        found = [json.loads(line) for line in self.turns.read_text().splitlines()]
        found = [turn for turn in found if turn["at"] >= since]
        return tuple(max((turn[key] * 1e3 for turn in found), default=0.0) for key in ("seconds", "worked"))  # type: ignore[return-value]

    def cpu(self) -> float:
        """Seconds of processor time the service has used, without its tasks."""
        times = self.process.cpu_times()
        helpers = [child.cpu_times() for child in self.process.children() if "airflow_batchwrap" in _name(child)]
        return float(times.user + times.system + sum(one.user + one.system for one in helpers))

    def usage(self) -> dict[str, float]:
        """Seconds of processor time by who has used them: the service's two threads, its helper, the commands."""
        threads = {one.id: one.user_time + one.system_time for one in self.process.threads()}
        answer = threads.pop(self.process.pid)
        used = {"answer": answer, "keep": sum(threads.values()), "start": 0.0, "run": 0.0}
        for child in self.process.children():
            if "airflow_batchwrap" in _name(child):
                times = child.cpu_times()
                used["start"] += times.user + times.system
                used["run"] += times.children_user + times.children_system
        return used

    def memory(self) -> float:
        """Memory of the service, its helper processes with it, in MiB."""
        helpers = [child.memory_info().rss for child in self.process.children() if "airflow_batchwrap" in _name(child)]
        return float(self.process.memory_info().rss + sum(helpers)) / MIB


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise RuntimeError(message)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def xargs(tasks: int) -> float:
    """How long `xargs -P 8 -n 1 /bin/true` takes for as many, in seconds."""
    began = time.perf_counter()
    subprocess.run(
        ["/usr/bin/env", "xargs", "-P", str(NODES * SLOTS), "-n", "1", "/bin/true"],
        input="\n".join(map(str, range(tasks))).encode(),
        check=True,
    )
    return time.perf_counter() - began


def places(folder: Path, tasks: int) -> float:
    """How long the directories and files of as many tasks take by themselves, where the service's are, in seconds."""
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    began = time.perf_counter()
    for number in range(tasks):
        os.mkdir(f"{number}", dir_fd=here)
        for name in ("wd", "certs"):
            os.mkdir(f"{number}/{name}", dir_fd=here)
        for name in ("stdout.txt", "stderr.txt"):
            os.close(os.open(f"{number}/{name}", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    took = time.perf_counter() - began
    os.close(here)
    return took


Rows = Iterator[tuple[str, str, str]]


def throughput(bench: Bench, tasks: int) -> Rows:
    """Many short tasks, from the first bulk add to all completed."""
    bench.pool()
    warm = bench.job()
    bench.add(warm, 200)
    bench.done(warm, 200)
    before, job = xargs(tasks), bench.job()
    cpu, began = bench.cpu(), time.perf_counter()
    adding = bench.add(job, tasks)
    bench.done(job, tasks)
    took, cpu = time.perf_counter() - began, bench.cpu() - cpu
    after = xargs(tasks)
    floor, made = (before + after) / 2, places(bench.service.data.with_name("places"), tasks // 5)
    yield "xargs, before and after", f"{before:.2f} s, {after:.2f} s", f"{floor / tasks * 1e3:.3f} ms a task"
    yield "directories and files alone", f"{made:.2f} s for {tasks // 5}", f"{made / (tasks // 5) * 1e3:.3f} ms a task"
    yield f"service, {tasks} tasks", f"{took:.2f} s", f"{took / tasks * 1e3:.3f} ms a task"
    yield "ratio to xargs (target 1.5)", f"{took / floor:.2f}", ""
    yield "  of it: until the last add was answered", f"{adding:.2f} s", f"{adding / tasks * 1e3:.3f} ms a task"
    yield "  processor time of the service", f"{cpu:.2f} s", f"{cpu / tasks * 1e3:.3f} ms a task"


def scaling(bench: Bench, tasks: int) -> Rows:
    """Whether a task costs more in a large job than in a small one."""
    bench.pool()
    small_tasks = max(100, min(1000, tasks // 50))

    def one(count: int) -> tuple[float, float]:
        job, cpu, began = bench.job(), bench.cpu(), time.perf_counter()
        bench.add(job, count)
        bench.done(job, count)
        return (time.perf_counter() - began) / count * 1e3, (bench.cpu() - cpu) / count * 1e3

    one(small_tasks)
    small = [one(small_tasks) for _ in range(3)]
    large = one(tasks)
    small += [one(small_tasks) for _ in range(3)]
    wall, cpu = (statistics.median(figures) for figures in zip(*small, strict=True))
    yield f"{small_tasks} tasks, median of six", f"{wall:.3f} ms a task", f"processor time {cpu:.3f} ms"
    yield f"{tasks} tasks", f"{large[0]:.3f} ms a task", f"processor time {large[1]:.3f} ms"
    yield "ratio (target 1.25)", f"{large[0] / wall:.2f}", f"of the processor time {large[1] / cpu:.2f}"
    yield "memory then", f"{bench.memory():.0f} MiB", f"{7 * small_tasks + tasks} completed tasks held"


def stages(bench: Bench, tasks: int) -> Rows:
    """Where a task's processor time goes: added to a disabled job, then run; told apart by process and thread."""
    bench.pool()
    warm = bench.job()
    bench.add(warm, 200)
    bench.done(warm, 200)
    job = bench.job()
    bench.raw("POST", f"/jobs/{job}/disable", {"disableTasks": "wait"})
    while bench.raw("GET", f"/jobs/{job}")["state"] != "disabled":
        time.sleep(0.01)
    start, began = bench.usage(), time.perf_counter()
    bench.add(job, tasks)
    added, adding = bench.usage(), time.perf_counter() - began
    began = time.perf_counter()
    bench.raw("POST", f"/jobs/{job}/enable")
    bench.done(job, tasks)
    ended, running = bench.usage(), time.perf_counter() - began

    def used(name: str, sooner: dict[str, float], later: dict[str, float]) -> str:
        return f"{(later[name] - sooner[name]) / tasks * 1e3:.3f} ms a task"

    yield f"add {tasks} tasks to a disabled job", f"{adding:.2f} s", f"{adding / tasks * 1e3:.3f} ms a task"
    yield "  answer: JSON, schema, defaults, task", "", used("answer", start, added)
    yield "  keep: rows of SQLite", "", used("keep", start, added)
    yield "run them, once it is enabled", f"{running:.2f} s", f"{running / tasks * 1e3:.3f} ms a task"
    yield "  place and end: scheduler, states, job", "", used("answer", added, ended)
    yield "  keep: states in SQLite", "", used("keep", added, ended)
    yield "  start and reap: directories, files, spawn", "", used("start", added, ended)
    yield "  run: the commands themselves", "", used("run", added, ended)


def latency(bench: Bench, tasks: int) -> Rows:
    """From sending the request that creates a task to its command running, on an idle node."""
    bench.pool()
    job, waits = bench.job(), []
    for number in range(max(20, min(tasks, 100))):
        name = f"one-{number}"
        began = time.time()
        bench.raw("POST", f"/jobs/{job}/tasks", {"id": name, "commandLine": "/bin/date +%s.%N"})
        while bench.raw("GET", f"/jobs/{job}/tasks/{name}")["state"] != "completed":
            time.sleep(0.002)
        waits.append((float(bench.raw("GET", f"/jobs/{job}/tasks/{name}/files/stdout.txt")) - began) * 1e3)
    median = statistics.median(waits)
    yield "create to the command's own clock, median (target 15 ms)", f"{median:.2f} ms", _spread(waits)


def answers(bench: Bench, tasks: int) -> Rows:
    """GET of one task while every slot is busy with short tasks."""
    bench.pool()
    job, count = bench.job(), max(200, min(tasks, 1000))
    bench.add(job, 1, "/bin/true")
    bench.done(job, 1)
    load = bench.job()
    bench.add(load, NODES * SLOTS, "/bin/sleep 300")
    idle = [_timed(lambda: bench.raw("GET", f"/jobs/{job}/tasks/task-0")) for _ in range(count)]
    yield "GET of a task, 8 slots asleep, raw, median (target 2 ms)", f"{statistics.median(idle):.2f} ms", _spread(idle)
    with BatchClient(bench.service.url, AzureNamedKeyCredential(bench.service.account, bench.service.key)) as client:
        through = [_timed(lambda: client.get_task(job, "task-0")) for _ in range(count)]
    yield "GET of a task, 8 slots asleep, azure-batch", f"{statistics.median(through):.2f} ms", _spread(through)
    bench.raw("POST", f"/jobs/{load}/terminate", {"terminateReason": "enough"})
    churn = bench.job()
    bench.add(churn, max(tasks, 4000))
    busy = [_timed(lambda: bench.raw("GET", f"/jobs/{job}/tasks/task-0")) for _ in range(count)]
    yield "GET of a task, 8 slots running /bin/true on end, raw", f"{statistics.median(busy):.2f} ms", _spread(busy)


def holding(bench: Bench, tasks: int) -> Rows:
    """Memory with many tasks held, and a list of them all."""
    empty = bench.memory()
    job = bench.job("no-such-pool")
    adding = bench.add(job, tasks)
    held = bench.memory()
    yield f"adding {tasks} tasks that wait", f"{adding:.1f} s", f"{adding / tasks * 1e3:.3f} ms a task"
    yield "memory with them (target 400 MiB)", f"{held:.0f} MiB", f"{empty:.0f} MiB empty"
    began, seen, path, skip = time.perf_counter(), 0, f"/jobs/{job}/tasks", ""
    while True:
        query = {"skiptoken": skip} if skip else {}
        page = bench.raw("GET", path, select="id,state", maxresults="1000", **query)
        seen += len(page["value"])
        if "odata.nextLink" not in page:
            break
        skip = page["odata.nextLink"].rpartition("skiptoken=")[2]
    took = time.perf_counter() - began
    _check(seen == tasks, f"{seen} tasks were listed, not {tasks}")
    yield f"listing {tasks}, pages of 1000, $select=id,state, raw (target 3 s)", f"{took:.2f} s", ""
    with BatchClient(bench.service.url, AzureNamedKeyCredential(bench.service.account, bench.service.key)) as client:
        began = time.perf_counter()
        seen = sum(1 for _ in client.list_tasks(job, select=["id", "state"], max_results=1000))
        _check(seen == tasks, f"{seen} tasks were listed, not {tasks}")
        yield "the same, azure-batch", f"{time.perf_counter() - began:.2f} s", ""
    yield "memory after", f"{bench.memory():.0f} MiB", ""


def nodes(bench: Bench, tasks: int) -> Rows:
    """Creating and deleting a pool of many nodes, and how long others were kept waiting meanwhile."""
    for number in range(3):
        waits, done = [], threading.Event()

        def ask(waits: list[float] = waits, done: threading.Event = done) -> None:
            # Another client, as it finds the service meanwhile.
            other = Raw(bench.service)
            while not done.wait(0.002):
                waits.append(_timed(lambda: other("GET", "/jobs")))

        asking = threading.Thread(target=ask)
        since = time.time()
        asking.start()
        cpu, began = bench.cpu(), time.perf_counter()
        try:
            bench.pool(f"wide-{number}", tasks)
            took, cpu = time.perf_counter() - began, bench.cpu() - cpu
        finally:
            done.set()
            asking.join()
        longest, worked = bench.longest_turn(since)
        name = f"pool {number + 1} of {tasks} nodes, created until all are idle (target 1 s)"
        yield name, f"{took:.2f} s", f"processor time {cpu:.2f} s"
        yield "  longest turn of the loop (target 50 ms)", f"{longest:.0f} ms", f"{worked:.0f} ms of it work"
        yield "  GET of another client meanwhile, raw, longest", f"{max(waits):.0f} ms", f"of {len(waits)}"
        bench.raw("DELETE", f"/pools/wide-{number}")
        began = time.perf_counter()
        while bench.raw("GET", "/pools")["value"]:
            time.sleep(0.01)
        yield "  deleted", f"{time.perf_counter() - began:.2f} s", ""


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}, 90% below {statistics.quantiles(values, n=10)[8]:.2f}"


#: What there is to measure, and with how many tasks.
PARTS: dict[str, tuple[Callable[[Bench, int], Rows], int]] = {
    "throughput": (throughput, 10_000),
    "stages": (stages, 10_000),
    "scaling": (scaling, 200_000),
    "latency": (latency, 100),
    "answers": (answers, 1000),
    "holding": (holding, 100_000),
    "nodes": (nodes, 1000),
}


def main() -> None:
    """Measure what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--tasks", type=int, help="how many tasks (for `nodes`: nodes), in place of each part's own number"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    title = f"Local Batch service, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    table = Table("", "figure", "", title=title)
    for name in options.parts or PARTS:
        part, tasks = PARTS[name]
        with tempfile.TemporaryDirectory(prefix="batchwrap-bench-") as folder:
            # Watching the loop costs something: the other figures are taken without it.
            watch = ["--turns", str(Path(folder) / "turns")] if part is nodes else []
            service = runner.launch(Path(folder) / "data", watch)
            load = os.getloadavg()[0]
            try:
                for row in part(Bench(service), options.tasks or tasks):
                    table.add_row(*row)
            finally:
                service.stop()
            table.add_row(f"  load average before {name}", f"{load:.1f}", "", end_section=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
