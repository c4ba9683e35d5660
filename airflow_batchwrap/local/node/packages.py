"""Application packages: a local folder in place of the account's storage, and what of it reaches a node.

In the data directory, ``applications/<application>/<version>.zip`` or a folder ``applications/<application>/<version>``
is a version, and ``applications/<application>/application.json`` may hold ``displayName`` and ``defaultVersion``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_batchwrap.local.node.layout import OutsideError, inside
from airflow_batchwrap.local.node.removal import remove
from airflow_batchwrap.local.node.transfer import TaskFailed

#: What an application and a version may be called (Learn: letters, digits, hyphens, underscores; versions dots too).
_NAME, _VERSION = re.compile(r"[A-Za-z0-9_-]{1,64}"), re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ABOUT = "application.json"


class PackageMissing(Exception):
    """An application, or a version of it, does not exist."""


#: What `deploy` may fail with.
FAULTS = (PackageMissing, OutsideError, OSError, zipfile.BadZipFile)


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
    return path.is_dir() and bool(_NAME.fullmatch(path.name))


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
    # Ids are case-insensitive, as all of Batch's are.
    for known in names(data):
        if known.lower() == name.lower():
            return data / "applications" / known
    raise PackageMissing(f"there is no application {name!r}")


def _legal(version: str) -> bool:
    return bool(_VERSION.fullmatch(version)) and version not in (".", "..")


def _about(folder: Path) -> dict[str, str]:
    try:
        about = json.loads((folder / _ABOUT).read_text())
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
            if path.exists():
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


def deploy(data: Path, root: Path, references: list[dict[str, Any]]) -> None:
    """Bring packages to a node; one that is there already stays as it is.

    :param data: the data directory.
    :param root: the node's root.
    :param references: the packages.
    :raises PackageMissing: one does not exist.
    :raises OSError: one cannot be written.
    :raises zipfile.BadZipFile: one is no zip file.
    :raises OutsideError: a file of one leads out of it.
    """
    for reference in references:
        source, name, version = find(data, reference)
        target = place(root, name, version)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{version}.{os.getpid()}")
        remove(half)
        if source.is_dir():
            shutil.copytree(source, half, symlinks=True)
        else:
            _extract(source, half)
        half.rename(target)


def _extract(source: Path, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(source) as archive:
        for item in archive.infolist():
            path = inside(target, item.filename.rstrip("/"))
            if item.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(item) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)
            # Not in every archive: those made on Windows carry no mode.
            path.chmod((item.external_attr >> 16) & 0o777 or 0o755)


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


def bringing(data: Path, root: Path, references: list[dict[str, Any]]) -> Callable[[], None]:
    """What brings a task's packages to its node.

    :param data: the data directory.
    :param root: the node's root.
    :param references: the packages.
    :return: a function that raises `TaskFailed` where one cannot be had.
    """

    def bring() -> None:
        try:
            deploy(data, root, references)
        except FAULTS as error:
            raise TaskFailed("ApplicationPackageError", f"An application package: {error}.") from None

    return bring
