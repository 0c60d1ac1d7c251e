"""A server that falls silent is never the reason why a run hangs."""

import http.server
import threading
import time

import pytest
from streams import ByHash, stream, take

from headrace.pipelines.loaders import stream as stream_module
from headrace.pipelines.loaders.stream import _hash


class Stalling(http.server.BaseHTTPRequestHandler):
    """Sends the first half of a tar and nothing more."""

    data, released, requests = b"", threading.Event(), 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        type(self).requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data[: len(self.data) // 2])
        self.wfile.flush()
        self.released.wait(30)


@pytest.fixture
def stalling(tars, monkeypatch):
    class Handler(Stalling):
        data, released, requests = (tars / "train-0.tar").read_bytes(), threading.Event(), 0

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    Handler.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_stalls_is_given_up_and_not_asked_again(stalling, tars, monkeypatch):
    """A second request would bring the same bytes again, behind those that have come: images of two halves."""
    address, handler = stalling
    monkeypatch.setattr(stream_module, "_STALL", 1)
    loader = stream(f"{address}/train-0.tar#samples=8", 1, shuffle=False, max_bad=1)
    assert next(loader).ids.tolist() == [_hash("train-0.tar/000.jpg")]
    deadline = time.monotonic() + 10
    while not loader.stats().replaced and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "no byte in 1 seconds" in loader.stats().replaced[0]
    loader.close()
    assert handler.requests <= 3  # one a pass over the set


def test_a_run_that_stops_does_not_wait_for_a_silent_server(stalling, tars, monkeypatch):
    """The last batch comes again, as often as the processes need to agree; nothing counts as lost for that."""
    address, _ = stalling
    monkeypatch.setattr(stream_module, "_PATIENCE", 0.3)
    loader = stream(f"{address}/train-{{0..1}}.tar#samples=16", 1, shuffle=False)
    first = next(loader)
    threading.Timer(0.5, loader.hurry).start()
    began = time.monotonic()
    batches = take(loader, 3)
    assert time.monotonic() - began < 10 and loader.stats().bad_images == 0
    ids = [int(batch.ids) for batch in batches]
    assert set(ids) <= ByHash(tars).ids and ids[1] == ids[2] and [b.step for b in (first, *batches)] == [0, 1, 2, 3]
