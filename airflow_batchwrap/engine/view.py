"""``engine``, the first argument of ``do_action``: what a step may ask for."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from .commands import NOT_FOUND, Command, Completed, run
from .errors import CommandFailed
from .files import ChosenFiles
from .protocol import Call


class Engine:
    """The step's view of its run.

    :ivar input_dir: where the input files are; the working directory where the workflow has none.
    :ivar output_container: the Blob container that chosen files go to; empty outside Batch.
    :ivar params: the DAG run's parameters.
    :ivar context: dag_id, run_id, task_id, map_index, try_number, attempt.
    :ivar log: a logger that writes to stderr.
    :cvar CommandFailed: what :meth:`run` and :meth:`java_runner` raise.
    """

    CommandFailed = CommandFailed

    def __init__(self, call: Call, step: Path, work: Path, input_dir: Optional[Path], chosen: ChosenFiles) -> None:
        self.input_dir: Path = Path(os.path.abspath(str(input_dir or work)))
        self.output_container: str = call.output_container
        self.params: Dict[str, Any] = copy.deepcopy(call.params)
        self.context: Dict[str, Any] = copy.deepcopy(call.context)
        self.log = _logger()
        self._work = work
        self._step_folder = step.parent
        self._chosen = chosen

    def add_file_to_upload(self, path: Union[str, os.PathLike[str]]) -> None:
        """Choose a result file, or a directory with all that is in it, for upload when the step ends.

        :param path: below the working directory; it must exist now, and its content counts as it is at the end.
        :raises FileNotFoundError: there is no such file.
        :raises ValueError: it leads out of the working directory, or through a link other than an input's.
        """
        self._chosen.add(path)

    def run(
        self,
        command: Command,
        *,
        check: bool = True,
        cwd: Optional[Union[str, os.PathLike[str]]] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        input: Optional[Union[str, bytes]] = None,  # noqa: A002 - the word that subprocess.run uses
        echo: bool = True,
    ) -> Completed:
        """Run a program, show what it prints as it prints it, and return it all.

        :param command: a list of words, or a string that is split as a shell splits words; no shell runs it.
        :param check: raise where the exit code is not 0.
        :param cwd: where it runs; the current directory by default.
        :param env: environment variables beside the step's own.
        :param timeout: seconds after which it is killed; None waits for ever.
        :param input: what it reads from stdin; None gives it an empty one.
        :param echo: show its output on the step's own stdout and stderr.
        :return: with ``exit_code``, ``stdout``, ``stderr`` and ``lines``.
        :raises CommandFailed: it is missing, ran out of time, or did not succeed; with ``exit_code`` and ``stderr``.
        """
        return run(command, check=check, cwd=cwd, env=env, timeout=timeout, input=input, echo=echo)

    def java_runner(self, jar: Union[str, os.PathLike[str]], *args: Any) -> List[str]:
        """Run a jar with the node's Java.

        :param jar: its name: in the working directory (inputs are at hand there), the input directory or the steps
            folder, looked for in that order; or an absolute path.
        :param args: its arguments, each turned into a string.
        :return: the lines of stdout, then those of stderr.
        :raises FileNotFoundError: there is no such jar.
        :raises CommandFailed: Java is missing, or the program's exit code is not 0.
        """
        name = os.fspath(jar)
        folders = [Path.cwd(), self._work, self.input_dir, self._step_folder]
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"java_runner: there is no jar {name!r} in the working directory, among the inputs or in the steps "
                "folder: give it to the workflow as an input, or put it beside the step file"
            )
        java = shutil.which("java")
        if java is None:
            raise CommandFailed(
                "java_runner: there is no java on this node's PATH: install one with the pool's start task, for "
                "example 'apt-get update && apt-get install -y default-jre-headless' (elevated)",
                NOT_FOUND,
            )
        return run([java, "-jar", str(found), *(str(arg) for arg in args)]).lines

    # The names that the seed, azure-batch-wrapper, gave them.
    addFileToUpload = add_file_to_upload  # noqa: N815
    javaRunner = java_runner  # noqa: N815


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic for mypy only: 3.8 cannot subscript it
    """Write to what ``sys.stderr`` is at that moment, as a step may redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _logger() -> logging.Logger:
    log = logging.getLogger("batchwrap.step")
    log.setLevel(logging.INFO)
    log.propagate = False  # a step that configures the root logger should not see each line twice
    handler = _StderrHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    return log
