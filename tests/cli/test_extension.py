"""`hf extensions install OWNER/hf-farms`, then `hf farms ...`: the unmodified `hf` and a GitHub on this machine."""

import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import sysconfig
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from processes import finished

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HF = Path(sysconfig.get_path("scripts")) / "hf"
COMMIT = "0123456789" * 4


def test_the_project_is_an_extension():
    assert version("hf-farms") == PROJECT["version"]
    assert "dynamic" not in PROJECT
    assert set(PROJECT["scripts"]) == {"hf-farms"}
    # A file of this name at the root would be run in place of the package.
    assert not (ROOT / "hf-farms").exists()
    # The description is taken from here, if it is there.
    assert not (ROOT / "manifest.json").exists()


def test_the_console_script_runs():
    (script,) = entry_points(group="console_scripts", name="hf-farms")
    assert callable(script.load())


def working_tree():
    """What GitHub makes of the repository: a zip with one folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            if name and (ROOT / name).is_file():
                archive.write(ROOT / name, f"hf-farms-{COMMIT}/{name}")
    return buffer.getvalue()


class GitHub(BaseHTTPRequestHandler):
    """A proxy that answers for github.com and raw.githubusercontent.com itself."""

    protocol_version = "HTTP/1.1"
    context: ssl.SSLContext
    archive: bytes
    host = ""

    def do_CONNECT(self):
        host = self.path.partition(":")[0]
        known = host in ("github.com", "raw.githubusercontent.com")
        self.send_response(200 if known else 403)
        self.end_headers()
        self.close_connection = True
        if not known:
            return
        with self.context.wrap_socket(self.connection, server_side=True) as encrypted:
            inside = type("Inside", (type(self),), {"host": host})
            inside(encrypted, self.client_address, self.server)

    def do_GET(self):
        content = self.content(self.path.partition("?")[0].removeprefix("/ada/hf-farms"))
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def do_HEAD(self):
        self.do_GET()

    def content(self, path):
        if self.host == "raw.githubusercontent.com":
            file = ROOT / path.removeprefix("/HEAD/")
            return file.read_bytes() if file.is_file() else None
        known = {"": b"page", "/archive/HEAD.zip": self.archive, ".git/info/refs": f"{COMMIT} HEAD\0".encode()}
        return known.get(path) if self.host == "github.com" else None

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """`hf` in a home of its own, in which an extension finds the packages of this environment but not hf-farms."""
    if not shutil.which("openssl") or not (ROOT / ".git").exists():
        pytest.skip("needs openssl, and a checkout")
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    folder = tmp_path_factory.mktemp("hf")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=DNS:github.com,DNS:raw.githubusercontent.com"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=github.com"]
    subprocess.run([*make, "-addext", names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (GitHub,), {"context": context, "archive": working_tree()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("hf_farms", "_editable", "__editable__")) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    (folder / "home").mkdir()
    environment = {
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hf_home"),
        "PATH": "/usr/bin:/bin",  # without uv, which has caches and settings of its own
        "PYTHONPATH": str(packages),
        "HTTPS_PROXY": f"http://127.0.0.1:{server.server_address[1]}",
        "SSL_CERT_FILE": str(certificate),
        "PIP_CERT": str(certificate),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }

    def run(*arguments):
        command = [sys.executable, HF, *arguments]
        return finished(command, env=environment, cwd=folder)

    yield run
    server.shutdown()
    server.server_close()


def test_install_run_list_and_remove(hf):
    installed = hf("extensions", "install", "ada/hf-farms")
    assert installed.returncode == 0, installed.stderr
    assert "Run it with: hf farms" in installed.stderr
    assert hf("farms", "--version").stdout.strip() == PROJECT["version"]
    wrong = hf("farms", "analyze", "./nowhere")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: model must be a hub id or an existing folder, got './nowhere'")
    assert len(hf("farms", "analyze", "demo", "-q").stdout.split()) == 8
    (row,) = json.loads(hf("extensions", "list", "--json").stdout)
    assert (row["command"], row["type"], row["description"]) == ("hf farms", "python", PROJECT["description"])
    assert PROJECT["description"][:30] in hf("--help").stdout
    assert hf("extensions", "remove", "farms").returncode == 0
    assert hf("farms", "--version").returncode == 2
