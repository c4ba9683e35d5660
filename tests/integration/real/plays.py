"""Runs of which something is ended: their DAG, and what is asked and done in one of them."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tests.support.real_airflow import runs

if TYPE_CHECKING:
    from airflow_batchwrap.stack.rest import TaskInstance
    from tests.support.real_airflow import RealAirflow

STEP = '''
    """Note that it began, and wait for leave to end."""
    import json, os, time, uuid
    from pathlib import Path

    def do_action(engine, folder):
        name, token = engine.context["task_id"].rpartition("_")[2], uuid.uuid4().hex
        note = {"pid": os.getpid(), "try": engine.context["try_number"], "token": token}
        with (Path(folder) / f"bodies-{name}").open("a") as file:
            file.write(json.dumps(note) + "\\n")
        deadline = time.monotonic() + 600
        while not (Path(folder) / "go").exists():
            assert time.monotonic() < deadline, "nobody let the step go on"
            time.sleep(0.05)
        return token
'''

DAGS = """
    from datetime import timedelta

    from airflow.sdk import DAG

    from airflow_batchwrap import BatchWorkflow

    POOL = {"target_dedicated_nodes": 1, "task_slots_per_node": 2, "start_task": "{{ params.start_task }}"}
    PARAMS = {"folder": "", "inline_wait": "0 s", "start_task": "true"}


    def workflow(name, deferrable=True, of_dag=None, **of_victim):
        with DAG(f"cancel_{name}", schedule=None, max_active_runs=50, params=PARAMS, **(of_dag or {})):
            made = BatchWorkflow(
                "w",
                steps="steps",
                args=["{{ params.folder }}"],
                pool_config=POOL,
                deferrable=deferrable,
                task_args={
                    "inline_wait": "{{ params.inline_wait }}",
                    "poll_interval": "2 s",
                    "retries": 2,
                    "retry_delay": timedelta(seconds=1),
                },
            )
            for argument, value in of_victim.items():
                setattr(made.steps["1_victim"], argument, value)


    SOON = timedelta(seconds=SECONDS)
    workflow("plain")
    workflow("blocking", deferrable=False)
    workflow("run_timeout", of_dag={"dagrun_timeout": 2 * SOON})
    workflow("timeout", execution_timeout=SOON, retries=0)
    workflow("timeout_blocking", deferrable=False, execution_timeout=SOON, retries=0)
    workflow("timeout_retried", execution_timeout=SOON, retries=1)
    workflow("timeout_blocking_retried", deferrable=False, execution_timeout=SOON, retries=1)
