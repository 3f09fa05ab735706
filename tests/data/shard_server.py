"""A real http server on a folder of shards, for the tests of what is read from a store."""

from __future__ import annotations

import functools
import http.server
import socketserver
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.shard_cache import CachedShards, cache_folder

PLENTY = 1 << 40


class Server:
    """A real http server on a folder; counts requests, and can change what it sends."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.change: Callable[[str, bytes], bytes] = lambda name, content: content
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.requests[name] += 1
                path = folder / name
                if not path.is_file():
                    self.send_error(404)
                    return
                content = server.change(name, path.read_bytes())
                self.send_response(200)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        self._server = Threads(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def opened(url: str, tmp_path: Path, cache_bytes: int = PLENTY) -> CachedShards:
    return CachedShards(url, cache_folder(url, str(tmp_path / "cache")), cache_bytes)
