"""The page as an ASGI application: one address, one function."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from io import FileIO
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from airflow_batchwrap.local.home import Home
from airflow_batchwrap.local.model.entities import Job, Node, Pool, Task
from airflow_batchwrap.local.node import threads
from airflow_batchwrap.local.node.opening import Shorter
from airflow_batchwrap.local.page import files, ranges, show, tasks
from airflow_batchwrap.local.page.files import LISTED, Listed, Place
from airflow_batchwrap.local.page.guard import Guard
from airflow_batchwrap.local.page.render import HERE, prepare, render
from airflow_batchwrap.local.world import World

#: How many of each a page shows.
POOLS, JOBS, NODES, PARTS = 12, 25, 100, 50
#: The header of the page's own script, which follows the outputs by itself.
_LIVE = "batchwrap-live"


class Page:
    """The page.

    :param world: the state, which is only read.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        routes: list[BaseRoute] = [
            Route("/", self._overview),
            Route("/pools", self._pools),
            Route("/jobs", self._jobs),
            Route("/pools/{pool}", self._pool),
            Route("/pools/{pool}/nodes/{node}", self._node),
            Route("/jobs/{job}", self._job),
            Route("/jobs/{job}/tasks/{task}", self._task),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
        for place in ("/pools/{pool}/nodes/{node}", "/jobs/{job}/tasks/{task}"):
            routes += [
                Route(place + "/files/{path:path}", self._download),
                Route(place + "/view/{path:path}", self._view),
                Route(place + "/output/{path:path}", self._output),
            ]
        page = Starlette(routes=routes, exception_handlers={HTTPException: self._failed})
        threading.Thread(target=prepare, name="templates", daemon=True).start()
        self._guarded = Guard(page, Home(world.config.data).token(), world.config.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, once what is shown is kept."""

        async def send_kept(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._world.store.commit()
            await send(message)

        await self._guarded(scope, receive, send_kept)

    def _show(self, request: Request, name: str, **values: Any) -> Response:
        known = request.headers.get("if-none-match")
        return render(name, known=known, account=self._world.config.account, **values)

    async def _failed(self, request: Request, error: Exception) -> Response:
        status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        account = self._world.config.account
        return render("missing.html", status, account=account, detail=detail if status == 404 else "")

    async def _overview(self, request: Request) -> Response:
        pools, pages = show.page_of(list(self._world.pools)[::-1], 1, POOLS)
        jobs, job_pages = show.page_of(list(self._world.jobs)[::-1], 1, JOBS)
        return self._show(
            request,
            "overview.html",
            pools=[show.pool(pool) for pool in pools],
            pool_count=len(self._world.pools),
            more_pools=pages["more"],
            jobs=[show.job(job) for job in jobs],
            job_count=len(self._world.jobs),
            more_jobs=job_pages["more"],
        )

    async def _pools(self, request: Request) -> Response:
        wanted = _query(request, "id")
        found = [pool for pool in self._world.pools if wanted.lower() in pool.id.lower()]
        pools, pages = show.page_of(found[::-1], _number(request), POOLS)
        return self._show(
            request,
            "pools.html",
            pools=[show.pool(pool) for pool in pools],
            wanted=wanted,
            pages=_links(request, pages, id=wanted),
        )

    async def _jobs(self, request: Request) -> Response:
        wanted = _query(request, "id")
        found = [job for job in self._world.jobs if wanted.lower() in job.id.lower()]
        jobs, pages = show.page_of(found[::-1], _number(request), 4 * JOBS)
        return self._show(
            request,
            "jobs.html",
            jobs=[show.job(job) for job in jobs],
            wanted=wanted,
            pages=_links(request, pages, id=wanted),
        )

    async def _pool(self, request: Request) -> Response:
        pool = self._find_pool(request)
        nodes, pages = show.page_of(list(pool.nodes), _number(request), NODES)
        return self._show(
            request,
            "pool.html",
            pool=show.pool(pool, show.ALL_SQUARES),
            more=show.pool_details(self._world, pool),
            nodes=[show.node(node) for node in nodes],
            pages=_links(request, pages),
        )

    async def _node(self, request: Request) -> Response:
        node = self._find_node(request)
        place = show.node_place(self._world, node)
        outputs = await self._outputs(request, place, "startup/") if node.start else []
        listed, cut = await _listed(place)
        shown = show.node(node)
        return self._show(request, "node.html", node=shown, place=place, outputs=outputs, files=listed, cut=cut)

    async def _job(self, request: Request) -> Response:
        job = self._find_job(request)
        standing, wanted = _query(request, "state"), _query(request, "id")
        standing = standing if standing in tasks.STANDINGS else ""
        found, pages = await tasks.search(job, standing, wanted, _number(request))
        parts = sorted(job.nodes.values(), key=lambda part: (not part.barred, part.uid))
        return self._show(
            request,
            "job.html",
            job=show.job(job),
            more=show.job_details(self._world, job),
            tasks=found,
            standing=standing,
            wanted=wanted,
            choices={
                name: f"?{urlencode({key: value for key, value in (('state', name), ('id', wanted)) if value})}"
                for name in ("", *tasks.STANDINGS)
            },
            pages=_links(request, pages, state=standing, id=wanted),
            parts_shown=[show.part(self._world, part) for part in parts[:PARTS]],
            hidden_parts=max(0, len(parts) - PARTS),
        )

    async def _task(self, request: Request) -> Response:
        task = self._find_task(request)
        place = tasks.place(self._world, task)
        outputs = await self._outputs(request, place)
        listed, cut = await _listed(place)
        return self._show(
            request,
            "task.html",
            task=tasks.row(task),
            more=tasks.details(self._world, task),
            place=place,
            outputs=outputs,
            files=listed,
            cut=cut,
        )

    async def _outputs(self, request: Request, place: Place, below: str = "") -> list[dict[str, Any]]:
        """The ends of stdout and stderr, without what they say for a script that has it already."""
        live = _LIVE in request.headers
        shown = []
        for name in ("stdout", "stderr"):
            path = f"{below}{name}.txt"
            text = "" if live else await threads.apart(_end, place, path)
            shown.append({"name": name, "path": path, "text": text})
        return shown

    async def _view(self, request: Request) -> Response:
        place, path = self._place(request), _path(request)
        try:
            descriptor, _ = await threads.opened(files.open_file, place, path)
        except FileNotFoundError:
            raise HTTPException(404, "There is no such file, or not any more.") from None
        os.close(descriptor)
        text = "" if _LIVE in request.headers else await threads.apart(_end, place, path)
        link = quote(os.fsencode(path))
        return self._show(request, "file.html", place=place, output={"name": path, "path": link, "text": text})

    async def _output(self, request: Request) -> Response:
        place = self._place(request)
        start = _query(request, "from")
        begin = int(start) if start.isdecimal() and len(start) < 19 else None
        part = await threads.apart(files.read, place, _path(request), begin, request.query_params.get("mark"))
        return JSONResponse(part.shown())

    async def _download(self, request: Request) -> Response:
        path = _path(request)
        try:
            descriptor, status = await threads.opened(files.open_file, self._place(request), path)
        except FileNotFoundError:
            raise HTTPException(404, "There is no such file, or not any more.") from None
        try:
            first, end, partial = ranges.wanted(request.headers.get("range"), status.st_size)
        except ranges.Unsatisfiable:
            os.close(descriptor)
            return Response(status_code=416, headers={"Content-Range": f"bytes */{status.st_size}"})
        headers = {
            "Content-Length": str(end - first),
            "Accept-Ranges": "bytes",
            # Never shown as a page of this address, whatever is in it.
            "Content-Disposition": "attachment; filename*=UTF-8''" + quote(os.fsencode(os.path.basename(path)), ""),  # noqa: PTH119
        }
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{status.st_size}"
        if request.method == "HEAD":
            os.close(descriptor)
            return Response(None, 206 if partial else 200, headers, "application/octet-stream")
        content = _content(os.fdopen(descriptor, "rb", buffering=0), first, end)
        return StreamingResponse(content, 206 if partial else 200, headers, "application/octet-stream")

    def _find_pool(self, request: Request) -> Pool:
        pool = self._world.pools.get(request.path_params["pool"])
        if pool is None:
            raise HTTPException(404, "There is no such pool, or not any more.")
        return pool

    def _find_node(self, request: Request) -> Node:
        node = self._find_pool(request).nodes.get(request.path_params["node"])
        if node is None:
            raise HTTPException(404, "There is no such node in the pool, or not any more.")
        return node

    def _find_job(self, request: Request) -> Job:
        job = self._world.jobs.get(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "There is no such job, or not any more.")
        return job

    def _find_task(self, request: Request) -> Task:
        task = self._find_job(request).tasks.get(request.path_params["task"])
        if task is None:
            raise HTTPException(404, "There is no such task in the job, or not any more.")
        return task

    def _place(self, request: Request) -> Place:
        if "node" in request.path_params:
            return show.node_place(self._world, self._find_node(request))
        return tasks.place(self._world, self._find_task(request))


async def _listed(place: Place) -> tuple[list[Listed], bool]:
    """The files of a place, and whether there are more."""
    found: list[Listed] = []
    async with aclosing(threads.in_turns(files.listing(place))) as turns:
        async for more in turns:
            found += more
    return found[:LISTED], len(found) > LISTED


def _end(place: Place, path: str) -> str:
    return files.overwritten(files.read(place, path).text)


async def _content(opened: FileIO, first: int, end: int) -> AsyncIterator[bytes]:
    with opened as file:
        file.seek(first)
        while first < end:
            chunk = await threads.apart(file.read, min(end - first, files.CHUNK))
            if not chunk:
                raise Shorter
            first += len(chunk)
            yield chunk


def _query(request: Request, name: str) -> str:
    return request.query_params.get(name, "").strip()[:200]


def _number(request: Request) -> int:
    text = _query(request, "page")
    return int(text) if text.isdecimal() and len(text) < 10 else 1


def _path(request: Request) -> str:
    """A file's path as the file system has it, which need not be UTF-8: all after /ui/../../../../../."""
    raw = request.scope["raw_path"].partition(b"?")[0]
    return os.fsdecode(unquote_to_bytes(raw.split(b"/", 7)[7]))


def _links(request: Request, pages: dict[str, Any], **kept: str) -> dict[str, Any]:
    """The addresses of the pages beside this one."""

    def link(number: int) -> str:
        return "?" + urlencode({name: value for name, value in {**kept, "page": str(number)}.items() if value})

    number, last = pages["number"], pages["last"]
    return {
        **pages,
        "first_link": link(1) if number > 1 else None,
        "previous_link": link(number - 1) if number > 1 else None,
        "next_link": link(number + 1) if pages["more"] else None,
        "last_link": link(last) if last and number < last else None,
    }
