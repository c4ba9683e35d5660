"""What waiting costs: requests, worker slots, memory, processor time, and how late an end is seen.

    python benchmarks/waiting.py                                   # all of it, about an hour, most of it submissions
    python benchmarks/waiting.py waiting --tasks 50 --published 10 --settle 20 --window 30
    python benchmarks/waiting.py latency chain --rounds 3
    python benchmarks/waiting.py parse

On a real Airflow with Azurite and a local Batch service, each part on fresh ones. Requests are counted by the service's
access log. docs/benchmarks.md tells how each figure is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from waiting_stack import DEFAULTS, LOG_READS, Stack, started, until

Rows = Iterator[tuple[str, str, str]]


def waiting(options: argparse.Namespace) -> Rows:
    """Requests, slots, memory and processor time while many tasks of one job wait."""
    tasks, published = options.tasks, options.published
    patience = 300 + 10.0 * max(tasks, published)  # a second or two of processor time for each submission
    with started({"WAITING_TASKS": str(tasks), "WAITING_PUBLISHED": str(published)}) as stack:
        stack.defer("wait_one", 1, patience)
        time.sleep(options.settle)
        memory_one, _ = stack.triggerer()
        cpu_one, _ = _watch(stack, options.window)
        began = time.monotonic()
        many = stack.defer("wait_many", tasks, patience)
        yield f"submitting and deferring {tasks} tasks", f"{time.monotonic() - began:.0f} s", ""
        one = stack.defer("wait_one", 1, patience)
        time.sleep(options.settle)
        memory, _ = stack.triggerer()
        cpu, requests = _watch(stack, options.window)
        minutes = options.window / 60
        of_one = _of_job(requests, _job(stack, "wait_one", one, -1))
        of_many = _of_job(requests, _job(stack, "wait_many", many, 0))
        control, single = (sum(found.values()) / minutes for found in (of_many[0], of_one[0]))
        yield f"requests per minute, {tasks} tasks of one job", f"{control:.1f}", _told(of_many[0])
        yield "requests per minute, one task", f"{single:.1f}", _told(of_one[0])
        yield "  difference (target 2)", f"{control - single:.1f}", ""
        logs = [sum(found.values()) / minutes for found in (of_many[1], of_one[1])]
        yield "  log ranges per minute, apart", f"{logs[0]:.1f}", f"{logs[1]:.1f} of one task"
        states = stack.states("wait_many", many)
        busy = states["running"] + states["queued"]
        yield "worker slots held (target 0)", str(busy), f"{states['deferred']} tasks deferred"
        share = (memory - memory_one) / max(tasks, 1) * 1024
        yield (
            "triggerer memory per waiting task",
            f"{share:.0f} KiB",
            f"{memory_one:.0f} MiB with one, {memory:.0f} then",
        )
        extra = (cpu - cpu_one) / minutes / max(tasks, 1) * 1000
        yield "triggerer CPU per 1,000 waiting tasks", f"{extra:.2f} s a minute", f"{cpu_one / minutes:.2f} with one"
        if not published:
            return
        stack.defer("published_one", 1, patience)
        began = time.monotonic()
        stack.defer("published_many", published, patience)
        yield f"AzureBatchOperator: deferring {published} tasks", f"{time.monotonic() - began:.0f} s", ""
        memory_before = memory
        memory, _ = stack.triggerer()
        cpu_theirs, requests = _watch(stack, options.window)
        theirs, alone = (_of_job(requests, job)[0] for job in ("published_many", "published_one"))
        rate = sum(theirs.values()) / minutes
        yield f"AzureBatchOperator: requests per minute, {published} tasks of one job", f"{rate:.1f}", _told(theirs)
        yield "AzureBatchOperator: requests per minute, one task", f"{sum(alone.values()) / minutes:.1f}", _told(alone)
        share = (memory - memory_before) / published * 1024
        yield "AzureBatchOperator: triggerer memory per waiting task", f"{share:.0f} KiB", ""
        extra = (cpu_theirs - cpu) / minutes / published * 1000
        yield "AzureBatchOperator: triggerer CPU per 1,000 waiting tasks", f"{extra:.2f} s a minute", ""


def _watch(stack: Stack, seconds: float) -> tuple[float, list[tuple[str, str]]]:
    """Return the triggerer's processor time in a span from now on, and the operations and paths asked for in it."""
    began, (_, before) = time.time(), stack.triggerer()
    time.sleep(seconds)
    ended, (_, after) = time.time(), stack.triggerer()
    return after - before, [(request.operation, request.path) for request in stack.requests(began, ended)]


def _job(stack: Stack, dag_id: str, run_id: str, map_index: int) -> str:
    return str(stack.xcom(dag_id, run_id, "wait", "batch", map_index)["job_id"])


