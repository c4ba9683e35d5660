"""The functions, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_batchwrap.local.autoscale.dates import read_date
from airflow_batchwrap.local.autoscale.errors import Fault
from airflow_batchwrap.local.autoscale.values import Timestamp, Value, Vec, finite, kind

#: Our own limits: elements of one vector, and steps of one evaluation (a step is a node of the formula's tree or an
#: element of a vector looked at), which take well below a second.
MAX_VECTOR = 10_000
MAX_WORK = 500_000


class Stop(Exception):
    """``stop()`` was called: the evaluation ends, successfully."""


class Work:
    """Counts the steps of one evaluation."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def spend(self, steps: int) -> None:
        """Account for steps that are about to be taken.

        :param steps: how many.
        :raises Fault: the evaluation has taken too many.
        """
        self._left -= steps
        if self._left < 0:
            raise Fault(f"the formula takes more than {MAX_WORK} steps: make it simpler")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What functions may look at.

    :param now: what ``time()`` returns.
    :param rand: what ``rand()`` returns, 0 to 1.
    :param work: the count of steps.
    """

    now: Timestamp
    rand: Callable[[], float]
    work: Work


def call(name: str, arguments: Sequence[Value], around: Surroundings) -> Value:
    """Call a function.

    :param name: its name.
    :param arguments: the values given to it.
    :param around: clock, chance and the count of steps.
    :return: its result.
    :raises Fault: there is no such function, or it refuses the arguments.
    :raises Stop: the function is ``stop``.
    """
    if (reduce := _REDUCE.get(name)) is not None:
        return finite(reduce(name, flatten(name, arguments, around.work)))
    if (each := _EACH.get(name)) is not None:
        # A lone double stays one; vec(x) asks for a vector of one.
        if len(arguments) == 1 and isinstance(arguments[0], float):
            return each(name, arguments[0])
        return tuple(each(name, item) for item in flatten(name, arguments, around.work))
    match name, arguments:
        case "vec", _:
            return flatten(name, arguments, around.work)
        case "val", [tuple() as vector, float() as index]:
            return element(vector, index)
        case "percentile", [tuple() as vector, float() as percent]:
            around.work.spend(len(vector))
            return _percentile(vector, percent)
        case "rand", []:
            return finite(float(around.rand()))
        case "stop", []:
            raise Stop
        case "time", [] | [""]:
            return around.now
        case "time", [str() as text]:
            return read_date(text)
    if name in _SIGNATURES:
        given = ", ".join(kind(argument) for argument in arguments) or "nothing"
        raise Fault(f"{name} takes {_SIGNATURES[name]}, not {given}")
    raise Fault(f"there is no function {name}")


def flatten(name: str, arguments: Sequence[Value], work: Work) -> Vec:
    """Make one vector of a doubleVecList.

    :param name: who asks, for the message.
    :param arguments: doubles and doubleVecs.
    :param work: the count of steps.
    :return: all numbers in order.
    :raises Fault: an argument is something else, or the vector becomes too long.
    """
    flat: list[float] = []
    for argument in arguments:
        if isinstance(argument, float):
            work.spend(1)
            flat.append(argument)
        elif isinstance(argument, tuple):
            work.spend(len(argument))
            flat.extend(argument)
        else:
            raise Fault(f"{name} takes doubles and doubleVecs, not a {kind(argument)}")
        if len(flat) > MAX_VECTOR:
            raise Fault(f"a vector of more than {MAX_VECTOR} numbers is too long")
    return tuple(flat)


def element(vector: Vec, index: float) -> float:
    """One number of a vector.

    :param vector: the numbers.
    :param index: from 0; a fraction is cut off.
    :return: the number there.
    :raises Fault: there is none.
    """
    if not 0 <= index < len(vector):
        raise Fault(f"there is no element {index:g} in a vector of {len(vector)}")
    return vector[int(index)]


def _filled(name: str, vector: Vec, least: int = 1) -> Vec:
    if len(vector) < least:
        raise Fault(
            f"{name} needs {least} or more numbers and got {len(vector)}: where samples may be missing, "
            "ask GetSamplePercent first or add a number of your own"
        )
    return vector


def _std(name: str, vector: Vec) -> float:
    mean = _sum(_filled(name, vector, 2)) / len(vector)
    squares = _sum(tuple((number - mean) * (number - mean) for number in vector))
    return math.sqrt(squares / (len(vector) - 1))


def _sum(vector: Vec) -> float:
    try:
        return math.fsum(vector)
    except OverflowError:
        return math.inf


def _percentile(vector: Vec, percent: float) -> float:
    if not 0 <= percent <= 100:
        raise Fault(f"percentile takes a percentage from 0 to 100, not {percent:g}")
    ordered = sorted(_filled("percentile", vector))
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return finite(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


def _logarithm(logarithm: Callable[[float], float]) -> Callable[[str, float], float]:
    def apply(name: str, number: float) -> float:
        if number <= 0:
            raise Fault(f"{name} needs a number above 0, not {number:g}")
        return logarithm(number)

    return apply


def _round(number: float) -> float:
    # Halves go away from zero, as in C; adding 0.5 would round 0.49999999999999994 up.
    whole = float(math.floor(abs(number)))
    return math.copysign(whole + (abs(number) - whole >= 0.5), number)


_REDUCE: dict[str, Callable[[str, Vec], float]] = {
    "avg": lambda name, vector: _sum(_filled(name, vector)) / len(vector),
    "len": lambda _, vector: float(len(vector)),
    "max": lambda name, vector: max(_filled(name, vector)),
    "min": lambda name, vector: min(_filled(name, vector)),
    "norm": lambda _, vector: math.hypot(*vector),
    "range": lambda name, vector: max(_filled(name, vector)) - min(vector),
    "std": _std,
    "sum": lambda _, vector: _sum(vector),
}

_EACH: dict[str, Callable[[str, float], float]] = {
    "ceil": lambda _, number: float(math.ceil(number)),
    "floor": lambda _, number: float(math.floor(number)),
    "lg": _logarithm(math.log2),
    "ln": _logarithm(math.log),
    "log": _logarithm(math.log10),
    "round": lambda _, number: _round(number),
}

_SIGNATURES = {
    "percentile": "a doubleVec and a double",
    "rand": "nothing",
    "stop": "nothing",
    "time": "nothing or a string",
    "val": "a doubleVec and a double",
}

#: Every function's name.
FUNCTIONS = frozenset({*_REDUCE, *_EACH, *_SIGNATURES, "vec"})
