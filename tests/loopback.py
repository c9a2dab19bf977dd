"""A web server on this machine that serves given bytes, and misbehaves on request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Loopback:
    """What the server has, how it behaves, and what it was asked.

    Attributes:
        files: Path → content.
        ranges: Whether it understands Range.
        tag: The ETag of everything, or none.
        cuts: After how many bytes it ends each of the next answers; then it sends all.
        statuses: With which status it refuses each of the next requests.
        headers: More headers of its answers and refusals.
        kind: The Content-Type.
        asked: Path and Range of each request.
        sent: Bytes of bodies sent.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/zip"
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    url: str = ""


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            if server.statuses:
                return self.answer(server.statuses.pop(0), b"refused", server.headers)
            if self.path not in server.files:
                return self.answer(404, b"nothing here", {})
            content, more = server.files[self.path], {"Content-Type": server.kind}
            more |= server.headers | ({"ETag": server.tag} if server.tag else {})
            same = self.headers.get("If-Range") in (None, server.tag)
            if not (server.ranges and wanted and same):
                return self.answer(200, content, more)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], {**more, "Content-Range": span})

        def answer(self, status, body, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            part = body[: server.cuts.pop(0)] if server.cuts and status in (200, 206) else body
            self.wfile.write(part)
            server.sent += len(part)
            self.close_connection = True

        def log_message(self, *words):
            pass

    return Handler


@contextmanager
def serving() -> Iterator[Loopback]:
    """Run a server in a thread for the length of a ``with`` block."""
    loopback = Loopback()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(loopback))
    loopback.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
