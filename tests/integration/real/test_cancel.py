"""Cancel means cancel: what a person or a timeout ends in Airflow ends on Batch, and nothing else does.

On a real Airflow. Each case is a run of its own with two steps side by side on one job: one is ended, and the other one
must neither notice nor fail. The cases run at the same time; ``make soak`` runs all of them.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.real.plays import Play, PlayOf

SEED = int(os.environ.get("CANCEL_SEED", "4"))
INLINE, DEFERRED, BLOCKING = "inline", "deferred", "blocking"
AT_ONCE = 5  # cases at the same time


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


# --- what is done to a step


def play_step(play: Play, act: str) -> None:
    """Begin, do the deed, and check."""
    play.begin()
    play.both_run()
    DEEDS[act](play)


def mark(state: str, run: str) -> Callable[[Play], None]:
    """A person gives the step a state."""

    def deed(play: Play) -> None:
        play.stack.ask(lambda: play.stack.client.mark(play.dag_id, play.run_id, "w.1_victim", state))
        play.ended("victim")
        tasks = play.batch_tasks("victim")
        play.expect(f"the Batch task was ended: {tasks}", tasks == {"e1-a1": "TaskEnded"})
        play.sibling_is_untouched()
        play.finish(run, state)
        play.expect(f"one body: {play.bodies('victim')}", len(play.bodies("victim")) == 1)

    return deed


def clear(play: Play) -> None:
    """A person clears the step: the old Batch task ends, a new epoch's runs."""
    play.stack.ask(lambda: play.stack.client.clear(play.dag_id, play.run_id, ["w.1_victim"]))
    play.ended("victim")
    play.wait("the second body", lambda: len(play.bodies("victim")) == 2)
    tasks = play.batch_tasks("victim")
    play.expect(f"a new epoch: {tasks}", tasks == {"e1-a1": "TaskEnded", "e2-a1": "running"})
    play.sibling_is_untouched()
    play.finish("success", "success")
    play.second_body_is_right()


def mark_run(play: Play) -> None:
    """A person ends the run: both steps end, and the teardown still runs."""
    play.stack.ask(lambda: play.stack.client.mark_run(play.dag_id, play.run_id, "failed"))
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
    play.wait("the run's end", play.over, 600)
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
    own = [
        finding
        for finding in sweep.look(hook, state_of, os.environ["AIRFLOW__BATCHWRAP__INSTANCE"])
        if finding.run_id == play.run_id
    ]
    return sorted(finding.noun for finding in sweep.remove(hook, own) if finding.removed)


def time_out(play: Play) -> None:
    """The task's execution_timeout, without retries: the Batch task ends, the task fails."""
    play.ended("victim", 400)
    tasks = play.batch_tasks("victim")
    play.expect(f"the Batch task was ended: {tasks}", tasks == {"e1-a1": "TaskEnded"})
    play.sibling_is_untouched()
    play.finish("failed", "failed")
    play.expect(f"one body: {play.bodies('victim')}", len(play.bodies("victim")) == 1)
    play.expect("the log tells why", "did not end within execution_timeout" in play.log("1_victim"))


def time_out_and_retry(play: Play) -> None:
    """The task's execution_timeout, with a retry: a new attempt runs."""
    play.ended("victim", 400)
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


def play_set_up(play: Play, act: str) -> None:
    """The set-up waits for a node whose start task waits for leave; then the deed."""
    gate = play.folder / "node"
    play.begin(start_task=f"/bin/sh -c 'until [ -e {gate} ]; do sleep 0.2; done'")
    wanted = "deferred" if play.how == DEFERRED else "running"

    def there() -> bool:
        left = play.left()
        return play.states().get("create_pool") == wanted and all(left.values()) and bool(waiting(play))

    play.wait("the set-up waits", there)
    if play.how == DEFERRED:
        play.taken_up("create_pool")
    before, client, dag_id = play.left(), play.stack.client, play.dag_id
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
        # Airflow calls such a run a success, if it had no step at work: all that it has are skipped.
        play.wait("the run's end", play.over)
        play.expect(f"the set-up has failed: {play.states()}", play.states()["create_pool"] == "failed")
        play.expect("no step ran", not play.bodies("victim"))
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


def run_case(play: Play, case: Case) -> Play:
    """Play a case to its end."""
    try:
        (play_step if case in STEPS else play_set_up)(play, case.act)
    except AssertionError as error:
        play.problems.append(str(error))
    finally:
        play.let_go("node")
        play.let_go()
    return play


@pytest.fixture(scope="module")
def plays(play: PlayOf, request: pytest.FixtureRequest) -> Iterator[dict[Case, Future[Play]]]:
    """Play all cases that were asked for, some at the same time."""
    items = [item for item in request.session.items if item.path == request.path]
    asked: dict[Case, None] = dict.fromkeys(item.callspec.params["case"] for item in items if hasattr(item, "callspec"))
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield {case: pool.submit(run_case, play(case.dag_id, case.how), case) for case in asked}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
