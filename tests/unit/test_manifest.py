"""How far a manifest has come, what follows from it, and what becomes of its rows."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest

from airflow_batchwrap.config import Manifest
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.hooks.manifest import Counts, JobWatch, Stall, duration, judge_stall
from airflow_batchwrap.hooks.views import NodeView, PoolView, TaskView, WaitView
from airflow_batchwrap.manifests.rounds import allowed_failures, left_of
from airflow_batchwrap.manifests.rows import Row, count, entries_of, from_data, to_file

LOG = logging.getLogger("test_manifest")


class Clock:
    """Seconds, as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(expected: int = 100, allowed: int = 0) -> tuple[JobWatch, Clock]:
    clock = Clock()
    return JobWatch(expected, allowed, LOG, clock), clock


def test_progress_tells_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job, clock = watch(expected=1000)
    assert job.judge(Counts(992, 8, 0, 0)) == "wait"
    clock.now = 5
    job.judge(Counts(942, 8, 50, 0))  # too soon for another line
    clock.now = 10
    job.judge(Counts(892, 8, 100, 0))
    clock.now = 20
    job.judge(Counts(892, 8, 100, 0))  # nothing new
    clock.now = 90  # the first minute does not count any more
    job.judge(Counts(792, 8, 200, 0))
    assert caplog.messages == [
        "0 of 1000 done (0 failed), 8 running, 992 waiting",
        "100 of 1000 done (0 failed), 8 running, 892 waiting; 10 a second, about 1 min 30 s left",
        "200 of 1000 done (0 failed), 8 running, 792 waiting; 1.43 a second, about 9 min 20 s left",
    ]


def test_counts_are_proven_and_not_believed() -> None:
    job, clock = watch(expected=10, allowed=1)
    assert job.judge(Counts(0, 0, 10, 0)) == "prove"
    assert job.judge(Counts(0, 2, 7, 1)) == "wait"
    assert job.judge(Counts(0, 2, 6, 2)) == "beyond"
    clock.now = 130  # Azure's counts may lag behind for ever so long
    assert job.judge(Counts(0, 2, 8, 0)) == "prove"
    assert job.judge(None) == "gone"


def test_where_nothing_runs_one_asks_why_and_less_often_with_time() -> None:
    job, clock = watch()
    asked = []
    for second in range(1000):
        clock.now = second
        if job.judge(Counts(100, 0, 0, 0)) == "ask":
            asked.append(second)
    assert asked[0] == 5
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert 15 <= gaps[0] <= 16
    assert gaps[-1] > 80


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (WaitView("deleting"), Stall("gone")),
        (WaitView("completed", "MaxWallClockTimeExpiry"), Stall("ended", "MaxWallClockTimeExpiry")),
        (WaitView("active", pool=PoolView("p", "active", "steady", target=1, nodes=(NodeView("n", "idle"),))), None),
    ],
)
def test_a_stall_has_its_reason(view: WaitView, words: Any) -> None:
    assert judge_stall(view) == words


def test_a_stall_of_the_pool_has_its_reason() -> None:
    found = judge_stall(WaitView("active", pool=PoolView("p", "missing")))
    assert found is not None
    assert found.stuck is not None
    assert "was deleted" in found.stuck.why


def test_a_stall_for_want_of_slots_has_its_reason() -> None:
    pool = PoolView("p", "active", "steady", 1, nodes=(NodeView("n", "idle"),), task_slots_per_node=2)
    assert judge_stall(WaitView("active", pool=pool), 2) is None
    found = judge_stall(WaitView("active", pool=pool), 3)
    assert found is not None
    assert found.stuck is not None
    assert "takes 3 task slots" in found.stuck.why


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7325, "2 h 2 min")])
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(0, 0), (3, 3), ("3", 3), ("2%", 4), (0.02, 4), ("0.02", 4), ("100%", 200), (0.0, 0), (0.029, 5), ("0.5%", 1)],
)
def test_failures_are_allowed_by_number_or_share(given: Any, allowed: int) -> None:
    assert allowed_failures(given, 200, "many") == allowed


@pytest.mark.parametrize("given", [1.0, 2.5, "-1", -1, "x", None, "101%", "", "nan"])
def test_what_is_neither_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="max_failures"):
        allowed_failures(given, 200, "many")


def rows() -> list[Row]:
    manifest = Manifest.from_dict({"tasks": [["1_a.py", "x 'y z'"], {"command": "true"}, {"step": "1_a.py"}]})
    return [row.placed("g.many", 2, "job", "run/many") for row in entries_of(manifest, ["1_a.py"])]


def test_rows_travel_as_lines() -> None:
    made = rows()
    assert (made[0].args, made[1].command, made[2].output_prefix) == (["x", "y z"], "true", "run/many[2]/e2-a1")
    assert len({row.batch_task_id for row in made}) == 3
    with to_file(made) as file:
        file.seek(0)
        assert from_data(json.loads(line) for line in file) == made


@pytest.mark.parametrize(
    ("view", "cut", "state"),
    [
        (TaskView("completed", exit_code=0), False, "succeeded"),
        (TaskView("completed", exit_code=0, failure_code="FileUploadMiscError"), False, "failed"),
        (TaskView("completed", exit_code=3, failure_code="FailureExitCode"), True, "failed"),
        (TaskView("completed", failure_code="TaskEnded"), True, "cancelled"),
        (TaskView("completed", failure_code="TaskEnded"), False, "failed"),
        (TaskView("running", node_id="n"), True, "cancelled"),
        (TaskView("active"), True, "cancelled"),
        (None, True, "not_submitted"),
        (None, False, "missing"),
    ],
)
def test_a_row_tells_what_became_of_it(view: TaskView | None, cut: bool, state: str) -> None:
    assert rows()[0].seen(view, cut=cut).state == state


def test_the_next_round_has_what_did_not_succeed() -> None:
    first, second, third = rows()
    before = [
        first.seen(TaskView("completed", exit_code=0), cut=False),
        second.seen(TaskView("completed", exit_code=1), cut=True),
        third.seen(None, cut=True),
    ]
    left = left_of(rows(), before)
    assert [(row.is_over, row.attempt) for row in left] == [(True, 1), (False, 2), (False, 1)]
    assert count(before) == {"entries": 3, "succeeded": 1, "failed": 1, "cancelled": 0, "not_submitted": 1}
    with pytest.raises(ConfigError, match="has changed"):
        left_of(rows()[:2], before)
