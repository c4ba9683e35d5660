"""Fetch the files that a run's steps chose from Blob."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_batchwrap.attempts.record import read_record
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, TryAgain
from airflow_batchwrap.hooks.errors import scrub
from airflow_batchwrap.links.step import ResultsLink, push_results_link
from airflow_batchwrap.naming import Attempt
from airflow_batchwrap.operators.base import BatchWrapOperator, Templated
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True)
class FetchedFile:
    """One result file.

    :param step: the task whose step chose it, without its group.
    :param blob: its name in the results container.
    :param path: where it is now.
    :param size: bytes.
    """

    step: str
    blob: str
    path: str
    size: int
    sha256: str


class FetchResultsOperator(BatchWrapOperator):
    """Download the result files of a run: side by side, checked by size and sha256, not twice.

    It runs after success only. A file of a failed run stays in Blob.

    :param workspace: what the set-up task returned.
    :param to: a local folder or the URL of an ObjectStoragePath; a relative one is below ``[batchwrap] results_base``,
        the DAG's id and the run's id.
    :param include: a pattern, or several, of ``<task>/<path>``: ``*`` within a folder, ``**`` across folders. One
        without a slash, such as ``*.csv``, is of the file's own name, wherever it lies.
    """

    operator_extra_links = (ResultsLink(),)

    def __init__(
        self,
        *,
        workspace: Templated[Any],
        to: Templated[str | Path] = "results",
        include: Templated[str | Sequence[str]] = "**/*",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        # Jinja renders a Path's attributes, not its text.
        self.to = str(to)
        self.include = include

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Download; return step, blob, path, size and sha256 of each file."""
        from airflow_batchwrap.hooks.blobs import side_by_side

        workspace = Workspace.from_xcom(self.workspace)
        push_results_link(context, self.hook, workspace)
        target = self._target(context)
        wanted = [self.include] if isinstance(self.include, str) else list(self.include)
        found = list(self._results(workspace))
        chosen = [item for item in found if any(_matches(f"{item[0]}/{item[1].path}", pattern) for pattern in wanted)]
        if found and not chosen:
            self.log.warning("None of the %s result files matches include=%r", len(found), self.include)
        paths = [target / f"{step}/{file.path}" for step, file, _ in chosen]
        _make_folders(target, paths)
        side_by_side(
            partial(self._fetch, workspace.output_container, blob, path, file)
            for (_, file, blob), path in zip(chosen, paths, strict=True)
        )
        fetched = [
            FetchedFile(step, blob, str(path), file.size, file.sha256)
            for (step, file, blob), path in zip(chosen, paths, strict=True)
        ]
        self.log.info("Fetched %s files to %s", len(fetched), target)
        return [asdict(file) for file in fetched]

    def _target(self, context: Context) -> ObjectStoragePath:
        """Return the folder to fill."""
        to = os.path.expanduser(self.to)  # noqa: PTH111 - a URL is no Path
        if "://" in to or posixpath.isabs(to):
            return _opened(to)
        if ".." in PurePosixPath(to).parts:
            raise ConfigError(
                f"Results folder {self.to!r} leads out of results_base. Use a plain name or a whole path."
            )
        from airflow.sdk.configuration import conf

        base = conf.get("batchwrap", "results_base", fallback="results")
        if "://" not in base:
            # Not the working directory: a worker's is anywhere.
            base = str(Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / Path(base).expanduser())
        return _opened(base) / self.dag_id / str(context["run_id"]).replace("/", "_") / to

    def _results(self, workspace: Workspace) -> Iterator[tuple[str, protocol.ResultFile, str]]:
        """Yield step, file and blob of every file of each step's newest attempt.

        The result record says which files there are. With a wildcard Batch may keep the literal part of the pattern in
        a blob's name or not, so both are looked for.
        """
        container, prefix = workspace.output_container, workspace.output_prefix
        blobs = self.hook.list_blobs(container, prefix + "/")
        newest: dict[str, Attempt] = {}
        for name in blobs:
            parts = name[len(prefix) + 1 :].split("/")
            attempt = Attempt.parse(parts[1]) if len(parts) == 3 and parts[2] == protocol.RESULT_FILE else None
            if attempt is not None and attempt.order > newest.get(parts[0], Attempt(0, 0)).order:
                newest[parts[0]] = attempt
        for step, attempt in sorted(newest.items()):
            folder = f"{prefix}/{step}/{attempt}"
            try:
                record = read_record(self.hook, container, folder)
                if record is None:
                    raise protocol.ProtocolError("it was deleted")
            except protocol.ProtocolError as error:
                raise ConfigError(
                    f"The result record of {step!r}, {folder}/{protocol.RESULT_FILE} in container {container!r}, "
                    f"cannot be read: {error}. Run the step again."
                ) from None
            for file in record.files:
                _contained(file.path)
                names = [
                    f"{folder}/{protocol.FILES_DIR}/{file.stored}",
                    f"{folder}/{protocol.FILES_DIR}/{protocol.OUT_DIR}/{protocol.FILES_DIR}/{file.stored}",
                ]
                blob = next((name for name in names if blobs.get(name) == file.size), None)
                if blob is None:
                    raise BatchWrapError(
                        f"Result file {file.path!r} of step {step!r} ({file.size} bytes) is not in container "
                        f"{container!r} at {names[0]!r}: it was deleted or replaced. Run the step again."
                    )
                yield step, file, blob

    def _fetch(self, container: str, blob: str, path: ObjectStoragePath, file: protocol.ResultFile) -> None:
        """Download one file, unless it is there already."""
        if _same(path, file):
            return
        try:
            if _is_local(path):
                # In the same folder, so that the rename at the end is one step: a broken fetch leaves no half file.
                with tempfile.NamedTemporaryFile(dir=path.parent.path, prefix=".batchwrap-", delete=False) as part:
                    try:
                        sha256 = self._pour(container, blob, part)
                        self._expect(sha256, blob, file)
                        Path(part.name).chmod(0o644)
                        Path(part.name).replace(path.path)
                    finally:
                        Path(part.name).unlink(missing_ok=True)
            else:
                with path.open("wb") as target:  # type: ignore[no-untyped-call]
                    sha256 = self._pour(container, blob, target)
                self._expect(sha256, blob, file)
        except OSError as error:
            raise _unwritable(str(path), error) from None

    def _pour(self, container: str, blob: str, target: Any) -> str:
        digest = hashlib.sha256()
        for chunk in self.hook.stream_blob(container, blob):
            digest.update(chunk)
            target.write(chunk)
        return digest.hexdigest()

    @staticmethod
    def _expect(sha256: str, blob: str, file: protocol.ResultFile) -> None:
        if sha256 != file.sha256:
            raise TryAgain(f"Blob {blob!r} does not have the content that its step left (sha256 {sha256[:12]}...).")


