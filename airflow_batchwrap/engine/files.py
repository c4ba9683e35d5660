"""The files that a step chose: checked when it names them, staged as they are when it ends."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set, Tuple, Union

from .errors import Unusable
from .output import say
from .paths import RESERVED, digest, inside, remove
from .protocol import FILES_DIR, OUT_DIR, ResultFile

NO_BLOB_NAME = (
    "has a control character, a backslash or a byte that is not UTF-8 in its name, which no blob can have: rename it"
)


class ChosenFiles:
    """What ``engine.add_file_to_upload`` was called with.

    :param work: the working directory; nothing outside it is uploaded.
    :param links: the names of the engine's own links to inputs, the only links that are followed.
    :param inputs: the directory that those links lead to.
    """

    def __init__(self, work: Path, links: List[str], inputs: Optional[Path]) -> None:
        self._work = os.path.realpath(str(work))
        self._links = frozenset(links)
        self._inputs = os.path.realpath(str(inputs)) if inputs is not None else None
        self._names: Dict[str, None] = {}  # in the order in which they were chosen, each once

    def add(self, path: Union[str, os.PathLike[str]]) -> None:
        """
        :param path: a file or a directory below the working directory.
        :raises FileNotFoundError: there is nothing of that name now.
        :raises ValueError: it leads out of the working directory, through a link, or is the engine's own.
        """
        given = os.fsdecode(path)
        name = self._contained(given)
        full = os.path.join(self._work, name)
        if not os.path.lexists(full):
            raise FileNotFoundError(
                f"add_file_to_upload({given!r}): there is no such file in the working directory: write it before you "
                "choose it"
            )
        if name in self._names:
            return
        if os.path.isdir(full) and not os.path.islink(full):
            for _ in self._below(name, given):  # so that the error for a link in it names the line that chose it
                pass
        else:
            self._check_file(name, given)
        self._names[name] = None

    def stage(self, strict: bool = True) -> List[ResultFile]:
        """Put the chosen files, as they are now, where Batch's output files pick them up.

        :param strict: False where the step failed already: then a file that is gone is only mentioned.
        :raises Unusable: a chosen file is gone, or became something else.
        """
        found: Set[str] = set()
        for name in self._names:
            try:
                below = list(self._files(name))
            except (OSError, ValueError) as error:
                if strict:
                    raise Unusable(str(error)) from None
                say(f"not uploaded: {error}")
                continue
            if not below:
                say(f"the directory {name!r} was chosen for upload and holds no file")
            found.update(below)
        return stage_files(Path(self._work), found, Path(self._work, OUT_DIR, FILES_DIR), strict)

    def _contained(self, given: str) -> str:
        """Return the name relative to the working directory."""
        remedy = "only files below the step's working directory are uploaded; copy it there and choose the copy"
        if not given or ".." in given.split("/"):
            raise ValueError(f"add_file_to_upload({given!r}): the path is empty or holds '..': {remedy}")
        # A step may have changed into another directory: then it means a file of that one.
        full = os.path.normpath(os.path.join(os.getcwd(), given))
        # The parent's real path, for a working directory that has two names; the last component may be an input link.
        parent, last = os.path.split(full)
        if full != self._work and not inside(full, self._work):
            full = os.path.join(os.path.realpath(parent), last)
        if full == self._work:
            return "."
        if not inside(full, self._work):
            raise ValueError(f"add_file_to_upload({given!r}) leads out of the working directory: {remedy}")
        name = os.path.relpath(full, self._work).replace(os.sep, "/")
        if name.split("/")[0] in RESERVED:
            raise ValueError(f"add_file_to_upload({given!r}): that name is the engine's own: use another one")
        self._check_folders(name, given)
        return name

    def _check_folders(self, name: str, given: str) -> None:
        parts = name.split("/")
        for count in range(1, len(parts)):
            if os.path.islink(os.path.join(self._work, *parts[:count])):
                raise ValueError(
                    f"add_file_to_upload({given!r}) goes through the link {'/'.join(parts[:count])!r}: links are not "
                    "followed; copy the file and choose the copy"
                )

    def _check_file(self, name: str, given: str) -> None:
        full = os.path.join(self._work, name)
        if os.path.islink(full):
            real = os.path.realpath(full)
            if name not in self._links or self._inputs is None or not inside(real, self._inputs):
                raise ValueError(
                    f"add_file_to_upload({given!r}): {name!r} is a link, and only the engine's own links to inputs are "
                    "followed; copy what it leads to and choose the copy"
                )
        if not stat.S_ISREG(os.stat(full).st_mode):
            raise ValueError(f"add_file_to_upload({given!r}): {name!r} is neither a file nor a directory")
        if not is_blob_name(name):
            raise ValueError(f"add_file_to_upload({given!r}): {name!r} {NO_BLOB_NAME}")

    def _files(self, name: str) -> Iterator[str]:
        full = os.path.join(self._work, name)
        if not os.path.lexists(full):
            raise FileNotFoundError(
                f"{name!r} was chosen with add_file_to_upload and is gone at the end of the step: keep it until "
                "do_action returns"
            )
        self._check_folders(name, name)
        if os.path.isdir(full) and not os.path.islink(full):
            yield from self._below(name, name)
        else:
            self._check_file(name, name)
            yield name

    def _below(self, name: str, given: str) -> Iterator[str]:
        """Every file below a directory; a directory that cannot be read is an error, not an omission."""

        def fail(error: OSError) -> None:
            raise error

        top = os.path.join(self._work, name)
        for folder, folders, names in os.walk(top, onerror=fail):
            here = os.path.relpath(folder, self._work).replace(os.sep, "/")
            prefix = "" if here == "." else here + "/"
            if not prefix:
                folders[:] = [item for item in folders if item not in RESERVED]
                names = [item for item in names if item not in RESERVED]
            linked = [item for item in folders if os.path.islink(os.path.join(folder, item))]
            for item in sorted(names + linked):
                self._check_file(prefix + item, given)
                yield prefix + item


def is_blob_name(name: str) -> bool:
    """Whether a blob can have this name; see :data:`NO_BLOB_NAME`."""
    return not any(ord(sign) < 32 or sign == "\\" or 0xD800 <= ord(sign) <= 0xDFFF for sign in name)


def stage_files(base: Path, names: Set[str], target: Path, strict: bool) -> List[ResultFile]:
    """Put files, as they are now, where Batch's output files pick them up.

    :param base: what the names are relative to.
    :param target: the folder where they are put.
    :param strict: False where the step failed already: then a file that cannot be had is only mentioned.
    """
    staged = []
    for name, stored in sorted(stored_names(names).items()):
        copy = target / stored
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _place(base / name, copy)
            size, sha256 = digest(copy)
        except OSError as error:  # unreadable, or a disk that is full
            if strict:
                raise
            say(f"not uploaded: {error}")  # what ended the step is worth more than this
            continue
        staged.append(ResultFile(path=name, stored=stored, size=size, sha256=sha256))
    return staged


def _place(source: Path, target: Path) -> None:
    """A hard link costs nothing whatever the file's size; where there can be none (another file system), a copy."""
    real = os.path.realpath(str(source))
    remove(target)  # staging may have begun before
    try:
        os.link(real, str(target))
    except OSError:
        shutil.copyfile(real, str(target))


def stored_names(names: Set[str]) -> Dict[str, str]:
    """Give every path a name without leading dots, which Batch's output file patterns would skip.

    A component that starts with a dot gets ``dot`` before it, and a number behind it where that name is taken among
    its neighbours; every other component keeps its name.

    :param names: paths with forward slashes.
    :return: path -> stored path; no two alike.
    """
    neighbours: Dict[Tuple[str, ...], Set[str]] = {}
    for name in names:
        parts = tuple(name.split("/"))
        for count in range(len(parts)):
            neighbours.setdefault(parts[:count], set()).add(parts[count])
    stored: Dict[Tuple[str, ...], str] = {}
    for folder, components in neighbours.items():
        taken = {item for item in components if not item.startswith(".")}
        for item in sorted(components):
            new, number = item, 1
            if item.startswith("."):
                new = "dot" + item
                while new in taken:
                    number += 1
                    new = f"dot{item}.{number}"
                taken.add(new)
            stored[(*folder, item)] = new
    result = {}
    for name in names:
        parts = tuple(name.split("/"))
        result[name] = "/".join(stored[parts[: count + 1]] for count in range(len(parts)))
    return result
