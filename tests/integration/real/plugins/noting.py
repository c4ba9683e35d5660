"""Callbacks, a listener and an XCom backend that note what Airflow tells them of two DAGs, ordinary and consumer.

What other DAGs do in the same Airflow is neither noted nor changed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.bases.xcom import BaseXCom
from airflow.triggers.base import BaseTrigger, TriggerEvent

OURS = ("ordinary", "consumer")


def note(what: str, ti: Any = None, **more: Any) -> None:
    """Add a line to the notes."""
    of = {} if ti is None else {"task": ti.task_id, "index": ti.map_index, "try": ti.try_number, "of": ti.max_tries}
    line = json.dumps({"what": what, **of, **more}) + "\n"
    descriptor = os.open(os.environ["ORDINARY_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def callback(kind: str) -> Callable[[Any], None]:
    """Make a callback that notes that it was called."""

    def noting(context: Any) -> None:
        ti, failure = context["ti"], isinstance(context.get("exception"), Exception)
        note(kind, ti, state=str(ti.state), failure=failure)

    return noting


KINDS = [f"on_{event}_callback" for event in ("execute", "success", "retry", "failure")]
CALLBACKS = {kind: callback(kind) for kind in KINDS}


class Listener:
    """Notes what is said of our tasks and assets."""

    @hookimpl
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        """Note a beginning."""
        if task_instance.dag_id in OURS:
            note("running heard", task_instance, before=str(previous_state))

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        """Note a success."""
        if task_instance.dag_id in OURS:
            note("success heard", task_instance, before=str(previous_state))

    @hookimpl
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        """Note a failure."""
        if task_instance.dag_id in OURS:
            note("failed heard", task_instance, before=str(previous_state), failure=isinstance(error, Exception))

    @hookimpl
    def on_asset_event_emitted(self, asset_event: Any) -> None:
        """Note an event; no other DAG has assets."""
        source = [asset_event.source_task_id, asset_event.source_map_index]
        note("asset heard", asset=asset_event.asset.name, source=source, extra=asset_event.extra)


class NotingPlugin(AirflowPlugin):
    """What brings the listener in."""

    name = "noting"
    listeners = [Listener()]  # noqa: RUF012 - as Airflow has it


class WrappingXCom(BaseXCom):
    """What it stores of our DAGs is not the value itself."""

    @staticmethod
    def serialize_value(
        value: Any,
        *,
        key: str | None = None,
        task_id: str | None = None,
        dag_id: str | None = None,
        run_id: str | None = None,
        map_index: int | None = None,
    ) -> str:
        """Wrap, and note what is written."""
        if dag_id not in OURS:
            return BaseXCom.serialize_value(value)
        note("written", task=task_id, index=map_index, key=key, value=value)
        return BaseXCom.serialize_value({"wrapped": value})

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        """Unwrap, and note what is read. Whose it is it does not say: what is not wrapped is noted as that."""
        value = BaseXCom.deserialize_value(result)
        if not (isinstance(value, dict) and value.keys() == {"wrapped"}):
            note("read as it is", value=value)
            return value
        note("read", value=value["wrapped"])
        return value["wrapped"]


class Soon(BaseTrigger):
    """Fire by itself, after so many seconds as ORDINARY_PAUSE says."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow makes it from."""
        return "noting.Soon", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire."""
        await asyncio.sleep(float(os.environ["ORDINARY_PAUSE"]))
        yield TriggerEvent(None)  # type: ignore[no-untyped-call]
