"""The kill matrix: ``kill -9`` of everything that takes part in a step, at every point of the step's life.

The cells of one kill run side by side, so that one death meets all of them, each at a point of its own.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.kill_stack import KillStack, Run

PHASES = {
    "before": "before submit",
    "after": "after submit",
    "running": "while running",
    "completed": "after completion",
    "stored": "stored, not reported",
}
WORKERS = ("task", "worker", "worker and task")
TRIGGERERS = ("trigger runner", "triggerer")
SCHEDULERS = ("scheduler", "scheduler and workers")
SERVICE = "Batch service"
AT_ONCE = 6  # cells: more of them, and their Airflow is too busy for its SQLite
SEED = int(os.environ.get("KILLS_SEED", "19"))


@dataclass(frozen=True)
class Cell:
    """One death at one point.

    :param kill: what is killed.
    :param phase: the point.
    :param inline: the step is waited for on its worker; else it is deferred.
    :param fails: the step's first attempt fails by itself as well.
    """

    kill: str
    phase: str
    inline: bool
    fails: bool = False

    def __str__(self) -> str:
        words = [self.kill, PHASES[self.phase], "inline" if self.inline else "deferred"]
        return ", ".join(words + ["first attempt fails"] * self.fails)

    @property
    def body_waits(self) -> bool:
        """Whether the step's body has to last until the death."""
        # A completion that the triggerer has not seen: it is stopped first, and killed when the step has ended.
        return self.phase == "running" or (self.phase == "completed" and self.kill in TRIGGERERS)


def _matrix() -> list[Cell]:
    cells: list[Cell] = []
    for kill in WORKERS:
        # Once deferred, no worker is there to be killed until the step has ended.
        cells += [Cell(kill, phase, True) for phase in PHASES]
        cells += [Cell(kill, phase, False) for phase in ("completed", "stored")]
        cells += [Cell(kill, phase, inline, True) for phase in ("completed", "stored") for inline in (True, False)]
    for kill in TRIGGERERS:
        cells += [Cell(kill, phase, False) for phase in PHASES]
        cells += [Cell(kill, phase, False, True) for phase in ("running", "completed", "stored")]
    for kill in (*SCHEDULERS, SERVICE):
        cells += [Cell(kill, phase, inline) for phase in PHASES for inline in (True, False)]
        cells += [Cell(kill, phase, inline, True) for phase in ("completed", "stored") for inline in (True, False)]
    return cells


MATRIX = _matrix()
_chance = random.Random(SEED)
_SAMPLED = _chance.choice([*WORKERS, *TRIGGERERS, *SCHEDULERS, SERVICE])
SAMPLE = _chance.sample([cell for cell in MATRIX if cell.kill == _SAMPLED], 2)


@dataclass
class Evidence:
    """What one cell left to look at, after its run was over.

    :param notes: kind -> lines; see airflow/holds.py.
    :param told: how many tries' logs tell of the step's own failure.
    """

    state: str
    states: dict[str, str | None]
    tries: int
    value: Any
    told: int
    notes: dict[str, list[dict[str, Any]]] = field(repr=False)
    seconds: float = 0.0

    def problems(self, cell: Cell) -> list[str]:
        """Say what is not as it has to be."""
        attempts = 2 if cell.fails else 1
        found: list[tuple[str, bool]] = []

        def hold(what: str, is_so: bool) -> None:
            found.append((what, is_so))

        hold(f"the run succeeds: {self.state} {self.states}", self.state == "success")
        hold(f"every task succeeds: {self.states}", set(self.states.values()) == {"success"})

        # Each attempt was submitted once.
        ids = [note["id"].rpartition("-e1-")[2] for note in self.notes["batch"]]
        hold(f"one Batch task for each attempt: {ids}", sorted(ids) == [f"a{n + 1}" for n in range(attempts)])
        hold("each of them is over", all("COMPLETED" in note["state"].upper() for note in self.notes["batch"]))
        made = Counter(note["id"].rpartition("-e1-")[2] for note in self.notes["submitted"] if note["made"])
        hold(f"one creation of each: {dict(made)}", dict(made) == {f"a{n + 1}": 1 for n in range(attempts)})

        # Each body ran once, but where Batch ran it again itself.
        bodies = Counter(note["attempt"] for note in self.notes["bodies"])
        most = 2 if cell.kill == SERVICE and cell.phase in ("after", "running") else 1
        good = set(bodies) == set(range(1, attempts + 1)) and max(bodies.values()) <= most
        hold(f"every body ran once: {dict(bodies)}", good)

        # The result arrived.
        last = [note["token"] for note in self.notes["bodies"] if note["attempt"] == attempts]
        hold(
            f"the result is what the body returned: {self.value}",
            self.value == {"attempt": attempts, "token": (last or [""])[-1]},
        )

        # A failure was reported once at most, and none that is none.
        hold(f"no failure for good: {self.notes['failures']}", not self.notes["failures"])
        # Without an exception it is Airflow's own word for a death: it gives it twice, and calls back for each.
        reports = [note["error"] for note in self.notes["retries"] if note["task"] == "step"]
        failures = [error for error in reports if error != "NoneType"]
        least = 1 if cell.fails and cell.phase != "stored" else 0
        most = 1 if cell.fails else 0
        hold(f"the step's failure was told once: {self.told} logs, {reports}", least <= self.told <= most)
        hold(f"reported once: {reports}", failures.count("StepFailed") <= most)
        # A submission that finds the service dead is tried again.
        others = 1 if cell.kill == SERVICE and cell.phase == "before" else 0
        hold(
            f"nothing else was reported: {reports}", len([each for each in failures if each != "StepFailed"]) <= others
        )
        # Tries that Airflow resets do not count as retries, and a scheduler with little processor time resets often.
        deaths = {**dict.fromkeys(TRIGGERERS, 0), **dict.fromkeys(SCHEDULERS, 5)}.get(cell.kill, 1)
        hold(f"a death costs one try: {self.tries}", self.tries <= attempts + deaths)
        return [what for what, is_so in found if not is_so]


