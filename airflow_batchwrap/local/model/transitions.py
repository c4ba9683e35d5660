"""The state machines of pools, nodes, jobs and tasks, as tables of what may follow what."""

from __future__ import annotations

from typing import ClassVar

from airflow_batchwrap.local.wire import times

Table = dict[str, frozenset[str]]


def _table(**rows: str) -> Table:
    return {state: frozenset(following.split()) for state, following in rows.items()}


POOL: Table = _table(active="deleting", deleting="")
ALLOCATION: Table = _table(steady="resizing", resizing="stopping steady", stopping="steady")
JOB: Table = _table(
    active="disabling terminating deleting",
    disabling="disabled terminating deleting",
    disabled="enabling terminating deleting",
    enabling="active terminating deleting",
    terminating="completed deleting",
    completed="deleting",
    deleting="",
)
JOB_SCHEDULE: Table = _table(
    active="disabled terminating completed deleting",
    disabled="active terminating completed deleting",
    terminating="completed deleting",
    completed="deleting",
    deleting="",
)
TASK: Table = _table(
    active="preparing running completed",
    preparing="active running completed",
    running="active completed",
    completed="active",
)
NODE: Table = _table(
    creating="starting leavingpool unusable",
    starting="waitingforstarttask idle offline leavingpool unusable",
    waitingforstarttask="idle offline starttaskfailed rebooting reimaging leavingpool unusable",
    starttaskfailed="rebooting reimaging leavingpool deallocating",
    idle="running rebooting reimaging offline preempted leavingpool deallocating unusable",
    running="idle rebooting reimaging offline preempted leavingpool deallocating unusable",
    offline="idle running rebooting reimaging leavingpool deallocating unusable",
    rebooting="starting leavingpool unusable",
    reimaging="starting leavingpool unusable",
    preempted="creating starting leavingpool",
    deallocating="deallocated leavingpool",
    deallocated="starting leavingpool",
    unusable="rebooting reimaging leavingpool",
    leavingpool="",
)


class IllegalTransition(Exception):
    """A state was about to follow one it cannot follow: a fault of the service itself."""


class Stateful:
    """Something that is in one state at a time and remembers the state before."""

    __slots__ = ("previous", "previous_since", "since", "state")

    TABLE: ClassVar[Table]

    def begin(self, state: str, moment: float | None = None) -> None:
        """Enter the first state.

        :param state: the state.
        :param moment: when, seconds since the epoch; now by default.
        """
        self.state = state
        self.since = times.now() if moment is None else moment
        self.previous: str | None = None
        self.previous_since: float | None = None

    def move(self, state: str) -> None:
        """Pass into another state.

        :param state: the state to pass into.
        :raises IllegalTransition: the table does not allow it.
        """
        if state not in self.TABLE[self.state]:
            raise IllegalTransition(f"{type(self).__name__}: {self.state} cannot become {state}")
        self.previous, self.previous_since = self.state, self.since
        self.state, self.since = state, times.now()
