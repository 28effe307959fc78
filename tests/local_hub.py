"""A small Hub on this machine for the unmodified huggingface_hub client: repositories, tokens, LFS, commits, files.

State is kept in memory. `fail_next` answers the next matching requests with an error status.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".bin")

Json = dict[str, Any]
Headers = dict[str, str]
Answer = tuple[Json | list[Json] | bytes, Headers]


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: int = 1

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


@dataclass
class Failure:
    pattern: str
    status: int
    times: int


class LocalHub:
    """`with LocalHub() as hub:` listens on `hub.endpoint`; `tokens` maps a token to a user who may write."""

    def __init__(self) -> None:
        self.tokens = {"hf_good": "ada"}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # by sha256
        self.uploads: list[str] = []  # sha256 of every blob that was sent
        self.failures: list[Failure] = []
        self.requests: list[str] = []  # "METHOD /path" of each
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        # A short poll, because shutdown waits for the next one.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repos[repo_id].files

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> None:
        self.repos[repo_id] = Repo(dict(files), private, gated)

    def fail_next(self, pattern: str, *, status: int = 503, times: int = 1) -> None:
        """Answer the next `times` requests whose "METHOD /path" has `pattern` in it with that status."""
        self.failures.append(Failure(pattern, status, times))

    def failure(self, target: str) -> int | None:
        with self.lock:
            for failure in self.failures:
                if failure.times > 0 and re.search(failure.pattern, target):
                    failure.times -= 1
                    return failure.status
        return None


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, code: str | None = None, message: str = "", body: Json | None = None) -> None:
        self.status, self.code, self.message, self.body = status, code, message, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/[^/]+", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/upload/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/verify", "lfs_verify"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/[^/]+", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/[^/]+", "branch"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check(?P<write>/write)?", "auth_check"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/[^/]+", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("HEAD|GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *_: object) -> None:
        pass

    def _dispatch(self) -> None:
        path = urlsplit(self.path).path
        self.payload = self._read_body()
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        try:
            if status := self.hub.failure(f"{self.command} {path}"):
                raise _Refused(status, message="injected failure")
            for methods, pattern, name in self.ROUTES:
                if self.command in methods.split("|") and (match := re.fullmatch(pattern, path)):
                    parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    return self._answer(200, *getattr(self, name)(**parts))
            raise _Refused(404, message=f"no route for {self.command} {path}")
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            return self._answer(refused.status, refused.body or {"error": refused.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: Json | list[Json] | bytes, headers: Headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _user(self, *, required: bool = True) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        user = self.hub.tokens.get(token)
        if (token or required) and user is None:
            raise _Refused(401, message="Invalid username or password.")
        return user

    def _repo(self, repo: str, *, write: bool = False) -> Repo:
        user = self._user(required=write)
        found = self.hub.repos.get(repo)
        if found is None or (found.private and user != repo.split("/")[0]):
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != repo.split("/")[0]:
            raise _Refused(403, message=f"You don't have the rights to write to {repo}")
        return found

    def whoami(self) -> Answer:
        return {"type": "user", "name": self._user(), "orgs": [], "auth": {}}, {}

    def create(self) -> Answer:
        wanted = json.loads(self.payload)
        user = self._user()
        owner = wanted.get("organization") or user
        repo = f"{owner}/{wanted['name']}"
        if owner != user:
            raise _Refused(403, message=f"You don't have the rights to create a model under the namespace {owner!r}")
        url = {"url": f"{self.hub.endpoint}/{repo}", "id": repo}
        if repo in self.hub.repos:
            raise _Refused(409, message="You already created this model repo", body=url)
        self.hub.add(repo, {}, private=wanted.get("private") or wanted.get("visibility") == "private")
        return url, {}

    def validate(self) -> Answer:
        content = json.loads(self.payload)["content"]
        ok = content.startswith("---\n")
        return {"errors": [] if ok else [{"message": "no YAML header"}], "warnings": []}, {}

    def preupload(self, repo: str) -> Answer:
        files = json.loads(self.payload)["files"]
        held = self._repo(repo, write=True).files

        def plan(path: str) -> Json:
            lfs = path.endswith(LFS_SUFFIXES)
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            return answer | ({"oid": _oid(held[path], lfs)} if path in held else {})

        return {"files": [plan(file["path"]) for file in files]}, {}

    def lfs_batch(self, repo: str) -> Answer:
        self._repo(repo, write=True)
        objects = []
        for wanted in json.loads(self.payload)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/upload/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.endpoint}/verify", "header": {}},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def lfs_put(self, oid: str) -> Answer:
        if hashlib.sha256(self.payload).hexdigest() != oid:
            raise _Refused(400, message="hash mismatch")
        self.hub.blobs[oid] = self.payload
        self.hub.uploads.append(oid)
        return b"", {}

    def lfs_verify(self) -> Answer:
        wanted = json.loads(self.payload)
        if len(self.hub.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise _Refused(404, message="not uploaded")
        return {}, {}

    def commit(self, repo: str) -> Answer:
        found = self._repo(repo, write=True)
        files = dict(found.files)
        for line in self.payload.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        found.files, found.commits = files, found.commits + 1
        url = f"{self.hub.endpoint}/{repo}/commit/{found.sha}"
        return {"commitOid": found.sha, "commitUrl": url, "hookOutput": ""}, {}

    def branch(self, repo: str) -> Answer:
        self._repo(repo, write=True)  # accepted and not kept: there is only main
        return {}, {}

    def auth_check(self, repo: str, write: str | None) -> Answer:
        self._check_gate(repo, self._repo(repo, write=bool(write)))
        return {}, {}

    def info(self, repo: str, revision: str | None) -> Answer:
        found = self._repo(repo)
        self._check_revision(found, revision or "main")
        files = [{"rfilename": path} for path in found.files]
        answer = {"id": repo, "sha": found.sha, "private": found.private, "siblings": files, "tags": []}
        answer["gated"] = "manual" if found.gated else False
        # YAML between the first two lines of dashes, as the Hub reads it.
        front = re.match(r"---\n(.*?)\n---", found.files.get("README.md", b"").decode(), re.DOTALL)
        card = yaml.safe_load(front[1]) if front else None
        if card and "pipeline_tag" in card:
            answer["pipeline_tag"] = card["pipeline_tag"]
        return answer | ({"cardData": card} if card else {}), {}

    def tree(self, repo: str) -> Answer:
        entries: list[Json] = []
        for path, data in self._repo(repo).files.items():
            lfs = path.endswith(LFS_SUFFIXES)
            entry = {"type": "file", "path": path, "size": len(data), "oid": _oid(data, lfs)}
            entries.append(
                entry | ({"lfs": {"oid": _oid(data, True), "size": len(data), "pointerSize": 1}} if lfs else {})
            )
        return entries, {}

    def _check_gate(self, repo: str, found: Repo) -> None:
        if found.gated and self._user(required=False) != repo.split("/")[0]:
            raise _Refused(403, "GatedRepo", f"Access to model {repo} is restricted")

    def _check_revision(self, found: Repo, revision: str) -> None:
        if revision not in ("main", found.sha):
            raise _Refused(404, "RevisionNotFound", "Revision not found")

    def resolve(self, repo: str, revision: str, path: str) -> Answer:
        found = self._repo(repo)
        self._check_revision(found, revision)
        self._check_gate(repo, found)
        if path not in found.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data = found.files[path]
        lfs = path.endswith(LFS_SUFFIXES)
        headers = {"X-Repo-Commit": found.sha, "ETag": f'"{_oid(data, lfs)}"'}
        linked = {"X-Linked-Etag": f'"{_oid(data, lfs)}"', "X-Linked-Size": str(len(data))}
        return data, headers | (linked if lfs else {})


def _oid(data: bytes, lfs: bool) -> str:
    return hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