#: Takes down what a cell left (None: it was not reached), and what is not as it has to be.
Record = Callable[[Cell, Evidence | None, list[str]], None]


class Matrix:
    """Runs cells, and keeps what they left."""

    def __init__(self, stack: KillStack, batch: BatchClient) -> None:
        self.stack, self.batch = stack, batch
        self.evidence: dict[Cell, Evidence] = {}

    def run(self, kill: str, cells: list[Cell]) -> None:
        """Bring all cells to their points, kill, let go on what is left, and collect what it came to."""
        began = time.monotonic()
        with self.stack.paused():
            runs = {cell: self._start(cell) for cell in cells}
        for cell, run in runs.items():
            self.stack.wait(f"{cell} to get to its point", partial(self._is_there, cell, run), 240)
        self._strike(kill, runs)
        for cell, run in runs.items():
            self.stack.wait(f"the end of {cell}: {run.run_id}", run.over, 240)
            self.evidence[cell] = self._collect(run)
        self._nothing_is_left(runs)
        self.stack.clear_away()
        for cell in cells:
            self.evidence[cell].seconds = (time.monotonic() - began) / len(cells)

    # --- to the point

    def _start(self, cell: Cell) -> Run:
        phase = "" if cell.body_waits else cell.phase
        return self.stack.start(phase, wait=cell.body_waits, inline=cell.inline, fails=cell.fails)

    def _is_there(self, cell: Cell, run: Run) -> bool:
        if not cell.body_waits:
            return bool(run.notes("reached"))
        return bool(run.notes("bodies")) and (cell.inline or run.task().state == "deferred")

    # --- the death

    def _strike(self, kill: str, runs: dict[Cell, Run]) -> None:
        if kill in WORKERS:
            self._kill_workers(kill, runs)
        elif kill in TRIGGERERS:
            self._kill_triggerer(kill, runs)
        elif kill in SCHEDULERS:
            self._kill_scheduler(kill, runs)
        else:
            self.stack.kill_service()
            # What asks now finds nobody.
            self._let_go(runs)
            self.stack.restart_service()

    def _kill_workers(self, kill: str, runs: dict[Cell, Run]) -> None:
        condemned = []
        for run in runs.values():
            last = run.notes("tries")[-1]
            pids = {"task": ("pid",), "worker": ("parent",), "worker and task": ("parent", "pid")}[kill]
            condemned += [psutil.Process(last[name]) for name in pids]
        self.stack.kill(condemned)
        if kill == "worker":
            # The task goes on without its supervisor, side by side with the try that takes its place.
            self._wait_for_next_try(runs)
        self._let_go(runs)

    def _kill_triggerer(self, kill: str, runs: dict[Cell, Run]) -> None:
        everyone = self.stack.processes("triggerer")
        for each in everyone:
            each.suspend()
        unseen = [run for cell, run in runs.items() if cell.phase == "completed"]
        for run in unseen:
            run.let("go")
        for run in unseen:
            self.stack.wait("the step's end", partial(self._has_ended, run))
        self.stack.kill(everyone if kill == "triggerer" else everyone[1:])
        for each in everyone if kill != "triggerer" else ():
            if each.is_running():
                each.resume()
        self.stack.restart_component("triggerer")
        self._let_go(runs)

    def _kill_scheduler(self, kill: str, runs: dict[Cell, Run]) -> None:
        everyone = self.stack.processes("scheduler")
        self.stack.kill(everyone if kill == "scheduler and workers" else everyone[:1])
        self.stack.restart_component("scheduler")
        if kill == "scheduler":
            # The workers outlive it. Its successor takes their tasks over, while they go on.
            self._wait_for_next_try({cell: run for cell, run in runs.items() if cell.inline or not cell.body_waits})
        self._let_go(runs)

    def _has_ended(self, run: Run) -> bool:
        (note,) = run.notes("submitted")
        job_id = next(str(job.id) for job in self.batch.list_jobs() if self._is_of(job, run.run_id))
        return "COMPLETED" in str(self.batch.get_task(job_id, note["id"]).state).upper()

    @staticmethod
    def _is_of(job: Any, run_id: str) -> bool:
        return any(item.value == run_id for item in job.metadata or ())

    def _wait_for_next_try(self, runs: dict[Cell, Run]) -> None:
        before = {cell: run.notes("tries")[-1]["try"] for cell, run in runs.items()}
        for cell, run in runs.items():

            def began(cell: Cell = cell, run: Run = run) -> bool:
                return bool(run.over() or run.notes("tries")[-1]["try"] > before[cell])

            self.stack.wait(f"another try of {cell}", began)

    @staticmethod
    def _let_go(runs: dict[Cell, Run]) -> None:
        for run in runs.values():
            run.let("release")
            run.let("go")

    # --- what it came to

    def _collect(self, run: Run) -> Evidence:
        tasks = run.client.task_instances(run.dag_id, run.run_id)
        kinds = ("tries", "reached", "asked", "submitted", "bodies", "batch", "retries", "failures")
        return Evidence(
            state=run.client.run_state(run.dag_id, run.run_id),
            states={task.task_id: task.state for task in tasks},
            tries=run.task().try_number,
            value=run.client.xcom(run.dag_id, run.run_id, "step"),
            told=sum(any(line.startswith("StepFailed:") for line in lines) for lines in run.log()),
            notes={kind: run.notes(kind) for kind in kinds},
        )

    def _nothing_is_left(self, runs: dict[Cell, Run]) -> None:
        active = "state eq 'active'"

        def left() -> list[str]:
            pools, jobs = self.batch.list_pools(filter=active), self.batch.list_jobs(filter=active)
            return [pool.id for pool in pools] + [job.id for job in jobs]

        self.stack.wait("no pool and no job to be left", lambda: not left(), 30)
        pids = {note["pid"] for run in runs.values() for note in run.notes("tries")}
        self.stack.wait(f"the tries' processes end: {pids}", lambda: not [pid for pid in pids if _runs(pid)], 60)


