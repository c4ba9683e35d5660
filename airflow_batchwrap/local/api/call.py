"""One request and its answer, as the operations see them."""

from __future__ import annotations

import asyncio
import gc
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

from airflow_batchwrap.local.api.views import url_of
from airflow_batchwrap.local.control.turnstile import sliced
from airflow_batchwrap.local.model.entities import Entity, Job, JobSchedule, Node, Pool, Task
from airflow_batchwrap.local.model.statistics import Sums
from airflow_batchwrap.local.node import threads
from airflow_batchwrap.local.wire import odata, schema, times, versions
from airflow_batchwrap.local.wire.errors import BatchError
from airflow_batchwrap.local.wire.filters import FILTERS
from airflow_batchwrap.local.wire.routes import Operation
from airflow_batchwrap.local.world import World

#: The largest page, and the usual one (Learn: list operations).
PAGE = 1000
#: How many characters the texts of a page may hold whose items tasks name: what is larger takes long to write as JSON.
ROOM = 1024 * 1024
#: Lists of what is kept as it is shown, in the metadata's words: they wait for what they show and for nothing else.
_PLAIN = frozenset({"jobs", "jobschedules", "nodes", "pools", "tasks"})
#: How many items of a list are looked at in one turn of the event loop.
TURN = 100
#: How many digits the number of an item in a list has at most: Python reads 4,300 of them and no more.
_DIGITS = 18
#: From so many bytes on, a body is parsed beside the loop, and without the garbage collector: it would look for cycles
#: again and again among hundreds of thousands of new lists, which hold none, and take five times as long.
_LARGE = 64 * 1024


@dataclass
class Reply:
    """An answer.

    :param body: a JSON body; None for none.
    :param headers: headers beside the usual ones.
    :param status: another status than the operation's own.
    :param stream: the bytes of a file, in place of a JSON body.
    """

    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    stream: AsyncIterator[bytes] | None = None


class _Listed(Protocol):
    @property
    def place(self) -> str:
        """Where it stands in its list."""
        ...


L = TypeVar("L", bound=_Listed)
T = TypeVar("T")


