"""How many looks in a row may fail in the triggerer, before another try has to see why."""

from __future__ import annotations

from airflow_batchwrap.exceptions import AccessDenied, BatchWrapError

#: Looks in a row that may fail. With a watcher's back-off they take a minute.
MOST = 5


class Patience:
    """Count the looks in a row that failed in a way that may pass by itself, or that no code expects.

    A refusal of the credentials is such a failure: a service may take a while to know a new role. Whoever looks next
    signs in anew.
    """

    def __init__(self) -> None:
        self._failures = 0

    def lasts(self, error: Exception) -> bool:
        """Return whether to look once more, and count this failure."""
        if isinstance(error, BatchWrapError) and not isinstance(error, AccessDenied):
            return False
        self._failures += 1
        return self._failures <= MOST

    def renew(self) -> None:
        """Forget the failures: a look has succeeded."""
        self._failures = 0


def said_of(error: Exception) -> str:
    """Return the log line of a failed look: of an unexpected error its type alone, since its text may hold a secret."""
    return str(error) if isinstance(error, BatchWrapError) else f"A look failed: {type(error).__name__}"
