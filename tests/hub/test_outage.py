"""A network that is away for a moment while a model is uploaded."""

import subprocess
import sys
import threading
import time

import pytest
from hub_client import contents, environment
from local_hub import LocalHub, Server
from models import tiny

PUSH = "import sys; from hf_farms.hub import push; print(push(*sys.argv[1:]))"


def away(hub, seconds):
    """Nobody listens for so long."""

    def begin():
        hub.server.shutdown()
        hub.server.server_close()
        threading.Thread(target=end, daemon=True).start()

    def end():
        time.sleep(seconds)
        hub.server = Server(hub.server.server_address, hub.server.RequestHandlerClass)
        hub.server.serve_forever(0.02)

    return begin


@pytest.mark.parametrize("request_", ["PUT /upload", "POST /api/models/ada/m/commit"])
def test_an_upload_outlasts_it(request_, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "m")
    with LocalHub() as hub:
        hub.fault(request_, call=away(hub, 1.5), drop="request")
        command = [sys.executable, "-c", PUSH, str(tmp_path / "m"), "ada/m"]
        done = subprocess.run(
            command, env=environment(hub.endpoint, tmp_path / "home"), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert hub.files("ada/m") == contents(tmp_path / "m")
