"""Cancel means cancel: what a person or a timeout ends in Airflow ends on Batch, and nothing else does.

On a real Airflow. Each case is a run of its own with two steps side by side on one job: one is ended, and the other one
must neither notice nor fail. The cases run at the same time; ``make soak`` runs all of them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from airflow_batchwrap.stack.rest import TaskInstance

    from .conftest import RealAirflow, StartAirflow

SEED = int(os.environ.get("CANCEL_SEED", "4"))
INLINE, DEFERRED, BLOCKING = "inline", "deferred", "blocking"
AT_ONCE = 6  # cases at the same time

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


    SOON = timedelta(seconds=45)
    workflow("plain")
    workflow("blocking", deferrable=False)
    workflow("run_timeout", of_dag={"dagrun_timeout": timedelta(seconds=90)})
    workflow("timeout", execution_timeout=SOON, retries=0)
    workflow("timeout_blocking", deferrable=False, execution_timeout=SOON, retries=0)
    workflow("timeout_retried", execution_timeout=SOON, retries=1)
    workflow("timeout_blocking_retried", deferrable=False, execution_timeout=SOON, retries=1)
"""


@dataclass(frozen=True)
class Case:
    """What happens to one of the two steps.

    :param act: the deed.
    :param how: where the steps are waited for at that time.
    """

    act: str
    how: str

    def __str__(self) -> str:
        return f"{self.act}, {self.how}"

    @property
    def dag_id(self) -> str:
        """Its DAG: what the deed needs of it."""
        blocking = self.how == BLOCKING
        name = {
            "task timed out": "timeout",
            "task timed out, retried": "timeout_retried",
            "run timed out": "run_timeout",
        }.get(self.act, "plain")
        if blocking:
            name = name.replace("timeout", "timeout_blocking") if name.startswith("timeout") else "blocking"
        return f"cancel_{name}"


STEPS = [
    *(Case("marked failed", how) for how in (INLINE, DEFERRED, BLOCKING)),
    *(Case("cleared", how) for how in (INLINE, DEFERRED, BLOCKING)),
    *(Case("marked success", how) for how in (INLINE, DEFERRED)),
    *(Case("run marked failed", how) for how in (INLINE, DEFERRED)),
    *(Case("run timed out", how) for how in (INLINE, DEFERRED)),
    *(Case("task timed out", how) for how in (INLINE, DEFERRED, BLOCKING)),
    *(Case("task timed out, retried", how) for how in (INLINE, DEFERRED, BLOCKING)),
]
SET_UPS = [
    Case(act, how)
    for act in ("set-up marked failed", "set-up cleared", "set-up marked success", "run marked failed in set-up")
    for how in (INLINE, DEFERRED)
]
CASES = [*STEPS, *SET_UPS]
_chance = random.Random(SEED)
SAMPLE = [
    _chance.choice([Case("marked failed", how) for how in (INLINE, DEFERRED)]),
    _chance.choice([Case("cleared", how) for how in (INLINE, DEFERRED)]),
    _chance.choice([Case("set-up marked failed", how) for how in (INLINE, DEFERRED)]),
]


