"""Which task gets which nodes: the state goes in, decisions come out, and nothing else happens here."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_batchwrap.local.model.entities import Job, Node, Pool, Task
from airflow_batchwrap.local.model.states import JobState


@dataclass(frozen=True, slots=True)
class Placement:
    """A task gets a place.

    :param task: the task.
    :param nodes: where: one node, or as many as a multi-instance task needs, the primary first.
    """

    task: Task
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class TooEarly:
    """A task could have a place, and is to be looked at again later: it was added a moment ago.

    :param task: the task.
    """

    task: Task


Decision = Placement | TooEarly


def decide(pool: Pool, jobs: Iterable[Job], added_before: float = math.inf) -> Iterator[Decision]:
    """Place the tasks that wait for a pool, as far as there is room.

    Higher priority goes first, and among equals the older job. Each placement has to be carried out before the next one
    is asked for (the task taken from its job's queue, the slots counted), as with ``carry_out``.

    :param pool: the pool, active.
    :param jobs: the jobs on it.
    :param added_before: tasks that were added later wait (seconds since the epoch): the pace of the service.
    :return: the decisions.
    """
    waiting = [job for job in jobs if job.ready and job.state == JobState.ACTIVE]
    if not waiting:
        return
    waiting.sort(key=lambda job: (-job.priority, job.uid))
    room = _Room(pool)
    for job in waiting:
        barred = _barred(job)
        gangs = _gangs(pool, job, room, barred)
        while job.ready and (job.parallel < 0 or job.running < job.parallel):
            gang = gangs[0] if gangs and _is_next(gangs[0], job, room) else None
            if gang is not None:
                several = room.empty(gang.instances, barred)
                if several is None:
                    # What is free is held for it until there are as many nodes as it needs.
                    return
                decision = Placement(gang, several)
            elif (single := _single(pool, job, room, barred)) is not None:
                decision = single
            else:
                break
            if decision.task.created > added_before:
                # Those behind it are newer still.
                yield TooEarly(decision.task)
                break
            yield decision
            if gang is not None:
                gangs.popleft()
            for node in decision.nodes:
                room.update(node)


def carry_out(placement: Placement) -> None:
    """Count a placement in the model: the task leaves its job's queue and takes its slots.

    :param placement: the decision.
    """
    task, job = placement.task, placement.task.job
    job.ready.remove(task)
    job.running += 1
    task.pool_id, task.node_id = placement.nodes[0].pool.id, placement.nodes[0].id
    for node in placement.nodes:
        node.take(task, task.needs(node.pool.slots))


class _Room:
    """The usable nodes of a pool; those with free slots in the order in which they are filled."""

    def __init__(self, pool: Pool) -> None:
        self.slots = pool.slots
        # The fullest first where nodes are packed, the emptiest where tasks are spread; the older one among equals.
        self._sign = -1 if pool.body["taskSchedulingPolicy"]["nodeFillType"].lower() == "pack" else 1
        self.usable = [node for node in pool.nodes if node.usable]
        self._keys = {node.uid: self._key(node) for node in self.usable}
        self._nodes = {node.uid: node for node in self.usable}
        self._free = sorted(self._keys[node.uid] for node in self.usable if node.used < self.slots)

    def _key(self, node: Node) -> tuple[int, int]:
        return (self._sign * node.used, node.uid)

    def update(self, node: Node) -> None:
        """See what is free on a node after a placement."""
        old = self._keys[node.uid]
        if (index := bisect_left(self._free, old)) < len(self._free) and self._free[index] == old:
            del self._free[index]
        self._keys[node.uid] = self._key(node)
        if node.used < self.slots:
            insort(self._free, self._keys[node.uid])

    def free(self, barred: frozenset[str]) -> Iterator[Node]:
        """The nodes with a free slot, the one to be filled first before the others."""
        for _, uid in self._free:
            if (node := self._nodes[uid]).id not in barred:
                yield node

    def most(self, barred: frozenset[str]) -> int:
        """The free slots of the node that has most of them."""
        for used, uid in self._free if self._sign > 0 else reversed(self._free):
            if self._nodes[uid].id not in barred:
                return self.slots - abs(used)
        return 0

    def find(self, name: str, barred: frozenset[str]) -> Node | None:
        """A node by its id, if it has a free slot."""
        return next((node for node in self.free(barred) if node.id == name), None)

    def empty(self, count: int, barred: frozenset[str]) -> tuple[Node, ...] | None:
        """So many nodes on which nothing runs, if there are so many."""
        free = [node for node in self.usable if node.used == 0 and node.id not in barred]
        return tuple(free[:count]) if len(free) >= count else None


def _barred(job: Job) -> frozenset[str]:
    """The nodes on which the job's preparation has failed."""
    if not job.waits:
        return frozenset()
    return frozenset(node_id for node_id, part in job.nodes.items() if part.barred)


def _gangs(pool: Pool, job: Job, room: _Room, barred: frozenset[str]) -> deque[Task]:
    """The multi-instance tasks that could run here, oldest first."""
    # Learn: without inter-node communication, or with several slots, such a task is never scheduled.
    waiting = job.ready.gangs() if pool.body["enableInterNodeCommunication"] and room.slots == 1 else []
    candidates = sum(node.id not in barred for node in room.usable) if waiting else 0
    return deque(task for task in waiting if candidates >= task.instances)


def _is_next(gang: Task, job: Job, room: _Room) -> bool:
    """Whether no other task of the job is older."""
    first = job.ready.first(room.slots)
    return first is None or first.uid > gang.uid


def _single(pool: Pool, job: Job, room: _Room, barred: frozenset[str]) -> Placement | None:
    """The job's next task that fits, and where."""
    if not (most := room.most(barred)) or (task := job.ready.first(most)) is None:
        return None
    needed, manager = task.needs(room.slots), task.manager
    dedicated = manager is not None and not manager["allowLowPriorityNode"]

    def fits(node: Node) -> bool:
        return room.slots - node.used >= needed and (node.dedicated or not dedicated)

    if b'"affinityInfo":' in task.body:
        wanted = room.find(_node_of(json.loads(task.body)), barred)
        if wanted is not None and fits(wanted):
            return Placement(task, (wanted,))
    node = next(filter(fits, room.free(barred)), None)
    return None if node is None else Placement(task, (node,))


def _node_of(body: dict[str, dict[str, str]]) -> str:
    """The node that a task would like to run on: by its id, or by the affinity id that nodes and tasks show."""
    return str(body.get("affinityInfo", {}).get("affinityId") or "").removeprefix("TVM:")
