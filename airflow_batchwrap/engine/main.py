"""One run of one step, from the call to the result record."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Union

from . import loading, output, prepare, programs, values
from .errors import Unusable
from .exchange import Exchange, OutputFolder
from .files import ChosenFiles
from .paths import digest, remove
from .protocol import (
    CALL_ENV,
    CALL_FILE_ENV,
    DONE,
    ENGINE_FAILED,
    EXIT_CODES,
    EXIT_ENGINE_FAILED,
    INLINE_VALUE_LIMIT,
    OUT_DIR,
    PYTHON_SUFFIX,
    RESULT_FILE,
    STEP_RAISED,
    UNUSABLE,
    VALUE_FILE,
    Call,
    ProtocolError,
    Result,
    ResultFile,
    StepError,
    ValueFile,
    fits_xcom,
)
from .view import Engine


def main(argv: Sequence[str]) -> int:
    """Run the step that the call names.

    :param argv: the archive's path, as Python gives it to the program.
    :return: the exit code, see :mod:`.protocol`.
    """
    started = _now()
    output.make_live()
    work = Path(os.path.realpath(os.getcwd()))
    try:
        call = prepare.with_secrets(_read_call(work), work)
    except (ProtocolError, OSError, UnicodeError) as error:
        output.say(str(error))
        remove(work / OUT_DIR)  # an earlier run's record must not pass for this one's
        return _end(work, Result(ENGINE_FAILED, started, _now(), error=_own_error(error), python=_python()))
    attempt = f", attempt {call.context['attempt']}" if "attempt" in call.context else ""
    output.say(f"step {call.step}{attempt}, Python {_python()}")
    try:
        result = _run(call, Path(argv[0]), work, started)
    except Exception as error:  # whatever else: a flaw of the engine, or a disk that is full
        output.say(f"the engine failed: {type(error).__name__}: {error}")
        traceback.print_exc()
        result = Result(ENGINE_FAILED, started, _now(), error=_own_error(error), python=_python())
    code = _end(work, result)
    output.say(f"step {call.step} ended: {result.outcome}, exit code {code}, files to upload: {len(result.files)}")
    return code


def _read_call(work: Path) -> Call:
    text = os.environ.get(CALL_ENV)
    if text is None:
        name = os.environ.get(CALL_FILE_ENV)
        if not name:
            raise ProtocolError(
                f"nothing says which step to run: neither {CALL_ENV} nor {CALL_FILE_ENV} is set. This archive is "
                "started by airflow-batchwrap; use 'batchwrap run' to try a folder of steps"
            )
        text = (work / name).read_text(encoding="utf-8")
    return Call.loads(text)


def _run(call: Call, archive: Path, work: Path, started: str) -> Result:
    """Prepare, call and collect; what goes wrong on the way is part of the result."""
    chosen: Optional[Union[ChosenFiles, OutputFolder]] = None
    try:
        folder = prepare.extract_steps(archive, work)
        step = prepare.step_file(folder, call.step)
        inputs = prepare.input_directory(call, work)
        links = prepare.link_inputs(call.inputs, inputs, work) if inputs is not None else []
        arguments = [prepare.argument_value(argument, work) for argument in call.arguments]
        if step.suffix == PYTHON_SUFFIX:
            chosen = ChosenFiles(work, links, inputs)
            error, text = _call(step, Engine(call, step, work, inputs, chosen), arguments)
        else:
            exchange = Exchange(call, step, work, inputs)
            chosen = exchange.output
            error, text = programs.run(step, exchange, arguments, call.java_options)
        if error is not None:
            files = chosen.stage(strict=False)
            return Result(STEP_RAISED, started, _now(), files=files, error=error, python=_python())
        value, value_file = _keep_value(text, work)
        files = chosen.stage()
        return Result(
            DONE, started, _now(), value=value, value_file=value_file, files=files, error=None, python=_python()
        )
    except Unusable as problem:
        sys.stderr.write(problem.traceback)
        output.say(str(problem))
        shown = StepError("Unusable", str(problem), problem.traceback)
        staged: List[ResultFile] = chosen.stage(strict=False) if chosen is not None else []
        return Result(UNUSABLE, started, _now(), files=staged, error=shown, python=_python())


def _call(step: Path, engine: Engine, arguments: List[Any]) -> Tuple[Optional[StepError], str]:
    """Call ``do_action``.

    :return: the error that ended it, or else its value as JSON.
    """
    value: Any = None
    try:
        module = loading.load(step)
        do_action = loading.action(module, step, engine, arguments)
        value = do_action(engine, *arguments)
    except Unusable:
        raise
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            return _raised(exit_), ""
        value = None
    except BaseException as error:  # KeyboardInterrupt and MemoryError too: each has its record and its exit code
        return _raised(error), ""
    return None, values.dumps(value, f"what do_action of {step.name} returned")


def _raised(error: BaseException) -> StepError:
    text = output.user_traceback(error)
    if error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)  # gives back what the step held, above all after a MemoryError
    sys.stderr.write(text)
    return StepError(type(error).__name__, _message(error), text)


def _message(error: BaseException) -> str:
    try:
        return str(error)[: output.TRACEBACK_LIMIT]
    except Exception:  # a user's __str__ may do anything
        return ""


def _keep_value(text: str, work: Path) -> Tuple[Any, Optional[ValueFile]]:
    """A small value stays in the record; one that is large, or that an XCom cannot hold, gets a file of its own."""
    data = text.encode("ascii")
    if len(data) <= INLINE_VALUE_LIMIT:
        value = json.loads(text)
        if fits_xcom(value):
            return value, None
    path = work / OUT_DIR / VALUE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    size, sha256 = digest(path)
    return None, ValueFile(VALUE_FILE, size, sha256)


def _end(work: Path, result: Result) -> int:
    """Write the record under a temporary name and rename it: it is there as a whole or not at all."""
    try:
        folder = work / OUT_DIR
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (RESULT_FILE + ".part")
        temporary.write_text(result.dumps(), encoding="utf-8")
        os.replace(str(temporary), str(folder / RESULT_FILE))
    except Exception as error:
        output.say(f"the result record cannot be written to {work / OUT_DIR}: {type(error).__name__}: {error}")
        return EXIT_ENGINE_FAILED
    return EXIT_CODES[result.outcome]


def _own_error(error: BaseException) -> StepError:
    return StepError(type(error).__name__, str(error))


def _python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
