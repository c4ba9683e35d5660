"""What a formula consists of, once it has been read.

Runs of one operator level, of unary operators, of ``?:`` and of ``.x``/``[i]`` are flat tuples rather than nested
pairs, so that the depth of a tree comes from brackets and levels in the text and not from its length.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a formula, both numbers from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"Line {self.line}, Col {self.column}"


@dataclass(frozen=True, slots=True)
class Number:
    value: float
    at: Position


@dataclass(frozen=True, slots=True)
class Text:
    value: str
    at: Position


@dataclass(frozen=True, slots=True)
class Name:
    name: str
    at: Position


@dataclass(frozen=True, slots=True)
class Vector:
    items: tuple[Expression, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Call:
    """A function's call; `at` is its opening parenthesis, which is where the real service points to."""

    function: str
    arguments: tuple[Expression, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Method:
    """``.GetSample(...)``; `at` is the opening parenthesis."""

    name: str
    arguments: tuple[Expression, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Member:
    """``.hour``."""

    name: str
    at: Position


@dataclass(frozen=True, slots=True)
class Index:
    """``[i]``."""

    index: Expression
    at: Position


@dataclass(frozen=True, slots=True)
class Access:
    base: Expression
    parts: tuple[Method | Member | Index, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Unary:
    """Operators as written, the outermost first."""

    operators: tuple[tuple[str, Position], ...]
    operand: Expression
    at: Position


@dataclass(frozen=True, slots=True)
class Link:
    """An operator with its right operand."""

    operator: str
    operand: Expression
    at: Position


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators of one level, applied from left to right."""

    first: Expression
    links: tuple[Link, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Case:
    """``condition ? value``; `at` is the question mark."""

    condition: Expression
    value: Expression
    at: Position


@dataclass(frozen=True, slots=True)
class Choice:
    cases: tuple[Case, ...]
    otherwise: Expression
    at: Position


Expression = Number | Text | Name | Vector | Call | Access | Unary | Chain | Choice


@dataclass(frozen=True, slots=True)
class Statement:
    """``target = value`` or, without a target, an expression for its effect, such as ``stop()``."""

    target: str | None
    value: Expression
    at: Position
