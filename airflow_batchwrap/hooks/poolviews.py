"""What the service says of a pool and its nodes, as small values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_batchwrap.hooks.autoscale import ScaleFormula
from airflow_batchwrap.hooks.errors import is_capacity
from airflow_batchwrap.hooks.words import explained, failure_text, text

USABLE = {"idle", "running"}
FAILED_START = "starttaskfailed"
# These run no Batch task until a person, or Azure, mends them, and count for the pool's size all the same.
_LOST = {FAILED_START, "unusable", "offline", "deallocated", "deallocating"}
_LEAVING = "leavingpool"
# Resize errors that prove nothing: why is not known, or somebody has stopped a formula that asks again by itself.
_PROVES_NOTHING = {"unknown"}
_PASSING = {"resizestopped", "removenodesfailed"}
_NO_SAMPLES = "InsufficientSampleData"  # what the formula of a new pool may meet, and what passes


@dataclass(frozen=True)
class NodeView:
    """One node."""

    node_id: str
    state: str
    exit_code: int | None = None
    failure: str = ""
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, node: Any) -> NodeView:
        """Read an SDK ``BatchNode``."""
        start = node.start_task_info
        failure = start.failure_info if start else None
        return cls(
            node_id=node.id,
            state=text(node.state),
            exit_code=start.exit_code if start else None,
            failure=": ".join(part for part in (failure.code, failure_text(failure)) if part) if failure else "",
            errors=tuple(f"{error.code}: {error.message}" for error in node.errors or ()),
        )

    def trouble(self) -> str:
        """Return why this node runs nothing, as a sentence without its full stop."""
        if self.state == FAILED_START:
            code = "" if self.exit_code is None else f" with exit code {self.exit_code}"
            return f"the start task failed on node {self.node_id}{code} ({self.failure or 'no failure information'})"
        why = f" ({'; '.join(self.errors)})" if self.errors else ""
        return f"node {self.node_id} is {self.state}{why}"


@dataclass(frozen=True)
class PoolView:
    """One pool with its nodes.

    :param state: active or deleting; ``missing`` where there is none.
    :param target: nodes asked for, dedicated and spot; with autoscale, by the last evaluation.
    :param autoscale: whether it scales by itself.
    :param resize_errors: each ``code: message; name: value; ...``. Azure keeps those of the last resize until the next.
    :param formula: by which it scales, where that is this package's own.
    :param evaluated: whether its formula was evaluated yet.
    :param scale_error: why the last evaluation failed.
    :param targets: dedicated and spot nodes asked for.
    :param present: dedicated and spot nodes there are.
    :param fresh: whether our own formula holds the pool's whole size now, work or none.
    :param metadata: by name.
    """

    pool_id: str
    state: str
    allocation_state: str = ""
    target: int = 0
    autoscale: bool = False
    resize_errors: tuple[str, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    formula: ScaleFormula | None = None
    evaluated: bool = False
    scale_error: str = ""
    targets: tuple[int, int] = (0, 0)
    present: tuple[int, int] = (0, 0)
    task_slots_per_node: int = 1
    fresh: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """How many nodes run Batch tasks, or could at once."""
        return sum(node.state in USABLE for node in self.nodes)

    @property
    def able(self) -> int:
        """How many nodes are usable, or may become so by themselves.

        A preempted spot node is among them: Azure goes on trying to give it back.
        """
        return sum(node.state not in _LOST and node.state != _LEAVING for node in self.nodes)

    @property
    def lost(self) -> tuple[NodeView, ...]:
        """The nodes that count for the pool's size and serve nobody."""
        return tuple(node for node in self.nodes if node.state in _LOST)

    @property
    def failed_starts(self) -> tuple[NodeView, ...]:
        """The nodes on which the start task failed."""
        return tuple(node for node in self.nodes if node.state == FAILED_START)

    @property
    def failed_everywhere(self) -> bool:
        """Whether the start task failed on every node there is: then it is the start task that is wrong."""
        staying = [node for node in self.nodes if node.state != _LEAVING]
        return bool(staying) and all(node.state == FAILED_START for node in staying)

    @property
    def meant(self) -> int:
        """How many nodes it is to have now: what the service asks for, or our formula is about to."""
        return self.formula.total if self.formula is not None and self.fresh else self.target

    @property
    def broken_formula(self) -> str:
        """Why its formula cannot be evaluated; empty where it can, or where only samples are missing for now."""
        return "" if self.scale_error.startswith(_NO_SAMPLES) else self.scale_error

    @property
    def hopeless(self) -> tuple[str, ...]:
        """The resize errors that no time mends."""
        pass_by = _PROVES_NOTHING | _PASSING if self.autoscale else _PROVES_NOTHING
        return tuple(
            error
            for error in self.resize_errors
            if (code := error.partition(":")[0]).lower() not in pass_by and not is_capacity(code, error)
        )

    def progress(self) -> str:
        """Return one line for the log: how many nodes are usable and what the others do."""
        states: dict[str, int] = {}
        for node in self.nodes:
            states[node.state] = states.get(node.state, 0) + 1
        shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.usable} of {self.meant} nodes usable ({shown or 'none yet'}; allocation {self.allocation_state})"

    @classmethod
    def of(cls, pool: Any, nodes: list[NodeView]) -> PoolView:
        """Read an SDK ``BatchPool``."""
        targets = pool.target_dedicated_nodes or 0, pool.target_low_priority_nodes or 0
        run = pool.auto_scale_run
        formula = ScaleFormula.read(pool.auto_scale_formula) if pool.enable_auto_scale else None
        return cls(
            pool_id=pool.id,
            state=text(pool.state),
            allocation_state=text(pool.allocation_state),
            target=sum(targets),
            autoscale=bool(pool.enable_auto_scale),
            formula=formula,
            evaluated=run is not None,
            scale_error=f"{run.error.code}: {run.error.message}" if run and run.error else "",
            targets=targets,
            present=(pool.current_dedicated_nodes or 0, pool.current_low_priority_nodes or 0),
            resize_errors=tuple(
                f"{error.code}: {explained(error.message, error.error_values)}" for error in pool.resize_errors or ()
            ),
            nodes=tuple(nodes),
            task_slots_per_node=pool.task_slots_per_node or 1,
            fresh=formula is not None and datetime.now(UTC) < formula.fresh_until,
            metadata={item.name: item.value for item in pool.metadata or ()},
        )
