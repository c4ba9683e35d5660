"""Make a pool larger or smaller while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, PoolError, TryAgain
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.waiting import GRACE, TRIGGER_PADDING, pause_after
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.autoscale import DeallocationOption
    from airflow_batchwrap.hooks.resizing import Resize
    from airflow_batchwrap.hooks.views import PoolView

_SHORTEST_RESIZE = timedelta(minutes=5)  # Batch REST reference, "Pool - Resize": resizeTimeout
_ENABLE_GAP = 35.0  # seconds: Batch takes one formula in 30 (Batch REST reference, "Pool - Enable Auto Scale")
_OPTIONS = ("requeue", "terminate", "taskcompletion", "retaineddata")


class ResizePoolOperator(BatchWrapOperator):
    """Give a pool other numbers of nodes, and wait until it has them.

    On a pool with this package's autoscale formula, the formula's numbers are replaced: it still empties the pool when
    it is idle. Another's formula is left alone, which is an error, as Batch refuses to resize such a pool.

    :param workspace: what the set-up task returned.
    :param pool_id: this pool, in place of a workspace.
    :param target_dedicated_nodes: dedicated nodes; None leaves them as they are.
    :param target_low_priority_nodes: spot nodes; None leaves them as they are.
    :param target_spot_nodes: the same by its newer name.
    :param min_nodes: how many usable nodes end the wait; None for all.
    :param node_deallocation_option: what becomes of Batch tasks on nodes that go: ``taskcompletion`` waits for them,
        ``requeue`` and ``terminate`` end them, ``retaineddata`` waits for their files to expire as well.
    :param pool_wait_timeout: how long to wait. A pool of fixed size keeps the nodes that it has got by then, and asks
        Azure for no more.
    """

    template_fields: Sequence[str] = (
        *BatchWrapOperator.template_fields,
        "workspace",
        "pool_id",
        "target_dedicated_nodes",
        "target_low_priority_nodes",
        "target_spot_nodes",
        "min_nodes",
        "node_deallocation_option",
        "pool_wait_timeout",
    )
    setting_names: Sequence[str] = (*BatchWrapOperator.setting_names, "pool_wait_timeout")

    def __init__(
        self,
        *,
        workspace: Any = None,
        pool_id: str | None = None,
        target_dedicated_nodes: int | str | None = None,
        target_low_priority_nodes: int | str | None = None,
        target_spot_nodes: int | str | None = None,
        min_nodes: int | str | None = None,
        node_deallocation_option: DeallocationOption | str = "taskcompletion",
        pool_wait_timeout: timedelta | str = timedelta(minutes=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        self.pool_id = pool_id
        self.target_dedicated_nodes = target_dedicated_nodes
        self.target_low_priority_nodes = target_low_priority_nodes
        self.target_spot_nodes = target_spot_nodes
        self.min_nodes = min_nodes
        self.node_deallocation_option = node_deallocation_option
        self.pool_wait_timeout = pool_wait_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask for the size and wait; return the pool's id, its targets, and how many nodes are usable."""
        began = time.time()
        resize = self._wanted()
        deadline = began + self.settings.pool_wait_timeout.total_seconds()
        if self.execution_timeout and self.deferrable:
            # Airflow forgets it while a task is deferred.
            deadline = min(deadline, began + self.execution_timeout.total_seconds())
        return self._go_on(resize, deadline, asked=False)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        from airflow_batchwrap.hooks.resizing import Resize

        if error := event.get("error"):
            raise PoolError(error)
        return self._go_on(Resize(**event["resume"]["resize"]), event["resume"]["deadline"], asked=True)

    # --- the parts

    def _wanted(self) -> Resize:
        """Return what the pool is to become.

        :raises ConfigError: the arguments do not say it.
        :raises PoolError: there is no such pool, or it scales by a formula that is not this package's.
        """
        from airflow_batchwrap.hooks.resizing import Resize

        if bool(self.workspace) == bool(self.pool_id):
            raise ConfigError(f"Task {self.task_id!r} needs either a workspace or a pool_id, and not both.")
        numbers = self._numbers()
        pool_id = self.pool_id or Workspace.from_xcom(self.workspace).pool_id
        view = self.hook.view_pool(pool_id)
        if view.state != "active":
            raise PoolError(f"Pool {pool_id!r} is {view.state}. Check pool_id, or clear the set-up task.")
        if view.autoscale and view.formula is None:
            raise PoolError(
                f"Pool {pool_id!r} scales by an autoscale formula of its owner's, and Batch resizes no such pool. "
                "Change the formula, or disable autoscale on the pool first."
            )
        now = (view.formula.dedicated, view.formula.spot) if view.formula else view.targets
        dedicated, spot = (old if new is None else new for new, old in zip(numbers[:2], now, strict=True))
        return Resize(pool_id, dedicated, spot, numbers[2])

    def _numbers(self) -> tuple[int | None, int | None, int | None]:
        """Return the numbers of nodes: dedicated, spot, enough."""
        names = ("target_dedicated_nodes", "target_low_priority_nodes", "target_spot_nodes", "min_nodes")
        found: dict[str, int | None] = {}
        for name in names:
            value = getattr(self, name)
            digits = str(value).strip()
            if value is not None and (isinstance(value, bool) or not digits.isdecimal()):
                raise ConfigError(f"Task {self.task_id!r}: {name} = {value!r}: use a whole number of nodes.")
            found[name] = None if value is None else int(digits)
        dedicated, low, spot, enough = (found[name] for name in names)
        if low is not None and spot is not None and low != spot:
            raise ConfigError(
                f"Task {self.task_id!r}: target_low_priority_nodes = {low} and target_spot_nodes = {spot} are two "
                "names of one number: give one of them."
            )
        spot = low if spot is None else spot
        if dedicated is None and spot is None:
            raise ConfigError(f"Task {self.task_id!r} needs target_dedicated_nodes, target_spot_nodes, or both.")
        if self.node_deallocation_option not in _OPTIONS:
            raise ConfigError(
                f"Task {self.task_id!r}: node_deallocation_option = {self.node_deallocation_option!r}: use one of "
                f"{', '.join(_OPTIONS)}."
            )
        return dedicated, spot, enough

    def _go_on(self, resize: Resize, deadline: float, asked: bool) -> dict[str, Any]:
        try:
            return self._ask_and_wait(resize, deadline, asked)
        except AirflowTaskTimeout:
            self._give_up(resize)
            raise

    def _ask_and_wait(self, resize: Resize, deadline: float, asked: bool) -> dict[str, Any]:
        """Ask where that is still to do, and wait: a while here, and then in the triggerer.

        :param asked: whether this try has asked already. One that has not asks even where the numbers are right: an
            earlier request may have ended in an error that is mended by now.
        """
        from airflow_batchwrap.hooks.resizing import judge_resize

        began, told = time.monotonic(), ""
        stale = 0.0  # until then an error may be that of an earlier resize
        inline = min(deadline, time.time() + self.settings.inline_wait.total_seconds())
        while True:
            asking = False
            try:
                view = self.hook.view_pool(resize.pool_id)
                if (line := view.progress()) != told:
                    told = line
                    self.log.info("Pool %s: %s", resize.pool_id, line)
                verdict = judge_resize(view, resize)
                if verdict.answer == "ready":
                    return self._done(view)
                again = not asked and view.allocation_state == "steady"
                if asking := verdict.answer == "ask" or again:
                    asking = not self._ask(view, resize, deadline)
                    asked = asked or not asking
                    stale = time.monotonic() + GRACE
                elif verdict.answer == "failed" and time.monotonic() >= stale:
                    raise PoolError(verdict.why + self._start_task_said(resize.pool_id, verdict.node_id))
            except TryAgain as error:  # a missed look fails nothing; the deadline does
                self.log.warning("%s", error)
            now = time.time()
            if now >= deadline:
                self._give_up(resize)
                raise PoolError(
                    f"Pool {resize.pool_id!r} did not get {resize} within the time that the task has "
                    f"(pool_wait_timeout {self.settings.pool_wait_timeout}, execution_timeout "
                    f"{self.execution_timeout}): {told}. Raise it, or accept fewer nodes with min_nodes."
                )
            # There is nothing to wait for in the triggerer while Batch is about to take the request.
            until = min(deadline, inline + _ENABLE_GAP) if asking else inline
            if self.deferrable and now >= until:
                self._defer(resize, deadline)
            pause = pause_after(time.monotonic() - began, self.settings.poll_interval.total_seconds())
            time.sleep(max(0.0, min(pause, (until if self.deferrable else deadline) - now)))

    def _ask(self, view: PoolView, resize: Resize, deadline: float) -> bool:
        """Ask for the size; False where Batch takes no such request now."""
        left = max(_SHORTEST_RESIZE, timedelta(seconds=deadline - time.time()))
        option = self.node_deallocation_option
        if view.formula is not None:
            formula = view.formula.resized(resize.dedicated, resize.spot, left, option)  # type: ignore[arg-type]
            taken = self.hook.set_formula(resize.pool_id, formula)
        else:
            # Azure gives up with us, whether or not anybody is there to tell it to.
            taken = self.hook.resize_pool(resize.pool_id, resize.dedicated, resize.spot, option, left)
        if taken:
            self.log.info("Asked for %s on pool %s", resize, resize.pool_id)
        return taken

    def _defer(self, resize: Resize, deadline: float) -> None:
        from airflow_batchwrap.triggers.pool import ResizeTrigger

        trigger = ResizeTrigger(
            wanted=asdict(resize),
            deadline=deadline,
            poll_interval=self.settings.poll_interval.total_seconds(),
            resume={"resize": asdict(resize), "deadline": deadline},
            **self.connections(),
        )
        timeout = timedelta(seconds=max(0.0, deadline - time.time()) + TRIGGER_PADDING)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    def _give_up(self, resize: Resize) -> None:
        """Have Azure try no more: the next resize would be refused until it had. A formula goes on by itself."""
        try:
            view = self.hook.view_pool(resize.pool_id)
            if not view.autoscale and view.allocation_state == "resizing" and self.hook.stop_resize(resize.pool_id):
                self.log.info("Stopped the resize of pool %s: it keeps the nodes it has", resize.pool_id)
        except BatchWrapError as error:
            self.log.warning("%s", error)

    def _start_task_said(self, pool_id: str, node_id: str) -> str:
        tail = self.hook.tail_node_file(pool_id, node_id, "startup/stderr.txt").strip() if node_id else ""
        return f"\nThe end of the start task's stderr:\n{tail}" if tail else ""

    @staticmethod
    def _done(view: PoolView) -> dict[str, Any]:
        return {
            "pool_id": view.pool_id,
            "target_dedicated_nodes": view.targets[0],
            "target_low_priority_nodes": view.targets[1],
            "usable_nodes": view.usable,
        }
