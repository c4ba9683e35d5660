"""The token endpoint of a managed identity, in the form of App Service."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from airflow_batchwrap.local.api.connection import CUT
from airflow_batchwrap.local.config import Config

#: The version of App Service's protocol that azure-identity speaks.
_VERSION = "2019-08-01"


class SignIn:
    """Answers requests for tokens: ``GET /msi/token?resource=...`` with the secret in ``X-IDENTITY-HEADER``.

    :param config: how the service was started.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        fate = self._config.faults.sign_in() if self._config.faults else ""
        if fate == "cut":
            scope[CUT]()
            return
        answer = _error(500, "The sign-in failed on purpose, as --faults asks.") if fate else self._answer(scope)
        await answer(scope, receive, send)

    def _answer(self, scope: Scope) -> JSONResponse:
        headers, query, identity = Headers(scope=scope), Request(scope).query_params, self._config.identity
        if headers.get("host", "").lower() not in self._config.hosts:
            return _error(400, "The Host header does not name this service.")
        if scope["method"] != "GET":
            return _error(405, "Use GET.")
        if identity is None or not hmac.compare_digest(
            headers.get("x-identity-header", "").encode(), identity.secret.encode()
        ):
            return _error(401, "The header X-IDENTITY-HEADER is missing or wrong.")
        if query.get("api-version") != _VERSION:
            return _error(400, f"The api-version is not supported: {_VERSION} is.")
        if query.get("client_id", identity.client) != identity.client or {"mi_res_id", "object_id"} & set(query):
            return _error(400, "There is no identity of this id.")
        if not (resource := query.get("resource")):
            return _error(400, "The query parameter resource is missing.")
        return JSONResponse(identity.token(resource, time.time()), headers={"Cache-Control": "no-store"})


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"statusCode": status, "message": message}, status)
