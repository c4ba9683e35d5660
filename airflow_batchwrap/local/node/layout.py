"""Where things are on a node, and the one place that turns a client's path into a path on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from airflow_batchwrap.local.node import opening, removal, threads

#: The directories of a node's root (seen on real nodes).
NODE_DIRECTORIES = ("applications", "fsmounts", "shared", "startup", "volatile", "workitems")


def make_nodes(roots: Sequence[Path]) -> list[OSError | None]:
    """Make the directories of some nodes; those that are there stay as they are. What a task put in their place goes.

    :param roots: the nodes' roots.
    :return: of each node, why they cannot be made; None where they are there.
    """
    return [_make_node(root) for root in roots]


def _make_node(root: Path) -> OSError | None:
    try:
        top = _made(root.parent, (root.name,))
        try:
            for name in NODE_DIRECTORIES:
                try:
                    os.mkdir(name, dir_fd=top)
                except FileExistsError:
                    os.close(_made(top, (name,)))
        finally:
            os.close(top)
    except OSError as error:
        return error
    return None


def _made(base: Path | int, parts: tuple[str, ...]) -> int:
    if isinstance(base, Path):
        # A task may have removed the directory of all nodes.
        opening.made(str(base))
    return opening.descend(base, parts, make=True, replace=True, unlocking=True)


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


def aside(root: Path) -> Path:
    """Where to what cannot be removed from a node is moved.

    :param root: the node's root.
    :return: the path, in the data directory.
    """
    return root.parent.parent / "removed"


async def make_task(directory: Path, root: Path, *, keep: bool = False) -> Path:
    """Make a task's directories, empty unless they are to be kept.

    :param directory: the task's directory.
    :param root: the node's root. What another task has locked on the way from there is opened, and what it has put
        there in place of a directory goes.
    :param keep: leave what an earlier run left in the working directory (a start task's is never cleaned).
    :return: the working directory.
    :raises OSError: they cannot be made.
    """
    if not keep and not await removal.remove_in_turns(directory, root.parent):
        await threads.apart(removal.set_aside, directory, aside(root), root.parent)
    await threads.apart(_make_task, directory, root)
    return directory / "wd"


def _make_task(directory: Path, root: Path) -> None:
    here = _made(root.parent, directory.relative_to(root.parent).parts)
    try:
        for name in ("wd", "certs"):
            os.close(_made(here, (name,)))
    finally:
        os.close(here)


def open_task(directory: Path, root: Path) -> int:
    """Open a task's directory, for what the service writes there.

    :param directory: the task's directory.
    :param root: the node's root.
    :return: a descriptor, to be closed.
    :raises OSError: it is gone, or a task put something else in its place.
    """
    return opening.descend(root.parent, directory.relative_to(root.parent).parts)
