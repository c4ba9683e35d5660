"""The soak: many small workflows on a real Airflow, while the Batch service fails on purpose all the time.

5 % of all requests are refused (429, 503) and others cut, before or after they take effect; commands cost spot nodes;
resource files cannot be downloaded. All of it is drawn from a seed. Nothing may be lost, submitted twice, or left.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batchwrap.stack import process
from tests.support.real_airflow import DEFAULT

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

SEED = int(os.environ.get("SOAK_SEED", "4"))
REQUESTS = "429=0.025,503=0.025,drop=0.02,retry-after=1"
FAULTS = f"seed={SEED},{REQUESTS},preempt=0.03,download=0.02"
#: The connection of the sample, in an Airflow that it shares with other tests.
FAULTY = "azure_batch_faulty"
# Few commands are started in the sample: some are to fail all the same.
FAULTS_OF_SAMPLE = f"seed={SEED},{REQUESTS},preempt=0.2,download=0.2"
# Shape -> the steps' names; steps of one number run side by side.
SHAPES = {
    "two": ["1_first", "2_second"],
    "three": ["1_first", "2_second", "3_third"],
    "stage": ["1_first", "2_left", "2_right", "3_join"],
}
# What the service does to a step, and not the step to itself; and an answer that was lost.
OUR_ERRORS = {"NodeLost", "Throttled", "TryAgain"}
_ERROR = re.compile(r'"exc_type":\s*"(\w+)"')

STEP = '''
    """Note that it ran; return its name after what came before."""
    import json, os
    from pathlib import Path

    def do_action(engine, before):
        name = engine.context["task_id"].rpartition(".")[2]
        note = {"run": engine.context["run_id"], "step": name, "attempt": engine.context["attempt"]}
        with (Path(engine.params["folder"]) / "bodies").open("a") as file:
            file.write(json.dumps(note) + "\\n")
        return [before, name]
'''

DAGS = """
    from datetime import timedelta

    from airflow.sdk import DAG, ExceptionRetryPolicy
    from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule

    from airflow_batchwrap import BatchWorkflow
    from airflow_batchwrap.exceptions import ConfigError, PoolError, TryAgain

    # The package's own policy, without its pause of half a minute.
    POLICY = ExceptionRetryPolicy(
        rules=[
            RetryRule(exception=TryAgain, action=RetryAction.RETRY, retry_delay=timedelta(seconds=2), reason="service"),
            RetryRule(exception=[ConfigError, PoolError], action=RetryAction.FAIL, reason="set-up"),
        ]
    )
    PARAMS = {"folder": "", "inline_wait": "0 s"}

    for shape in ("two", "three", "stage"):
        with DAG(f"soak_{shape}", schedule=None, max_active_runs=3, params=PARAMS):
            BatchWorkflow(
                "w",
                steps=f"{shape}/steps",
                args=["begin"],
                pool_config={"target_spot_nodes": 1, "target_dedicated_nodes": 0, "task_slots_per_node": 2},
                task_args={
                    "azure_batch_conn_id": "CONNECTION",
                    "inline_wait": "{{ params.inline_wait }}",
                    "poll_interval": "2 s",
                    "retries": 3,
                    "retry_delay": timedelta(seconds=2),
                    "retry_policy": POLICY,
                },
            )
