"""Pools that scale themselves: samples taken while somebody looks at them, formulas evaluated, targets applied."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import psutil

from airflow_batchwrap.local import autoscale
from airflow_batchwrap.local.autoscale import PERIOD, AutoScaleResult, Formula, SampleStore
from airflow_batchwrap.local.control.base import Base
from airflow_batchwrap.local.control.events import PoolClosing, PoolOpened, PoolSteady
from airflow_batchwrap.local.control.pools import Pools
from airflow_batchwrap.local.model.entities import Pool
from airflow_batchwrap.local.model.states import Allocation, Dealing, JobState, NodeState, PoolState
from airflow_batchwrap.local.wire import times

#: Node states in which a node takes part in the work (Learn: $UsableNodeCount).
_USABLE = frozenset({NodeState.IDLE, NodeState.RUNNING})


@dataclass
class _Watch:
    """What goes on for one pool: its samples, and the two timers."""

    formula: Formula
    samples: SampleStore = field(default_factory=SampleStore)
    sampling: asyncio.TimerHandle | None = None
    evaluating: asyncio.TimerHandle | None = None
    #: An evaluation met a pool that was being resized: it is made up for once the pool is steady.
    owed: bool = False

    def cancel(self) -> None:
        for timer in (self.sampling, self.evaluating):
            if timer is not None:
                timer.cancel()


class Autoscaler:
    """Watches the pools that have autoscale enabled, and no others.

    :param base: the state.
    :param pools: what brings pools to their targets.
    """

    def __init__(self, base: Base, pools: Pools) -> None:
        self._base, self._pools = base, pools
        self._watches: dict[Pool, _Watch] = {}
        base.events.on(PoolOpened, self._opened)
        base.events.on(PoolSteady, self._steady)
        base.events.on(PoolClosing, lambda event: self.end(event.pool))

    def _opened(self, event: PoolOpened) -> None:
        if event.pool.body["enableAutoScale"]:
            self.begin(event.pool, Formula.parse(event.pool.body["autoScaleFormula"]))

    def begin(self, pool: Pool, formula: Formula, *, wait: float = 0.0) -> None:
        """Watch a pool: a sample at once, an evaluation at once or after a while, and both again and again.

        :param pool: the pool, with autoscale enabled.
        :param formula: its formula.
        :param wait: how long until the first evaluation, in seconds of this machine's time.
        """
        before = self._watches.pop(pool, None)
        watch = self._watches[pool] = _Watch(formula)
        if before is not None:
            before.cancel()
            watch.samples = before.samples
        self._sample(pool, watch)
        if wait > 0:
            watch.evaluating = asyncio.get_running_loop().call_later(wait, self._evaluate, pool, watch)
        else:
            self._evaluate(pool, watch)

    def resume(self, pool: Pool) -> None:
        """Go on with a pool after a restart; its evaluations keep their rhythm.

        :param pool: the pool.
        """
        if not pool.body.get("enableAutoScale") or pool.state != PoolState.ACTIVE:
            return
        last = times.parse_iso(pool.scale_run["timestamp"]) if pool.scale_run else 0.0
        self.begin(pool, Formula.parse(pool.body["autoScaleFormula"]), wait=last + self._interval(pool) - times.now())

    def end(self, pool: Pool) -> None:
        """Watch a pool no longer; one that is not watched is no error.

        :param pool: the pool.
        """
        watch = self._watches.pop(pool, None)
        if watch is not None:
            watch.cancel()

    def evaluate(self, pool: Pool, formula: Formula) -> AutoScaleResult:
        """What a formula comes to now; nothing is changed.

        :param pool: the pool.
        :param formula: the formula.
        :return: the result.
        """
        watch = self._watches.get(pool)
        now = self._now(pool)
        dedicated = sum(node.dedicated for node in pool.nodes)
        current = autoscale.PoolState(
            pool.target_dedicated,
            pool.target_low_priority,
            dedicated,
            len(pool.nodes) - dedicated,
            task_slots_per_node=pool.slots,
        )
        return formula.evaluate(now, watch.samples.series(now) if watch else {}, current)

    def _steady(self, event: PoolSteady) -> None:
        """Make up for an evaluation that could not be applied while the pool was being resized."""
        watch = self._watches.get(event.pool)
        if watch is not None and watch.owed:
            self._apply(event.pool, watch)

    def _interval(self, pool: Pool) -> float:
        return self._base.pace.here(times.parse_duration(pool.body["autoScaleEvaluationInterval"]))

    def _now(self, pool: Pool) -> float:
        """The time as formulas see it: it runs faster where the service's time does."""
        return pool.created + (times.now() - pool.created) * self._base.pace.scale

    def _sample(self, pool: Pool, watch: _Watch) -> None:
        if self._watches.get(pool) is not watch or self._base.stopping:
            return
        watch.samples.record(self._now(pool), self._values(pool))
        period = self._base.pace.here(PERIOD)
        watch.sampling = asyncio.get_running_loop().call_later(period, self._sample, pool, watch)

    def _values(self, pool: Pool) -> dict[str, float]:
        nodes = list(pool.nodes)
        dedicated = sum(node.dedicated for node in nodes)
        key = pool.id.lower()
        jobs = [job for job in self._base.jobs if job.pool_id.lower() == key and job.state != JobState.DELETING]
        # Tasks that cannot run now (blocked by others, or of a job that is disabled or over) are not ready.
        active = sum(len(job.ready) for job in jobs if job.state == JobState.ACTIVE)
        running = sum(job.counts["running"] for job in jobs)
        values = {
            "$ActiveTasks": active,
            "$RunningTasks": running,
            "$PendingTasks": active + running,
            "$SucceededTasks": sum(job.counts["success"] for job in jobs),
            "$FailedTasks": sum(job.counts["failure"] for job in jobs),
            "$CurrentDedicatedNodes": dedicated,
            "$CurrentLowPriorityNodes": len(nodes) - dedicated,
            "$UsableNodeCount": sum(node.state in _USABLE for node in nodes),
            "$PreemptedNodeCount": sum(node.state == NodeState.PREEMPTED for node in nodes),
            "$SampleNodeCount": len(nodes),
            "$TaskSlotsPerNode": pool.slots,
        }
        # All nodes are this machine.
        return {**values, **({"$CPUPercent": psutil.cpu_percent()} if nodes else {})}

    def _evaluate(self, pool: Pool, watch: _Watch) -> None:
        if self._watches.get(pool) is not watch or self._base.stopping:
            return
        watch.evaluating = asyncio.get_running_loop().call_later(self._interval(pool), self._evaluate, pool, watch)
        self._apply(pool, watch)

    def _apply(self, pool: Pool, watch: _Watch) -> None:
        watch.owed = pool.allocation != Allocation.STEADY
        if watch.owed:
            return
        result = self.evaluate(pool, watch.formula)
        pool.scale_run = run_of(result)
        self._base.store.touch(pool)
        dedicated, low_priority = result.target_dedicated_nodes, result.target_low_priority_nodes
        present = sum(node.dedicated for node in pool.nodes)
        # The nodes that are, not those that were to be: what could not be had is tried for again.
        if result.error is None and (dedicated, low_priority) != (present, len(pool.nodes) - present):
            self._pools.resize(pool, dedicated, low_priority, Dealing(result.node_deallocation_option))


def run_of(result: AutoScaleResult) -> dict[str, object]:
    """An evaluation as the ``AutoScaleRun`` of the wire.

    :param result: the evaluation.
    :return: JSON, with the time of this machine.
    """
    run: dict[str, object] = {"timestamp": times.iso(times.now()), "results": result.results}
    return run | ({"error": result.error.as_wire()} if result.error else {})
