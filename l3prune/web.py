"""A page of this machine that shows which sounds are heard, and starts and stops listening."""

from __future__ import annotations

import http.server
import json
import socketserver
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from l3prune.errors import L3PruneError
from l3prune.labels import Tracker
from l3prune.streaming import Heard, Listener

HOST, PORT = "127.0.0.1", 8527

#: Sounds that the page gets, from which it shows as many as its reader wants.
MOST = 20

#: Seconds between two states that are sent, at least, and after which one is sent again.
_PAUSE, _BEAT = 0.1, 5.0

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
}


class Page(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server of the page; `serve_forever()` runs it.

    Only this machine reaches it. As pages of other sites, opened in the same browser, could too,
    it answers nothing that is meant for another host or comes from another origin.

    Parameters
    ----------
    listener : Listener
    tracker : Tracker
    top_k : int
        Sounds that the page shows at first.
    port : int
        0: any free one.

    Raises
    ------
    L3PruneError
        The port is taken.

    Examples
    --------
    >>> import numpy as np
    >>> from l3prune.labels import Labels
    >>> from l3prune.streaming import FileSource
    >>> listener = Listener(FileSource("a.wav"), 8000, 16000, lambda window: window[:2])
    >>> with Page(listener, Tracker(Labels(("Rain", "Dog"))), 5, 0) as page:
    ...     page.address
    'http://127.0.0.1:...'
    """

    daemon_threads = True

    def __init__(self, listener: Listener, tracker: Tracker, top_k: int, port: int) -> None:
        self.listener, self.tracker, self.top_k = listener, tracker, top_k
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise L3PruneError(
                f"port {port} cannot be used ({error.strerror}); give another by --port, or 0 for "
                "any free one"
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def state(self, heard: Heard) -> dict[str, Any]:
        """What the page shows of a moment."""
        top = [] if heard.scores is None else self.tracker.top(heard.scores, MOST)
        window = self.listener.size / self.listener.rate
        return {
            "state": heard.state,
            "error": heard.error,
            "source": self.listener.source.name,
            "top_k": self.top_k,
            "most": min(MOST, len(self.tracker.classes)),
            "sounds": [{"name": name, "score": round(score, 4)} for name, score in top],
            "seconds": round(heard.seconds, 1),
            "windows_per_second": round(heard.windows / max(heard.elapsed, 1e-9), 1),
            "real_time_factor": round(heard.computing / max(heard.windows, 1) / window, 3),
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path in _FILES:
            name, kind = _FILES[self.path]
            self._answer(kind, (Path(__file__).with_name("page") / name).read_bytes())
        elif self.path == "/events":
            self._send_events()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/start":
            self.server.listener.start()
        elif self.path == "/stop":
            self.server.listener.stop()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._answer("text/plain", b"")

    def _is_ours(self) -> bool:
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (
            origin is None or origin.removeprefix("http://") in hosts
        ):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _answer(self, kind: str, content: bytes) -> None:
        self._start_answer(kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _start_answer(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        # A page that frames this one could have its reader click on Start unknowingly.
        policy = "default-src 'self'; img-src data:; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")

    def _send_events(self) -> None:
        """Each state as a server-sent event, until the page is closed."""
        self._start_answer("text/event-stream")
        self.end_headers()
        version = -1
        try:
            while True:
                version, heard = self.server.listener.wait(version, _BEAT)
                event = f"data: {json.dumps(self.server.state(heard))}\n\n"
                self.wfile.write(event.encode())
                self.wfile.flush()
                time.sleep(_PAUSE)
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for people."""
