"""The autoscale settings of pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.autoscale import Formula, FormulaSyntaxError
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: autoScaleEvaluationInterval, by default 15 minutes.
INTERVAL = "PT15M"
#: Learn: autoScaleEvaluationInterval, from 5 minutes to 168 hours; in seconds.
SHORTEST, LONGEST = 300.0, 604_800.0

_FORMULA, _INTERVAL = "autoScaleFormula", "autoScaleEvaluationInterval"


def parse(text: str) -> Formula:
    """Read a formula.

    :param text: the formula.
    :return: it.
    :raises BatchError: it cannot be read.
    """
    try:
        return Formula.parse(text)
    except FormulaSyntaxError as error:
        raise BatchError(error.code, f"The autoscale formula cannot be read: {error}.") from None


def interval(body: dict[str, Any]) -> None:
    """Check an evaluation interval.

    :param body: what it stands in; it may be absent.
    :raises BatchError: it is out of range.
    """
    if _INTERVAL in body and not SHORTEST <= times.parse_duration(body[_INTERVAL]) <= LONGEST:
        raise BatchError(
            "InvalidPropertyValue",
            f"The value of {_INTERVAL} must be from 5 minutes to 168 hours.",
            values={"PropertyName": _INTERVAL, "PropertyValue": body[_INTERVAL]},
        )


def of_new(body: dict[str, Any]) -> Formula | None:
    """Check the autoscale settings of a new pool, and fill in their defaults.

    :param body: the pool's body.
    :return: the formula; None where the pool does not scale itself.
    :raises BatchError: the settings cannot be (Learn: "Add a pool").
    """
    interval(body)
    if not body["enableAutoScale"]:
        given = [name for name in (_FORMULA, _INTERVAL) if name in body]
        if given:
            raise BatchError("InvalidAutoScalingSettings", f"{given[0]} goes with enableAutoScale only.")
        return None
    if _FORMULA not in body:
        raise BatchError("InvalidAutoScalingSettings", f"enableAutoScale needs {_FORMULA}.")
    for name in ("targetDedicatedNodes", "targetLowPriorityNodes"):
        if name in body:
            raise BatchError(
                "InvalidPropertyValue",
                f"{name} must not be given with enableAutoScale: the formula sets it.",
                values={"PropertyName": name, "PropertyValue": str(body[name])},
            )
    body.setdefault(_INTERVAL, INTERVAL)
    return parse(body[_FORMULA])