"""


def write_dags(folder: Path, connection: str = DEFAULT) -> None:
    """Write the DAG file and its steps."""
    (folder / "soak.py").write_text(textwrap.dedent(DAGS).replace("CONNECTION", connection))
    for shape, names in SHAPES.items():
        steps = folder / shape / "steps"
        steps.mkdir(parents=True)
        (steps / ".airflowignore").write_text("*\n")
        for name in names:
            (steps / f"{name}.py").write_text(textwrap.dedent(STEP))


def value_of(shape: str) -> Any:
    """Return what the last step of a shape returns."""
    first = ["begin", "1_first"]
    if shape == "stage":
        return [[[first, "2_left"], [first, "2_right"]], "3_join"]
    second = [first, "2_second"]
    return [second, "3_third"] if shape == "three" else second


@dataclass
class Soak:
    """All the runs, and what they came to.

    :param folder: where the steps leave notes.
    :param connection: of the Batch service with the faults.
    """

    stack: RealAirflow
    folder: Path
    connection: str = DEFAULT
    runs: dict[str, str] = field(default_factory=dict)
    deferred: int = 0
    problems: list[str] = field(default_factory=list)
    revived: Counter[str] = field(default_factory=Counter)

    def start(self, count: int) -> None:
        """Start the runs; Airflow keeps most of them waiting for the others."""
        # All at once: while others are at work, each new run contends with them for SQLite's one lock.
        self._pause(True)
        for number in range(count):
            shape = list(SHAPES)[number % len(SHAPES)]
            inline = number % 2 == 0
            self.deferred += not inline
            conf = {"folder": str(self.folder), "inline_wait": "10 s" if inline else "0 s"}
            trigger = partial(self.stack.client.trigger, f"soak_{shape}", conf)
            self.runs[self.stack.ask(trigger)] = shape
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        for shape in SHAPES:
            pause = partial(self.stack.client.pause, f"soak_{shape}", paused)
            self.stack.ask(pause)

    def finish(self, minutes: float) -> None:
        """Wait for the runs, and look at what each has come to."""
        deadline = time.monotonic() + 60 * minutes
        for run_id, shape in self.runs.items():
            left = max(deadline - time.monotonic(), 1.0)

            def over(run_id: str = run_id, shape: str = shape) -> bool:
                self.revived.update(self.stack.revive())
                return self.stack.client.run_state(f"soak_{shape}", run_id) in ("success", "failed")

            self.stack.wait(f"the end of {run_id} ({shape})", over, left, pause=1.0)
            self._look_at(run_id, shape)
        self._look_for_what_is_left()
        self._look_into_logs()

    def _look_at(self, run_id: str, shape: str) -> None:
        dag_id, client = f"soak_{shape}", self.stack.client
        tasks = self.stack.ask(lambda: client.task_instances(dag_id, run_id))
        states = {task.task_id: task.state for task in tasks}
        if set(states.values()) != {"success"}:
            failed = next((task for task in tasks if task.state == "failed"), tasks[0])
            log = self.stack.ask(lambda: client.logs(dag_id, run_id, failed.task_id, failed.try_number))
            self.problems.append(f"{dag_id} {run_id}: {states}\n" + "\n".join(log[-15:]))
            return
        value = self.stack.ask(lambda: client.xcom(dag_id, run_id, f"w.{SHAPES[shape][-1]}"))
        if value != value_of(shape):
            self.problems.append(f"{dag_id} {run_id} returned {value}")
        for name in SHAPES[shape]:
            self._look_at_attempts(run_id, dag_id, name)

    def _look_at_attempts(self, run_id: str, dag_id: str, name: str) -> None:
        """Compare the number of a step's last attempt with the failures that were reported."""
        where = self.stack.ask(lambda: self.stack.client.xcom(dag_id, run_id, f"w.{name}", "batch"))
        last = int(where["batch_task_id"].rpartition("-a")[2])
        reported = [number for epoch, number in self._stored(run_id, f"w.{name}") if epoch == 1]
        bodies = Counter(note["attempt"] for note in self.bodies() if (note["run"], note["step"]) == (run_id, name))
        if reported != list(range(1, last)) or not bodies[last] or max(bodies) > last:
            self.problems.append(f"{run_id} {name}: last attempt {last}, reported {reported}, bodies {dict(bodies)}")

    def _stored(self, run_id: str, task_id: str) -> list[list[int]]:
        query = "select value from task_state_store where run_id = ? and task_id = ? and key = 'batchwrap_reported'"
        rows = self.stack.query(query, [run_id, task_id])
        found: list[list[int]] = json.loads(rows[0][0]) if rows else []
        return found

    def bodies(self) -> list[dict[str, Any]]:
        """Return the notes of all steps' bodies."""
        return [json.loads(line) for line in (self.folder / "bodies").read_text().splitlines()]

    def _look_for_what_is_left(self) -> None:
        def left() -> list[str]:
            with self.stack.batch(self.connection) as batch:
                found: list[Any] = [*batch.list_pools(), *batch.list_jobs()]
            nodes = process.marked("AZ_BATCH_NODE_ROOT_DIR", str(self.stack.services[self.connection].data))
            return [str(each.id) for each in found] + [f"{each.pid} {each.cmdline()}" for each in nodes]

        self.stack.wait("nothing is left behind", lambda: not left(), 120, pause=1.0)

    def _look_into_logs(self) -> None:
        logs = self.stack.airflow.home / "logs"
        texts = {path: path.read_text() for path in logs.glob("dag_id=soak_*/**/attempt=*.log")}
        for path, text in texts.items():
            for sign in ("Task killed!", "zombie", "heartbeat timeout"):
                if sign in text:
                    self.problems.append(f"{path.relative_to(logs)}: {sign}")
        self.errors = Counter(name for text in texts.values() for name in _ERROR.findall(text))
        if strange := set(self.errors) - OUR_ERRORS:
            self.problems.append(f"Tries failed for other reasons than the service's: {sorted(strange)} {self.errors}")

    def told(self, seconds: float) -> str:
        """Return the figures."""
        (tries,) = self.stack.query(
            "select sum(try_number), count(*) from task_instance where dag_id like 'soak~_%' escape '~'"
        )
        attempts = Counter(note["attempt"] for note in self.bodies())
        return (
            f"{len(self.runs)} runs ({self.deferred} of them deferred at once) in {seconds:.0f} s, seed {SEED}: "
            f"{tries[1]} Airflow tasks in {tries[0]} tries, bodies by attempt {dict(attempts)}, "
            f"errors {dict(self.errors)}, started again {dict(self.revived)}, {len(self.problems)} problems"
        )


def soak(stack: RealAirflow, folder: Path, count: int, minutes: float, connection: str = DEFAULT) -> Soak:
    """Run it; say what it came to.

    :param folder: an empty folder, for the steps' notes.
    :param count: how many runs.
    :param minutes: how long they may take.
    :param connection: of the Batch service with the faults.
    """
    began = time.monotonic()
    stack.add_dags("soak", partial(write_dags, connection=connection))
    stack.airflow.wait_for_dag("soak_stage")
    made = Soak(stack, folder, connection)
    made.start(count)
    made.finish(minutes)
    print(made.told(time.monotonic() - began))
    return made
