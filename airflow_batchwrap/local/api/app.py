"""From HTTP to the operations and back: host, signature, version, size; then one function."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from airflow_batchwrap.local.api import account, applications, files, jobs, nodes, pools, scaling, schedules, tasks
from airflow_batchwrap.local.api.call import Call, Reply
from airflow_batchwrap.local.api.connection import CUT, KNOWN
from airflow_batchwrap.local.store import StoreError
from airflow_batchwrap.local.wire import auth, odata, routes, schema, times
from airflow_batchwrap.local.wire.errors import BatchError
from airflow_batchwrap.local.world import World

log = logging.getLogger(__name__)

#: The largest request body, in bytes (azure-notes.md: 1 MiB).
BODY_LIMIT = 1024 * 1024
#: Up to here a body that is too large is read and dropped, so that its sender gets to see the answer.
DRAINED = 16 * 1024 * 1024

#: Faults on purpose, and the codes they are answered with.
_FATES = {"429": "TooManyRequests", "503": "ServerBusy"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_JSON = b"application/json; odata=minimalmetadata"
_ENCODER = json.JSONEncoder(separators=(",", ":"))
#: A list of more than so many items is written in turns of so many seconds.
_SHORT, _TURN = 20, 0.01
#: Query options every operation takes, in lower case.
_ALWAYS = frozenset({"api-version", "timeout", "$skiptoken"})

#: What an operation shows of whose properties ``$select`` may ask for some, by the last part of its path.
_SELECTED = {
    "pools": "BatchPool",
    "{poolId": "BatchPool",
    "jobs": "BatchJob",
    "{jobId": "BatchJob",
    "jobpreparationandreleasetaskstatus": "BatchJobPreparationAndReleaseTaskStatus",
    "jobschedules": "BatchJobSchedule",
    "{jobScheduleId": "BatchJobSchedule",
    "tasks": "BatchTask",
    "{taskId": "BatchTask",
    "subtasksinfo": "BatchSubtask",
    "nodes": "BatchNode",
    "{nodeId": "BatchNode",
    "extensions": "BatchNodeVMExtension",
    "{extensionName": "BatchNodeVMExtension",
}

#: Errors that say what is there and what is not: they are given once that is kept, as every answer is.
_OF_STATE = frozenset({404, 409, 412})

#: The operations that there are, by name; every other of operations.json answers 501.
HANDLERS: dict[str, Callable[[Call], Awaitable[Reply]]] = {
    name: getattr(module, name)
    for module in (account, applications, files, jobs, nodes, pools, scaling, schedules, tasks)
    for name in routes.OPERATIONS
    if hasattr(module, name)
}


class Api:
    """The Batch REST API as an ASGI application.

    :param world: the state.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        request_id = str(uuid.uuid4())
        base = f"{scope['scheme']}://{headers.get('host', '')}"
        status = 200
        fate = self._world.config.faults.request() if self._world.config.faults else ""
        if fate == "cut":
            scope[CUT]()
            return
        try:
            if fate in _FATES:
                raise BatchError(_FATES[fate], retry_after=self._world.config.faults.retry_after)
            call = await self._call(scope, headers, receive, base, request_id)
            handler = HANDLERS.get(call.operation.name)
            if handler is None:
                raise BatchError(
                    "NotImplemented",
                    f"The local Batch service does not implement the operation {call.operation.name}.",
                    values={"Operation": call.operation.name},
                )
            reply, status = await self._handled(handler, call), call.operation.status
        except BatchError as error:
            reply = Reply(error.body(request_id, base), error.headers, error.status)
        except StoreError as error:
            log.error("%s", error)
            reply = Reply(BatchError("InternalError", str(error)).body(request_id, base), status=500)
        except Exception:
            log.exception("The local Batch service failed to answer %s %s.", scope["method"], scope["path"])
            reply = Reply(BatchError("InternalError").body(request_id, base), status=500)
        if fate == "cut after":
            scope[CUT]()
            return
        await _send(send, scope["method"], reply, reply.status or status, headers, request_id)

    async def _handled(self, handler: Callable[[Call], Awaitable[Reply]], call: Call) -> Reply:
        try:
            return await handler(call)
        except BatchError as error:
            if error.status in _OF_STATE:
                await self._world.store.commit()
            raise

    async def _call(self, scope: Scope, headers: dict[str, str], receive: Receive, base: str, request_id: str) -> Call:
        config = self._world.config
        method, path = scope["method"], scope["raw_path"].decode("latin-1").partition("?")[0]
        query_string = scope["query_string"].decode("latin-1")
        if headers.get("host", "").lower() not in config.hosts:
            raise BatchError("InvalidHost")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = config.identity if scheme.lower() == "bearer" else None
        if bearer is not None:
            bearer.admit(token.strip(), times.now())
        else:
            auth.verify(method, path, query_string, headers, account=config.account, key=config.key, now=times.now())
        scope[KNOWN]()
        operation, parameters = routes.find(method, path)
        if bearer is not None:
            bearer.allow(operation)
        query = {name.lower(): value for name, value in reversed(parse_qsl(query_string))}
        _options(operation, query)
        body = await _body(headers, receive)
        return Call(self._world, operation, parameters, query, headers, body, base, request_id)


