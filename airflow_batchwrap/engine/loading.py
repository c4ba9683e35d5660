"""The step file as a module, and its ``do_action`` as something that can be called."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List

from .errors import Unusable
from .output import user_traceback


def load(path: Path) -> ModuleType:
    """Import a step file, its folder first on ``sys.path`` as for any script.

    The module is known by the file's stem, even where that is no identifier (``1_extract``): pickle imports by string,
    so the processes that a step starts with multiprocessing find its functions again.

    :raises Unusable: it has a syntax error, or raises while it is imported.
    """
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path)]
    name = path.stem
    if "." in name or name in sys.modules:
        name = "batchwrap_step_" + name.replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, str(path))
    if spec is None or spec.loader is None:
        raise Unusable(f"{path.name} is no Python file: the name of a step file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        raise Unusable(
            f"{path.name} needs the module {error.name!r}, which this node does not have: put a helper module into the "
            "steps folder, or install the package with the pool's start task",
            user_traceback(error),
        ) from error
    except BaseException as error:
        raise Unusable(
            f"{path.name} cannot be imported: {type(error).__name__}: {error}", user_traceback(error)
        ) from error
    return module


def action(module: ModuleType, path: Path, engine: Any, arguments: List[Any]) -> Callable[..., Any]:
    """Find ``do_action`` and make sure that it takes these arguments.

    Comparing with the signature, before the call, keeps a TypeError of the user's own code apart from this.

    :raises Unusable: it is missing, cannot be called, or takes other arguments.
    """
    found = getattr(module, "do_action", None)
    if found is None:
        raise Unusable(f"{path.name} has no do_action: write 'def do_action(engine, *args): ...' in it")
    if not callable(found):
        raise Unusable(
            f"do_action in {path.name} is a {type(found).__name__}, not a function: write\n\n"
            "    def do_action(engine, *args):\n        ..."
        )
    if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
        raise Unusable(
            f"do_action in {path.name} is an async function: write a plain one, and call asyncio.run(...) in it"
        )
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # something built in: Python does not know what it takes
        return found  # type: ignore[no-any-return]
    try:
        signature.bind(engine, *arguments)
    except TypeError as error:
        got = "the engine alone" if not arguments else f"the engine and {len(arguments)} more"
        hint = (
            "what came before it returned nothing, or no arguments were given"
            if not arguments
            else "the first step gets the workflow's arguments, each later one what the step before it returned"
        )
        raise Unusable(
            f"do_action{signature} in {path.name} cannot take the arguments it is given ({got}): {error}; {hint}. "
            "Write\n\n    def do_action(engine, *args):\n        ..."
        ) from None
    return found  # type: ignore[no-any-return]
