"""Whole numbers, kept as runs of neighbours."""

from __future__ import annotations

from sortedcontainers import SortedList


class Runs:
    """A set of whole numbers that knows at once which is the first one missing.

    runs = Runs()
    runs.add(2), runs.add(1), runs.add(4)
    runs.missing(1)    # 3
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: SortedList[int] = SortedList()
        #: The last number of each run, by its first.
        self._ends: dict[int, int] = {}

    def _run(self, number: int) -> int | None:
        """The first number of the run that holds a number; None where none does."""
        index = self._starts.bisect_right(number) - 1
        if index < 0 or number > self._ends[self._starts[index]]:
            return None
        return self._starts[index]

    def missing(self, number: int) -> int:
        """The first number that is not there, from another one on.

        :param number: that one.
        :return: the first missing one; it may be that one itself.
        """
        start = self._run(number)
        return number if start is None else self._ends[start] + 1

    def add(self, number: int) -> None:
        """Take a number in; one that is there is no error.

        :param number: the number.
        """
        if self._run(number) is not None:
            return
        start = self._run(number - 1)
        if start is None:
            start = number
            self._starts.add(start)
        end = self._ends.pop(number + 1, None)
        if end is not None:
            self._starts.remove(number + 1)
        self._ends[start] = number if end is None else end

    def remove(self, number: int) -> None:
        """Take a number out; one that is not there is no error.

        :param number: the number.
        """
        start = self._run(number)
        if start is None:
            return
        end = self._ends.pop(start)
        if start == number:
            self._starts.remove(start)
        else:
            self._ends[start] = number - 1
        if number < end:
            self._starts.add(number + 1)
            self._ends[number + 1] = end
