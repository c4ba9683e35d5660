"""Which task gets which node: what must hold for any pool, any jobs and any tasks."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_batchwrap.local.control.placement import Placement, TooEarly, carry_out, decide
from airflow_batchwrap.local.model.entities import Execution, Job, Node, NodeJob, Pool, Task
from airflow_batchwrap.local.model.states import Dealing, NodeState, NodeWish, Result, Scheduling

SLOTS = 4


def make_pool(fill: str, slots: int = SLOTS) -> Pool:
    """An empty pool."""
    body = {
        "taskSlotsPerNode": slots,
        "taskSchedulingPolicy": {"nodeFillType": fill},
        "enableInterNodeCommunication": slots == 1,
    }
    return Pool(1, "pool", body)


def add_node(pool: Pool, **more: Any) -> Node:
    """A node of the pool, idle."""
    uid = 100 + len(pool.nodes)
    node = Node(uid, f"tvmps_{uid:012}_d", pool, **more)
    node.begin(NodeState.IDLE)
    pool.nodes.add(node)
    return node


def add_job(uid: int, priority: int = 0, parallel: int = -1, **more: Any) -> Job:
    """A job on the pool."""
    return Job(
        uid, f"job-{uid}", {"poolInfo": {"poolId": "pool"}, "priority": priority, "maxParallelTasks": parallel, **more}
    )


def add_task(job: Job, slots: int = 1, **body: Any) -> Task:
    """A task that waits for a place."""
    uid = job.uid * 1000 + len(job.tasks)
    task = Task(uid, f"task-{uid}", job, json.dumps(body, separators=(",", ":")).encode(), slots=slots, moment=1000.0)
    job.tasks.add(task)
    job.ready.add(task)
    return task


def place_all(pool: Pool, jobs: list[Job]) -> list[Placement]:
    """Carry out all that is decided."""
    made: list[Placement] = []
    for decision in decide(pool, jobs):
        assert isinstance(decision, Placement)
        carry_out(decision)
        made.append(decision)
    return made


@st.composite
def farms(draw: st.DrawFn) -> tuple[Pool, list[Job]]:
    """A pool with nodes of all kinds, and jobs with tasks that wait for it."""
    pool = make_pool(draw(st.sampled_from(["spread", "Pack"])))
    for _ in range(draw(st.integers(0, 6))):
        node = add_node(pool)
        node.used = draw(st.integers(0, SLOTS))
        if draw(st.booleans()) and draw(st.booleans()):
            node.scheduling = Scheduling.DISABLED
        elif draw(st.booleans()) and draw(st.booleans()):
            node.ask(NodeWish.LEAVE, Dealing.TASK_COMPLETION)
        elif draw(st.booleans()) and draw(st.booleans()):
            node.begin(NodeState.OFFLINE)
    jobs = []
    for number in range(draw(st.integers(0, 4))):
        preparation = {"jobPreparationTask": {"id": "p", "waitForSuccess": draw(st.booleans())}}
        job = add_job(10 + number, draw(st.integers(-2, 2)), draw(st.sampled_from([-1, 1, 3])), **preparation)
        for node in pool.nodes:
            if draw(st.booleans()) and draw(st.booleans()):
                failed = Execution(0.0, result=Result.FAILURE)
                job.nodes[node.id] = NodeJob(500, job, pool.id, node.id, prepare=failed)
        for _ in range(draw(st.integers(0, 8))):
            add_task(job, draw(st.integers(1, SLOTS)))
        jobs.append(job)
    return pool, jobs


def fits(job: Job, task: Task, node: Node) -> bool:
    """Whether a task may have a place on a node."""
    barred = node.id in job.nodes and job.nodes[node.id].barred and job.waits
    return node.usable and not barred and SLOTS - node.used >= task.slots


@given(farms())
@settings(deadline=None)
def test_no_more_is_placed_than_there_is_room_for(farm: tuple[Pool, list[Job]]) -> None:
    pool, jobs = farm
    before = {node: node.used for node in pool.nodes}
    usable = {node for node in pool.nodes if node.usable}
    made = place_all(pool, jobs)
    taken: Counter[Node] = Counter()
    for placement in made:
        (node,) = placement.nodes
        job = placement.task.job
        assert node in usable
        assert not (job.waits and node.id in job.nodes and job.nodes[node.id].barred)
        taken[node] += placement.task.slots
    assert all(before[node] + taken[node] == node.used <= SLOTS for node in pool.nodes)
    assert len({placement.task for placement in made}) == len(made)
    assert all(job.parallel < 0 or job.running <= job.parallel for job in jobs)


@given(farms())
@settings(deadline=None)
def test_nothing_waits_that_fits(farm: tuple[Pool, list[Job]]) -> None:
    pool, jobs = farm
    made = place_all(pool, jobs)
    placed = {placement.task for placement in made}
    for job in jobs:
        if 0 <= job.parallel <= job.running:
            continue
        waiting = [task for task in job.tasks if task not in placed]
        assert not [task for task in waiting for node in pool.nodes if fits(job, task, node)]


@given(farms())
@settings(deadline=None)
def test_higher_priority_goes_first_and_older_tasks_of_a_size(farm: tuple[Pool, list[Job]]) -> None:
    pool, jobs = farm
    made = place_all(pool, jobs)
    order = [(-placement.task.job.priority, placement.task.job.uid) for placement in made]
    assert order == sorted(order)
    for job in jobs:
        for slots in range(1, SLOTS + 1):
            uids = [one.task.uid for one in made if one.task.job is job and one.task.slots == slots]
            assert uids == sorted(uids)


@given(farms())
@settings(deadline=None)
def test_looking_changes_nothing(farm: tuple[Pool, list[Job]]) -> None:
    pool, jobs = farm

    def state() -> Any:
        return [node.row() for node in pool.nodes], [node.used for node in pool.nodes], [len(job.ready) for job in jobs]

    before = state()
    first = next(decide(pool, jobs), None)
    assert state() == before
    assert next(decide(pool, jobs), None) == first


@given(st.sampled_from(["spread", "pack"]), st.lists(st.integers(0, SLOTS - 1), min_size=2, max_size=5))
def test_spread_takes_the_emptiest_and_pack_the_fullest(fill: str, used: list[int]) -> None:
    pool, job = make_pool(fill), add_job(10)
    for number in used:
        add_node(pool).used = number
    add_task(job)
    (placement,) = place_all(pool, [job])
    best = (max if fill == "pack" else min)(used)
    assert placement.nodes[0] is list(pool.nodes)[used.index(best)]


def test_affinity_is_followed_where_there_is_room() -> None:
    pool, job = make_pool("spread"), add_job(10)
    nodes = [add_node(pool) for _ in range(3)]
    nodes[2].used = SLOTS - 1
    tasks = [add_task(job, affinityInfo={"affinityId": nodes[2].id}) for _ in range(2)]
    assert [(one.task, one.nodes[0]) for one in place_all(pool, [job])] == [(tasks[0], nodes[2]), (tasks[1], nodes[0])]


def test_job_manager_is_alone_and_may_want_a_dedicated_node() -> None:
    manager = {"id": "task-10000", "runExclusive": True, "allowLowPriorityNode": False}
    pool, job = make_pool("spread"), add_job(10, jobManagerTask=manager)
    spot, dedicated = add_node(pool, dedicated=False), add_node(pool)
    managing, other = add_task(job), add_task(job)
    made = {one.task: one.nodes[0] for one in place_all(pool, [job])}
    assert made == {managing: dedicated, other: spot}
    assert dedicated.used == SLOTS


def test_gang_holds_what_is_free_until_there_is_enough() -> None:
    pool, job = make_pool("spread", slots=1), add_job(10)
    nodes = [add_node(pool) for _ in range(3)]
    nodes[0].used = 1
    gang = add_task(job, multiInstanceSettings={"numberOfInstances": 3})
    add_task(job)
    assert place_all(pool, [job]) == []
    nodes[0].used = 0
    (placement,) = place_all(pool, [job])
    assert (placement.task, set(placement.nodes)) == (gang, set(nodes))


def test_gangs_that_find_too_few_nodes_cost_the_others_little() -> None:
    pool = make_pool("spread", 1)
    for _ in range(16):
        add_node(pool)
    job = add_job(1)
    for _ in range(2000):
        add_task(job, multiInstanceSettings={"numberOfInstances": 30, "coordinationCommandLine": "x" * 200})
    for _ in range(20):
        add_task(job)
    place_all(make_pool("spread", 1), [job])
    begin = time.perf_counter()
    assert len(place_all(pool, [job])) == 16
    # Less than a turn of the loop may take; when each of them was read for each place, it took three times as long.
    assert time.perf_counter() - begin < 0.08


def test_task_that_was_just_added_waits_its_time() -> None:
    pool, job = make_pool("spread"), add_job(10)
    add_node(pool)
    task = add_task(job)
    assert list(decide(pool, [job], 999.0)) == [TooEarly(task)]
    assert next(decide(pool, [job], 1001.0)) == Placement(task, (next(iter(pool.nodes)),))