@dataclass
class Play:
    """One run, and what is asked and done in it."""

    stack: RealAirflow
    case: Case
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
        inline = "0 s" if self.case.how == DEFERRED else "900 s"
        conf = {"folder": str(self.folder), "inline_wait": inline, **params}
        self.run_id = self.stack.ask(lambda: self.stack.client.trigger(self.case.dag_id, conf))

    def let_go(self, name: str = "go") -> None:
        """Let the steps end."""
        (self.folder / name).touch()

    # --- looks

    def wait(self, what: str, look: Callable[[], Any], timeout: float = 150.0) -> Any:
        """Look until there is something to see."""
        return self.stack.wait(f"{self.case}: {what}; {self.run_id} {self.states()}", look, timeout, pause=0.5)

    def tasks(self) -> dict[str, TaskInstance]:
        """Return the run's tasks by the last part of their names."""
        found = self.stack.ask(lambda: self.stack.client.task_instances(self.case.dag_id, self.run_id))
        return {task.task_id.rpartition(".")[2]: task for task in found}

    def states(self) -> dict[str, str | None]:
        """Return the tasks' states."""
        return {name: task.state for name, task in self.tasks().items()}

    def value(self, name: str) -> Any:
        """Return what a task returned."""
        return self.stack.ask(lambda: self.stack.client.xcom(self.case.dag_id, self.run_id, f"w.{name}"))

    def log(self, name: str) -> str:
        """Return what all tries of a task have logged."""
        tries = range(1, self.tasks()[name].try_number + 1)
        logs = self.stack.client.logs
        return "\n".join(line for each in tries for line in logs(self.case.dag_id, self.run_id, f"w.{name}", each))

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
        state = self.stack.client.run_state(self.case.dag_id, self.run_id)
        return state if state in ("success", "failed") else ""

    # --- the parts of a case

    def both_run(self) -> None:
        """Wait until both steps' bodies run and their tasks wait as they are to."""
        wanted = "deferred" if self.case.how == DEFERRED else "running"

        def there() -> bool:
            states = self.states()
            waits = {states.get("1_victim"), states.get("1_sibling")} == {wanted}
            return waits and bool(self.bodies("victim")) and bool(self.bodies("sibling"))

        self.wait("both steps run", there)

    def ended(self, name: str, timeout: float = 60.0) -> None:
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


def runs(pid: int) -> bool:
    """Tell whether a process runs; these numbers are not given away again within a test."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- what is done to a step


def play_step(play: Play) -> None:
    """Begin, do the deed, and check."""
    play.begin()
    play.both_run()
    DEEDS[play.case.act](play)


def mark(state: str, run: str) -> Callable[[Play], None]:
    """A person gives the step a state."""

    def deed(play: Play) -> None:
        play.stack.ask(lambda: play.stack.client.mark(play.case.dag_id, play.run_id, "w.1_victim", state))
        play.ended("victim")
        tasks = play.batch_tasks("victim")
        play.expect(f"the Batch task was ended: {tasks}", tasks == {"e1-a1": "TaskEnded"})
        play.sibling_is_untouched()
        play.finish(run, state)
        play.expect(f"one body: {play.bodies('victim')}", len(play.bodies("victim")) == 1)

    return deed


def clear(play: Play) -> None:
    """A person clears the step: the old Batch task ends, a new epoch's runs."""
    play.stack.ask(lambda: play.stack.client.clear(play.case.dag_id, play.run_id, ["w.1_victim"]))
    play.ended("victim")
    play.wait("the second body", lambda: len(play.bodies("victim")) == 2)
    tasks = play.batch_tasks("victim")
    play.expect(f"a new epoch: {tasks}", tasks == {"e1-a1": "TaskEnded", "e2-a1": "running"})
    play.sibling_is_untouched()
    play.finish("success", "success")
    play.second_body_is_right()


def mark_run(play: Play) -> None:
    """A person ends the run: both steps end, and the teardown still runs."""
    play.stack.ask(lambda: play.stack.client.mark_run(play.case.dag_id, play.run_id, "failed"))
    play.ended("victim")
    play.ended("sibling")
    play.wait("the run's end", play.over)
    states = play.states()
    play.expect(f"the run has failed: {play.over()}", play.over() == "failed")
    play.expect(f"both steps have failed: {states}", {states["1_victim"], states["1_sibling"]} == {"failed"})
    play.expect(f"the clean-up succeeds: {states}", states["clean_up"] == "success")
    play.expect(f"nothing is left: {play.left()}", not any(play.left().values()))