def _of_job(requests: list[tuple[str, str]], job: str) -> tuple[Counter[str], Counter[str]]:
    """Count a job's requests by operation: those that read logs apart."""
    mine = [name for name, path in requests if path == f"/jobs/{job}" or path.startswith(f"/jobs/{job}/")]
    return Counter(name for name in mine if name not in LOG_READS), Counter(name for name in mine if name in LOG_READS)


def _told(found: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.most_common()) or "none"


def latency(options: argparse.Namespace) -> Rows:
    """From the end of the Batch task to the Airflow task's success."""
    for seconds in options.seconds:
        with started({"WAITING_ROUNDS": str(options.rounds), "WAITING_SECONDS": f"{seconds:g}", **DEFAULTS}) as stack:
            patience = 120 + options.rounds * (2 * seconds + 30)
            if seconds == options.seconds[0]:
                short = list(_ours(stack, "latency_short", stack.run("latency_short", patience)))
                yield "2 s, waited for on the worker, median (target 1.0 s)", *_median(short)
            run_id = stack.run("latency_deferred", patience)
            ours = list(_ours(stack, "latency_deferred", run_id))
            ends = stack.ends("latency_deferred", run_id)
            plain = [
                end - stack.xcom("latency_deferred", run_id, task)
                for task, end in ends.items()
                if task.startswith("plain")
            ]
            yield f"{seconds:g} s, deferred, median", *_median(ours)
            yield "  a trigger that fires by itself, median", *_median(plain)
            over, target = statistics.median(ours) - statistics.median(plain), max(1.0, 0.05 * seconds)
            yield f"  difference (target {target:.1f} s)", f"{over:.2f} s", ""


def _ours(stack: Stack, dag_id: str, run_id: str) -> Iterator[float]:
    with stack.batch() as client:
        for task, end in stack.ends(dag_id, run_id).items():
            if task.startswith("ours"):
                batch = stack.xcom(dag_id, run_id, task, "batch")
                info = client.get_task(batch["job_id"], batch["batch_task_id"]).execution_info
                if info is None or info.end_time is None:
                    raise RuntimeError(f"Batch task {batch} has no end")
                yield end - info.end_time.timestamp()


def _median(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f} s", f"{min(values):.2f} to {max(values):.2f}, {len(values)} tasks"


def chain(options: argparse.Namespace) -> Rows:
    """A chain of 5 no-op steps against 5 PythonOperators, by turns."""
    for name, variables in (("default settings", DEFAULTS), ("tuned scheduler", {})):
        with started(variables) as stack:
            took: dict[str, list[float]] = {"chain_python": [], "chain_batch": []}
            for number in range(options.rounds + 1):
                for dag_id, times in took.items():
                    ends = stack.ends(dag_id, stack.run(dag_id, 300))
                    if number:  # the first round warms up
                        first = ends["begin"] if dag_id == "chain_python" else ends["use_pool"]
                        times.append(ends["5_step"] - first)
            python, batch = (statistics.median(times) for times in took.values())
            yield f"5 PythonOperators, {name}, median", *_median(took["chain_python"])
            yield f"5 steps of BatchWorkflow, {name}, median", *_median(took["chain_batch"])
            target = " (target 2)" if variables else ""
            yield f"  ratio{target}", f"{batch / python:.2f}", f"{(batch - python) / 5:.2f} s more for each step"


_PARSE = """
import gc, json, sys, time
from pathlib import Path
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

def read(file):
    bag = DagBag(dag_folder=file, collect_dags=False, bundle_name="b")
    bag.process_file(file, only_if_updated=False)
    assert not bag.import_errors, bag.import_errors
    (dag,) = bag.dags.values()
    return dag

folder, kind = Path({folder!r}), {kind!r}
# What Airflow imports by itself for the first DAG that it reads is nobody's.
DagSerialization.to_dict(read(str(folder / "small/empty.py")))
began = time.process_time()
DagSerialization.to_dict(read(str(folder / f"small/{{kind}}.py")))
first = time.process_time() - began
# A look for garbage among all that Airflow has imported takes as long as the reading, and meets whoever is at work.
gc.collect()
gc.freeze()
began = time.process_time()
dag = read(str(folder / f"large/{{kind}}.py"))
spent = time.process_time() - began
began = time.process_time()
DagSerialization.to_dict(dag)
written = time.process_time() - began
azure = [name for name in sys.modules if name.partition(".")[0] == "azure"]
print("FIGURES" + json.dumps([first, spent, written, len(dag.tasks), len(azure)]))
"""
_EMPTY = """
from airflow.sdk import DAG, chain
from airflow.providers.standard.operators.empty import EmptyOperator

with DAG("empty", schedule=None):
    chain(*[EmptyOperator(task_id=f"t{{number}}") for number in range({steps})])
"""
_STEPS = """
from airflow.sdk import DAG
from airflow_batchwrap import BatchWorkflow, PoolConfig

with DAG("steps", schedule=None):
    BatchWorkflow("w", steps="steps", pool_config=PoolConfig())
"""


