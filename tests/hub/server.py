"""A small Hub on loopback: repositories, commits, LFS and downloads, as huggingface_hub's client speaks to them.

It checks what the real one checks (tokens, gates, hashes, that a commit's LFS objects exist), and keeps a list of requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_writer"
USER = "writer"
READER = "hf_reader"
# Larger files are asked for in parts of this size.
PART = 200_000


@dataclass
class Repository:
    """Commits (newest last) by branch; each holds all its files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[tuple[str, str, dict[str, bytes]]]] = field(default_factory=lambda: {"main": []})

    def commit(self, branch: str, summary: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(json.dumps([branch, summary, len(self.branches[branch])]).encode()).hexdigest()
        self.branches[branch].append((oid, summary, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if self.branches.get(revision):
            oid, _, files = self.branches[revision][-1]
            return oid, files
        for commits in self.branches.values():
            for oid, _, files in commits:
                if oid == revision:
                    return oid, files
        return None

    @property
    def files(self) -> dict[str, bytes]:
        found = self.at("main")
        return found[1] if found else {}


class Hub(ThreadingHTTPServer):
    """The server; a context manager that runs it in a thread."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        #: Called with the bytes received of an LFS upload, while it is running; what it raises cuts the connection.
        self.during_upload: Callable[[int], None] | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut on purpose is no error of the test."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    # Otherwise every answer waits for an acknowledgement of its headers.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def route(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        for method, pattern, handle in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                if method == "PUT":
                    return handle(self, *found.groups())
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with self.server.lock:
                    return handle(self, *map(unquote, found.groups()), *([body] if "POST" in method else []))
        self.answer(404, {"error": f"no route for {self.command} {path}"})

    # ---- answers ----

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str | None = None, message: str = "refused") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer(status, {"error": message}, headers)

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def may_write(self, repo_id: str) -> bool:
        if self.token == TOKEN and repo_id.split("/")[0] == USER:
            return True
        if self.token not in (TOKEN, READER):
            self.refuse(401, message="Invalid credentials in Authorization header")
        else:
            self.refuse(403, message="You don't have the rights to create a model under this namespace")
        return False

    def readable(self, repo_id: str) -> Repository | None:
        """The repository, or an answer that says why not."""
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and self.token != TOKEN):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.gated and self.token != TOKEN:
            self.refuse(403 if self.token else 401, "GatedRepo", "Access to this model is restricted")
            return None
        return repository

    # ---- accounts and repositories ----

    def whoami(self) -> None:
        if self.token not in (TOKEN, READER):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        if not self.may_write(repo_id):
            return None
        answer = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self.answer(409, answer | {"error": "You already created this model repo"})
        repository = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repositories[repo_id] = repository
        self.answer(200, answer)

    def branch(self, repo_id: str, name: str, body: bytes) -> None:
        if not self.may_write(repo_id):
            return None
        branches = self.server.repositories[repo_id].branches
        if name in branches:
            return self.refuse(409, message="Reference already exists")
        branches[name] = list(branches["main"])
        self.answer(200, {})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        header = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else None
        if header is not None and not isinstance(header.get("language", ""), str | list):
            return self.answer(400, {"errors": [{"message": '"language" must be a string or a list'}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": [] if header else [{"message": "empty or missing yaml metadata"}]})

    # ---- uploads ----

    def preupload(self, repo_id: str, revision: str, body: bytes) -> None:
        if not self.may_write(repo_id):
            return None
        found = self.server.repositories[repo_id].at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = []
        for one in json.loads(body)["files"]:
            mode = "lfs" if one["path"].endswith((".safetensors", ".png")) else "regular"
            content = found[1].get(one["path"])
            oid = None if content is None else oid_of(content, mode)
            files.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def batch(self, repo_id: str, body: bytes) -> None:
        if not self.may_write(repo_id):
            return None
        objects = []
        for one in json.loads(body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                place = f"{self.server.url}/lfs/{one['oid']}"
                upload: dict[str, Any] = {"href": place}
                if one["size"] > PART:
                    count = -(-one["size"] // PART)
                    urls = {f"{part:05d}": f"{place}/{part}" for part in range(1, count + 1)}
                    upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART), **urls}}
                answer["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.server.url}/lfs/verify"},
                }
            objects.append(answer)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str | None = None) -> None:
        length = int(self.headers["Content-Length"])
        content = b""
        while len(content) < length:
            content += self.rfile.read(min(16_384, length - len(content)))
            if self.server.during_upload is not None:
                try:
                    self.server.during_upload(len(content))
                except ConnectionError:
                    self.close_connection = True
                    return self.connection.close()
        with self.server.lock:
            if part is not None:
                self.server.parts[oid, int(part)] = content
            elif hashlib.sha256(content).hexdigest() == oid:
                self.server.objects[oid] = content
            else:
                return self.refuse(400, message="the content is not that of the hash")
        self.answer(200, None, {"ETag": hashlib.md5(content).hexdigest()})

    def complete(self, oid: str, body: bytes) -> None:
        numbers = [one["partNumber"] for one in json.loads(body)["parts"]]
        content = b"".join(self.server.parts.pop((oid, number)) for number in numbers)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, message="the parts are not those of the hash")
        self.server.objects[oid] = content
        self.answer(200, {})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        exists = len(self.server.objects.get(asked["oid"], b"")) == asked["size"]
        self.answer(200 if exists else 404, {})

    def commit(self, repo_id: str, revision: str, body: bytes) -> None:
        if not self.may_write(repo_id):
            return None
        repository = self.server.repositories[repo_id]
        found = repository.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files, summary = dict(found[1]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                summary = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.refuse(400, message=f"the LFS object of {value['path']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        if "create_pr=1" in urlsplit(self.path).query:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            revision = f"refs/pr/{number}"
            repository.branches[revision] = list(repository.branches["main"])
        oid = repository.commit(revision, summary, files)
        answer = {"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid}
        if revision.startswith("refs/pr/"):
            answer["pullRequestUrl"] = f"{self.server.url}/{repo_id}/discussions/{revision.split('/')[-1]}"
        self.answer(200, answer)

    # ---- downloads ----

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self.readable(repo_id)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        oid, files = found
        siblings = [{"rfilename": name} for name in sorted(files)]
        self.answer(200, {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, repo_id: str, revision: str) -> None:
        repository = self.readable(repo_id)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        assert parse_qs(urlsplit(self.path).query).get("recursive", ["true"])[0].lower() == "true"
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": oid_of(content, "regular")}
            for name, content in sorted(found[1].items())
        ]
        self.answer(200, files)

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self.readable(repo_id)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        oid, files = found
        if name not in files:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": oid}
            return self.answer(404, {"error": "Entry not found"}, message)
        content, headers = files[name], {"X-Repo-Commit": oid}
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.server.objects:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            # As on the real Hub, large files come from another host, which gets no token.
            place = f"http://localhost:{self.server.server_port}/lfs/{digest}"
            return self.answer(302, None, headers | {"Location": place})
        headers |= {"ETag": f'"{oid_of(content, "regular")}"', "Content-Length": str(len(content))}
        self.answer(200, content, headers)

    def lfs(self, oid: str) -> None:
        assert self.token is None, "a token was sent to the host of large files"
        content = self.server.objects[oid]
        self.answer(200, content, {"ETag": f'"{oid}"', "Content-Length": str(len(content))})


def oid_of(content: bytes, mode: str) -> str:
    """The hash that the Hub knows a file by."""
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_ID = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{_ID}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{_ID}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{_ID}/commit/(.+)", Handler.commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", r"/lfs/verify", Handler.verify),
    ("POST", r"/lfs/(\w+)/complete", Handler.complete),
    ("PUT", r"/lfs/(\w+)", Handler.put),
    ("PUT", r"/lfs/(\w+)/(\d+)", Handler.put),
    ("GET HEAD", r"/lfs/(\w+)", Handler.lfs),
    ("GET", rf"/api/models/{_ID}", Handler.info),
    ("GET", rf"/api/models/{_ID}/revision/(.+)", Handler.info),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)", Handler.tree),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]
