"""A small Hub on this machine for the unmodified huggingface_hub client: repositories, tokens, LFS, commits, files.

State is kept in memory. `fault` makes matching requests fail, wait or break off. What is answered is in
local_hub_routes.py, how it travels in local_hub_wire.py.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from local_hub_routes import Handler

Files = dict[str, bytes]


@dataclass
class PullRequest:
    num: int
    title: str
    author: str
    status: str = "draft"


@dataclass
class Repo:
    files: Files = field(default_factory=dict)  # of main
    private: bool = False
    gated: bool = False
    branches: dict[str, Files] = field(default_factory=dict)  # and pull requests, as refs/pr/N
    pull_requests: list[PullRequest] = field(default_factory=list)
    commits: dict[str, int] = field(default_factory=dict)

    def at(self, ref: str) -> Files | None:
        """Files of a branch, a pull request or a commit; None: there is no such thing."""
        known = {"main": self.files} | self.branches
        return known.get(ref) or next(
            (files for name, files in known.items() if ref in (name, self.sha_of(name))), None
        )

    @property
    def sha(self) -> str:
        return self.sha_of("main")

    def sha_of(self, ref: str) -> str:
        return hashlib.sha1(f"{ref} {self.commits.get(ref, 0)}".encode()).hexdigest()

    def commit_of(self, ref: str) -> str:
        """Commit of a branch or pull request; that of a commit is itself."""
        return self.sha_of(ref) if ref == "main" or ref in self.branches else ref

    def commit(self, ref: str, files: Files) -> None:
        if ref == "main":
            self.files = files
        else:
            self.branches[ref] = files
        self.commits[ref] = self.commits.get(ref, 0) + 1


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" has `pattern` in it, after `skip` of them.

    Attributes:
        status: answer with this instead.
        retry_after: seconds or a date; sent with the status.
        page: answer with a page of HTML, as gateways do.
        message: what the answer says.
        body: answer with these bytes, and status 200 unless another is given.
        location: answer with status 302 to there.
        cut: of the right answer send half, and close; with `say` as its length.
        say: the length that is said.
        delay: seconds before the answer.
        drop: close the connection when half of the request is read, or after it was obeyed; or say nothing for as long
            as the client waits.
        call: when half of the request is read.
    """

    pattern: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    retry_after: int | str | None = None
    page: bool = False
    message: str = "injected failure"
    body: bytes | None = None
    location: str | None = None
    cut: bool = False
    say: int | None = None
    delay: float = 0
    drop: Literal["request", "answer", "silence"] | None = None
    call: Callable[[], None] | None = None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error here."""


class LocalHub:
    """`with LocalHub() as hub:` listens on `hub.endpoint`; `tokens` maps a token to a user.

    `roles` of tokens are `write` unless said otherwise: `read`, or `fineGrained` with the namespaces and repositories
    that it may write to in `scopes`.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_good": "ada"}
        self.roles: dict[str, str] = {}
        self.scopes: dict[str, set[str]] = {}
        self.orgs: dict[str, set[str]] = {}  # organization -> members
        self.repos: dict[str, Repo] = {}
        self.sizes: dict[str, dict[str, int]] = {}  # of files that are said to be in a repository
        self.datasets: set[str] = set()
        self.blobs: Files = {}  # by sha256
        self.xet: Path | None = None  # folder that large files go to, by clients that use xet
        self.uploads: list[str] = []  # sha256 of every blob that was sent
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path" of each
        self.lock = threading.RLock()
        self.server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        # A short poll, because shutdown waits for the next one.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> Files:
        found = self.repos[repo_id].at(revision)
        assert found is not None, f"{repo_id} has no {revision}"
        return found

    def add(self, repo_id: str, files: Files, *, private: bool = False, gated: bool = False) -> None:
        self.repos[repo_id] = Repo(dict(files), private, gated)

    def fault(self, pattern: str, **what: Any) -> None:
        """See `Fault`."""
        self.faults.append(Fault(pattern, **what))

    def fail_next(self, pattern: str, *, status: int = 503, times: int = 1) -> None:
        """Answer the next `times` requests whose "METHOD /path" has `pattern` in it with that status."""
        self.fault(pattern, status=status, times=times)

    def may_write(self, token: str, repo_id: str) -> bool:
        namespace = repo_id.split("/")[0]
        user, role = self.tokens[token], self.roles.get(token, "write")
        if role == "read" or (role == "fineGrained" and not {namespace, repo_id} & self.scopes.get(token, set())):
            return False
        return user == namespace or user in self.orgs.get(namespace, ())
