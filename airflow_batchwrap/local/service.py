"""The service put together: state, control, API and page in one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_batchwrap.local import identity
from airflow_batchwrap.local.api.app import Api
from airflow_batchwrap.local.api.connection import CUT
from airflow_batchwrap.local.api.signin import SignIn
from airflow_batchwrap.local.config import Config
from airflow_batchwrap.local.control import recovery
from airflow_batchwrap.local.model.states import Ending
from airflow_batchwrap.local.node import process
from airflow_batchwrap.local.node.opening import Shorter
from airflow_batchwrap.local.page.app import Page
from airflow_batchwrap.local.store import Store
from airflow_batchwrap.local.world import World

#: How long a stop waits for killed processes to be gone, in seconds.
STOP_WAIT = 5.0

_PAGE = """The local Azure Batch service of airflow-batchwrap.

It speaks the Azure Batch REST API, version 2025-06-01, and runs tasks as processes on this machine.
Point any Batch client at this address, with the account and the key of its data directory.
"""


async def open_world(config: Config) -> World:
    """Open a data directory and go on from where it stands.

    :param config: how the service was started.
    :return: the state, alive.
    """
    config.nodes.mkdir(parents=True, exist_ok=True)
    world = World(config, Store(config.data / "state.sqlite", config.patience))
    whole = recovery.load(world)
    await recovery.kill_leftovers(world)
    await process.HELPER.open(config.nodes)
    lifecycles = recovery.Lifecycles(
        world.task_control,
        world.node_control,
        world.pool_control,
        world.job_control,
        world.schedule_control,
        world.autoscaler,
    )
    await recovery.resume(world, lifecycles, whole=whole)
    world.retention.begin()
    return world


async def close_world(world: World) -> None:
    """End all tasks' processes and keep the state as it is: a restart queues what was running.

    :param world: the state.
    :raises StoreError: what is left of it could not be written.
    """
    world.stopping = True
    runs = world.runs()
    for run in runs:
        run.stop(Ending.DISCARD)
    await process.HELPER.clear(world.config.nodes)
    waits = [asyncio.ensure_future(run.over.wait()) for run in runs]
    if waits:
        await asyncio.wait(waits, timeout=STOP_WAIT)
    try:
        await world.close()
    finally:
        await process.HELPER.close()


def create_app(world: World, noted: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> ASGIApp:
    """The application: the page at ``/``, the token endpoint, and the REST API.

    :param world: the state, alive.
    :param noted: wraps what answers the REST API and requests for tokens.
    :return: the ASGI application.
    """

    async def page(request: Request) -> Response:
        if request.headers.get("host", "").lower() not in world.config.hosts:
            return PlainTextResponse("The Host header does not name this service.\n", status_code=400)
        if request.url.path == "/ui" or "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui/", status_code=303, headers={"Vary": "Accept"})
        return PlainTextResponse(_PAGE, headers={"Vary": "Accept"})

    pages = [Route("/", page), Route("/ui", page), Mount("/ui", app=Page(world))]
    site, rest, sign_in = Starlette(routes=pages), noted(Api(world)), noted(SignIn(world.config))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Clients of the API do not pay for the page's routing.
        path = scope["path"]
        at_page = path in ("/", "/ui") or path.startswith("/ui/")
        try:
            await (site if at_page else sign_in if path == identity.PATH else rest)(scope, receive, send)
        except Shorter:
            scope[CUT]()

    return app