def _options(operation: routes.Operation, query: dict[str, str]) -> None:
    version = query.get("api-version")
    if version is None:
        raise BatchError("MissingRequiredQueryParameter", "The query parameter api-version is missing.")
    if version != schema.API_VERSION and version not in schema.OLDER_VERSIONS:
        raise BatchError(
            "UnsupportedRequestVersion",
            f"The api-version {version[:40]!r} is not supported; {schema.API_VERSION} is, and of the older ones "
            f"{', '.join(sorted(schema.OLDER_VERSIONS))}.",
        )
    allowed = _ALWAYS | {name.lower() for name in operation.query}
    for name in query:
        if name not in allowed:
            raise BatchError(
                "UnsupportedQueryParameter",
                f"The query parameter {name[:40]!r} is not supported for {operation.name}.",
                values={"QueryParameterName": name[:40]},
            )
    # What older versions call differently is looked for by those names.
    names = odata.selected(query.get("$select")) if version == schema.API_VERSION else None
    shown = _SELECTED.get(operation.path.rpartition("/")[2].removesuffix("}"), "")
    if names and (unknown := sorted(names - schema.MODELS[shown].keys())):
        raise BatchError(
            "InvalidQueryParameterValue",
            f"$select names {unknown[0][:40]!r}, which {operation.name} does not show.",
            values={"QueryParameterName": "$select", "QueryParameterValue": query["$select"][:200]},
        )


async def _body(headers: dict[str, str], receive: Receive) -> bytes:
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > DRAINED:
        raise BatchError("RequestBodyTooLarge", values={"MaxLimit": str(BODY_LIMIT)})
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BatchError("InvalidRequestBody", "The client went away.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > BODY_LIMIT:
            chunks.clear()
            if size > DRAINED or not message.get("more_body"):
                raise BatchError("RequestBodyTooLarge", values={"MaxLimit": str(BODY_LIMIT)})
            continue
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


async def _encoded(body: dict[str, Any]) -> bytes:
    """A body as JSON; a long list in turns, since a page of large tasks has tens of megabytes."""
    value = body.get("value")
    if not isinstance(value, list) or len(value) <= _SHORT:
        return _ENCODER.encode(body).encode()
    pieces: list[bytes] = []
    until = time.monotonic() + _TURN
    for item in value:
        pieces.append(_ENCODER.encode(item).encode())
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + _TURN
    head, tail = _ENCODER.encode({**body, "value": []}).encode().split(b'"value":[]')
    return b'%b"value":[%b]%b' % (head, b",".join(pieces), tail)


async def _send(send: Send, method: str, reply: Reply, status: int, asked: dict[str, str], request_id: str) -> None:
    headers = {"request-id": request_id, "DataServiceVersion": "3.0", "Server": "airflow-batchwrap-local"}
    headers["X-Content-Type-Options"] = "nosniff"
    if asked.get("return-client-request-id", "").lower() == "true" or "client-request-id" in asked:
        headers["client-request-id"] = asked.get("client-request-id", "")[:256]
    payload = b""
    if reply.body is not None and status != 304:
        payload = await _encoded(reply.body)
        headers["Content-Type"] = _JSON.decode()
    if "Content-Length" not in reply.headers and status not in (204, 304):
        headers["Content-Length"] = str(len(payload))
    headers |= reply.headers
    # Names that clients give stand in some: none of them ends a header, or begins another.
    raw: list[tuple[bytes, bytes]] = [
        (name.encode("latin-1"), _CONTROL.sub("?", value).encode("latin-1", "replace"))
        for name, value in headers.items()
    ]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    if reply.stream is not None and method != "HEAD":
        async for chunk in reply.stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        payload = b""
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else payload})


def missing() -> list[str]:
    """The operations that answer 501.

    :return: their names.
    """
    return sorted(set(routes.OPERATIONS) - set(HANDLERS))
