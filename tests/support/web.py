"""A web server that keeps what is put, and misbehaves on request."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Web:
    """A web server that keeps what is put, and misbehaves where its paths say so.

    ``/busy-N/...`` answers 503 N times first, ``/denied/...`` 403, ``/cut/...`` breaks off in the middle, ``/slow/...``
    answers once it is `going_on`, ``/flood/...`` with more than anybody wants, and a container's list is whatever
    `listing` holds: a blob in `marks` marks a directory, as its metadata say. The list of ``/endless/...`` always goes
    on, that of ``/packed/...`` comes packed.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    listing: list[str] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    going_on: threading.Event = field(default_factory=threading.Event)


def _blob(web: Web, name: str) -> str:
    size = len(next((body for path, body in web.files.items() if path.endswith(f"/{name}")), b""))
    # Metadata bear any name, that of a blob's own property too.
    metadata = "<Name>no/name</Name>" + ("<Hdi_isfolder>true</Hdi_isfolder>" if name in web.marks else "")
    properties = f"<Properties><Content-Length>{size}</Content-Length></Properties>"
    return f"<Blob><Name>{escape(name)}</Name>{properties}<Metadata>{metadata}</Metadata></Blob>"


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Say nothing."""

        def _answer(self, status: int, body: bytes = b"", announced: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if announced is None else announced))
            self.end_headers()
            self.wfile.write(body)

        def _flood(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(2**40))
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(1024 * 1024))
            self.close_connection = True

        def _list(self, kind: str, prefix: str) -> None:
            blobs = "".join(_blob(web, name) for name in web.listing if name.startswith(prefix))
            more = "<NextMarker>more</NextMarker>" if kind == "endless" else ""
            body = f"<EnumerationResults><Blobs>{blobs}</Blobs>{more}</EnumerationResults>".encode()
            if kind == "flood":
                self._flood()
            elif kind == "packed":
                packed = gzip.compress(body)
                self.send_response(200)
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(packed)))
                self.end_headers()
                self.wfile.write(packed)
            else:
                self._answer(200, body)

        def _refused(self, path: str) -> bool:
            kind = path.split("/")[1]
            before = web.asked.count(path)
            web.asked.append(path)
            if kind.startswith("busy-") and before < int(kind[5:]):
                self._answer(503)
            elif kind == "denied":
                self._answer(403)
            else:
                return False
            return True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            if self._refused(path):
                return
            query = parse_qs(parts.query)
            if query.get("comp") == ["list"]:
                self._list(path.split("/")[1], query.get("prefix", [""])[0])
            elif path.startswith("/cut/"):
                self._answer(200, b"half", announced=8)
                self.close_connection = True
            elif path.startswith("/slow/"):
                web.going_on.wait(10)
                self._answer(200, b"slow")
            elif path in web.files:
                self._answer(200, web.files[path])
            else:
                self._answer(404)

        def do_PUT(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._refused(path):
                return
            web.files[path] = body
            web.headers[path] = {name.lower(): value for name, value in self.headers.items()}
            if path.startswith("/flood/"):
                self._flood()
            else:
                self._answer(201)

    return Handler


@contextmanager
def serve() -> Iterator[Web]:
    """Serve on a free port until the block's end."""
    state = Web("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.going_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
