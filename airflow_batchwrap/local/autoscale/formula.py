"""A formula: read once, evaluated as often as the interval says."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airflow_batchwrap.local.autoscale.errors import AutoScaleError, Fault
from airflow_batchwrap.local.autoscale.evaluation import DEDICATED, LOW_PRIORITY, OPTION, Evaluation, PoolState
from airflow_batchwrap.local.autoscale.functions import Surroundings, Work
from airflow_batchwrap.local.autoscale.parser import parse
from airflow_batchwrap.local.autoscale.samples import SampleSeries
from airflow_batchwrap.local.autoscale.syntax import Statement
from airflow_batchwrap.local.autoscale.values import Value, from_seconds, show


@dataclass(frozen=True, slots=True)
class AutoScaleResult:
    """The outcome of an evaluation.

    :param timestamp: when the formula was evaluated, in seconds since the epoch.
    :param target_dedicated_nodes: the target to apply; the one there was, if there is an error.
    :param target_low_priority_nodes: the same of spot nodes.
    :param node_deallocation_option: what becomes of the tasks on nodes that go; as before, if there is an error.
    :param variables: every variable's final value: the two targets, the option, then the formula's own by name.
    :param error: why the evaluation did not come to its end; None where it did.
    """

    timestamp: float
    target_dedicated_nodes: int
    target_low_priority_nodes: int
    node_deallocation_option: str
    variables: Mapping[str, Value]
    error: AutoScaleError | None = None

    @property
    def results(self) -> str:
        """The variables as they stand in ``AutoScaleRun.results``.

        :return: ``name=value`` pairs with semicolons between them.
        """
        return ";".join(f"{name}={show(value)}" for name, value in self.variables.items())


@dataclass(frozen=True, slots=True)
class Formula:
    """An autoscale formula; make one with `parse`.

    :param text: as given.
    :param statements: what was read.
    """

    text: str
    statements: tuple[Statement, ...]

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Read a formula.

        :param text: at most 8,192 characters and 100 statements.
        :return: the formula.
        :raises FormulaTooLong: it has too many characters.
        :raises FormulaSyntaxError: it cannot be read.
        """
        return cls(text, parse(text))

    def evaluate(
        self,
        now: float,
        samples: Mapping[str, SampleSeries],
        current: PoolState,
        *,
        rand: Callable[[], float] | None = None,
    ) -> AutoScaleResult:
        """Calculate the targets; the same input gives the same result.

        :param now: the time, in seconds since the epoch.
        :param samples: a series by each variable's name with its dollar sign; one that is absent has no samples.
        :param current: the pool.
        :param rand: what ``rand()`` calls, for numbers from 0 to 1; by default a generator seeded with `now`.
        :return: targets, option and variables; what went wrong during the evaluation is its `error`, never raised.
        """
        chance = rand or random.Random(now).random  # noqa: S311 - a formula's rand() keeps no secret
        evaluation = Evaluation(samples, current, Surroundings(from_seconds(now), chance, Work()))
        dedicated, low_priority = current.target_dedicated_nodes, current.target_low_priority_nodes
        option, error = current.node_deallocation_option, None
        try:
            dedicated, low_priority = evaluation.run(self.statements)
            option = evaluation.option
        except Fault as fault:
            # The pool stays as it is (documented), and the recorded answers of the real service show it so.
            error = fault.report()
        variables: dict[str, Value] = {DEDICATED: float(dedicated), LOW_PRIORITY: float(low_priority), OPTION: option}
        variables.update(sorted(evaluation.variables.items()))
        return AutoScaleResult(now, dedicated, low_priority, option, variables, error)
