"""What runs below a state directory, written down as it is started, so that any later command can stop all of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.stack import airflow, process
from airflow_batchwrap.stack.process import ProcessId

_FILE = "state.json"
# Azure's variable for a node's root folder: the local Batch service sets it for what it runs, and only that.
_NODE_ROOT = "AZ_BATCH_NODE_ROOT_DIR"
# Where the local Batch service of a state directory has its nodes, to which the processes of its tasks belong.
_BATCH_NODES = Path("batch/nodes")
# How often what is left is looked for again: processes start others until they are killed.
_PASSES = 20
# The local Batch service ends its nodes' processes before itself.
_SERVICE_GRACE = 8.0


class Record(BaseModel):
    """What runs below one state directory.

    :param state: "starting" or "up".
    :param owner: the command that stops it all at its end; None where it was left running on purpose.
    :param services: "azurite" and "batch" -> their processes.
    :param airflow: Airflow's component -> its process.
    :param addresses: name -> address, for a person to read.
    """

    model_config = ConfigDict(extra="forbid")

    state: Literal["starting", "up"] = "starting"
    owner: ProcessId | None = None
    services: dict[str, ProcessId] = {}
    airflow: dict[str, ProcessId] = {}
    addresses: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what a state directory says.

        :return: its record; None where there is none, or none that can be read.
        """
        try:
            return cls.model_validate_json((folder / _FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Write it down, whole or not at all."""
        descriptor, name = tempfile.mkstemp(prefix=_FILE, dir=folder)
        with os.fdopen(descriptor, "w") as file:
            file.write(self.model_dump_json(indent=1))
        Path(name).replace(folder / _FILE)

    def died(self) -> list[str]:
        """Return which of the processes run no more."""
        return [name for name, each in {**self.services, **self.airflow}.items() if each.process() is None]

    def owner_runs(self) -> bool:
        """Return whether the command that is responsible for it still runs."""
        return self.owner is not None and self.owner.process() is not None


def make_folder(folder: Path) -> Path:
    """Make a state directory, for its owner only.

    :return: its absolute path.
    :raises ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"Cannot make the state directory {folder}: {error.strerror}. Name one with --state."
        ) from None
    return folder.resolve()


@contextlib.contextmanager
def mark(folder: Path) -> Iterator[None]:
    """Mark what is started inside the ``with`` block as belonging to a state directory.

    :param folder: the state directory, absolute.
    """
    before = os.environ.get(process.MARK)
    os.environ[process.MARK] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[process.MARK]
        else:
            os.environ[process.MARK] = before


def what_is_left(folder: Path) -> list[psutil.Process]:
    """List what belongs to a state directory and runs, whether it was written down or not, with or without a parent.

    :param folder: the state directory, absolute.
    :return: the processes, those of the local Batch service's tasks among them.
    """
    found = process.belonging(folder) + process.belonging(folder / _BATCH_NODES)
    found += process.marked(process.MARK, str(folder)) + process.marked(_NODE_ROOT, str(folder))
    runs: dict[int, psutil.Process] = {}
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                runs[each.pid] = each
    return list(runs.values())


def sweep(folder: Path, *, grace: float = 3.0) -> int:
    """Stop all that runs below a state directory, whoever started it, and forget it.

    :param folder: the state directory, absolute.
    :param grace: seconds that Airflow's components are given.
    :return: how many processes there were.
    """
    record = Record.read(folder) or Record()
    found = {each.pid for each in process.family([*record.airflow.values(), *record.services.values()])}
    airflow.stop(record.airflow, grace=grace)
    process.stop(list(record.services.values()), grace=_SERVICE_GRACE)
    for _ in range(_PASSES):
        left = what_is_left(folder)
        if not left:
            break
        found |= {each.pid for each in left}
        process.kill(left)
    (folder / _FILE).unlink(missing_ok=True)
    return len(found)


def sweep_abandoned(base: Path) -> list[Path]:
    """Stop what commands that were killed have left running.

    :param base: the folder that holds the state directories.
    :return: the state directories where something was still running.
    """
    swept = []
    for path in sorted(base.glob(f"*/{_FILE}")):
        folder = path.parent.resolve()
        record = Record.read(folder)
        abandoned = record is not None and record.owner is not None and not record.owner_runs()
        if abandoned and sweep(folder, grace=1.0):
            swept.append(folder)
    return swept
