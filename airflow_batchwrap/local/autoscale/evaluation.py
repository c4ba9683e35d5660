"""From statements to values: one walk over the tree, without `eval` and without a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from airflow_batchwrap.local.autoscale import operators
from airflow_batchwrap.local.autoscale.errors import Fault
from airflow_batchwrap.local.autoscale.functions import Stop, Surroundings, call, element, flatten
from airflow_batchwrap.local.autoscale.metrics import Metric
from airflow_batchwrap.local.autoscale.samples import METRICS, SampleSeries
from airflow_batchwrap.local.autoscale.syntax import (
    Access,
    Call,
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
from airflow_batchwrap.local.autoscale.values import INTERVALS, Timestamp, Value, kind

_P = ParamSpec("_P")
_R = TypeVar("_R")

DEDICATED = "$TargetDedicatedNodes"
LOW_PRIORITY = "$TargetLowPriorityNodes"
OPTION = "$NodeDeallocationOption"

#: What may become of a removed node's tasks (documented; requeue is the default).
OPTIONS = ("requeue", "terminate", "taskcompletion", "retaineddata")

# The older, shorter names; of the targets' Azure documents that the full name wins where a formula sets both.
_TARGETS = {DEDICATED: "$TargetDedicated", LOW_PRIORITY: "$TargetLowPriority"}
_FULL = {short: full for full, short in _TARGETS.items()}
_CURRENT = {"$CurrentDedicated": "$CurrentDedicatedNodes", "$CurrentLowPriority": "$CurrentLowPriorityNodes"}

# Targets travel as 32-bit integers.
_MOST_NODES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool as a formula finds it.

    :param target_dedicated_nodes: the target before the evaluation.
    :param target_low_priority_nodes: the same of spot nodes.
    :param current_dedicated_nodes: nodes there are.
    :param current_low_priority_nodes: spot nodes there are, preempted ones included.
    :param node_deallocation_option: one of `OPTIONS`.
    :param task_slots_per_node: the pool's setting.
    """

    target_dedicated_nodes: int = 0
    target_low_priority_nodes: int = 0
    current_dedicated_nodes: int = 0
    current_low_priority_nodes: int = 0
    node_deallocation_option: str = OPTIONS[0]
    task_slots_per_node: int = 1


