"""Operations on the autoscaling of pools."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.autoscale import Formula, FormulaSyntaxError
from airflow_batchwrap.local.control.autoscaler import INTERVAL, run_of
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: autoScaleEvaluationInterval, from 5 minutes to 168 hours; in seconds.
SHORTEST, LONGEST = 300.0, 604_800.0
#: Learn: autoscale of one pool may be enabled once in 30 seconds.
ENABLE_GAP = 30.0

_FORMULA, _INTERVAL = "autoScaleFormula", "autoScaleEvaluationInterval"


def _parse(text: str) -> Formula:
    try:
        return Formula.parse(text)
    except FormulaSyntaxError as error:
        raise BatchError(error.code, f"The autoscale formula cannot be read: {error}.") from None


def _interval(body: dict[str, Any]) -> None:
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
    _interval(body)
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
    return _parse(body[_FORMULA])


async def enable_pool_auto_scale(call: Call) -> Reply:
    """Let a pool scale itself, or give it another formula or interval; it is evaluated at once."""
    body = call.body("BatchPoolEnableAutoScaleOptions", optional=True)
    pool = call.live_pool()
    call.conditions(pool)
    _interval(body)
    if _FORMULA not in body and not pool.body["enableAutoScale"]:
        raise BatchError("InvalidAutoScalingSettings", f"{_FORMULA} is needed: the pool has none yet.")
    formula = _parse(body.get(_FORMULA) or pool.body[_FORMULA])
    if pool.allocation != "steady":
        raise BatchError("PoolBeingResized")
    now, gap = times.now(), call.world.pace.here(ENABLE_GAP)
    if pool.scale_asked is not None and now < pool.scale_asked + gap:
        raise BatchError("TooManyEnableAutoScaleRequests")
    pool.scale_asked = now
    pool.body = {_INTERVAL: INTERVAL, **pool.body, **body, "enableAutoScale": True}
    pool.changed()
    call.world.store.touch(pool)
    call.world.autoscaler.begin(pool, formula)
    return await call.accept(pool, views.url_of(call.base, pool))


async def disable_pool_auto_scale(call: Call) -> Reply:
    """Leave a pool with the targets it has."""
    pool = call.live_pool()
    kept = {name: value for name, value in pool.body.items() if name not in (_FORMULA, _INTERVAL)}
    pool.body = {**kept, "enableAutoScale": False}
    pool.scale_run = None
    pool.changed()
    call.world.autoscaler.end(pool)
    call.world.store.touch(pool)
    return await call.accept(pool, views.url_of(call.base, pool))


async def evaluate_pool_auto_scale(call: Call) -> Reply:
    """Say what a formula would come to on a pool; nothing is changed."""
    body = call.body("BatchPoolEvaluateAutoScaleOptions")
    pool = call.live_pool()
    if not pool.body["enableAutoScale"]:
        raise BatchError("OperationNotValidOnPool", "The pool must have autoscale enabled to evaluate a formula.")
    formula = _parse(body[_FORMULA])
    return await call.show(pool, run_of(call.world.autoscaler.evaluate(pool, formula)))
