"""A stand-in of the Hugging Face hub: repositories, large files and commits, as huggingface_hub asks for them."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secretOfTheTests"
# Files of at least so many bytes are stored by their SHA-256, as large files are.
LARGE = 10_000


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the hub has and was asked.

    Attributes:
        user: of the token.
        role: of the token.
        repositories: by `OWNER/NAME`.
        stored: large files by their SHA-256.
        requests: method, path, token or None, and body of each request.
        breaks: whether the store refuses a large file.
        spoils: whether the store keeps another byte than was sent.
    """

    user: str = "me"
    role: str = "write"
    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    breaks: Callable[[bytes], bool] = lambda _: False
    spoils: bool = False
    licenses: dict[str, str] = field(default_factory=dict)

    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _, _ in self.requests]


@contextmanager
def running() -> Iterator[tuple[Hub, str]]:
    """A hub and its store, which are two servers, since the hub's large files are at another host than its API."""
    hub = Hub()
    with _serving(hub, _Api) as endpoint, _serving(hub, _Store) as store:
        hub.endpoint = endpoint
        _Api.store = store
        yield hub, store


@contextmanager
def _serving(hub: Hub, kind: type["_Handler"]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (kind,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append((self.command, self.path, token, body))
        return body

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._route(self._body())

    do_POST = do_PUT = do_GET  # noqa: N815

    def _route(self, body: bytes) -> None:
        raise NotImplementedError


class _Store(_Handler):
    def _route(self, body: bytes) -> None:
        if self.hub.breaks(body):
            self._answer({"error": "refused"}, 403)
            return
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.stored[oid] = body
        self._answer({})


class _Api(_Handler):
    store = ""

    def _route(self, body: bytes) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/whoami-v2":
            token = {"role": hub.role, "displayName": "of the tests"}
            self._answer({"name": hub.user, "orgs": [], "auth": {"accessToken": token}})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(found[1], json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            if found[1] in hub.licenses:
                card = {"license": hub.licenses[found[1]]}
                self._answer({"id": found[1], "private": False, "sha": "0" * 40, "tags": [], "cardData": card})
            elif found[1] not in hub.repositories:
                self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            else:
                self._of_repository(found[1], hub.repositories[found[1]], found[2] or "", body)
        else:
            self._answer({"error": f"unknown {path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._answer({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409)
            return
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self._answer({"url": f"{self.hub.endpoint}/{name}"})

    def _of_repository(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        if rest.startswith("preupload/"):
            files = [
                {"path": one["path"], "shouldIgnore": False, "uploadMode": "lfs" if one["size"] >= LARGE else "regular"}
                for one in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif rest.startswith("commit/"):
            self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        elif rest.startswith("tree/"):
            self._answer([_described(path, content, repository) for path, content in repository.files.items()])
        elif rest.startswith("auth-check"):
            self._answer({})
        else:
            files = [{"rfilename": path} for path in repository.files]
            self._answer({"id": name, "private": repository.private, "sha": "0" * 40, "siblings": files, "tags": []})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                content = self.hub.stored[value["oid"]]
                repository.files[value["path"]] = content[:-1] + b"\1" if self.hub.spoils else content
                repository.large.add(value["path"])
            elif key == "deletedFile":
                del repository.files[value["path"]]
        oid = hashlib.sha1(str(len(repository.commits)).encode()).hexdigest()
        repository.commits.append(lines[0]["value"]["summary"])
        self._answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            there = one["oid"] in self.hub.stored
            actions = {} if there else {"actions": {"upload": {"href": f"{self.store}/large/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self._answer({"transfer": "basic", "objects": objects})


def _described(path: str, content: bytes, repository: Repository) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path in repository.large:
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found
