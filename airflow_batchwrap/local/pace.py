"""How long things take: at once, or as observed on the real service, and faster by a factor."""

from __future__ import annotations

from dataclasses import dataclass

#: Observed once on the real service (batch-wire-notes): a one-node pool took 72 s to steady, a node 20 s from creating
#: to idle, and a task 0.85 s from its creation to running, all in seconds.
AZURE = {"allocation": 72.0, "node": 20.0, "task": 0.85}
#: The profiles by name.
PROFILES: dict[str, dict[str, float]] = {"instant": {}, "azure": AZURE}
#: How long a preempted node is to be seen before another takes its place, in seconds of the service's time.
PREEMPTED = 1.0


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds of Azure's time.

    :param allocation: from a request for nodes to the nodes.
    :param node: from creating to idle, a start task's own time not counted.
    :param task: from a task's creation, or a slot's release, to running.
    :param scale: how many seconds of Azure's time pass in one second here.
    """

    allocation: float = 0.0
    node: float = 0.0
    task: float = 0.0
    scale: float = 1.0

    @classmethod
    def named(cls, profile: str, scale: float = 1.0) -> Pace:
        """The pace of a profile.

        :param profile: one of `PROFILES`.
        :param scale: how many seconds of Azure's time pass in one second here.
        :return: the pace.
        """
        return cls(scale=scale, **PROFILES[profile])

    def here(self, seconds: float) -> float:
        """A duration of Azure's time as it passes here.

        :param seconds: seconds of Azure's time.
        :return: seconds of this machine's time.
        """
        return seconds / self.scale


#: Nothing waits for show.
INSTANT = Pace()
