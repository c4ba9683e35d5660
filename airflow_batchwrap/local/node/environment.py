"""The environment a command line finds on a node, and how the line is split."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_QUOTING = re.compile(r"""['"\\]""")
_SPACE = re.compile(r"[ \t\r\n]+")


@functools.cache
def base() -> dict[str, str]:
    """What every command finds beside Batch's own variables: a PATH with a python3 on it, and the locale.

    Nothing else of the service's environment reaches a command: on a node there would be none of it.

    :return: the variables; not to be changed, since all commands share them.
    """
    path = os.environ.get("PATH", os.defpath)
    if shutil.which("python3", path=path) is None:
        path = os.pathsep.join([path, str(Path(sys.executable).parent)])
    found = {"PATH": path}
    if "LANG" in os.environ:
        found["LANG"] = os.environ["LANG"]
    return found


def of_node(account: str, url: str, pool_id: str, node_id: str, dedicated: bool, root: Path) -> dict[str, str]:
    """Batch's variables that are the same for every command on a node.

    :param account: the account's name.
    :param url: the service's address.
    :param pool_id: the pool's id.
    :param node_id: the node's id.
    :param dedicated: whether it is a dedicated node, not a spot one.
    :param root: the node's root directory.
    :return: the variables.
    """
    return {
        "AZ_BATCH_ACCOUNT_NAME": account,
        "AZ_BATCH_ACCOUNT_URL": url,
        "AZ_BATCH_POOL_ID": pool_id,
        "AZ_BATCH_NODE_ID": node_id,
        "AZ_BATCH_NODE_IS_DEDICATED": "true" if dedicated else "false",
        "AZ_BATCH_NODE_ROOT_DIR": str(root),
        "AZ_BATCH_NODE_SHARED_DIR": str(root / "shared"),
        "AZ_BATCH_NODE_STARTUP_DIR": str(root / "startup"),
        "AZ_BATCH_NODE_MOUNTS_DIR": str(root / "fsmounts"),
    }


def of_task(directory: Path) -> dict[str, str]:
    """Batch's variables that name a command's own directories.

    :param directory: the task's directory.
    :return: the variables, HOME among them: an auto user's home is the task's working directory.
    """
    return {
        "AZ_BATCH_TASK_DIR": str(directory),
        "AZ_BATCH_TASK_WORKING_DIR": str(directory / "wd"),
        "HOME": str(directory / "wd"),
    }


#: By these a command's processes are found where nothing owns them (macOS): a client cannot set them.
_OWN = frozenset({"AZ_BATCH_NODE_ROOT_DIR", "AZ_BATCH_TASK_DIR"})


def settings(*lists: Iterable[dict[str, Any]] | None) -> dict[str, str]:
    """Environment settings as clients give them; a later list wins over an earlier one.

    :param lists: the lists, each may be absent.
    :return: the variables, without those that say where a command's own directory is.
    """
    return {item["name"]: item.get("value", "") for one in lists for item in one or () if item["name"] not in _OWN}


def split(command_line: str) -> list[str]:
    """A command line as a list of arguments: quotes and backslashes as in a shell, and nothing else of a shell.

    :param command_line: the line.
    :return: program and arguments.
    :raises ValueError: a quote is not closed, or there is no program.
    """
    # Most lines hold no quotes, and shlex takes its time.
    words = shlex.split(command_line) if _QUOTING.search(command_line) else _SPACE.split(command_line.strip(" \t\r\n"))
    if not words or not words[0]:
        raise ValueError("the command line is empty")
    return words