def _opened(folder: str) -> ObjectStoragePath:
    """Return a folder whose storage can be opened.

    :raises ConfigError: it cannot.
    """
    try:
        path = ObjectStoragePath(folder)
        path.fs  # noqa: B018 - a storage is opened on first use
    except Exception as error:  # whatever the storage's library raises
        raise ConfigError(
            f"Results folder {scrub(folder)!r} cannot be opened: {scrub(str(error))}. Check its scheme, the connection "
            "in it, and that Airflow's provider for that storage is installed."
        ) from None
    return path


def _same(path: ObjectStoragePath, file: protocol.ResultFile) -> bool:
    """Return whether an earlier fetch has left the file whole."""
    from airflow_batchwrap.hooks.blobs import hash_stream

    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with path.open("rb") as source:  # type: ignore[no-untyped-call]
            return hash_stream(source)[0] == file.sha256
    except OSError:
        return False


def _contained(path: str) -> None:
    parts = PurePosixPath(path).parts
    if posixpath.isabs(path) or ".." in parts or not parts or "\\" in path:
        raise ConfigError(f"Result file {path!r} leads out of the results folder. It is not fetched.")


def _matches(name: str, pattern: str) -> bool:
    """Match whole names: ``*`` and ``?`` within a folder, ``**`` across folders; without a slash, in any folder."""
    pattern = pattern if "/" in pattern else f"**/{pattern}"
    out = ""
    index = 0
    while index < len(pattern):
        if pattern.startswith("**/", index):
            out, index = out + "(?:.*/)?", index + 3
        elif pattern.startswith("**", index):
            out, index = out + ".*", index + 2
        elif pattern[index] == "*":
            out, index = out + "[^/]*", index + 1
        elif pattern[index] == "?":
            out, index = out + "[^/]", index + 1
        else:
            out, index = out + re.escape(pattern[index]), index + 1
    return re.fullmatch(out, name) is not None


def _is_local(path: ObjectStoragePath) -> bool:
    return path.protocol in ("", "file")


def _make_folders(target: ObjectStoragePath, paths: Sequence[ObjectStoragePath]) -> None:
    """Make the folders of all files before anything is downloaded.

    One by one: some storages fail where two threads make the same folder at once.

    :raises ConfigError: one cannot be made or written, or a symbolic link leads out of the results folder.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if _is_local(target):
            with tempfile.TemporaryFile(dir=target.path):
                pass
        for folder in sorted({path.parent for path in paths}, key=str):
            if _is_local(folder) and not Path(folder.path).resolve().is_relative_to(Path(target.path).resolve()):
                raise ConfigError(
                    f"{folder.path!r} leads out of the results folder through a symbolic link. Remove the link."
                )
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(str(target), error) from None


def _unwritable(where: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"Results folder cannot be written: {error.strerror or error}, at {where!r}. Choose another with `results`, or "
        "set [batchwrap] results_base."
    )
