"""Make a pool larger or smaller while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow_batchwrap.attempts.trying import Try
from airflow_batchwrap.config.values import SHORTEST_RESIZE
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, NoCapacity, PoolError
from airflow_batchwrap.hooks.autoscale import DeallocationOption
from airflow_batchwrap.hooks.poolwatch import pause_for_room
from airflow_batchwrap.instance import name_of_instance, refuse_anothers
from airflow_batchwrap.operators.base import Setting, Templated
from airflow_batchwrap.operators.waiting import WaitingOperator
from airflow_batchwrap.triggers.events import ResizeEvent
from airflow_batchwrap.waiting import GRACE
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_batchwrap.hooks.resizing import Resize, ResizeVerdict
    from airflow_batchwrap.hooks.views import PoolView
    from airflow_batchwrap.triggers.base import WaitTrigger

# Seconds. Batch takes one formula in 30: https://learn.microsoft.com/rest/api/batchservice/pools/enable-pool-auto-scale
_ENABLE_GAP = 35.0
_OPTIONS = get_args(DeallocationOption)


@dataclass
class ResizeTry(Try):
    """One try of a resize.

    :param resize: what the pool is to become; None until that is known.
    :param has_asked: whether this try has asked for it. One that has not asks even where the numbers are right: an
        earlier request may have ended in an error that is mended by now.
    :param is_asking: whether Batch is about to take the request.
    :param stale_until: until then, by ``time.monotonic``, an error may be that of an earlier resize.
    :param refused: why there was no room for the nodes, when it was asked for last; empty where there was.
    :param asked: how often there was no room.
    :param again_at: when to ask again, in seconds since 1970.
    :param view: the pool as it was seen last.
    :param line: the last line of progress that is in the log.
    """

    resize: Resize | None = None
    has_asked: bool = False
    is_asking: bool = False
    stale_until: float = 0.0
    refused: str = ""
    asked: int = 0
    again_at: float = 0.0
    view: PoolView | None = None
    line: str = ""

    @property
    def wanted(self) -> Resize:
        """What the pool is to become."""
        if self.resize is None:
            raise RuntimeError("The resize is not known yet.")
        return self.resize


class ResizePoolOperator(WaitingOperator[ResizeTry, ResizeEvent]):
    """Give a pool other numbers of nodes, and wait until it has them.

    On a pool with this package's autoscale formula, the formula's numbers are replaced: it still empties the pool when
    it is idle. Another's formula is left alone, which is an error, as Batch refuses to resize such a pool.

    :param workspace: what the set-up task returned.
    :param pool_id: this pool, in place of a workspace. One that another Airflow made is refused.
    :param target_dedicated_nodes: dedicated nodes; None leaves them as they are.
    :param target_low_priority_nodes: spot nodes; None leaves them as they are.
    :param target_spot_nodes: the same by its newer name.
    :param min_nodes: how many usable nodes end the wait; None for all.
    :param node_deallocation_option: what becomes of Batch tasks on nodes that go: ``taskcompletion`` waits for them,
        ``requeue`` and ``terminate`` end them, ``retaineddata`` waits for their files to expire as well.
    :param pool_wait_timeout: how long to wait. A pool of fixed size keeps the nodes that it has got by then, and asks
        Azure for no more.
    """

    event = ResizeEvent

    def __init__(
        self,
        *,
        workspace: Templated[Any] = None,
        pool_id: Templated[str | None] = None,
        target_dedicated_nodes: Templated[int | str | None] = None,
        target_low_priority_nodes: Templated[int | str | None] = None,
        target_spot_nodes: Templated[int | str | None] = None,
        min_nodes: Templated[int | str | None] = None,
        node_deallocation_option: Templated[DeallocationOption | str] = "taskcompletion",
        pool_wait_timeout: Setting[timedelta | str] = timedelta(minutes=30),
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

    # --- the wait

    def new_try(self, context: Context) -> ResizeTry:
        """Return a try that has done nothing yet."""
        return ResizeTry(context)

    def resumed(self, context: Context, resume: Mapping[str, Any]) -> ResizeTry:
        """Return the try that goes on after the wait in the triggerer."""
        from airflow_batchwrap.hooks.resizing import Resize

        work = ResizeTry(context, resize=Resize(**resume["resize"]), has_asked=True)
        work.refused, work.asked, work.again_at = resume["refused"], resume["asked"], resume["again_at"]
        return work

    def resume(self, work: ResizeTry) -> dict[str, Any]:
        """Return what the pool is to become, and when to ask again where there was no room."""
        room = {"refused": work.refused, "asked": work.asked, "again_at": work.again_at}
        return {"resize": asdict(work.wanted), **room}

    def begin(self, work: ResizeTry) -> ResizeEvent | None:
        """Find out what the pool is to become; the first look asks for it."""
        work.resize = self._resize(name_of_instance())
        work.deadline = self.deadline(work, work.began, "pool_wait_timeout")
        return None

    def go_on(self, work: ResizeTry, event: ResizeEvent) -> dict[str, Any]:
        """Look at the pool again, ask again where Batch has forgotten, and wait on."""
        if event.kind == "error":
            raise self.looking_failed(event)
        return self._wait(work)  # type: ignore[no-any-return]

    def look(self, work: ResizeTry) -> ResizeEvent | None:
        """Look at the pool, and ask for the size where that is still to do."""
        from airflow_batchwrap.hooks.resizing import judge_resize

        work.is_asking = False
        work.view = view = self.hook.view_pool(work.wanted.pool_id)
        if (line := view.progress()) != work.line:
            work.line = line
            self.log.info("Pool %s: %s", view.pool_id, line)
        verdict = judge_resize(view, work.wanted)
        if verdict.answer == "ready":
            return ResizeEvent(kind="changed")
        if verdict.answer == "ask" or (not work.has_asked and view.allocation_state == "steady"):
            work.is_asking = True
            if self._ask(work, view):
                work.has_asked, work.is_asking = True, False
            work.stale_until = time.monotonic() + GRACE
        elif verdict.answer == "failed" and time.monotonic() >= work.stale_until:
            if verdict.kind != "no_capacity":
                raise verdict.error(self._start_task_output(view.pool_id, verdict.node_id))
            self._ask_for_room(work, view, verdict)
        return None

    def inline_until(self, work: ResizeTry, asked: float) -> float:
        """Wait on while Batch is about to take the request: in the triggerer there is nothing to wait for then."""
        return asked + (_ENABLE_GAP if work.is_asking else 0.0)

    def trigger(self, work: ResizeTry, **common: Any) -> WaitTrigger:
        """Return what looks at the pool in the triggerer."""
        from airflow_batchwrap.triggers.pool import ResizeTrigger

        again_at = work.again_at if work.refused else 0.0
        return ResizeTrigger(wanted=asdict(work.wanted), again_at=again_at, **{**common, "identity": None})

    # --- the end

    def settle(self, work: ResizeTry, event: ResizeEvent) -> dict[str, Any]:
        """Return the pool's id, its targets, and how many nodes are usable.

        :raises NoCapacity: it did not get the size in time.
        """
        if event.kind == "late" or work.view is None:
            self.give_up(work)
            if work.refused:
                raise NoCapacity(f"{work.refused} It was waited for until {work.deadline} was over.")
            raise NoCapacity(
                f"Pool {work.wanted.pool_id!r} did not get {work.wanted} within the time that the task has "
                f"({work.deadline}): {work.line}. Raise it, or accept fewer nodes with min_nodes."
            )
        view = work.view
        return {
            "pool_id": view.pool_id,
            "target_dedicated_nodes": view.targets[0],
            "target_low_priority_nodes": view.targets[1],
            "usable_nodes": view.usable,
        }

    def give_up(self, work: ResizeTry) -> None:
        """Have Azure try no more: the next resize would be refused until it had. A formula goes on by itself."""
        if work.resize is None:
            return
        pool_id = work.resize.pool_id
        try:
            view = self.hook.view_pool(pool_id)
            if not view.autoscale and view.allocation_state == "resizing" and self.hook.stop_resize(pool_id):
                self.log.info("Stopped the resize of pool %s: it keeps the nodes it has", pool_id)
        except BatchWrapError as error:
            self.log.warning("%s", error)

    # --- what is asked for

    def _resize(self, instance: str) -> Resize:
        """Return what the pool is to become.

        :param instance: the name of this Airflow.
        :raises ConfigError: the arguments do not say it.
        :raises PoolError: there is no such pool, it is another Airflow's, or it scales by a formula that is not this
            package's.
        """
        from airflow_batchwrap.hooks.resizing import Resize

        if bool(self.workspace) == bool(self.pool_id):
            raise ConfigError(f"Task {self.task_id!r} needs either a workspace or a pool_id, and not both.")
        numbers = self._numbers()
        pool_id = self.pool_id or Workspace.from_xcom(self.workspace).pool_id
        view = self.hook.view_pool(pool_id)
        refuse_anothers(f"Pool {pool_id!r}", view.metadata, instance)
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
        dedicated, low, spot, enough = (self._number(name) for name in names)
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

    def _number(self, name: str) -> int | None:
        value = getattr(self, name)
        if value is None:
            return None
        digits = str(value).strip()
        if isinstance(value, bool) or not digits.isdecimal():
            raise ConfigError(f"Task {self.task_id!r}: {name} = {value!r}: use a whole number of nodes.")
        return int(digits)

    def _ask(self, work: ResizeTry, view: PoolView) -> bool:
        """Ask for the size; False where Batch takes no such request now."""
        resize = work.wanted
        left = max(SHORTEST_RESIZE, timedelta(seconds=work.deadline.left if work.deadline else 0))
        option = self.node_deallocation_option
        if view.formula is not None:
            formula = view.formula.resized(resize.dedicated, resize.spot, left, option)  # type: ignore[arg-type]
            taken = self.hook.set_formula(resize.pool_id, formula)
        else:
            # Azure gives up with us, whether or not anybody is there to ask it to.
            taken = self.hook.resize_pool(resize.pool_id, resize.dedicated, resize.spot, option, left)
        if taken:
            self.log.info("Asked for %s on pool %s", resize, resize.pool_id)
        return taken

    def _ask_for_room(self, work: ResizeTry, view: PoolView, verdict: ResizeVerdict) -> None:
        """Ask again, with longer and longer pauses, where Azure had no room for the nodes."""
        if time.time() < work.again_at:
            return
        if work.refused and not view.autoscale:
            self._ask(work, view)
            work.stale_until = time.monotonic() + GRACE
        pause = pause_for_room(work.asked, self.settings.poll_interval.total_seconds())
        work.refused, work.asked, work.again_at = verdict.why, work.asked + 1, time.time() + pause
        self.log.warning("%s Asking again in %.0f s.", verdict.why, pause)

    def _start_task_output(self, pool_id: str, node_id: str) -> str:
        tail = self.hook.tail_node_file(pool_id, node_id, "startup/stderr.txt").strip() if node_id else ""
        return f"\nThe end of the start task's stderr:\n{tail}" if tail else ""