class Evaluation:
    """One run of a formula.

    :param samples: the series by variable.
    :param current: the pool.
    :param around: clock, chance and the count of steps.
    """

    def __init__(self, samples: Mapping[str, SampleSeries], current: PoolState, around: Surroundings) -> None:
        self._around = around
        self._samples = samples
        self._known = {
            "$CurrentDedicatedNodes": float(current.current_dedicated_nodes),
            "$CurrentLowPriorityNodes": float(current.current_low_priority_nodes),
            "$TaskSlotsPerNode": float(current.task_slots_per_node),
        }
        self._given = {
            DEDICATED: float(current.target_dedicated_nodes),
            LOW_PRIORITY: float(current.target_low_priority_nodes),
        }
        self._targets: dict[str, tuple[float, Position]] = {}
        self.option = current.node_deallocation_option
        #: What the formula assigned to names of its own.
        self.variables: dict[str, Value] = {}

    def run(self, statements: tuple[Statement, ...]) -> tuple[int, int]:
        """Execute a formula.

        :param statements: the formula.
        :return: the targets of dedicated and of spot nodes: fractions cut off, never below 0.
        :raises Fault: it cannot be executed to its end.
        """
        try:
            for statement in statements:
                value = self._value(statement.value)
                if statement.target is not None:
                    _at(statement.at, self._assign, statement.target, value, statement.at)
        except Stop:
            pass
        return self._nodes(DEDICATED), self._nodes(LOW_PRIORITY)

    def _nodes(self, name: str) -> int:
        # Fractions are cut off: (n + slots - 1) / slots is how formulas round up (Azure/Batch issue 151).
        number, at = self._target(name)
        if number > _MOST_NODES:
            raise _fault(at, f"{name} cannot be {number:g}: the most is {_MOST_NODES}")
        return max(0, int(number))

    def _target(self, name: str) -> tuple[float, Position | None]:
        for assigned in (name, _TARGETS[name]):
            if assigned in self._targets:
                return self._targets[assigned]
        return self._given[name], None

    def _assign(self, name: str, value: Value, at: Position) -> None:
        if name in _TARGETS or name in _FULL:
            if not isinstance(value, float):
                raise Fault(f"{name} is a double and cannot be a {kind(value)}{operators.remedy(value)}")
            self._targets[name] = value, at
        elif name == OPTION:
            if not isinstance(value, str) or value not in OPTIONS:
                raise Fault(f"{OPTION} is one of {', '.join(OPTIONS)}")
            self.option = value
        elif name in METRICS or name in _CURRENT or name in INTERVALS or name in OPTIONS:
            raise Fault(f"{name} is read-only: assign to a name of your own")
        else:
            self.variables[name] = value

    def _value(self, node: Expression) -> Value:
        """Evaluate to a value; a sampled variable by itself stands for its current number."""
        found = self._any(node)
        return _at(node.at, found.number) if isinstance(found, Metric) else found

    def _any(self, node: Expression) -> Value | Metric:
        self._around.work.spend(1)
        match node:
            case Number() | Text():
                return node.value
            case Name():
                return _at(node.at, self._read, node.name)
            case Chain():
                value = self._value(node.first)
                for link in node.links:
                    value = self._link(value, link)
                return value
            case Unary():
                value = self._value(node.operand)
                for sign, at in reversed(node.operators):
                    self._around.work.spend(1)
                    value = _at(at, operators.unary, sign, value)
                return value
            case Choice():
                for case in node.cases:
                    if _at(case.at, operators.truth, self._value(case.condition)):
                        return self._value(case.value)
                return self._value(node.otherwise)
            case Call():
                return _at(node.at, call, node.function, self._values(node.arguments), self._around)
            case Vector():
                return _at(node.at, flatten, "a vector", self._values(node.items), self._around.work)
            case Access():
                found = self._any(node.base)
                for part in node.parts:
                    found = self._part(found, part)
                return found

    def _values(self, nodes: tuple[Expression, ...]) -> list[Value]:
        return [self._value(node) for node in nodes]

    def _read(self, name: str) -> Value | Metric:
        full = _FULL.get(name, name)
        if full in _TARGETS:
            return self._target(full)[0]
        if name == OPTION:
            return self.option
        if name in self.variables:
            return self.variables[name]
        if name in INTERVALS:
            return INTERVALS[name]
        if name in OPTIONS:
            return name
        name = _CURRENT.get(name, name)
        if name in METRICS:
            return Metric(name, self._samples.get(name, SampleSeries()), self._known.get(name))
        raise Fault(f"{name} has no value{_spelling(name, self.variables)}")

    def _link(self, left: Value, link: Link) -> Value:
        if link.operator in ("&&", "||"):
            # The right side is looked at only where it decides, as in the languages that the operators come from.
            truth = _at(link.at, operators.truth, left)
            if truth == (link.operator == "||"):
                return float(truth)
            return float(_at(link.at, operators.truth, self._value(link.operand)))
        right = self._value(link.operand)
        if isinstance(left, tuple):
            _at(link.at, self._around.work.spend, len(left))
        return _at(link.at, operators.binary, link.operator, left, right)

    def _part(self, base: Value | Metric, part: Method | Member | Index) -> Value:
        self._around.work.spend(1)
        if isinstance(part, Index):
            index = self._value(part.index)
            if not isinstance(base, tuple) or not isinstance(index, float):
                raise _fault(part.at, "[ ] takes a number, and a doubleVec before it")
            return _at(part.at, element, base, index)
        if isinstance(part, Method):
            arguments = self._values(part.arguments)
            if not isinstance(base, Metric):
                raise _fault(part.at, f"a {kind(base)} has no method {part.name}")
            return _at(part.at, base.call, part.name, arguments, self._around.now, self._around.work)
        if isinstance(base, Timestamp) and part.name in _MEMBERS:
            clock = base.clock()
            return float(clock.isoweekday() if part.name == "weekday" else getattr(clock, part.name))
        what = base.name if isinstance(base, Metric) else f"a {kind(base)}"
        raise _fault(part.at, f"{what} has no member {part.name}")


_MEMBERS = frozenset({"year", "month", "day", "weekday", "hour", "minute", "second"})


def _at(at: Position, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    try:
        return function(*args, **kwargs)
    except Fault as fault:
        fault.at = fault.at or at
        raise


def _fault(at: Position | None, text: str) -> Fault:
    fault = Fault(text)
    fault.at = at
    return fault


def _spelling(name: str, variables: Mapping[str, Value]) -> str:
    known = [*_TARGETS, *_FULL, OPTION, *METRICS, *_CURRENT, *INTERVALS, *OPTIONS, *variables]
    alike = next((other for other in known if other.lower() == name.lower()), None)
    return f": names are case-sensitive, did you mean {alike}?" if alike else ": assign to it first"