def time_run_out(play: Play) -> None:
    """The run's dagrun_timeout: Airflow skips all that is not done, the teardown included."""
    play.wait("the run's end", play.over)
    play.ended("victim")
    play.ended("sibling")
    states = play.states()
    play.expect(f"the run has failed: {play.over()}", play.over() == "failed")
    rest = {states[name] for name in ("1_victim", "1_sibling", "clean_up")}
    play.expect(f"Airflow skips the rest: {states}", rest == {"skipped"})
    swept = sweep(play)
    play.expect(f"the sweep removes the pool and the job: {swept}", swept == ["job", "pool"])
    play.expect(f"nothing is left: {play.left()}", not any(play.left().values()))


def sweep(play: Play) -> list[str]:
    """Remove what the run has left, as `batchwrap sweep` does; return what that was."""
    from airflow_batchwrap import sweep
    from airflow_batchwrap.hooks.batch import BatchWrapHook

    def state_of(dag_id: str, run_id: str) -> sweep.RunState:
        return "over" if play.stack.client.run_state(dag_id, run_id) in ("success", "failed") else "live"

    hook = BatchWrapHook()
    own = [finding for finding in sweep.look(hook, state_of) if finding.run_id == play.run_id]
    return sorted(finding.noun for finding in sweep.remove(hook, own) if finding.removed)


def time_out(play: Play) -> None:
    """The task's execution_timeout, without retries: the Batch task ends, the task fails."""
    play.ended("victim")
    tasks = play.batch_tasks("victim")
    play.expect(f"the Batch task was ended: {tasks}", tasks == {"e1-a1": "TaskEnded"})
    play.sibling_is_untouched()
    play.finish("failed", "failed")
    play.expect(f"one body: {play.bodies('victim')}", len(play.bodies("victim")) == 1)
    play.expect("the log tells why", "did not end within execution_timeout (0:00:45)" in play.log("1_victim"))


def time_out_and_retry(play: Play) -> None:
    """The task's execution_timeout, with a retry: a new attempt runs."""
    play.ended("victim")
    play.wait("the second body", lambda: len(play.bodies("victim")) == 2)
    tasks = play.batch_tasks("victim")
    play.expect(f"a new attempt: {tasks}", tasks.get("e1-a1") == "TaskEnded" and "e1-a2" in tasks)
    play.sibling_is_untouched()
    play.finish("success", "success")
    play.second_body_is_right()
    play.expect(f"two tries: {play.tasks()}", play.tasks()["1_victim"].try_number == 2)


DEEDS = {
    "marked failed": mark("failed", "failed"),
    "marked success": mark("success", "success"),
    "cleared": clear,
    "run marked failed": mark_run,
    "run timed out": time_run_out,
    "task timed out": time_out,
    "task timed out, retried": time_out_and_retry,
}


# --- what is done to a set-up


def play_set_up(play: Play) -> None:
    """The set-up waits for a node whose start task waits for leave; then the deed."""
    gate = play.folder / "node"
    play.begin(start_task=f"/bin/sh -c 'until [ -e {gate} ]; do sleep 0.2; done'")
    wanted = "deferred" if play.case.how == DEFERRED else "running"

    def there() -> bool:
        left = play.left()
        return play.states().get("create_pool") == wanted and all(left.values()) and bool(waiting(play))

    play.wait("the set-up waits", there)
    before, client, dag_id, act = play.left(), play.stack.client, play.case.dag_id, play.case.act
    if act == "set-up cleared":
        play.stack.ask(lambda: client.clear(dag_id, play.run_id, ["w.create_pool"]))
        play.wait("the set-up's next try", lambda: (play.tasks()["create_pool"].try_number or 0) >= 2)
        play.let_go("node")
        play.let_go()
        play.wait("the run's end", play.over)
        play.expect(f"the run succeeds: {play.states()}", play.over() == "success")
        log = play.log("create_pool")
        play.expect("the next try finds the pool", f"Found pool {before['pools'][0]}" in log)
    elif act == "run marked failed in set-up":
        play.stack.ask(lambda: client.mark_run(dag_id, play.run_id, "failed"))
        play.wait("the run's end", play.over)
        play.expect(f"the run has failed: {play.states()}", play.over() == "failed")
    else:
        state = act.rpartition(" ")[2]
        play.stack.ask(lambda: client.mark(dag_id, play.run_id, "w.create_pool", state))
        play.wait("the run's end", play.over)
        play.expect(f"the run has failed: {play.states()}", play.over() == "failed")
        play.expect("no step ran", not play.bodies("victim"))
    began = time.monotonic()
    play.wait(f"nothing is left of {before}", lambda: not any(play.left().values()), 60)
    play.took = time.monotonic() - began


