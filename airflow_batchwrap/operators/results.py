"""Fetch the files that a run's steps chose from Blob."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import BatchWrapError, ConfigError, TryAgain
from airflow_batchwrap.naming import Attempt
from airflow_batchwrap.operators.base import BatchWrapOperator
from airflow_batchwrap.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

FETCH_THREADS = 8


@dataclass(frozen=True)
class FetchedFile:
    """One result file.

    :param step: the step that chose it.
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

    template_fields: Sequence[str] = (*BatchWrapOperator.template_fields, "workspace", "to", "include")

    def __init__(
        self,
        *,
        workspace: Any,
        to: str | Path = "results",
        include: str | Sequence[str] = "**/*",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        # Jinja renders a Path's attributes, not its text.
        self.to = str(to)
        self.include = include

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Download; return step, blob, path, size and sha256 of each file."""
        workspace = Workspace.from_xcom(self.workspace)
        target = self._target(context)
        wanted = [self.include] if isinstance(self.include, str) else list(self.include)
        found = list(self._results(workspace))
        chosen = [item for item in found if any(_matches(f"{item[0]}/{item[1].path}", pattern) for pattern in wanted)]
        if found and not chosen:
            self.log.warning("None of the %s result files matches include=%r", len(found), self.include)
        _check_writable(target)
        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="batchwrap-fetch") as threads:
            jobs = [
                threads.submit(self._fetch, workspace.output_container, blob, target, f"{step}/{file.path}", file)
                for step, file, blob in chosen
            ]
            paths = [job.result() for job in jobs]
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
            return ObjectStoragePath(to)
        if ".." in PurePosixPath(to).parts:
            raise ConfigError(
                f"Results folder {self.to!r} leads out of results_base. Use a plain name or a whole path."
            )
        from airflow.sdk.configuration import conf

        base = conf.get("batchwrap", "results_base", fallback="results")
        if "://" not in base:
            # Not the working directory: a worker's is anywhere.
            base = str(Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / Path(base).expanduser())
        return ObjectStoragePath(base) / self.dag_id / str(context["run_id"]).replace("/", "_") / to

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
            data = self.hook.read_blob(container, f"{folder}/{protocol.RESULT_FILE}")
            try:
                record = protocol.Result.loads((data or b"").decode())
            except (protocol.ProtocolError, UnicodeDecodeError) as error:
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

    def _fetch(
        self, container: str, blob: str, target: ObjectStoragePath, name: str, file: protocol.ResultFile
    ) -> ObjectStoragePath:
        """Download one file to ``name`` below ``target``, unless it is there already."""
        path = target / name
        try:
            if path.protocol in ("", "file"):
                _check_inside(Path(target.path), Path(path.path))
            if _same(path, file):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.protocol in ("", "file"):
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
            raise ConfigError(
                f"Results folder cannot be written: {error.strerror or error} at {path.path!r}. "
                "Check `results` and its rights."
            ) from None
        return path

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


def _same(path: ObjectStoragePath, file: protocol.ResultFile) -> bool:
    """Tell whether an earlier fetch has left the file whole."""
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


def _check_inside(folder: Path, file: Path) -> None:
    """Refuse a file that a symbolic link would put outside the results folder."""
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"Result file {str(file)!r} would be written outside the results folder: a folder on its way is a symbolic "
            "link. Remove the link."
        )


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


def _check_writable(target: ObjectStoragePath) -> None:
    """Refuse a local folder that cannot be written, before anything is downloaded.

    :raises ConfigError: it cannot be made or written.
    """
    if target.protocol not in ("", "file"):
        return
    folder = Path(target.path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"Results folder {str(folder)!r} cannot be written: {error.strerror}. Choose another with `results`, or "
            "set [batchwrap] results_base."
        ) from None
