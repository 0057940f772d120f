"""A package index on loopback: the simple repository API, for wheels that are made up."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Index:
    """What the server has: wheels by name. Downloads wait for `gate`; `asked` is set by the first
    one; `log` has the paths that were asked for."""

    wheels: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    log: list[str] = field(default_factory=list)

    def add(self, name: str, version: str) -> None:
        """Add a wheel with one module, which has the version."""
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"version = {version!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        entries = [f"{path},sha256={_sha256(text)},{len(text)}" for path, text in files.items()]
        files[f"{info}/RECORD"] = "\n".join([*entries, f"{info}/RECORD,,\n"])
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
        self.wheels[f"{name}-{version}-py3-none-any.whl"] = data.getvalue()


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


@contextmanager
def serve(index: Index) -> Iterator[Index]:
    """Serve an index until the block ends; afterwards connections are refused."""
    handler = type("Handler", (_Handler,), {"index": index})
    index.gate.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield index
        finally:
            index.gate.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        self.index.log.append(self.path)
        name = self.path.rstrip("/").rsplit("/", 1)[-1]
        if name in self.index.wheels:
            self.index.asked.set()
            self.index.gate.wait(60)
            self._send(200, self.index.wheels[name])
            return
        found = [wheel for wheel in self.index.wheels if wheel.split("-")[0] == name]
        links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in found)
        self._send(200 if found else 404, f"<html><body>{links}</body></html>".encode())

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to standard error: `Index.log` has it."""
