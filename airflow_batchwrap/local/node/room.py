"""How much the doors of nodes may hold open, over all nodes: whoever is on this machine may knock at them."""

from __future__ import annotations

import resource

#: As many connections as no farm's endpoints have, where this process may open many more files.
MANY = 1024


def most() -> int:
    """How many connections through doors leave enough of the files that this process may open to the rest of it.

    :return: an eighth of them, since each takes two, and `MANY` at most.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MANY if files < 0 else min(MANY, files // 8)


class Room:
    """Counts what is held open.

    if room.take():
        ...
        room.give_back()

    :param size: how many there may be.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self._left <= 0

    def take(self) -> bool:
        """Take room for one more.

        :return: whether there was any.
        """
        if self.full:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Give back what `take` took."""
        self._left += 1
