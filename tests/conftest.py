"""Fixtures that every kind of test may ask for, and an Airflow home that is nobody's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.support import pythons, schedule

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService

# Airflow reads its home when it is first imported, which may be while the first test file is collected.
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
_HOME = Path(tempfile.mkdtemp(prefix="batchwrap-tests-"))
os.environ |= {
    "AIRFLOW_HOME": str(_HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(_HOME / "dags"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "AIRFLOW__BATCHWRAP__INSTANCE": "tests",
    "AIRFLOW__BATCHWRAP__RESULTS_BASE": str(_HOME / "results"),
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}

# How long an example takes says how busy the machine is; what must be quick has a test that measures it.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; files stay as they are."""
    items.sort(key=lambda item: schedule.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give what shares an Airflow to one process."""
    return schedule.scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_unconfigure() -> None:
    """Remove the Airflow home when the session is over."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def find_python() -> Callable[[str], str | None]:
    """Find another version of Python, such as 3.8: on PATH, or among those that pyenv or uv keep."""
    return pythons.find


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """An Airflow home with a migrated database, for what runs Airflow in this process (`dag.test()`)."""
    from airflow_batchwrap.stack import home

    home.migrate(_HOME / "airflow.db")
    return _HOME


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteService]:
    """Azurite's blob service on a free port, for the whole session: give containers names of their own."""
    from airflow_batchwrap.stack import azurite

    folder: Path = tmp_path_factory.mktemp("azurite")
    service = azurite.start(folder / "data", log=folder / "azurite.log")
    yield service
    service.stop()
