"""A pool on its way to another size, and what follows from a look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_batchwrap.exceptions import BatchWrapError
from airflow_batchwrap.hooks.poolviews import PoolView
from airflow_batchwrap.hooks.views import ERRORS, FailureKind, judge_pool


@dataclass(frozen=True)
class Resize:
    """What a pool is to become.

    :param min_nodes: how many usable nodes are enough; None for all of them.
    """

    pool_id: str
    dedicated: int
    spot: int
    min_nodes: int | None = None

    @property
    def targets(self) -> tuple[int, int]:
        return self.dedicated, self.spot

    def __str__(self) -> str:
        return f"{self.dedicated} dedicated and {self.spot} spot nodes"


@dataclass(frozen=True)
class ResizeVerdict:
    """What follows from a look at a pool that is being resized.

    :param answer: ``ask``: it was not asked for this size, and can be now; ``wait``, ``ready`` or ``failed``.
    :param why: for ``failed``, the problem and the remedy.
    :param node_id: for ``failed``, the node whose start task's stderr says more.
    :param kind: for ``failed``, the error to raise. With ``no_capacity`` the same request may succeed later: who has
        time asks again, unless a formula does.
    """

    answer: Literal["ask", "wait", "ready", "failed"]
    why: str = ""
    node_id: str = ""
    kind: FailureKind = "pool"

    def error(self, added: str = "") -> BatchWrapError:
        """Return the error that this verdict asks for.

        :param added: what else to say, such as the end of the start task's output.
        """
        return ERRORS[self.kind](self.why + added)


def judge_resize(view: PoolView, resize: Resize) -> ResizeVerdict:
    """Return how far a resize is: a pool that grows is ready with enough usable nodes, one that shrinks when small."""
    if view.state != "active":
        verdict = judge_pool(view)
        return ResizeVerdict("failed", verdict.why, kind=verdict.kind)
    steady = view.allocation_state == "steady"
    asked = (view.formula.dedicated, view.formula.spot) if view.formula else view.targets
    if asked != resize.targets:
        return ResizeVerdict("ask" if steady else "wait")
    if view.targets != resize.targets:  # the formula is right, and was not evaluated since
        if view.broken_formula:
            why = f"Pool {view.pool_id!r}: its autoscale formula failed: {view.broken_formula}"
            return ResizeVerdict("failed", why)
        return ResizeVerdict("wait")
    if any(there > target for there, target in zip(view.present, view.targets, strict=True)):
        if not steady or view.autoscale:
            return ResizeVerdict("wait")
        reason = "; ".join(view.resize_errors) or view.progress()
        why = f"Pool {view.pool_id!r} did not shrink to {resize}: {reason}. Wait for its Batch tasks, and try again."
        return ResizeVerdict("failed", why)
    if not sum(resize.targets):
        return ResizeVerdict("ready" if steady else "wait")
    verdict = judge_pool(view, resize.min_nodes)
    if verdict.answer == "short":
        return ResizeVerdict("failed", verdict.why, kind=verdict.kind)
    return ResizeVerdict(verdict.answer, verdict.why, verdict.node_id, verdict.kind)
