"""A web server of the tests: ranges as of a real one, and faults on request."""

import contextlib
import http.server
import os
import random
import threading
import time
from pathlib import Path
from urllib.parse import unquote

FAULTS = ("429", "500", "reset", "short", "stall")


class Server(http.server.ThreadingHTTPServer):
    """Serves `root` at `address`. Of all requests a `share` goes wrong, by a generator of its own, in turn as `FAULTS`.

    `asked`: path and range of every request. `answer(path)` may give (status, body) instead of the file.
    """

    daemon_threads, request_queue_size = True, 64

    def __init__(self, root, share=0.0, stall=2.0, seed=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.share, self.stall, self.random = Path(root), share, stall, random.Random(seed)
        self.asked, self.faults, self.ranges, self.slow, self.answer = [], [], True, 0.0, None
        self._lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self):
        with self._lock:
            if self.random.random() >= self.share:
                return None
            self.faults.append(FAULTS[len(self.faults) % len(FAULTS)])
            return self.faults[-1]

    def handle_error(self, *_):
        """A client that has gone is none of the tests' business."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, path = self.server, unquote(self.path.partition("?")[0])
        server.asked.append((path, self.headers.get("Range")))
        if server.answer is not None and (answer := server.answer(self)) is not None:
            return self._give(*answer)
        fault = server.fault()
        if fault in ("429", "500"):
            return self._give(int(fault), b"not now", {"Retry-After": "0"})
        if fault == "reset":
            self.close_connection = True
            return self.connection.close()
        file = server.root / unquote(self.path.partition("?")[0]).lstrip("/")  # which `answer` may have changed
        if not file.is_file():
            return self._give(404, b"none")
        data, size, status, headers = file.read_bytes(), file.stat().st_size, 200, {}
        if (asked := self.headers.get("Range")) and server.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or size - 1), size - 1)
            data, status, headers = data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{size}"}
        self._give(status, data, headers, fault)

    def _give(self, status, data, headers=None, fault=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "short":
            data, self.close_connection = data[: len(data) // 2], True
        if fault == "stall":
            self.wfile.write(data[: len(data) // 2])
            time.sleep(self.server.stall)
            data = data[len(data) // 2 :]
        for at in range(0, len(data), 1 << 16):
            time.sleep(self.server.slow)
            self.wfile.write(data[at : at + (1 << 16)])


@contextlib.contextmanager
def serving(root, **options):
    """A server of `root` while the body runs; requests to it pass by any proxy."""
    server = Server(root, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ.update(dict.fromkeys(before, "127.0.0.1"))
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
