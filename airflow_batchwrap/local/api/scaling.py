"""Operations on the autoscaling of pools."""

from __future__ import annotations

from airflow_batchwrap.local.api import views
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.control.autoscaler import run_of
from airflow_batchwrap.local.model.rules import scaling
from airflow_batchwrap.local.wire import times
from airflow_batchwrap.local.wire.errors import BatchError

#: Learn: autoscale of one pool may be enabled once in 30 seconds.
ENABLE_GAP = 30.0

_FORMULA, _INTERVAL = "autoScaleFormula", "autoScaleEvaluationInterval"


async def enable_pool_auto_scale(call: Call) -> Reply:
    """Let a pool scale itself, or give it another formula or interval; it is evaluated at once."""
    body = await call.body("BatchPoolEnableAutoScaleOptions", optional=True)
    pool = call.live_pool()
    call.conditions(pool)
    scaling.interval(body)
    if _FORMULA not in body and not pool.body["enableAutoScale"]:
        raise BatchError("InvalidAutoScalingSettings", f"{_FORMULA} is needed: the pool has none yet.")
    formula = scaling.parse(body[_FORMULA] if _FORMULA in body else pool.body[_FORMULA])
    if pool.allocation != "steady":
        raise BatchError("PoolBeingResized")
    now, gap = times.now(), call.world.pace.here(ENABLE_GAP)
    if pool.scale_asked is not None and now < pool.scale_asked + gap:
        raise BatchError("TooManyEnableAutoScaleRequests")
    pool.scale_asked = now
    pool.body = {_INTERVAL: scaling.INTERVAL, **pool.body, **body, "enableAutoScale": True}
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
    body = await call.body("BatchPoolEvaluateAutoScaleOptions")
    pool = call.live_pool()
    if not pool.body["enableAutoScale"]:
        raise BatchError("OperationNotValidOnPool", "The pool must have autoscale enabled to evaluate a formula.")
    formula = scaling.parse(body[_FORMULA])
    run = run_of(call.world.autoscaler.evaluate(pool, formula))
    metadata = f"{call.base}/$metadata#Microsoft.Azure.Batch.Protocol.Entities.AutoScaleRun"
    await call.world.store.settle(pool.uid)
    return Reply({"odata.metadata": metadata, **run}, {"DataServiceId": call.address})
