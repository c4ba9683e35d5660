"""The operators, for exactly the types that Azure documents for each."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from airflow_batchwrap.local.autoscale.errors import Fault
from airflow_batchwrap.local.autoscale.values import Interval, Timestamp, Value, finite, interval, kind, timestamp

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def truth(value: Value) -> bool:
    """A double as a condition.

    :param value: a double.
    :return: whether it is not zero.
    :raises Fault: it is of another type.
    """
    if isinstance(value, float):
        return value != 0
    raise Fault(f"a condition must be a double, not a {kind(value)}")


def unary(sign: str, value: Value) -> Value:
    """Apply ``-`` or ``!``.

    :param sign: the operator.
    :param value: a double or, for ``-``, a timeinterval.
    :return: the outcome.
    :raises Fault: the type does not fit.
    """
    if isinstance(value, float):
        return -value if sign == "-" else float(value == 0)
    if isinstance(value, Interval) and sign == "-":
        return Interval(-value.ticks)
    raise Fault(f"{sign} cannot be applied to a {kind(value)}{remedy(value)}")


def binary(sign: str, left: Value, right: Value) -> Value:
    """Apply an arithmetic operator or a comparison.

    :param sign: the operator.
    :param left: its left operand.
    :param right: its right operand.
    :return: the outcome; of a comparison 1 or 0.
    :raises Fault: the types do not fit, or the calculation has no finite result.
    """
    outcome = _compare(sign, left, right) if sign in _COMPARE else _calculate(sign, left, right)
    if outcome is None:
        both = f"a {kind(left)} and a {kind(right)}"
        raise Fault(f"{sign} cannot be applied to {both}{remedy(left, right)}")
    return outcome


def _compare(sign: str, left: Value, right: Value) -> Value | None:
    match left, right:
        case (float(), float()) | (str(), str()) | (Timestamp(), Timestamp()) | (Interval(), Interval()):
            return float(_COMPARE[sign](left, right))
    return None


def _calculate(sign: str, left: Value, right: Value) -> Value | None:
    match left, right:
        case float(), float():
            return _double(sign, left, right)
        case tuple(), float():
            return tuple(_double(sign, item, right) for item in left)
        case tuple(), tuple():
            if len(left) != len(right):
                raise Fault(f"{sign} needs vectors of one length, not of {len(left)} and {len(right)}")
            return tuple(_double(sign, *pair) for pair in zip(left, right, strict=True))
        case _:
            return _time(sign, left, right)


def _double(sign: str, left: float, right: float) -> float:
    match sign:
        case "+":
            return finite(left + right)
        case "-":
            return finite(left - right)
        case "*":
            return finite(left * right)
    if right == 0:
        raise Fault("division by zero")
    return finite(left / right)


def _time(sign: str, left: Value, right: Value) -> Value | None:
    match left, sign, right:
        case float(), "*", Interval():
            return interval(left * right.ticks)
        case Interval(), "*" | "/", float():
            return interval(_double(sign, float(left.ticks), right))
        case Interval(), "+", Interval():
            return interval(left.ticks + right.ticks)
        case Interval(), "-", Interval():
            return interval(left.ticks - right.ticks)
        case Interval(), "+", Timestamp():
            return timestamp(left.ticks + right.ticks)
        case Timestamp(), "+", Interval():
            return timestamp(left.ticks + right.ticks)
        case Timestamp(), "-", Timestamp():
            return Interval(left.ticks - right.ticks)
    return None


def remedy(*values: Value) -> str:
    """What to do about operands that do not fit.

    :param values: the operands.
    :return: the end of a message; empty where there is no advice.
    """
    if any(isinstance(value, tuple) for value in values):
        return ": take one number of the vector with avg, max or val first, or put the vector on the left"
    if any(isinstance(value, Timestamp) for value in values) and any(isinstance(value, Interval) for value in values):
        return ": add the negated timeinterval instead"
    return ""
