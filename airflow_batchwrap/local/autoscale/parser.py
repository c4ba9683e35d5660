"""From tokens to statements, by precedence climbing."""

from __future__ import annotations

import math

from airflow_batchwrap.local.autoscale.errors import FormulaSyntaxError, FormulaTooLong
from airflow_batchwrap.local.autoscale.lexer import Token, tokens
from airflow_batchwrap.local.autoscale.syntax import (
    Access,
    Call,
    Case,
    Chain,
    Choice,
    Expression,
    Index,
    Link,
    Member,
    Method,
    Name,
    Number,
    Position,
    Statement,
    Text,
    Unary,
    Vector,
)

#: Limits documented by Azure ("Create a formula to automatically scale compute nodes in a Batch pool").
MAX_CHARACTERS = 8192
MAX_STATEMENTS = 100
#: Our own limit for what stands within one another, so that no formula can exhaust the stack: each bracket, branch of
#: ``?:``, unary sign before a bracket, and operand of a tighter operator is one deeper, at up to 7 calls each.
MAX_DEPTH = 64

# The order of C, from loosest to tightest: Azure documents the operators but not their order.
_LEVELS = {
    **dict.fromkeys(("||",), 0),
    **dict.fromkeys(("&&",), 1),
    **dict.fromkeys(("==", "!="), 2),
    **dict.fromkeys(("<", "<=", ">", ">="), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/"), 5),
}


def parse(text: str) -> tuple[Statement, ...]:
    """Read a formula.

    :param text: at most 8,192 characters, 1 to 100 statements separated by semicolons.
    :return: its statements.
    :raises FormulaTooLong: the text has too many characters.
    :raises FormulaSyntaxError: the text cannot be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaTooLong(Position(1, 1), f"at most {MAX_CHARACTERS} characters", f"{len(text)}")
    return _Parser(tokens(text)).formula()


class _Parser:
    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._next = 0
        self._depth = 0

    @property
    def _here(self) -> Token:
        return self._tokens[self._next]

    def _sign(self, text: str) -> bool:
        return self._here.kind == "sign" and self._here.text == text

    def _advance(self) -> Token:
        token = self._here
        if token.kind != "end":
            self._next += 1
        return token

    def _take(self, text: str, expected: str) -> Token:
        if not self._sign(text):
            raise self._unexpected(expected)
        return self._advance()

    def _unexpected(self, expected: str) -> FormulaSyntaxError:
        return FormulaSyntaxError(self._here.at, expected, str(self._here))

    def formula(self) -> tuple[Statement, ...]:
        statements: list[Statement] = []
        while self._here.kind != "end" or not statements:
            if len(statements) == MAX_STATEMENTS:
                raise self._unexpected(f"at most {MAX_STATEMENTS} statements")
            statements.append(self._statement())
            if self._here.kind != "end":
                self._take(";", "an operator or ;")
        return tuple(statements)

    def _statement(self) -> Statement:
        start = self._here
        if start.kind == "name":
            following = self._tokens[self._next + 1]
            if following.kind == "sign" and following.text == "=":
                self._next += 2
                return Statement(start.text, self._expression(), start.at)
        if start.kind == "end" or self._sign(";"):
            raise self._unexpected("a statement")
        return Statement(None, self._expression(), start.at)

    def _expression(self) -> Expression:
        self._deeper()
        start = self._here.at
        cases: list[Case] = []
        value = self._binary(0)
        while self._sign("?"):
            at = self._advance().at
            chosen = self._expression()
            self._take(":", "an operator or :")
            cases.append(Case(value, chosen, at))
            value = self._binary(0)
        self._depth -= 1
        return Choice(tuple(cases), value, start) if cases else value

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._unexpected(f"at most {MAX_DEPTH} brackets and operators within one another")

    def _level(self) -> int:
        return _LEVELS.get(self._here.text, -1) if self._here.kind == "sign" else -1

    def _binary(self, lowest: int) -> Expression:
        start = self._here.at
        left = self._unary()
        # Whatever binds tighter than this level was consumed by the recursion, so each round is of a looser level.
        while (level := self._level()) >= lowest:
            links: list[Link] = []
            while self._level() == level:
                operator = self._advance()
                self._deeper()
                links.append(Link(operator.text, self._binary(level + 1), operator.at))
                self._depth -= 1
            left = Chain(left, tuple(links), start)
        return left

    def _unary(self) -> Expression:
        operators: list[tuple[str, Position]] = []
        while self._sign("-") or self._sign("!"):
            token = self._advance()
            operators.append((token.text, token.at))
        if not operators:
            return self._access()
        self._deeper()
        operand = self._access()
        self._depth -= 1
        return Unary(tuple(operators), operand, operators[0][1])

    def _access(self) -> Expression:
        start = self._here.at
        base = self._primary()
        parts: list[Method | Member | Index] = []
        while True:
            if self._sign("["):
                at = self._advance().at
                parts.append(Index(self._expression(), at))
                self._take("]", "an operator or ]")
            elif self._sign("."):
                self._advance()
                if self._here.kind != "name" or self._here.text.startswith("$"):
                    raise self._unexpected("the name of a member")
                name = self._advance()
                if self._sign("("):
                    at = self._here.at
                    parts.append(Method(name.text, self._arguments(), at))
                else:
                    parts.append(Member(name.text, name.at))
            else:
                return Access(base, tuple(parts), start) if parts else base

    def _primary(self) -> Expression:
        token = self._here
        match token.kind:
            case "number":
                value = float(token.text)
                if not math.isfinite(value):
                    raise self._unexpected("a number below 1.8E+308")
                self._advance()
                return Number(value, token.at)
            case "string":
                self._advance()
                return Text(token.text, token.at)
            case "name":
                self._advance()
                if self._sign("("):
                    at = self._here.at
                    return Call(token.text, self._arguments(), at)
                return Name(token.text, token.at)
        if self._sign("("):
            self._advance()
            value_inside = self._expression()
            self._take(")", "an operator or )")
            return value_inside
        if self._sign("["):
            self._advance()
            return Vector(self._list("]"), token.at)
        raise self._unexpected("a value")

    def _arguments(self) -> tuple[Expression, ...]:
        self._advance()
        return self._list(")")

    def _list(self, close: str) -> tuple[Expression, ...]:
        items: list[Expression] = []
        if not self._sign(close):
            items.append(self._expression())
            while self._sign(","):
                self._advance()
                items.append(self._expression())
        self._take(close, f"an operator, a comma or {close}")
        return tuple(items)
