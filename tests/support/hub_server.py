"""A Hugging Face Hub on loopback: the download protocol, for repositories made of local folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """What the server has. Set its fields to make it fail; `log` is what it was asked for."""

    endpoint: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)  # files sent with one bit changed
    private: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)  # bytes of a file until the line is cut
    pause: dict[str, int] = field(default_factory=dict)  # bytes of a file until it waits to go on
    go_on: threading.Event = field(default_factory=threading.Event)
    failing: dict[str, int] = field(default_factory=dict)  # status of a file's download
    resumed: list[tuple[str, int]] = field(default_factory=list)  # files asked for from a byte on
    status: int | None = None  # answer everything with this status
    log: list[tuple[str, str]] = field(default_factory=list)

    def add(self, repo: str, folder: Path, extra: Mapping[str, bytes] | None = None) -> str:
        """Commit a folder's files, and `extra` over them, to a repository; return the commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        files.update(extra or {})
        listing = json.dumps({name: _sha256(data) for name, data in sorted(files.items())})
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.repos.setdefault(repo, {}).update({commit: files, "main": files})
        return commit

    def sent(self) -> set[str]:
        """Return the names of the files that were downloaded, not merely asked about."""
        paths = [_FILE.fullmatch(path) for method, path in self.log if method == "GET"]
        return {match[3] for match in paths if match}

    def environ(self, home: Path) -> dict[str, str]:
        """Return the variables that make a client use this Hub, with its cache below `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub until the block ends; afterwards connections are refused."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path))
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        match = api or file
        if self.hub.status or not match:
            self._send(self.hub.status or 404, b"")
            return
        repo, revision = match[1], (api[3] if api else match[2]) or "main"
        commits = self.hub.repos.get(repo)
        if commits is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif repo in self.hub.private:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif repo in self.hub.gated:
            self._refuse(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif revision not in commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            files = commits[revision]
            commit = next(key for key, value in commits.items() if value is files and key != "main")
            if file:
                self._send_file(match[3], files, commit)
            elif match[2] == "tree":
                self._send_json([_entry(name, data) for name, data in sorted(files.items())])
            else:
                siblings = [_sibling(name, data) for name, data in sorted(files.items())]
                self._send_json({"id": repo, "sha": commit, "tags": [], "siblings": siblings})

    do_HEAD = do_GET

    def _send_file(self, name: str, files: Mapping[str, bytes], commit: str) -> None:
        if name not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        if name in self.hub.failing and self.command == "GET":
            self._send(self.hub.failing[name], b"")
            return
        data = files[name]
        headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": commit}
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if resumed := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(resumed[1])
            self.hub.resumed.append((name, first))
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206, data[first:], headers, name)
        else:
            self._send(200, data, headers, name)

    def _send_json(self, document: object) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):  # the client was killed
                self._send_body(body, name)

    def _send_body(self, body: bytes, name: str) -> None:
        if name in self.hub.cut:
            self.wfile.write(body[: self.hub.cut[name]])
            self.close_connection = True
        elif name in self.hub.pause:
            first = self.hub.pause[name]
            self.wfile.write(body[:first])
            self.hub.go_on.wait(60)
            self.wfile.write(body[first:])
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to standard error: `Hub.log` has it."""


def _entry(name: str, data: bytes) -> dict[str, object]:
    """Return a file as the list of a tree has it."""
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_sha1(data)}
    return entry | ({"lfs": {"oid": _sha256(data), **_sizes(data)}} if _is_lfs(name) else {})


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """Return a file as the description of a model has it, with `blobs`."""
    entry = {"rfilename": name, "size": len(data), "blobId": _git_sha1(data)}
    return entry | ({"lfs": {"sha256": _sha256(data), **_sizes(data)}} if _is_lfs(name) else {})


def _sizes(data: bytes) -> dict[str, int]:
    return {"size": len(data), "pointerSize": 134}


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".model"))


def _etag(name: str, data: bytes) -> str:
    return _sha256(data) if _is_lfs(name) else _git_sha1(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
