"""What follows from a look at a pool, a job and a Batch task that waits.

Pure functions on small values: the blocking wait, the triggers and the tests share them, so that both ways of waiting
decide alike. Only what the service says is final. A quota that is used up, machines that are not to be had, a formula
that has still to be evaluated: all of these are waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, NoCapacity, NodeLost, PoolError
from airflow_batchwrap.hooks.poolviews import USABLE
from airflow_batchwrap.hooks.poolviews import NodeView as NodeView
from airflow_batchwrap.hooks.poolviews import PoolView as PoolView
from airflow_batchwrap.hooks.taskviews import EntityView as EntityView
from airflow_batchwrap.hooks.taskviews import PreparationView as PreparationView
from airflow_batchwrap.hooks.taskviews import TaskView as TaskView
from airflow_batchwrap.hooks.taskviews import signal_of as signal_of
from airflow_batchwrap.hooks.taskviews import state_line as state_line

# What is to be mended, or whether trying again may be enough.
FailureKind = Literal["config", "pool", "node_lost", "no_capacity"]
ERRORS: Mapping[FailureKind, type[BatchWrapError]] = {
    "config": ConfigError,
    "pool": PoolError,
    "node_lost": NodeLost,
    "no_capacity": NoCapacity,
}


@dataclass(frozen=True)
class Verdict:
    """What follows from a look at a pool.

    :param answer: ``ready``; ``wait``; ``short``: there is no room for its nodes now, so wait with longer pauses, and
        say so in the log; ``failed``.
    :param why: for ``short`` and ``failed``, the problem and the remedy.
    :param node_id: for ``failed``, the node whose start task's stderr says more.
    :param kind: for ``short`` and ``failed``, the error to raise: for ``short`` only once the time is over.
    :param ask: for ``short``: the pool asks for no more by itself, so ask for it: of one of fixed size the same targets
        again, of one with our formula its whole size for a while (``ScaleFormula.resized`` with the same bounds).
    :param warnings: what the log should say of nodes that serve nobody, while others do.
    """

    answer: Literal["ready", "wait", "short", "failed"]
    why: str = ""
    node_id: str = ""
    kind: FailureKind = "pool"
    ask: bool = False
    warnings: tuple[str, ...] = ()

    def error(self, added: str = "") -> BatchWrapError:
        """Return the error that this verdict asks for.

        :param added: what else to say, such as the end of the start task's output.
        """
        return ERRORS[self.kind](self.why + added)


def judge_pool(view: PoolView, min_nodes: int | None = None, max_start_task_failures: int | None = None) -> Verdict:
    """Return whether a pool is fit to run Batch tasks.

    Idle and running nodes both count, spot nodes as well: a busy shared pool is ready. Nodes that are unusable or
    offline, or whose start task failed, do no harm while enough others serve.

    :param min_nodes: how many usable nodes are enough; None for all that the pool asks for, but those that are lost.
    :param max_start_task_failures: on how many nodes the start task may fail; None for as many as leave enough others.
    """
    verdict = _without_nodes(view)
    if verdict is not None:
        return verdict
    meant, lost = view.meant, len(view.lost)
    warnings = tuple(f"Pool {view.pool_id}: {node.trouble()}" for node in view.lost)
    if max_start_task_failures is not None and len(view.failed_starts) > max_start_task_failures:
        limit = f"the start task may fail on {max_start_task_failures} nodes (max_start_task_failures)"
        return _lost(view, f"{limit}, and has failed on {len(view.failed_starts)}")
    # What can still serve, once all has come that is to come.
    reachable = max(view.able, meant - lost)
    wanted = max(1, min(meant, reachable if min_nodes is None else min_nodes))
    if view.usable >= wanted:
        return Verdict("ready", warnings=warnings)
    if reachable < wanted:
        verdict = _lost(view, f"it can have {reachable} of the {wanted} nodes it needs")
        others = view.formula is not None and not view.fresh and view.formula.total - lost >= wanted
        # It has shrunk to what the work needs, and does not know that some of it is lost.
        return replace(verdict, answer="short", ask=True) if others and verdict.kind == "node_lost" else verdict
    if view.able >= wanted or view.allocation_state != "steady":
        return Verdict("wait", warnings=warnings)
    return _short(view, wanted, warnings)


def _without_nodes(view: PoolView) -> Verdict | None:
    """Return the verdict on a pool that is gone, or is to have no nodes now; None for any other."""
    name = f"Pool {view.pool_id!r}"
    if view.state == "missing":
        return Verdict("failed", f"{name} does not exist. Check pool_id, or give a pool_config to create a pool.")
    if view.state == "deleting":
        return Verdict("failed", f"{name} is being deleted. Use another pool, or wait until it is gone.")
    if view.target:
        return None
    if view.autoscale:
        if view.broken_formula:
            return Verdict("failed", f"{name} has no nodes: its autoscale formula failed: {view.broken_formula}")
        if view.formula is None:
            return Verdict("ready")  # it grows once there is work
        if view.formula.total:
            # Emptied for want of work it grows again; a new one, or one just woken, waits for the evaluation.
            return Verdict("ready" if view.evaluated and not view.fresh else "wait")
    if view.able:
        return None  # they work until they go
    return Verdict("failed", f"{name} has no nodes and is to have none. Resize it to one node or more.")


def _lost(view: PoolView, problem: str) -> Verdict:
    """Return the verdict on a pool with too many nodes that serve nobody."""
    shown = "; ".join(node.trouble() for node in view.lost)
    first = view.failed_starts[0].node_id if view.failed_starts else ""
    if view.failed_everywhere:
        why = f"Pool {view.pool_id!r}: {problem}: {shown}. Mend the pool's start_task."
        return Verdict("failed", why, first, "pool")
    why = f"Pool {view.pool_id!r}: {problem}: {shown}. Reboot or remove these nodes, or accept fewer with min_nodes."
    return Verdict("failed", why, first, "node_lost")


def _short(view: PoolView, wanted: int, warnings: tuple[str, ...]) -> Verdict:
    """Return the verdict on a pool that has stopped growing before it had its nodes."""
    reasons = "; ".join(view.resize_errors)
    missing = f"Pool {view.pool_id!r} has {view.able} of the {wanted} nodes it needs"
    if view.broken_formula:
        return Verdict("failed", f"{missing}, and its autoscale formula failed: {view.broken_formula}")
    if view.hopeless:
        return Verdict("failed", f"{missing}: {reasons}. Change what the pool asks for, or accept fewer (min_nodes).")
    if view.autoscale and not reasons:
        return Verdict("wait", warnings=warnings)  # the next evaluation asks again
    why = (
        f"{missing}: {reasons or f'{view.progress()}, and no resize error is given'}. Wait until others have ended, "
        "check the account's core quota for the vm_size, or ask for fewer (min_nodes accepts a part)."
    )
    return Verdict("short", why, kind="no_capacity", ask=not view.autoscale, warnings=warnings)


@dataclass(frozen=True)
class WaitView:
    """What may keep a Batch task from starting.

    :param job_state: of its job; ``missing`` where it is gone.
    :param job_reason: why the job ended.
    """

    job_state: str
    job_reason: str = ""
    preparations: tuple[PreparationView, ...] = ()
    pool: PoolView | None = None


@dataclass(frozen=True)
class Stuck:
    """Why a waiting Batch task will not start, however long it waits.

    :param preparation: the job preparation that failed, where that is why.
    :param kind: the error to raise.
    """

    why: str
    preparation: PreparationView | None = None
    kind: FailureKind = "config"


def slots_problem(required_slots: int, pool: PoolView) -> str:
    """Return why a Batch task would wait for ever on a pool for its slots; empty where it would not.

    Azure takes such a Batch task, and a pool with a formula even grows for it (https://github.com/Azure/Batch/issues/117).

    :param required_slots: slots that the Batch task takes on one node.
    """
    if pool.state != "active" or required_slots <= pool.task_slots_per_node:
        return ""
    return (
        f"it takes {required_slots} task slots on one node, and a node of pool {pool.pool_id!r} has only "
        f"{pool.task_slots_per_node}, so that it would wait for ever. Lower task_slots, or raise the pool's "
        "task_slots_per_node."
    )


def judge_wait(view: WaitView, required_slots: int = 1) -> Stuck | None:
    """Return why a Batch task that waits will not start; None where it still may.

    Azure is silent about all of these: a Batch task of an ended job, or whose preparation failed on every node, stays
    active for ever. A pool that scales by itself and has no nodes now is worth waiting for: its formula is evaluated
    again and again. One of fixed size that did not get its nodes asks for none until somebody resizes it.

    :param required_slots: slots that the Batch task takes on one node.
    """
    if view.job_state in ("missing", "deleting"):
        return Stuck("its Batch job was deleted. Clear the set-up task, which opens a new one.")
    if view.job_state in ("terminating", "completed"):
        reason = f" ({view.job_reason})" if view.job_reason else ""
        return Stuck(f"its Batch job has ended{reason}. Clear the set-up task, which opens a new one.")
    pool = view.pool
    if pool is None:
        return None
    if pool.state in ("missing", "deleting"):
        why = f"its pool {pool.pool_id!r} was deleted. Clear the set-up task, or use another pool."
        return Stuck(why, kind="pool")
    if problem := slots_problem(required_slots, pool):
        return Stuck(problem)
    verdict = judge_pool(pool, 1)
    if verdict.answer == "failed" or (verdict.answer == "short" and verdict.ask):
        return Stuck(verdict.why, kind=verdict.kind)
    failed = {item.node_id: item for item in view.preparations if item.failed}
    if not failed:
        return None
    # The service bars a node from the job once its preparation failed there, and tries the next one.
    if any(node.state in USABLE and node.node_id not in failed for node in pool.nodes):
        return None
    first = next(iter(failed.values()))
    return Stuck(f"the job preparation task, which brings the inputs, failed on node {first.node_id}", first)
