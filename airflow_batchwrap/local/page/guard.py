"""Who may see the page, and the headers that keep a browser from doing more with it than showing it."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_batchwrap.local.api.connection import KNOWN
from airflow_batchwrap.local.page.render import render

#: Where the page is.
ROOT = "/ui"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets requests through to the page that name this service, only read, and carry the token.

    The token comes once in the address and is then kept as a cookie. Browsers do not tell the ports of a host apart
    when they send cookies, so the cookie's name carries the port, and its value is good for this port alone.

    :param app: the page.
    :param token: the token.
    :param hosts: the values of the Host header that name this service, in lower case.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have the page answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, secured)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return PlainTextResponse("The Host header does not name this service.\n", status_code=400)
        if scope["method"] not in ("GET", "HEAD"):
            allowed = {"Allow": "GET, HEAD"}
            return PlainTextResponse("The page only shows: use GET.\n", status_code=405, headers=allowed)
        path = scope["raw_path"].decode("latin-1").partition("?")[0]
        if path.startswith(f"{ROOT}/static/"):
            return None
        # Not that of the Host header, which leaves out a usual one.
        port = str(scope["server"][1])
        name, value = f"batchwrap_page_{port}", self._cookie(port)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if given := [each for key, each in query if key == "token"]:
            if not _same(given[0], self._token):
                return _locked(path, wrong=True)
            rest = urlencode([(key, each) for key, each in query if key != "token"])
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
            secure = scope["scheme"] == "https"
            answer.set_cookie(name, value, path=ROOT, secure=secure, httponly=True, samesite="strict")
            return answer
        if _foreign(headers) or not _same(cookie_parser(headers.get("cookie", "")).get(name, ""), value):
            return _locked(path, wrong=False)
        scope[KNOWN]()
        return None

    def _cookie(self, port: str) -> str:
        return hmac.new(self._token.encode(), f"page {port}".encode(), hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _foreign(headers: Headers) -> bool:
    """Whether another site's script or element asks: only a person who follows a link may come from elsewhere."""
    origin = headers.get("sec-fetch-site", "same-origin")
    return origin not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate"


def _locked(path: str, *, wrong: bool) -> Response:
    return render("locked.html", 403, path=path, wrong=wrong)