def parse(options: argparse.Namespace) -> Rows:
    """Reading a DAG file with many steps, against as many EmptyOperators."""
    with tempfile.TemporaryDirectory(prefix="batchwrap-parse-") as name:
        folder = Path(name)
        for size, count in (("small", 1), ("large", options.steps)):
            _write_dags(folder / size, count)
        figures: dict[str, list[list[float]]] = {"empty": [], "steps": []}
        for _ in range(options.rounds):  # by turns, each in a process of its own
            for kind, found in figures.items():
                found.append(_parse_once(folder, kind))
        medians = {
            kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in figures.items()
        }
        for kind, (_, read, written, tasks, _) in medians.items():
            yield f"reading {tasks:.0f} tasks, {kind}", f"{read * 1e3:.0f} ms", f"{written * 1e3:.0f} ms to serialize"
        ratios = [medians["steps"][place] / medians["empty"][place] for place in (1, 2)]
        yield "  ratio of reading (target 1.5)", f"{ratios[0]:.2f}", f"of serializing {ratios[1]:.2f}"
        yield "  importing this package, once in a process", f"{medians['steps'][0] * 1e3:.0f} ms", ""
        yield "  azure modules imported by the parse (target 0)", f"{max(row[4] for row in figures['steps']):.0f}", ""
        durations = _processed(folder / "large", options.rounds)
        for kind, found in durations.items():
            low, high, count = min(found), max(found), len(found)
            heading = f"Airflow's own last_parse_duration, {kind}, median"
            yield heading, f"{statistics.median(found):.2f} s", f"{low:.2f} to {high:.2f}, {count} times"
        ratio = statistics.median(durations["steps"]) / statistics.median(durations["empty"])
        yield "  ratio (its process, imports and serializing included)", f"{ratio:.2f}", ""


def _write_dags(folder: Path, count: int) -> None:
    steps = folder / "steps"
    steps.mkdir(parents=True)
    (steps / ".airflowignore").write_text("*\n")
    for number in range(1, count + 1):
        (steps / f"{number:03}_step.py").write_text("def do_action(engine):\n    return None\n")
    (folder / "empty.py").write_text(textwrap.dedent(_EMPTY).format(steps=count))
    (folder / "steps.py").write_text(textwrap.dedent(_STEPS))


def _parse_once(folder: Path, kind: str) -> list[float]:
    env = {**os.environ, "AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    code = _PARSE.format(folder=str(folder), kind=kind)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    for line in done.stdout.splitlines():
        if line.startswith("FIGURES"):
            figures: list[float] = json.loads(line.removeprefix("FIGURES"))
            return figures
    raise RuntimeError(done.stderr[-2000:])


def _processed(dags: Path, rounds: int) -> dict[str, list[float]]:
    """Return what a real DAG processor notes of each file: how long the process took that reads and serializes it."""
    settings = {
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "1",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    }
    with started(settings, dags=dags, dag_id="steps") as stack:
        seen: dict[str, dict[str, float]] = {"empty": {}, "steps": {}}

        def enough() -> bool:
            for kind, found in seen.items():
                found.update(stack.parse_durations(kind))
            return all(len(found) > rounds for found in seen.values())

        until(enough, lambda: f"the DAG processor to read often enough: {seen}", 60 + 20 * rounds, pause=0.2)
        # The first ones were read while everything else started.
        return {kind: list(found.values())[-rounds:] for kind, found in seen.items()}


#: What there is to measure.
PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "waiting": waiting,
    "latency": latency,
    "chain": chain,
    "parse": parse,
}


def main() -> None:
    """Measure what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument("--tasks", type=int, default=1000, help="tasks that wait")
    parser.add_argument("--published", type=int, default=100, help="tasks of AzureBatchOperator; 0 for none")
    parser.add_argument("--settle", type=float, default=330.0, help="seconds before measuring: polling slows down")
    parser.add_argument("--window", type=float, default=180.0, help="seconds of measuring")
    parser.add_argument("--rounds", type=int, default=10, help="tasks, chains or parses of each kind")
    parser.add_argument("--seconds", type=float, nargs="+", default=[8.0, 60.0], help="lengths of deferred tasks")
    parser.add_argument("--steps", type=int, default=500, help="steps of the DAG that is parsed")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # An end by a signal stops what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    title = f"Waiting, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    table = Table("", "figure", "", title=title)
    for name in options.parts or PARTS:
        load = os.getloadavg()[0]
        for row in PARTS[name](options):
            print(*row, sep="  |  ", file=sys.stderr, flush=True)
            table.add_row(*row)
        after = os.getloadavg()[0]
        table.add_row(f"  load average before {name}, and after", f"{load:.1f}", f"{after:.1f}", end_section=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
