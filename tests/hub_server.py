"""A stand-in for the Hugging Face Hub that takes uploads: what `huggingface_hub` asks for, and nothing else.

Repositories are made, files are sent as LFS objects or within the commit, and a commit makes them visible at once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a1B2c3D4" * 5
READS_ONLY = "hf_" + "r0r0r0r0" * 5


@dataclass
class StoredRepository:
    """A repository: whether it is private, and the files of each branch."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


class HubServer(ThreadingHTTPServer):
    """The server, with what it has stored."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, StoredRepository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.received: list[bytes] = []
        self.fails_at = ""  # a part of the path of a request that is answered with 500

    @property
    def address(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """Runs a server until the block is left."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing in the terminal."""

    def do_HEAD(self) -> None:
        self._answer({})

    def do_GET(self) -> None:
        if not self._begin():
            return
        name, _, rest = self.path.removeprefix("/api/models/").partition("/revision/")
        repository = self.server.repositories.get(name)
        if repository is None:
            self._answer({"error": "Repository not found"}, 404)
            return
        files = repository.branches[rest or "main"]
        siblings = [{"rfilename": file} for file in files]
        self._answer({"id": name, "modelId": name, "private": repository.private, "siblings": siblings, "tags": []})

    def do_PUT(self) -> None:
        if not self._begin():
            return
        self.server.objects[self.path.rpartition("/")[2]] = self.body
        self._answer({})

    def do_POST(self) -> None:
        if not self._begin():
            return
        if self.path == "/api/repos/create":
            self._create()
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._batch()
        else:
            name, action, revision = self._action()
            if action == "preupload":
                self._preupload()
            elif action == "branch":
                self._branch(self.server.repositories[name], revision)
            elif action == "commit":
                self._commit(name, revision)

    def _begin(self) -> bool:
        """Reads the request; whether it may go on."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.received.append(self.body)
        if self.server.fails_at and self.server.fails_at in self.path:
            self._answer({"error": "out of order"}, 500)
            return False
        if self.command == "PUT":  # an address that was given out
            return True
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READS_ONLY):
            self._answer({"error": "Invalid username or password."}, 401)
            return False
        if token == READS_ONLY and self.command != "GET":
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
            return False
        return True

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "other":
            self._answer({"error": "You don't have the rights to create a model under the namespace other"}, 403)
        elif name in self.server.repositories:
            self._answer({"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}, 409)
        else:
            self.server.repositories[name] = StoredRepository(asked.get("visibility") == "private")
            self._answer({"url": f"{self.server.address}/{name}", "name": name})

    def _action(self) -> tuple[str, str, str]:
        owner, name, action, *rest = self.path.removeprefix("/api/models/").split("/")
        return f"{owner}/{name}", action, "/".join(rest).partition("?")[0]

    def _branch(self, repository: StoredRepository, name: str) -> None:
        if name in repository.branches:
            self._answer({"error": "Reference already exists"}, 409)
        else:
            repository.branches[name] = dict(repository.branches["main"])
            self._answer({})

    def _preupload(self) -> None:
        large = (".safetensors", ".gguf", "tokenizer.json")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular", "shouldIgnore": False}
            for f in json.loads(self.body)["files"]
        ]
        self._answer({"files": files})

    def _batch(self) -> None:
        found = []
        for wanted in json.loads(self.body)["objects"]:
            one: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
            found.append(one)
        self._answer({"transfer": "basic", "objects": found})

    def _commit(self, name: str, revision: str) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.branches[revision])
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                repository.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                files[value["path"]] = content
            elif key == "deletedFile":
                del files[value["path"]]
        repository.branches[revision] = files
        oid = hashlib.sha1(self.body).hexdigest()
        url = f"{self.server.address}/{name}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
