"""A backfill: many runs of one DAG start at once on a real Airflow, and the account has room for a few of them.

Whoever meets the quota waits, without a worker, and asks again. In the end all have succeeded, and nothing is left.
"""

from __future__ import annotations

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

DAG_ID = "backfill"
#: The connection of the sample, in an Airflow that it shares with other tests: room for two jobs.
NARROW = "azure_batch_narrow"
QUOTA_OF_SAMPLE = "jobs=2"
_ERROR = re.compile(r'"exc_type":\s*"(\w+)"')

STEP = '''
    """Return the run that it is of."""

    def do_action(engine):
        return engine.context["run_id"]
'''

DAG = """
    from airflow.sdk import DAG

    from airflow_batchwrap import BatchWorkflow

    with DAG("backfill", schedule=None, max_active_runs=1000, max_active_tasks=1000):
        BatchWorkflow(
            "w",
            steps="steps",
            pool_config={"target_dedicated_nodes": 1},
            task_args={"azure_batch_conn_id": "CONNECTION", "poll_interval": "PAUSE"},
        )
"""


def write_dags(folder: Path, connection: str, pause: str) -> None:
    """Write the DAG file and its step."""
    (folder / "backfill.py").write_text(textwrap.dedent(DAG).replace("CONNECTION", connection).replace("PAUSE", pause))
    steps = folder / "steps"
    steps.mkdir()
    (steps / ".airflowignore").write_text("*\n")
    (steps / "1_say.py").write_text(textwrap.dedent(STEP))


@dataclass
class Backfill:
    """All the runs, and what they came to.

    :param connection: of the Batch service with the quota.
    :param refused: how often there was no room, by run.
    """

    stack: RealAirflow
    connection: str
    runs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    revived: Counter[str] = field(default_factory=Counter)

    def start(self, count: int) -> None:
        """Start all runs at once."""
        self._pause(True)
        for _ in range(count):
            self.runs.append(self.stack.ask(partial(self.stack.client.trigger, DAG_ID)))
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.stack.ask(partial(self.stack.client.pause, DAG_ID, paused))

    def states(self) -> Counter[str]:
        """Count the runs in each state."""
        return Counter(row[0] for row in self.stack.query("select state from dag_run where dag_id = ?", [DAG_ID]))

    def finish(self, minutes: float) -> None:
        """Wait for the runs, and look at what they have come to."""

        def over() -> bool:
            self.revived.update(self.stack.revive())
            found = self.states()
            return found["success"] + found["failed"] == len(self.runs)

        self.stack.wait(lambda: f"the end of the runs: {dict(self.states())}", over, 60 * minutes, pause=1.0)
        for run_id in self.runs:
            self._look_at(run_id)
        self._look_into_logs()
        self._look_for_what_is_left()

    def _look_at(self, run_id: str) -> None:
        query = "select task_id, state, try_number from task_instance where dag_id = ? and run_id = ?"
        tasks = self.stack.query(query, [DAG_ID, run_id])
        if {state for _, state, _ in tasks} != {"success"}:
            self.problems.append(f"{run_id}: {tasks}")
            return
        value = self.stack.ask(partial(self.stack.client.xcom, DAG_ID, run_id, "w.1_say"))
        if value != run_id:
            self.problems.append(f"{run_id} returned {value}")

    def _look_into_logs(self) -> None:
        logs = self.stack.airflow.home / "logs"
        for path in logs.glob(f"dag_id={DAG_ID}/**/attempt=*.log"):
            text = path.read_text()
            run_id = next(part for part in path.parts if part.startswith("run_id=")).partition("=")[2]
            self.refused[run_id] += text.count("Asking again in")
            self.errors.update(_ERROR.findall(text))
        # Another try may follow once the wait is over. No other error is the quota's.
        if strange := set(self.errors) - {"NoCapacity"}:
            self.problems.append(f"Tries failed for other reasons than the quota: {sorted(strange)}")

    def _look_for_what_is_left(self) -> None:
        def left() -> list[str]:
            with self.stack.batch(self.connection) as batch:
                found: list[Any] = [*batch.list_pools(), *batch.list_jobs()]
            nodes = process.marked("AZ_BATCH_NODE_ROOT_DIR", str(self.stack.services[self.connection].data))
            return [str(each.id) for each in found] + [f"{each.pid} {each.cmdline()}" for each in nodes]

        self.stack.wait(lambda: f"nothing is left behind: {left()}", lambda: not left(), 120, pause=1.0)

    def told(self, seconds: float) -> str:
        """Return the figures."""
        query = "select sum(try_number), count(*) from task_instance where dag_id = ?"
        ((tries, tasks),) = self.stack.query(query, [DAG_ID])
        asked = sum(self.refused.values())
        return (
            f"{len(self.runs)} runs in {seconds:.0f} s: {dict(self.states())}, {tasks} Airflow tasks in {tries} tries, "
            f"refused and asked again {asked} times in {sum(map(bool, self.refused.values()))} runs (at most "
            f"{max(self.refused.values(), default=0)} times in one), errors {dict(self.errors)}, "
            f"started again {dict(self.revived)}, {len(self.problems)} problems"
        )


def backfill(
    stack: RealAirflow, count: int, minutes: float, connection: str = DEFAULT, pause: str = "15 s"
) -> Backfill:
    """Run it; say what it came to.

    :param count: how many runs.
    :param minutes: how long they may take.
    :param connection: of the Batch service with the quota.
    :param pause: the ``poll_interval``, which is the first pause before the service is asked again.
    """
    began = time.monotonic()
    stack.add_dags("backfill", partial(write_dags, connection=connection, pause=pause))
    stack.airflow.wait_for_dag(DAG_ID)
    made = Backfill(stack, connection)
    made.start(count)
    made.finish(minutes)
    print(made.told(time.monotonic() - began))
    return made