def waiting(play: Play) -> bool:
    """Tell whether the pool has a node that waits for its start task."""
    with play.stack.batch() as batch:
        nodes = [node for pool in play.left()["pools"] for node in batch.list_nodes(pool)]
    return [str(getattr(node.state, "value", node.state)) for node in nodes] == ["waitingforstarttask"]


# --- all of them at once


def write_dags(folder: Path) -> None:
    """Write the DAG file and its steps."""
    (folder / "cancel.py").write_text(textwrap.dedent(DAGS))
    steps = folder / "steps"
    steps.mkdir()
    (steps / ".airflowignore").write_text("*\n")
    for name in ("1_victim", "1_sibling"):
        (steps / f"{name}.py").write_text(textwrap.dedent(STEP))


@pytest.fixture(scope="module")
def stack(real_airflow: StartAirflow, airflow_home: Path) -> Iterator[RealAirflow]:
    with real_airflow(write_dags) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.connections.items():
            patch.setenv(name, value)
        made.airflow.wait_for_dag("cancel_plain")
        yield made


def run_case(stack: RealAirflow, case: Case) -> Play:
    """Play a case to its end."""
    play = Play(stack, case, stack.folder / f"case-{uuid.uuid4().hex[:8]}")
    try:
        (play_step if case in STEPS else play_set_up)(play)
    except AssertionError as error:
        play.problems.append(str(error))
    finally:
        play.let_go("node")
        play.let_go()
    return play


