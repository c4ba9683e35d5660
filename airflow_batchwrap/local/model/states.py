"""The words for where things stand, and for what clients wish: each is the API's own, and equal to its text."""

from __future__ import annotations

from enum import StrEnum


class PoolState(StrEnum):
    """Whether a pool is to stay."""

    ACTIVE = "active"
    DELETING = "deleting"


class Allocation(StrEnum):
    """Whether a pool has the nodes that it is to have."""

    STEADY = "steady"
    RESIZING = "resizing"
    STOPPING = "stopping"


class NodeState(StrEnum):
    """What a node is doing."""

    CREATING = "creating"
    STARTING = "starting"
    WAITING = "waitingforstarttask"
    START_FAILED = "starttaskfailed"
    IDLE = "idle"
    RUNNING = "running"
    OFFLINE = "offline"
    REBOOTING = "rebooting"
    REIMAGING = "reimaging"
    PREEMPTED = "preempted"
    DEALLOCATING = "deallocating"
    DEALLOCATED = "deallocated"
    UNUSABLE = "unusable"
    LEAVING = "leavingpool"


class Scheduling(StrEnum):
    """Whether a node takes new tasks."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class JobState(StrEnum):
    """Where a job stands."""

    ACTIVE = "active"
    DISABLING = "disabling"
    DISABLED = "disabled"
    ENABLING = "enabling"
    TERMINATING = "terminating"
    COMPLETED = "completed"
    DELETING = "deleting"


#: A job that is over, or about to be.
OVER = frozenset({JobState.TERMINATING, JobState.COMPLETED, JobState.DELETING})


class ScheduleState(StrEnum):
    """Where a job schedule stands."""

    ACTIVE = "active"
    DISABLED = "disabled"
    TERMINATING = "terminating"
    COMPLETED = "completed"
    DELETING = "deleting"


class TaskState(StrEnum):
    """Where a task stands."""

    ACTIVE = "active"
    PREPARING = "preparing"
    RUNNING = "running"
    COMPLETED = "completed"


class ExecutionState(StrEnum):
    """Where a start, preparation or release task stands on a node."""

    RUNNING = "running"
    COMPLETED = "completed"


class Result(StrEnum):
    """How something ended."""

    SUCCESS = "success"
    FAILURE = "failure"


class Ending(StrEnum):
    """Why a run is ended from outside."""

    #: A client, its job or its node asked for the end: the task completes.
    TERMINATED = "terminated"
    #: It took longer than its constraints allow: the task completes.
    WALL_CLOCK = "wallclock"
    #: Its place is needed, as a client wished: the task goes back into the queue, which counts as a requeue.
    REQUEUE = "requeue"
    #: Its place is lost, and nobody asked for that: the task goes back into the queue.
    LOST = "lost"
    #: Nobody asks any more what becomes of it: it is deleted, or the service stops.
    DISCARD = "discard"


class Dealing(StrEnum):
    """What becomes of a node's tasks when the node is to rest or to go."""

    REQUEUE = "requeue"
    TERMINATE = "terminate"
    TASK_COMPLETION = "taskcompletion"
    RETAINED_DATA = "retaineddata"

    @property
    def patient(self) -> bool:
        """Whether the tasks are waited for."""
        return self in (Dealing.TASK_COMPLETION, Dealing.RETAINED_DATA)

    @property
    def ending(self) -> Ending:
        """How the runs end that are not waited for."""
        return Ending.TERMINATED if self is Dealing.TERMINATE else Ending.REQUEUE


class DisableTasks(StrEnum):
    """What becomes of a job's running tasks when the job is disabled."""

    REQUEUE = "requeue"
    TERMINATE = "terminate"
    WAIT = "wait"


class TaskWish(StrEnum):
    """What was asked of a running task, and was promised."""

    NONE = ""
    TERMINATE = "terminate"


class NodeWish(StrEnum):
    """What was asked of a node, and was promised: the state that it is to pass into."""

    NONE = ""
    REBOOT = "rebooting"
    REIMAGE = "reimaging"
    DEALLOCATE = "deallocating"
    LEAVE = "leavingpool"

    @property
    def wipes(self) -> bool:
        """Whether the node's files go."""
        return self in (NodeWish.REIMAGE, NodeWish.DEALLOCATE, NodeWish.LEAVE)


class JobAction(StrEnum):
    """What becomes of a job when one of its tasks ends."""

    NONE = "none"
    DISABLE = "disable"
    TERMINATE = "terminate"
