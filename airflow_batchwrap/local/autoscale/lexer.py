"""From the text of a formula to its tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from airflow_batchwrap.local.autoscale.errors import FormulaSyntaxError
from airflow_batchwrap.local.autoscale.syntax import Position

Kind = Literal["number", "string", "name", "sign", "end"]

# ASCII only, as every documented name and number; strings may hold anything but a line end.
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n\f\v]+|//[^\r\n]*)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r'|(?P<string>"[^"\r\n]*")'
    r"|(?P<name>\$?[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>&&|\|\||[=!<>]=|[-+*/<>=!?:;,.()\[\]])"
)
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Token:
    """The smallest part of a formula.

    :param kind: what it is.
    :param text: as written; a string without its quotes, the end as nothing.
    :param at: where it starts.
    """

    kind: Kind
    text: str
    at: Position

    def __str__(self) -> str:
        match self.kind:
            case "end":
                return "the end of the formula"
            case "string":
                return "a string"
            case _:
                return self.text if len(self.text) <= 40 else self.text[:37] + "..."


def tokens(text: str) -> list[Token]:
    """Cut a formula into tokens; space and ``//`` comments are dropped.

    :param text: the formula.
    :return: the tokens, the last of them the end.
    :raises FormulaSyntaxError: a character has no place in a formula, or a string has no end.
    """
    starts = [0, *(end.end() for end in _LINE_END.finditer(text))]

    def position(offset: int) -> Position:
        line = bisect_right(starts, offset)
        return Position(line, offset - starts[line - 1] + 1)

    found: list[Token] = []
    offset = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            raise _unknown(text[offset], position(offset))
        match match.lastgroup:
            case "number" | "name" | "sign" as kind:
                found.append(Token(kind, match.group(), position(offset)))
            case "string":
                found.append(Token("string", match.group()[1:-1], position(offset)))
        offset = match.end()
    found.append(Token("end", "", position(offset)))
    return found


def _unknown(character: str, at: Position) -> FormulaSyntaxError:
    if character == '"':
        return FormulaSyntaxError(at, "a string that ends on its line", "one without its closing quote")
    return FormulaSyntaxError(at, "a name, a number, a string or an operator", ascii(character))