def _runs(pid: int) -> bool:
    try:
        found = psutil.Process(pid)
        return found.status() != psutil.STATUS_ZOMBIE and "airflow" in " ".join([found.name(), *found.cmdline()])
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def look(
    stack: KillStack, batch: BatchClient, request: pytest.FixtureRequest, record: Record
) -> Callable[[Cell, list[Cell]], Evidence]:
    """Return what a cell left; its kill's other cells run with it."""
    matrix = Matrix(stack, batch)
    failed: dict[Cell, BaseException] = {}

    def see(cell: Cell, group: list[Cell]) -> Evidence:
        if cell in failed:
            raise failed[cell]
        if cell not in matrix.evidence:
            try:
                matrix.run(cell.kill, group)
            except Exception as error:
                failed.update(dict.fromkeys(group, error))
                for each in group:
                    record(each, None, [str(error)])
                raise
        evidence = matrix.evidence[cell]
        record(cell, evidence, evidence.problems(cell))
        return evidence

    return see


@pytest.mark.kills
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", MATRIX, ids=str)
def test_cell(cell: Cell, look: Callable[..., Evidence], request: pytest.FixtureRequest) -> None:
    asked = [item.callspec.params.get("cell") for item in request.session.items if hasattr(item, "callspec")]
    group = [each for each in asked if isinstance(each, Cell) and each.kill == cell.kill]
    first = group.index(cell) // AT_ONCE * AT_ONCE
    group = group[first : first + AT_ONCE]
    assert look(cell, group).problems(cell) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_sample(cell: Cell, look: Callable[..., Evidence]) -> None:
    """Two cells of one kill, by the seed in KILLS_SEED: the whole is `make kill-matrix`."""
    assert look(cell, SAMPLE).problems(cell) == []