"""


@dataclass
class Play:
    """One run, and what is asked and done in it.

    :param how: where the steps are waited for: inline or blocking, on the worker; deferred.
    """

    stack: RealAirflow
    dag_id: str
    how: str
    folder: Path
    run_id: str = ""
    problems: list[str] = field(default_factory=list)
    took: float = 0.0

    def expect(self, what: str, is_so: bool) -> None:
        """Note what is not as it has to be."""
        if not is_so:
            self.problems.append(what)

    def begin(self, **params: str) -> None:
        """Start the run."""
        self.folder.mkdir()
        inline = "0 s" if self.how == "deferred" else "900 s"
        conf = {"folder": str(self.folder), "inline_wait": inline, **params}
        self.run_id = self.stack.ask(lambda: self.stack.client.trigger(self.dag_id, conf))

    def let_go(self, name: str = "go") -> None:
        """Let the steps end."""
        (self.folder / name).touch()

    # --- looks

    def wait(self, what: str, look: Callable[[], Any], timeout: float = 300.0) -> Any:
        """Look until there is something to see."""

        def words() -> str:
            return f"{self.dag_id}, {self.how}: {what}; {self.run_id} {self.states()}"

        return self.stack.wait(words, look, timeout, pause=1.0)

    def tasks(self) -> dict[str, TaskInstance]:
        """Return the run's tasks by the last part of their names."""
        found = self.stack.ask(lambda: self.stack.client.task_instances(self.dag_id, self.run_id))
        return {task.task_id.rpartition(".")[2]: task for task in found}

    def states(self) -> dict[str, str | None]:
        """Return the tasks' states."""
        return {name: task.state for name, task in self.tasks().items()}

    def value(self, name: str) -> Any:
        """Return what a task returned."""
        return self.stack.ask(lambda: self.stack.client.xcom(self.dag_id, self.run_id, f"w.{name}"))

    def log(self, name: str) -> str:
        """Return what all tries of a task have logged."""
        tries = range(1, self.tasks()[name].try_number + 1)
        logs = self.stack.client.logs
        return "\n".join(line for each in tries for line in logs(self.dag_id, self.run_id, f"w.{name}", each))

    def bodies(self, name: str) -> list[dict[str, Any]]:
        """Return the notes of a step's bodies."""
        path = self.folder / f"bodies-{name}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> dict[str, list[str]]:
        """Return the run's pools and jobs that nobody has asked to delete."""
        with self.stack.batch() as batch:

            def own(found: Any) -> list[str]:
                return [each.id for each in found if any(item.value == self.run_id for item in each.metadata or ())]

            where = "state ne 'deleting'"
            return {"pools": own(batch.list_pools(filter=where)), "jobs": own(batch.list_jobs(filter=where))}

    def batch_tasks(self, name: str) -> dict[str, str]:
        """Return what became of a step's Batch tasks, by the end of their ids: the epoch and the attempt."""
        with self.stack.batch() as batch:
            found = [task for job in self.left()["jobs"] for task in batch.list_tasks(job)]
        told = {}
        for task in found:
            if name in task.id:
                info = task.execution_info
                code = info.failure_info.code if info and info.failure_info else ""
                state = str(getattr(task.state, "value", task.state))
                told["-".join(task.id.split("-")[-2:])] = code or state
        return told

    def over(self) -> str:
        """Return how the run ended; empty where it has not."""
        state = self.stack.client.run_state(self.dag_id, self.run_id)
        return state if state in ("success", "failed") else ""

    # --- the parts of a case

    def both_run(self) -> None:
        """Wait until both steps' bodies run and their tasks wait as they are to."""
        wanted = "deferred" if self.how == "deferred" else "running"

        def there() -> bool:
            states = self.states()
            waits = {states.get("1_victim"), states.get("1_sibling")} == {wanted}
            return waits and bool(self.bodies("victim")) and bool(self.bodies("sibling"))

        self.wait("both steps run", there)
        if self.how == "deferred":
            self.taken_up("1_victim", "1_sibling")

    def taken_up(self, *names: str) -> None:
        """Wait until the triggerer has taken tasks up: before that, Airflow ends them without a word to anyone."""
        self.wait(f"the triggers of {names} run", lambda: all("starting" in self.log(name) for name in names))

    def ended(self, name: str, timeout: float = 120.0) -> None:
        """Wait until the first body of a step is gone, which only Batch can have ended."""
        began, pid = time.monotonic(), self.bodies(name)[0]["pid"]
        self.wait(f"the end of {name}'s body", lambda: not runs(pid), timeout)
        self.took = time.monotonic() - began

    def sibling_is_untouched(self) -> None:
        """Check the other step while the one is ended already and nothing was let go."""
        notes = self.bodies("sibling")
        self.expect(f"the sibling's body runs: {notes}", len(notes) == 1 and runs(notes[0]["pid"]))
        tasks = self.batch_tasks("sibling")
        self.expect(f"the sibling's Batch task runs: {tasks}", tasks == {"e1-a1": "running"})

    def finish(self, run: str, victim: str, **batch: str) -> None:
        """Let everything go on, and check what it comes to.

        :param run: the run's state.
        :param victim: the ended step's.
        """
        self.let_go()
        self.wait("the run's end", self.over)
        states, state = self.states(), self.over()
        self.expect(f"the run is {run}: {state} {states}", state == run)
        self.expect(f"the victim is {victim}: {states}", states["1_victim"] == victim)
        self.expect(f"the sibling succeeds: {states}", states["1_sibling"] == "success")
        notes = self.bodies("sibling")
        right = len(notes) == 1 and self.value("1_sibling") == notes[0]["token"]
        self.expect(f"the sibling's result is its body's: {notes}", right)
        self.expect(f"the sibling has one try: {self.tasks()}", self.tasks()["1_sibling"].try_number == 1)
        self.expect(f"the clean-up succeeds: {states}", states["clean_up"] == "success")
        self.expect(f"nothing is left: {self.left()}", not any(self.left().values()))

    def second_body_is_right(self) -> None:
        """Check that the step ran once more, and that this one's result is the task's."""
        notes = self.bodies("victim")
        self.expect(f"the victim has two bodies: {notes}", len(notes) == 2)
        value = self.value("1_victim")
        self.expect(f"the result is the second one's: {value} {notes}", value == notes[-1]["token"])


class PlayOf(Protocol):
    """Makes a run, which is not started yet."""

    def __call__(self, dag_id: str, how: str) -> Play:
        """Make it; see `Play`."""


def write_dags(folder: Path) -> None:
    """Write the DAG file and its steps."""
    # Long enough for two steps to begin: on a machine that has ten things to do at once that takes minutes.
    seconds = 30 * min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1), 8)
    text = textwrap.dedent(DAGS).replace("SECONDS", os.environ.get("CANCEL_SECONDS", f"{seconds:.0f}"))
    (folder / "cancel.py").write_text(text)
    steps = folder / "steps"
    steps.mkdir()
    (steps / ".airflowignore").write_text("*\n")
    for name in ("1_victim", "1_sibling"):
        (steps / f"{name}.py").write_text(textwrap.dedent(STEP))