@pytest.fixture(scope="module")
def plays(stack: RealAirflow, request: pytest.FixtureRequest) -> Iterator[dict[Case, Future[Play]]]:
    """Play all cases that were asked for, some at the same time."""
    items = [item for item in request.session.items if item.path == request.path]
    asked = {
        item.callspec.params.get("case"): None
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {case: pool.submit(run_case, stack, case) for case in asked if isinstance(case, Case)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_sample(case: Case, plays: dict[Case, Future[Play]]) -> None:
    """Some of the cases, by the seed in CANCEL_SEED: the whole is `make soak`."""
    assert plays[case].result().problems == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, plays: dict[Case, Future[Play]]) -> None:
    play = plays[case].result()
    print(f"{case}: {play.took:.1f} s from the deed to its effect")
    assert play.problems == []


# --- restarts, which cancel nothing; after all the others, who would feel them


def database_of(stack: RealAirflow) -> sqlite3.Connection:
    """Open Airflow's database, to look only."""
    return sqlite3.connect(f"file:{stack.folder / 'airflow/airflow.db'}?mode=ro", uri=True, timeout=60)


def side_by_side(stack: RealAirflow, plays: dict[Case, Future[Play]]) -> list[Play]:
    """Bring an inline and a deferred run to where both of their steps run, when nothing else does."""
    for future in plays.values():
        future.result()
    found = [
        Play(stack, Case("nothing", how), stack.folder / f"case-{uuid.uuid4().hex[:8]}") for how in (INLINE, DEFERRED)
    ]
    for play in found:
        play.begin()
    for play in found:
        play.both_run()
    return found


def nothing_was_cancelled(found: list[Play], tries: int = 1) -> None:
    """Check that all goes on as it was, and comes to its end.

    :param tries: of the inline steps.
    """
    for play in found:
        play.sibling_is_untouched()
        tasks = play.batch_tasks("victim")
        play.expect(f"the Batch task runs: {tasks}", tasks == {"e1-a1": "running"})
        play.let_go()
    for play in found:
        play.wait("the run's end", play.over)
        play.expect(f"the run succeeds: {play.states()}", play.over() == "success")
        for name in ("victim", "sibling"):
            notes = play.bodies(name)
            play.expect(
                f"one body of {name}: {notes}", len(notes) == 1 and play.value(f"1_{name}") == notes[0]["token"]
            )
            number = play.tasks()[f"1_{name}"].try_number
            play.expect(f"tries of {name}: {number}", number == (tries if play.case.how == INLINE else 1))
        play.expect(f"nothing is left: {play.left()}", not any(play.left().values()))
    assert [play.problems for play in found] == [[], []]


def keepers(stack: RealAirflow, play: Play) -> set[int]:
    """Return which triggerers hold a run's triggers."""
    with closing(database_of(stack)) as database:
        rows = database.execute(
            "select t.triggerer_id from trigger t join task_instance ti on ti.trigger_id = t.id where ti.run_id = ?",
            [play.run_id],
        ).fetchall()
    return {row[0] for row in rows}


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["ended", "killed", "outlived"])
def test_triggerer(how: str, stack: RealAirflow, plays: dict[Case, Future[Play]]) -> None:
    """Another triggerer takes over: from one that was ended, killed, or was away for a while and comes back."""
    found = side_by_side(stack, plays)
    deferred, old = found[1], stack.processes("triggerer")
    before = keepers(stack, deferred)
    stack.start_component("triggerer")
    if how == "ended":
        stack.signal(old[:1], signal.SIGTERM)
    else:
        stack.signal(old, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    deferred.wait("another triggerer", lambda: keepers(stack, deferred) and not keepers(stack, deferred) & before)
    if how == "outlived":
        stack.signal(old, signal.SIGCONT)
        deferred.wait("the old triggerer lets go", lambda: "Left the work alone" in deferred.log("1_victim"))
    nothing_was_cancelled(found)


def task_processes(stack: RealAirflow, play: Play) -> list[psutil.Process]:
    """Return the processes of a run's steps on their workers."""
    with closing(database_of(stack)) as database:
        query = "select pid from task_instance where run_id = ? and state = 'running'"
        return [psutil.Process(row[0]) for row in database.execute(query, [play.run_id]).fetchall()]


def left_alone(play: Play) -> bool:
    """Tell whether both steps were asked to end and left their Batch tasks alone."""
    return all("alone: Airflow has its task as running" in play.log(name) for name in ("1_victim", "1_sibling"))


def adopted(play: Play) -> bool:
    """Tell whether the next tries of both steps have found their Batch tasks."""
    return all("which an earlier try submitted" in play.log(name) for name in ("1_victim", "1_sibling"))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_worker_is_asked_to_end(stack: RealAirflow, plays: dict[Case, Future[Play]]) -> None:
    """A worker that is shut down in peace: it tells its task, which ends nothing and goes on as long as it may."""
    found = side_by_side(stack, plays)
    inline = found[0]
    supervisors = [parent for each in task_processes(stack, inline) if (parent := each.parent()) is not None]
    assert len(supervisors) == 2
    stack.signal(supervisors, signal.SIGTERM)
    inline.wait("the steps are left alone", lambda: left_alone(inline))
    nothing_was_cancelled(found)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_rolling_restart(stack: RealAirflow, plays: dict[Case, Future[Play]]) -> None:
    """Scheduler and workers are asked to end, then killed, as a service manager does; the next tries take over."""
    found = side_by_side(stack, plays)
    inline, everyone = found[0], stack.processes("scheduler")
    stack.signal(everyone, signal.SIGTERM)
    inline.wait("the steps are left alone", lambda: left_alone(inline))
    stack.signal(everyone, signal.SIGKILL)
    stack.start_component("scheduler")
    inline.wait("the next tries", lambda: adopted(inline), 240)
    nothing_was_cancelled(found, tries=2)
