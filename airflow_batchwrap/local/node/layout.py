"""Where things are on a node, and the one place that turns a client's path into a path on this machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath

from airflow_batchwrap.local.node.removal import remove, unlock, unlock_above

#: The directories of a node's root (seen on real nodes).
NODE_DIRECTORIES = ("applications", "fsmounts", "shared", "startup", "volatile", "workitems")


class OutsideError(Exception):
    """A path leads out of the directory it has to stay in."""


def make_node(root: Path) -> None:
    """Make a node's directories; those that are there stay as they are.

    :param root: the node's root.
    """
    unlock(root)
    for name in NODE_DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
        unlock(root / name)


def auto_storage(root: Path) -> Path:
    """The file that holds the address of the account's auto storage.

    :param root: a node's root.
    :return: the path, in the data directory.
    """
    return root.parent.parent / "auto-storage"


def job_directory(root: Path, job_id: str) -> Path:
    """The directory of a job on a node.

    :param root: the node's root.
    :param job_id: the job's id.
    :return: the path.
    """
    return root / relative_job_directory(job_id)


def relative_job_directory(job_id: str) -> str:
    """The directory of a job, as Batch names it: that of its schedule, where a schedule created it.

    :param job_id: the job's id, ``<schedule>:job-2`` where it is of a schedule.
    :return: the path, relative to a node's root.
    """
    name, _, number = job_id.partition(":")
    return f"workitems/{name}/{number or 'job-1'}"


def relative_task_directory(job_id: str, task_id: str) -> str:
    """The directory of a task, as Batch names it: relative to the node's root.

    :param job_id: the job's id.
    :param task_id: the task's id.
    :return: the path.
    """
    return f"{relative_job_directory(job_id)}/{task_id}"


def make_task(directory: Path, root: Path, *, keep: bool = False) -> Path:
    """Make a task's directories, empty unless they are to be kept.

    :param directory: the task's directory.
    :param root: the node's root. What another task has locked on the way from there is opened.
    :param keep: leave what an earlier run left in the working directory (a start task's is never cleaned).
    :return: the working directory.
    """
    working = directory / "wd"
    unlock_above(directory, root.parent)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        if not keep:
            remove(directory)
        unlock(directory)
    working.mkdir(parents=True, exist_ok=True)
    (directory / "certs").mkdir(exist_ok=True)
    return working


def leads_inside(path: Path, root: Path) -> bool:
    """Whether a path, its symbolic links followed, is below a directory.

    :param path: the path.
    :param root: the directory, with no symbolic link in its own path.
    :return: False also for a link that leads to itself.
    """
    try:
        # Path.resolve() says so by a RuntimeError, and since Python 3.13 not at all.
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
    return Path(os.path.realpath(path)).is_relative_to(root)


def inside(root: Path, relative: str) -> Path:
    """A path below a directory, whatever the relative path or a symbolic link on the way says.

    :param root: the directory, with no symbolic link in its own path.
    :param relative: the path below it, with slashes.
    :return: the path; its last part may be a symbolic link only if that leads inside too.
    :raises OutsideError: the path is absolute, has a `..` in it, or a link leads out.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\0" in relative:
        raise OutsideError(f"The path {relative!r} leads out of its directory.")
    path = root.joinpath(*pure.parts)
    if not leads_inside(path, root):
        raise OutsideError(f"The path {relative!r} leads out of its directory through a symbolic link.")
    return path