class Call:
    """A verified request.

    :param world: the state.
    :param operation: what is asked.
    :param path: the parameters of its path.
    :param query: its query parameters, names in lower case.
    :param headers: its headers, names in lower case.
    :param raw: its body.
    :param base: the address the client used, for links.
    :param request_id: the id given to it.
    """

    def __init__(
        self,
        world: World,
        operation: Operation,
        path: dict[str, str],
        query: dict[str, str],
        headers: Mapping[str, str],
        raw: bytes,
        base: str,
        request_id: str,
    ) -> None:
        self.world = world
        self.operation = operation
        self.path = path
        self.query = query
        self.headers = headers
        self.raw = raw
        self.base = base
        self.request_id = request_id

    async def body(self, model: str, *, optional: bool = False) -> dict[str, Any]:
        """The request's body, checked.

        :param model: the model it has to fit.
        :param optional: an absent body counts as an empty one.
        :return: the body.
        :raises BatchError: it does not fit.
        """
        if optional and not self.raw.strip():
            return {}
        return await self._beside(lambda: self.check(model, self._parsed()))

    async def bodies(self, model: str, most: int) -> list[dict[str, Any]]:
        """The request's body, which holds a list ``value``, checked.

        :param model: the model that each of it has to fit.
        :param most: how many there may be.
        :return: them.
        :raises BatchError: it is no such list, or one does not fit.
        """

        def checked() -> list[dict[str, Any]]:
            parsed = self._parsed()
            if not isinstance(parsed, dict) or "value" not in parsed:
                raise BatchError("InvalidRequestBody", "The request body must hold a list 'value'.")
            bodies = parsed["value"]
            if not isinstance(bodies, list) or len(bodies) > most:
                raise BatchError("InvalidRequestBody", f"'value' must be a list of at most {most} tasks.")
            return [self.check(model, body, f"value[{index}]") for index, body in enumerate(bodies)]

        return await self._beside(checked)

    async def _beside(self, read: Callable[[], T]) -> T:
        """Read a body: a large one beside the loop, since its many parts take their time."""
        return await threads.apart(read) if len(self.raw) > _LARGE else read()

    def _parsed(self) -> Any:
        """The request's body, parsed; what is no JSON raises."""
        large = len(self.raw) > _LARGE
        try:
            if large:
                gc.disable()
            # How deep it may be nested is for the schema to say; json itself gives up before the stack does.
            parsed = json.loads(self.raw.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
            if b"\\ud" in self.raw or b"\\uD" in self.raw:
                # Half of a pair is no character: no file, variable or answer can hold it.
                json.dumps(parsed, ensure_ascii=False).encode()
            return parsed
        except (ValueError, RecursionError):
            raise BatchError("InvalidRequestBody", "The request body is not JSON.") from None
        finally:
            if large:
                gc.enable()

    def check(self, model: str, parsed: Any, path: str = "") -> dict[str, Any]:
        """Check a part of the request's body as the request's api-version asks for it.

        :param model: the model it has to fit.
        :param parsed: the part.
        :param path: where in the body it stands.
        :return: the part to keep.
        :raises BatchError: it does not fit.
        """
        return schema.check(model, parsed, path, lenient=self.version in schema.OLDER_VERSIONS)

    def pool(self) -> Pool:
        """The pool the path names.

        :return: the pool.
        :raises BatchError: there is none.
        """
        pool = self.world.pools.get(self.path["poolId"])
        if pool is None:
            raise BatchError("PoolNotFound")
        return pool

    def live_pool(self) -> Pool:
        """The pool the path names, if it is not being deleted.

        :return: the pool.
        :raises BatchError: there is none, or it is being deleted.
        """
        pool = self.pool()
        if pool.state == "deleting":
            raise BatchError("PoolBeingDeleted")
        return pool

    def node(self) -> Node:
        """The node the path names.

        :return: the node.
        :raises BatchError: there is none.
        """
        node = self.pool().nodes.get(self.path["nodeId"])
        if node is None:
            raise BatchError("NodeNotFound")
        return node

    def job(self) -> Job:
        """The job the path names.

        :return: the job.
        :raises BatchError: there is none.
        """
        job = self.world.jobs.get(self.path["jobId"])
        if job is None:
            raise BatchError("JobNotFound")
        return job

    def schedule(self) -> JobSchedule:
        """The job schedule the path names.

        :return: the job schedule.
        :raises BatchError: there is none.
        """
        schedule = self.world.schedules.get(self.path["jobScheduleId"])
        if schedule is None:
            raise BatchError("JobScheduleNotFound")
        return schedule

    def task(self) -> Task:
        """The task the path names.

        :return: the task.
        :raises BatchError: there is none.
        """
        task = self.job().tasks.get(self.path["taskId"])
        if task is None:
            raise BatchError("TaskNotFound")
        return task

    def selected(self) -> frozenset[str] | None:
        """The properties that ``$select`` asks for; None for all."""
        return versions.selected(self.version, odata.selected(self.query.get("$select")))

    def expanded(self, name: str, names: frozenset[str] | None) -> bool:
        """Whether an answer is to hold what is left out unless it is asked for.

        :param name: what it is, such as ``stats``.
        :param names: the properties wanted; None for all.
        :return: whether ``$expand`` names it and ``$select`` does not leave it out.
        """
        asked = (part.strip() for part in self.query.get("$expand", "").split(","))
        return name in asked and (names is None or name in names)

    def conditions(self, entity: Entity) -> None:
        """Check the conditional headers against an entity.

        :param entity: the entity.
        :raises BatchError: a condition is not met.
        """
        headers = self.headers
        reading = self.operation.method in ("GET", "HEAD")
        if_match, if_none = headers.get("if-match"), headers.get("if-none-match")
        if if_match and not _tagged(if_match, entity.etag):
            raise BatchError("ConditionNotMet")
        if if_none and _tagged(if_none, entity.etag):
            raise BatchError("ConditionNotMet", status=304 if reading else 412)
        since = moment(headers.get("if-modified-since"))
        if since is not None and int(entity.modified) <= since:
            raise BatchError("ConditionNotMet", status=304 if reading else 412)
        until = moment(headers.get("if-unmodified-since"))
        if until is not None and int(entity.modified) > until:
            raise BatchError("ConditionNotMet")

    async def show(self, entity: Entity, body: dict[str, Any]) -> Reply:
        """Answer with an entity, once what is shown of it is kept.

        :param entity: the entity.
        :param body: how it is shown.
        :return: the answer.
        """
        await self.world.store.settle(entity.uid)
        kind = f"{type(entity).__name__.lower()}s"
        shown = versions.shown(self.version, kind, body)
        return Reply({"odata.metadata": f"{self.base}/$metadata#{kind}/@Element", **shown}, _stamps(entity))

    @property
    def version(self) -> str:
        """The api-version that is spoken."""
        return self.query["api-version"]

    @property
    def address(self) -> str:
        """The address that was asked for, without its query."""
        path = self.operation.path
        for name, value in self.path.items():
            path = path.replace("{" + name + "}", quote(value, safe=""))
        return f"{self.base}{path}"

    async def accept(self, entity: Entity, url: str = "") -> Reply:
        """Answer that a change was made, once it is kept, with the headers that the real service was recorded to send.

        :param entity: the entity.
        :param url: of a new one, the address that DataServiceId and Location name.
        :return: the answer.
        """
        await self.world.store.commit()
        method, headers = self.operation.method, {} if self.operation.method == "DELETE" else _stamps(entity)
        if self.operation.status == 201:
            headers |= {"DataServiceId": url, "Location": url}
        elif method not in ("GET", "HEAD", "DELETE") and self.operation.name != "reactivate_task":
            headers["DataServiceId"] = self.address
        return Reply(None, headers)

    async def listing(
        self,
        kind: str,
        items: Callable[[str], Iterable[L | None]],
        view: Callable[[L, frozenset[str] | None], dict[str, Any]],
        *,
        apart: bool = False,
        more: Callable[[L], Awaitable[dict[str, Any]]] | None = None,
    ) -> Reply:
        """Answer with a page of a list.

        :param kind: what is listed, for the metadata link.
        :param items: gives what comes after one of its places, in their order; all of it after the empty place.
        :param view: shows one, restricted to some properties or not.
        :param apart: what is listed is looked up on a disk: beside the event loop, in turns; None is a pause.
        :param more: gives further properties of one that is shown; it may take its time.
        :return: the answer, with the link to the next page where there is one.
        :raises BatchError: a query option cannot be read, or the list cannot be filtered so.
        """
        size, after = self._page()
        text = self.query.get("$filter")
        wanted = odata.Filter(text, FILTERS.get(self.operation.name, {})) if text else None
        heads = frozenset(name.partition("/")[0] for name in wanted.properties) if wanted else frozenset()
        names = self.selected()
        value: list[dict[str, Any]] = []
        listed: list[L] = []
        following: str | None = None
        last = after
        room = ROOM

        def gather() -> Generator[None, None, None]:
            nonlocal following, last, room
            for looked_at, item in enumerate(items(after), 1):
                if item is None or looked_at % TURN == 0:
                    yield
                if item is None:
                    continue
                if wanted is not None:
                    looked = view(item, heads)
                    if not wanted.test(lambda path, looked=looked: odata.look_up(looked, path)):  # type: ignore[misc]
                        continue
                if len(value) == size or (apart and room <= 0):
                    following = last
                    return
                value.append(versions.shown(self.version, kind, view(item, names)))
                listed.append(item)
                if apart:
                    room -= sum(len(shown) for shown in value[-1].values() if isinstance(shown, str))
                last = item.place

        if apart:
            await threads.finish(gather())
        else:
            for _ in gather():
                await asyncio.sleep(0)
        if more is not None:
            for item, shown in zip(listed, value, strict=True):
                shown |= await more(item)
        body: dict[str, Any] = {"odata.metadata": f"{self.base}/$metadata#{kind}", "value": value}
        if following is not None:
            body["odata.nextLink"] = self._next(following)
        # After the look, not before: while others are waited for, more may happen that is not kept yet.
        if wanted is None and kind in _PLAIN:
            await self.world.store.settle_all(item.uid for item in listed if isinstance(item, Entity))
        else:
            # What is not shown, or is counted, says something as well.
            await self.world.store.commit()
        return Reply(body)

    async def stats(self, entity: Entity, jobs: Iterable[Job]) -> dict[str, Any]:
        """The statistics of a job or a job schedule, if they are asked for.

        :param entity: the job or job schedule.
        :param jobs: the jobs whose tasks count.
        :return: the property ``stats``, or nothing.
        """
        if not self.expanded("stats", self.selected()):
            return {}
        sums = Sums(jobs)
        async for task in sliced(sums.tasks()):
            sums.add(task)
        return {"stats": sums.shown(entity.created, url_of(self.base, entity))}

    def _page(self) -> tuple[int, str]:
        given = {"QueryParameterName": "maxresults", "QueryParameterValue": self.query.get("maxresults", "")[:40]}
        try:
            size = int(self.query.get("maxresults", PAGE))
        except ValueError:
            raise BatchError("InvalidQueryParameterValue", "maxresults must be a number.", values=given) from None
        if not 1 <= size <= PAGE:
            raise BatchError("OutOfRangeQueryParameterValue", f"maxresults must be from 1 to {PAGE}.", values=given)
        return size, self.query.get("$skiptoken", "")

    def _next(self, after: str) -> str:
        query = {name: value for name, value in self.query.items() if name != "$skiptoken"}
        return f"{self.address}?{urlencode({**query, '$skiptoken': after})}"


def _stamps(entity: Entity) -> dict[str, str]:
    """The headers that say which state of an entity is shown; a node has none."""
    if isinstance(entity, Node):
        return {}
    return {"ETag": entity.etag, "Last-Modified": times.http_date(entity.modified)}


@dataclass(frozen=True)
class Row:
    """A row of a list that has no order of its own.

    :param place: its number, from 1 on.
    :param value: what it shows.
    """

    place: str
    value: Any


def numbered(rows: Sequence[L]) -> Callable[[str], Iterable[L]]:
    """Give the rows of a list whose places are their numbers, from 1 on.

    :param rows: the rows.
    :return: what `Call.listing` takes.
    """

    def items(after: str) -> Iterable[L]:
        return rows[place_of(after) :]

    return items


def place_of(token: str) -> int:
    """Read a ``$skiptoken`` that is a number.

    :param token: the token; it may be empty.
    :return: the number.
    :raises BatchError: it is none that this service gives.
    """
    if token and not (token.isdecimal() and len(token) <= _DIGITS):
        raise BatchError("InvalidQueryParameterValue", values={"QueryParameterName": "$skiptoken"})
    return int(token or 0)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # It would be written as Infinity, which is no JSON: a whole list could not be read for one such number.
        raise BatchError("InvalidRequestBody", f"The number {text[:40]} is larger than any double.")
    return number


def _no_number(text: str) -> None:
    # NaN and the infinities: Python's idea of JSON, and nobody else's.
    raise ValueError(text)


def _tagged(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return "*" in tags or etag in tags


def moment(header: str | None) -> float | None:
    """Read a date from a header.

    :param header: its value; it may be absent.
    :return: seconds since the epoch.
    :raises BatchError: it is no date.
    """
    if not header:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except (OverflowError, ValueError):
        raise BatchError("InvalidHeaderValue") from None
