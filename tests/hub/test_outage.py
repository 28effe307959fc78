"""A network that is away for a moment while a model is uploaded."""

import sys
import threading

import pytest
from hub_client import contents, environment
from local_hub import LocalHub, Server
from models import tiny
from processes import finished, wait_for

# Pauses before another try are short; the second one, after a try that failed, lasts until the network is back.
PUSH = """
import sys, time
from pathlib import Path
from hf_farms.hub import push
sleep, pauses, failed, back = time.sleep, [], *map(Path, sys.argv[1:3])

def brief(seconds):
    if seconds >= 1:
        pauses.append(seconds)
        if len(pauses) == 2:
            failed.touch()
            while not back.exists():
                sleep(0.005)
    else:
        sleep(seconds)

time.sleep = brief
print(push(*sys.argv[3:]))
"""


@pytest.mark.parametrize("request_", ["PUT /upload", "POST /api/models/ada/m/commit"])
def test_an_upload_outlasts_it(request_, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "m")
    failed, back = tmp_path / "failed", tmp_path / "back"
    with LocalHub() as hub:

        def leave():
            """Nobody listens, until that was noticed."""
            hub.server.shutdown()
            hub.server.server_close()
            threading.Thread(target=come_back, daemon=True).start()

        def come_back():
            wait_for(failed.exists)
            hub.server = Server(hub.server.server_address, hub.server.RequestHandlerClass)
            back.touch()
            hub.server.serve_forever(0.02)

        hub.fault(request_, call=leave, drop="request")
        command = [sys.executable, "-c", PUSH, failed, back, tmp_path / "m", "ada/m"]
        done = finished(command, env=environment(hub.endpoint, tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        assert back.exists()
        assert hub.files("ada/m") == contents(tmp_path / "m")
