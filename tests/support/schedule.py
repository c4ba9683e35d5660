"""Which tests `make test` gives to which of its three processes, and in which order.

A file stays in one process, since its fixtures are made once there. The folder with the shared Airflow stays in one
process as a whole. What starts a real Airflow takes minutes and most of a core: it comes early, and no three at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
#: The folder whose tests share one Airflow.
SHARED = "tests/integration/real/"
# The three that start a real Airflow are the first, the third and the last: what is between them takes as long as they
# do. Short files at the end keep all processes busy to the last.
_ORDER = (
    SHARED,
    "tests/unit/",
    "tests/kills/",
    # One test, which takes as long as a quarter of the others: at the end, two processes would wait for it.
    "tests/integration/test_as_user.py",
    "tests/wire/",
    "tests/integration/test_real_airflow.py",
)


def unit_of(test_id: str) -> str:
    """Return what stays in one process with a test: its file, or the folder that shares an Airflow."""
    return SHARED if test_id.startswith(SHARED) else test_id.partition("::")[0]


def rank(test_id: str) -> int:
    """Return a test's place: those of a lower rank begin first."""
    return next((place for place, start in enumerate(_ORDER) if test_id.startswith(start)), len(_ORDER))


def scheduler(config: pytest.Config, log: Any) -> object:
    """Return the scheduler for ``--dist=loadfile``."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    # Its own order is that of the number of tests, which puts the longest at the end.
    config.option.loadscopereorder = False
    return Scheduling(config, log)
