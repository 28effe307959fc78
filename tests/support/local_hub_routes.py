"""The requests of the huggingface_hub client, answered from the state of a LocalHub."""

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import yaml
from local_hub_wire import Answer, Json, Refused, WireHandler

if TYPE_CHECKING:
    from local_hub import PullRequest, Repo

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
XET = b"in xet: "
REPO = r"(?P<repo>[^/]+/[^/]+)"
MODEL = r"(?P<repo>[^/]+(/[^/]+)?)"  # some have no namespace, as gpt2
REVISION = r"(?P<revision>[^/]+)"


class Handler(WireHandler):
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/upload/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/verify", "lfs_verify"),
        ("GET", rf"/api/models/{REPO}/xet-write-token/{REVISION}", "xet_token"),
        ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit"),
        ("POST", rf"/api/models/{REPO}/branch/{REVISION}", "branch"),
        ("GET", rf"/api/models/{REPO}/auth-check(?P<write>/write)?", "auth_check"),
        ("GET", rf"/api/models/{REPO}/tree/{REVISION}", "tree"),
        ("POST", rf"/api/models/{REPO}/discussions", "open_discussion"),
        ("GET", rf"/api/models/{REPO}/discussions", "discussions"),
        ("GET", rf"/api/models/{REPO}/discussions/(?P<num>\d+)", "discussion"),
        ("GET", rf"/api/models/{MODEL}(/revision/{REVISION})?", "info"),
        ("GET", rf"/api/datasets/{REPO}", "dataset"),
        ("HEAD|GET", rf"/{MODEL}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    )

    # Who may do what

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()

    def _user(self, *, required: bool = True) -> str | None:
        token = self._token()
        user = self.hub.tokens.get(token)
        if (token or required) and user is None:
            raise Refused(401, message="Invalid username or password.")
        return user

    def _repo(self, repo: str, *, write: bool = False) -> "Repo":
        user = self._user(required=write)
        found = self.hub.repos.get(repo)
        namespace = repo.split("/")[0]
        if found is None or (found.private and user != namespace and user not in self.hub.orgs.get(namespace, ())):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not self.hub.may_write(self._token(), repo):
            raise Refused(403, message=f"You don't have the rights to write to {repo}")
        return found

    def _files(self, found: "Repo", revision: str) -> dict[str, bytes]:
        files = found.at(revision)
        if files is None:
            raise Refused(404, "RevisionNotFound", "Revision not found")
        return files

    def _writable(self, repo: str, revision: str) -> "Repo":
        """Pull requests are open to all who may read, and may write anything."""
        proposal = revision.startswith("refs/pr/")
        if proposal and self.hub.roles.get(self._token()) == "read":
            raise Refused(403, message="This token may not write")
        return self._repo(repo, write=not proposal)

    def _check_gate(self, repo: str, found: "Repo") -> None:
        if found.gated and self._user(required=False) != repo.split("/")[0]:
            raise Refused(403, "GatedRepo", f"Access to model {repo} is restricted")

    # Account and repositories

    def whoami(self) -> Answer:
        user = self._user()
        orgs = [{"name": name, "roleInOrg": "write"} for name, members in self.hub.orgs.items() if user in members]
        access = {"displayName": "test", "role": self.hub.roles.get(self._token(), "write")}
        return {"type": "user", "name": user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}}, {}

    def create(self) -> Answer:
        wanted = json.loads(self.payload)
        user = self._user()
        owner = wanted.get("organization") or user
        repo = f"{owner}/{wanted['name']}"
        if not self.hub.may_write(self._token(), repo):
            raise Refused(403, message=f"You don't have the rights to create a model under the namespace {owner!r}")
        url = {"url": f"{self.hub.endpoint}/{repo}", "id": repo}
        if repo in self.hub.repos:
            raise Refused(409, message="You already created this model repo", body=url)
        self.hub.add(repo, {}, private=wanted.get("private") or wanted.get("visibility") == "private")
        return url, {}

    def branch(self, repo: str, revision: str) -> Answer:
        found = self._repo(repo, write=True)
        if found.at(revision) is not None:
            raise Refused(409, message=f"Reference already exists: refs/heads/{revision}")
        found.branches[revision] = dict(found.files)
        return {}, {}

    def auth_check(self, repo: str, write: str | None) -> Answer:
        self._check_gate(repo, self._repo(repo, write=bool(write)))
        return {}, {}

    def dataset(self, repo: str) -> Answer:
        if repo not in self.hub.datasets:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return {"id": repo, "sha": "0" * 40, "siblings": [], "tags": []}, {}

    def info(self, repo: str, revision: str | None) -> Answer:
        found = self._repo(repo)
        content = self._files(found, revision or "main")
        sizes = "blobs=" in self.path
        files = [{"rfilename": path} | ({"size": len(data)} if sizes else {}) for path, data in content.items()]
        files += [{"rfilename": path, "size": size} for path, size in self.hub.sizes.get(repo, {}).items()]
        answer = {"id": repo, "sha": found.sha, "private": found.private, "siblings": files, "tags": []}
        answer["gated"] = "manual" if found.gated else False
        # YAML between the first two lines of dashes, as the Hub reads it.
        front = re.match(r"---\n(.*?)\n---", content.get("README.md", b"").decode(), re.DOTALL)
        card = yaml.safe_load(front[1]) if front else None
        if card and "pipeline_tag" in card:
            answer["pipeline_tag"] = card["pipeline_tag"]
        return answer | ({"cardData": card} if card else {}), {}

    # Files

    def validate(self) -> Answer:
        content = json.loads(self.payload)["content"]
        if not content.startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, {}
        try:
            yaml.safe_load(content.split("---\n")[1])
        except yaml.YAMLError as error:
            errors = [{"message": f"Invalid YAML: {error.problem}"}]
            raise Refused(400, body={"errors": errors, "warnings": []}) from error
        return {"errors": [], "warnings": []}, {}

    def preupload(self, repo: str, revision: str) -> Answer:
        files = json.loads(self.payload)["files"]
        held = self._files(self._writable(repo, revision), revision)

        def plan(path: str) -> Json:
            lfs = path.endswith(LFS_SUFFIXES)
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            return answer | ({"oid": _oid(held[path], lfs)} if path in held else {})

        return {"files": [plan(file["path"]) for file in files]}, {}

    def lfs_batch(self, repo: str) -> Answer:
        wanted = json.loads(self.payload)
        self._writable(repo, wanted.get("ref", {}).get("name", "main"))
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/upload/{item['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.endpoint}/verify", "header": {}},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def lfs_put(self, oid: str) -> Answer:
        if hashlib.sha256(self.payload).hexdigest() != oid:
            raise Refused(400, message="hash mismatch")
        self.hub.blobs[oid] = self.payload
        self.hub.uploads.append(oid)
        return b"", {}

    def lfs_verify(self) -> Answer:
        wanted = json.loads(self.payload)
        if len(self.hub.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, message="not uploaded")
        return {}, {}

    def xet_token(self, repo: str, revision: str) -> Answer:
        self._writable(repo, revision)
        return {"casUrl": f"local://{self.hub.xet}", "accessToken": "xet", "exp": 2**33}, {}

    def _blob(self, oid: str) -> bytes:
        """Of what went to xet only the hash is known here."""
        return XET + oid.encode() if self.hub.xet and oid not in self.hub.blobs else self.hub.blobs[oid]

    def commit(self, repo: str, revision: str) -> Answer:
        found = self._writable(repo, revision)
        files = dict(self._files(found, revision))
        for line in self.payload.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self._blob(value["oid"])
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        found.commit(revision, files)
        url = f"{self.hub.endpoint}/{repo}/commit/{found.sha_of(revision)}"
        return {"commitOid": found.sha_of(revision), "commitUrl": url, "hookOutput": ""}, {}

    def tree(self, repo: str, revision: str) -> Answer:
        entries: list[Json] = []
        for path, data in self._files(self._repo(repo), revision).items():
            lfs = path.endswith(LFS_SUFFIXES)
            entry = {"type": "file", "path": path, "size": len(data), "oid": _oid(data, lfs)}
            entries.append(
                entry | ({"lfs": {"oid": _oid(data, True), "size": len(data), "pointerSize": 1}} if lfs else {})
            )
        return entries, {}

    def resolve(self, repo: str, revision: str, path: str) -> Answer:
        found = self._repo(repo)
        files = self._files(found, revision)
        self._check_gate(repo, found)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = files[path]
        lfs = path.endswith(LFS_SUFFIXES)
        headers = {"X-Repo-Commit": found.commit_of(revision), "ETag": f'"{_oid(data, lfs)}"'}
        linked = {"X-Linked-Etag": f'"{_oid(data, lfs)}"', "X-Linked-Size": str(len(data))}
        return data, headers | (linked if lfs else {})

    # Pull requests

    def open_discussion(self, repo: str) -> Answer:
        from local_hub import PullRequest

        wanted = json.loads(self.payload)
        if self.hub.roles.get(self._token()) == "read":
            raise Refused(403, message="This token may not write")
        found, author = self._repo(repo), self._user()
        request = PullRequest(len(found.pull_requests) + 1, wanted["title"], str(author))
        found.pull_requests.append(request)
        found.branches[f"refs/pr/{request.num}"] = dict(found.files)
        return {"num": request.num}, {}

    def discussions(self, repo: str) -> Answer:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        shown = [
            _shown(repo, request)
            for request in self._repo(repo).pull_requests
            if query.get("author") in (None, request.author)
        ]
        return {"count": len(shown), "start": 0, "discussions": shown}, {}

    def discussion(self, repo: str, num: str) -> Answer:
        request = self._repo(repo).pull_requests[int(num) - 1]
        changes = {"base": "refs/heads/main", "mergeCommitId": None}
        return _shown(repo, request) | {"changes": changes, "filesWithConflicts": [], "events": [], "diff": ""}, {}


def _shown(repo: str, request: "PullRequest") -> Json:
    return {
        "num": request.num,
        "title": request.title,
        "status": request.status,
        "author": {"name": request.author},
        "createdAt": "2025-01-01T00:00:00.000Z",
        "repo": {"name": repo, "type": "model"},
        "isPullRequest": True,
    }


def _oid(data: bytes, lfs: bool) -> str:
    if data.startswith(XET):
        return data.removeprefix(XET).decode()
    return hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
