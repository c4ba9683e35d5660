"""One way to wait for something in a test: look until it is there, with a deadline.

node = until(lambda: idle_node(pool), "an idle node")
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: What is waited for: words, or a function that is asked for them at the deadline. None: the look's own source.
What = str | Callable[[], str] | None

#: Seconds between two looks. A local service answers within milliseconds.
PAUSE = 0.02


def until(look: Callable[[], T], what: What = None, timeout: float = 20.0, pause: float = PAUSE) -> T:
    """Look until there is something to see.

    :param look: gives something truthy once it is there. An error that it raises ends the wait.
    :param what: what is waited for, for the message.
    :param timeout: how long to look, in seconds. The last look comes at its end.
    :param pause: seconds between two looks.
    :return: what `look` gave.
    :raises AssertionError: if there is nothing by then. Its message says what was waited for, and how long.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        if found := look():
            return found
        if late:
            raise AssertionError(f"Not within {timeout:g} s: {_words(look, what)}")
        time.sleep(pause)


def _words(look: Callable[[], object], what: What) -> str:
    if what is not None:
        return what if isinstance(what, str) else what()
    try:
        return " ".join(inspect.getsource(look).split())
    except (OSError, TypeError):  # a method of a built-in type, or a partial
        return repr(look)
