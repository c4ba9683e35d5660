"""Application packages: a local folder in place of the account's storage, and what of it reaches a node.

In the data directory, ``applications/<application>/<version>.zip`` or a folder ``applications/<application>/<version>``
is a version, and ``applications/<application>/application.json`` may hold ``displayName`` and ``defaultVersion``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import zipfile
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node import opening, removal, threads
from airflow_batchwrap.local.node.incoming import PlaceError, parts_of
from airflow_batchwrap.local.node.transfer import TaskFailed

#: What an application and a version may be called (Learn: letters, digits, hyphens, underscores; versions dots too).
_NAME, _VERSION = re.compile(r"[A-Za-z0-9_-]{1,64}"), re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ABOUT = "application.json"
#: How much is read of it, in bytes.
_LARGEST = 64 * 1024
#: How much of a file is unpacked before others have a look at the clock, in bytes.
_CHUNK = 256 * 1024


class PackageMissing(Exception):
    """An application, or a version of it, does not exist."""

    @property
    def known(self) -> bool:
        """Whether there is such an application, and only the version is missing."""
        return " no application " not in str(self)


#: What `deploy` may fail with. NotImplementedError, RuntimeError: a zip file is packed or locked in a way unknown here.
FAULTS = (PackageMissing, PlaceError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError)

#: The deployments that are under way, by where they lead.
_under_way: dict[Path, asyncio.Task[None]] = {}


def names(data: Path) -> list[str]:
    """The ids of all applications.

    :param data: the data directory.
    :return: the ids, sorted.
    """
    try:
        return sorted(each.name for each in (data / "applications").iterdir() if _is_application(each))
    except OSError:
        return []


def _is_application(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name)) and path.is_dir()


def describe(data: Path, name: str) -> dict[str, Any]:
    """An application.

    :param data: the data directory.
    :param name: its id.
    :return: id, display name and versions.
    :raises PackageMissing: there is none of this id.
    """
    folder = _folder(data, name)
    versions = {
        each.name if each.is_dir() else each.name.removesuffix(".zip")
        for each in folder.iterdir()
        if each.is_dir() or each.suffix == ".zip"
    }
    listed = sorted(version for version in versions if _legal(version))
    return {"id": folder.name, "displayName": _about(folder).get("displayName", ""), "versions": listed}


def _folder(data: Path, name: str) -> Path:
    if _is_application(data / "applications" / name):
        return data / "applications" / name
    # Ids are case-insensitive, as all of Batch's are.
    for known in names(data):
        if known.lower() == name.lower():
            return data / "applications" / known
    raise PackageMissing(f"there is no application {name!r}")


def _legal(version: str) -> bool:
    return bool(_VERSION.fullmatch(version)) and version not in (".", "..")


def _about(folder: Path) -> dict[str, str]:
    try:
        descriptor, _ = opening.plain(folder / _ABOUT)
        with os.fdopen(descriptor, "rb") as file:
            about = json.loads(file.read(_LARGEST))
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in about.items()} if isinstance(about, dict) else {}


def find(data: Path, reference: dict[str, Any]) -> tuple[Path, str, str]:
    """What a reference to a package names.

    :param data: the data directory.
    :param reference: an ``ApplicationPackageReference``; its id may be a whole resource id.
    :return: the zip file or folder, the application's id and the version.
    :raises PackageMissing: there is no such version, or none was given and there is no default one.
    """
    folder = _folder(data, str(reference["applicationId"]).rstrip("/").rpartition("/")[2])
    version = reference.get("version") or _about(folder).get("defaultVersion")
    if not version:
        raise PackageMissing(f"no version of {folder.name!r} is given, and it has no default one")
    if _legal(version):
        for path in (folder / f"{version}.zip", folder / version):
            if path.is_file() or path.is_dir():
                return path, folder.name, version
    raise PackageMissing(f"there is no version {version!r} of {folder.name!r}")


def variable(reference: dict[str, Any]) -> str:
    """The name of the environment variable that tells where a package is.

    :param reference: the reference.
    :return: such as ``AZ_BATCH_APP_PACKAGE_blender_2_7``; the version only where it was given.
    """
    name = str(reference["applicationId"]).rstrip("/").rpartition("/")[2]
    version = f"_{reference['version']}" if reference.get("version") else ""
    # Learn: on Linux, characters that a variable's name cannot have become underscores.
    return "AZ_BATCH_APP_PACKAGE_" + re.sub(r"[^A-Za-z0-9_]", "_", name + version)


def place(root: Path, name: str, version: str) -> Path:
    """Where a package is on a node.

    :param root: the node's root.
    :param name: the application's id.
    :param version: the version.
    :return: the path.
    """
    return root / "applications" / name / version


async def deploy(data: Path, root: Path, references: list[dict[str, Any]]) -> None:
    """Bring packages to a node; one that is there already stays as it is.

    Tasks that start on a node together and need the same package wait for one deployment, which is that of all: it is
    whole for all of them, or fails for all. The next task tries again.

    :param data: the data directory.
    :param root: the node's root.
    :param references: the packages.
    :raises PackageMissing: one does not exist.
    :raises OSError: one cannot be written.
    :raises zipfile.BadZipFile: one is no zip file.
    :raises PlaceError: a file of one leads out of it.
    """
    for reference in references:
        source, name, version = await threads.apart(find, data, reference)
        target = place(root, name, version)
        if target not in _under_way:
            task = _under_way[target] = asyncio.create_task(_deploy_one(source, root, target))
            task.add_done_callback(lambda done, target=target: _over(done, target))  # type: ignore[misc]
        # A task that is ended while it waits does not end the deployment for the others.
        await asyncio.shield(_under_way[target])


def _over(done: asyncio.Task[None], target: Path) -> None:
    _under_way.pop(target, None)
    if not done.cancelled():
        # Nobody may be left to be told.
        done.exception()


async def _deploy_one(source: Path, root: Path, target: Path) -> None:
    if await threads.apart(_is_there, root, target):
        return
    # What an earlier service has left half done.
    half = target.with_name(f".{target.name}.part")
    await removal.remove_in_turns(half, root.parent)
    await threads.finish(_bring(source, root, half))
    await threads.apart(_show, root, half, target)


def _is_there(root: Path, target: Path) -> bool:
    try:
        os.close(opening.descend(root.parent, target.relative_to(root.parent).parts))
    except OSError:
        return False
    return True


def _show(root: Path, half: Path, target: Path) -> None:
    above = opening.descend(root.parent, target.parent.relative_to(root.parent).parts)
    try:
        # No directory is there, but a task may have put something else in its place.
        opening.make_way(above, target.name)
        os.rename(half.name, target.name, src_dir_fd=above, dst_dir_fd=above)
    finally:
        os.close(above)


def _bring(source: Path, root: Path, half: Path) -> Generator[None, None, None]:
    parts = half.relative_to(root.parent).parts
    top = opening.descend(root.parent, parts, make=True, replace=True, unlocking=True)
    try:
        yield from (_copy if source.is_dir() else _extract)(source, top)
    finally:
        os.close(top)


def _copy(source: Path, top: int) -> Generator[None, None, None]:
    """Copy a folder, with no recursion; links stay links, and what is neither file nor folder is left out."""
    below = [""]
    while below:
        relative = below.pop()
        here = opening.descend(top, [part for part in relative.split("/") if part], make=True)
        try:
            with os.scandir(source / relative) as listing:
                for entry in listing:
                    if entry.is_symlink():
                        os.symlink(Path(entry.path).readlink(), entry.name, dir_fd=here)
                    elif entry.is_dir():
                        below.append(f"{relative}/{entry.name}".lstrip("/"))
                    elif entry.is_file():
                        descriptor, status = opening.plain(entry.path)
                        with os.fdopen(descriptor, "rb") as file:
                            yield from _write(file.read, here, entry.name, stat.S_IMODE(status.st_mode))
                    yield
        finally:
            os.close(here)


def _extract(source: Path, top: int) -> Generator[None, None, None]:
    descriptor, _ = opening.plain(source)
    with os.fdopen(descriptor, "rb") as file, zipfile.ZipFile(file) as archive:
        for item in archive.infolist():
            parts = [part for part in item.filename.split("/") if part not in ("", ".")]
            if not parts:
                continue
            *above, name = parts_of(item.filename)
            here = opening.descend(top, [*above, name] if item.is_dir() else above, make=True)
            try:
                if not item.is_dir():
                    # Not in every archive: those made on Windows carry no mode.
                    mode = (item.external_attr >> 16) & 0o777 or 0o755
                    with archive.open(item) as packed:
                        yield from _write(packed.read, here, name, mode)
            finally:
                os.close(here)
            yield


def _write(read: Callable[[int], bytes], directory: int, name: str, mode: int) -> Generator[None, None, None]:
    with os.fdopen(opening.writing(directory, name), "wb") as file:
        while chunk := read(_CHUNK):
            file.write(chunk)
            yield
        os.fchmod(file.fileno(), mode)


def variables(data: Path, root: Path, references: list[dict[str, Any]]) -> dict[str, str]:
    """The variables that tell commands where their packages are.

    :param data: the data directory.
    :param root: the node's root.
    :param references: the packages; those that do not exist are left out.
    :return: the variables.
    """
    found: dict[str, str] = {}
    for reference in references:
        try:
            _, name, version = find(data, reference)
        except PackageMissing:
            continue
        found[variable(reference)] = str(place(root, name, version))
    return found


def bringing(data: Path, root: Path, references: list[dict[str, Any]]) -> Callable[[], Awaitable[None]]:
    """What brings a task's packages to its node.

    :param data: the data directory.
    :param root: the node's root.
    :param references: the packages.
    :return: a function that raises `TaskFailed` where one cannot be had.
    """

    async def bring() -> None:
        try:
            await deploy(data, root, references)
        except FAULTS as error:
            raise TaskFailed("ApplicationPackageError", f"An application package: {error}.") from None

    return bring
