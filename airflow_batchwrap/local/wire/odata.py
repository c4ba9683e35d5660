"""The query options of lists: ``$filter`` and ``$select``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError
from airflow_batchwrap.local.wire.filters import ALIASES, Allowed

#: Looks a property path (``executionInfo/exitCode``) up in an entity; None where it is absent.
Lookup = Callable[[str], Any]
Test = Callable[[Lookup], bool]

_TOKEN = re.compile(
    r"\s*(?:(?P<open>\()|(?P<close>\))|(?P<comma>,)"
    r"|(?P<time>(?i:datetime)?'\d{4}-\d\d-\d\d[Tt ][^']*'"
    r"|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)?)"
    r"|(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z_][\w/.]*))"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


#: How deep parentheses and ``not`` may be nested: each takes some calls, and Python bounds how many there may be.
DEEPEST = 100


class Filter:
    """A compiled ``$filter``.

    :param text: the expression, such as ``state eq 'completed' and startswith(id, 'a')``.
    :param allowed: the comparisons of each property that the list can be filtered by; None for any.
    :raises BatchError: it cannot be read, or the list cannot be filtered so.
    """

    def __init__(self, text: str, allowed: Allowed | None = None) -> None:
        self.properties: set[str] = set()
        self._allowed = allowed
        self._tokens = list(_tokens(text))
        self._at = self._depth = 0
        self.test = self._either()
        if self._at != len(self._tokens):
            raise _unreadable(text)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, kind: str) -> str:
        found, text = self._peek()
        if found != kind:
            raise _unreadable(text or "the end")
        self._at += 1
        return text

    def _word(self, word: str) -> bool:
        if self._peek() == ("word", word):
            self._at += 1
            return True
        return False

    def _either(self) -> Test:
        tests = [self._both()]
        while self._word("or"):
            tests.append(self._both())
        # One test of many, not one within the other: there may be thousands.
        return tests[0] if len(tests) == 1 else lambda look: any(test(look) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._word("and"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda look: all(test(look) for test in tests)

    def _inner(self, read: Callable[[], Test]) -> Test:
        self._depth += 1
        if self._depth > DEEPEST:
            raise BatchError("InvalidQueryParameterValue", f"The $filter is nested more than {DEEPEST} deep.")
        inner = read()
        self._depth -= 1
        return inner

    def _one(self) -> Test:
        if self._word("not"):
            inner = self._inner(self._one)
            return lambda look: not inner(look)
        if self._peek()[0] == "open":
            self._take("open")
            inner = self._inner(self._either)
            self._take("close")
            return inner
        name = self._take("word")
        if name == "startswith":
            return self._startswith()
        comparison = self._take("word")
        if comparison not in _COMPARE:
            raise _unreadable(comparison)
        name = self._checked(name, comparison)
        return _comparison(name, comparison, self._literal())

    def _checked(self, name: str, comparison: str) -> str:
        """Refuse what the list cannot be filtered by; the property's own name."""
        if self._allowed is not None and comparison not in self._allowed.get(name, ()):
            allowed = ", ".join(sorted(self._allowed)) or "nothing"
            raise BatchError(
                "InvalidQueryParameterValue",
                f"This list cannot be filtered by '{name[:80]} {comparison}'; it can by {allowed}.",
                values={"QueryParameterName": "$filter", "QueryParameterValue": f"{name[:80]} {comparison}"},
            )
        name = ALIASES.get(name, name)
        self.properties.add(name)
        return name

    def _startswith(self) -> Test:
        self._take("open")
        name = self._take("word")
        self._take("comma")
        prefix = self._literal()
        self._take("close")
        name = self._checked(name, "startswith")
        return lambda look: isinstance(value := look(name), str) and value.startswith(str(prefix))

    def _literal(self) -> Any:
        kind, text = self._peek()
        self._at += 1
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            try:
                return float(text) if "." in text else int(text)
            except ValueError:
                # Python reads no more than some thousands of digits.
                raise _unreadable(text) from None
        if kind == "time":
            try:
                return _Moment(times.parse_iso(text.lower().removeprefix("datetime").strip("'").upper()))
            except ValueError:
                raise _unreadable(text) from None
        if kind == "word" and text in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[text]
        raise _unreadable(text or "the end")


class _Moment(float):
    """A time among literals: what it is compared with is read as a time too."""


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _unreadable(text[position:])
        yield match.lastgroup, match.group(match.lastgroup)
        position = match.end()


def _unreadable(near: str) -> BatchError:
    return BatchError(
        "InvalidQueryParameterValue",
        f"The $filter cannot be read near {near[:80]!r}.",
        values={"QueryParameterName": "$filter"},
    )


def _comparison(name: str, word: str, literal: Any) -> Test:
    compare = _COMPARE[word]

    def test(look: Lookup) -> bool:
        value = look(name)
        if isinstance(literal, _Moment) and isinstance(value, str):
            try:
                value = times.parse_iso(value)
            except ValueError:
                return word == "ne"
        if value is None or literal is None:
            return compare(value, literal) if word in ("eq", "ne") else False
        try:
            return compare(value, literal)
        except TypeError:
            return word == "ne"

    return test


def selected(text: str | None) -> frozenset[str] | None:
    """The properties a ``$select`` names.

    :param text: the option's value; None or empty for all.
    :return: their names; None for all.
    """
    names = frozenset(name.strip() for name in (text or "").split(",") if name.strip())
    return names or None


def look_up(entity: dict[str, Any], path: str) -> Any:
    """Find a property in a plain entity.

    :param entity: the entity.
    :param path: the property's path, its parts parted by slashes.
    :return: its value, None where it is absent.
    """
    value: Any = entity
    for part in path.split("/"):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
