"""Values between steps: JSON and nothing else, checked before they leave.

What JSON has no word for is refused rather than changed behind the user's back, with one exception that everybody
expects: a tuple becomes a list. Subclasses of str, int, float, list, tuple and dict travel as the plain type.
"""

from __future__ import annotations

import json
import math
from typing import Any, Optional

from .errors import Unusable
from .protocol import DEPTH_LIMIT

_REMEDIES = {
    "datetime": "return value.isoformat()",
    "date": "return value.isoformat()",
    "Decimal": "return str(value)",
    "bytes": "write it to a file and call engine.add_file_to_upload(path)",
    "bytearray": "write it to a file and call engine.add_file_to_upload(path)",
    "set": "return sorted(value)",
    "frozenset": "return sorted(value)",
    "PosixPath": "return str(value)",
    "ndarray": "return value.tolist()",
    "int64": "return value.item()",
    "int32": "return value.item()",
    "float32": "return value.item()",
    "bool_": "return value.item()",
    "DataFrame": "write it to a file and call engine.add_file_to_upload(path)",
    "generator": "return list(value)",
}


def dumps(value: Any, what: str) -> str:
    """Turn what a step returned into compact JSON.

    :param what: the value, as the error names it: "what do_action of 1_step returned".
    :raises Unusable: it holds something that is not JSON; the message says what, and where in the value.
    """
    _check(value, what)
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable(f"{what} cannot be JSON: {error}") from error


def _check(value: Any, what: str) -> None:
    """Walk the value with a stack of its own, so that depth and cycles become an error message and no crash."""
    stack = [(value, "value", 1)]
    while stack:
        item, where, depth = stack.pop()
        problem = _problem(item)
        if problem is None and depth > DEPTH_LIMIT:
            problem = f"is nested deeper than {DEPTH_LIMIT} levels, or holds itself; return something flatter"
            where = where[:60] + "..."
        if problem is not None:
            raise Unusable(f"{what} cannot be passed on as JSON: {where} {problem}")
        if isinstance(item, dict):
            for key, child in item.items():
                if not isinstance(key, str):
                    raise Unusable(
                        f"{what} cannot be passed on as JSON: {where} has the key {key!r:.80} of type "
                        f"`{type(key).__name__}`, which JSON would change to a string; use str keys"
                    )
                stack.append((child, f"{where}[{key!r:.80}]", depth + 1))
        elif isinstance(item, (list, tuple)):
            stack.extend((child, f"{where}[{index}]", depth + 1) for index, child in enumerate(item))


def _problem(item: Any) -> Optional[str]:
    if item is None or isinstance(item, (str, int, list, tuple, dict)):
        return None
    if isinstance(item, float):
        if math.isfinite(item):
            return None
        return f"is {item!r}, which JSON does not have; return None or a string instead"
    name = type(item).__name__
    remedy = _REMEDIES.get(name, "return str, int, float, bool, None, or lists and dicts of them")
    return f"is a `{name}`; {remedy}"
