"""prune --push of the demo model, killed at five moments; then the same command makes it whole."""

import os
import random
import signal
import sys

import pytest
from forked import Commands
from hub_client import contents, environment
from local_hub import LocalHub
from processes import finished

TOKEN = "hf_SecretOfAda"
RUN = [sys.executable, "-c", "from hf_farms_cli.app import main; main()"]
COMMAND = ("prune", "demo", "--push", "--token", TOKEN, "--no-baseline", "-q")
COMMAND += ("--calibration-samples", "4", "--calibration-length", "64", "--evaluation", "none")
NAME = "demo-farms-wanda-50"
PULL = """
import sys, torch
from transformers import AutoModelForCausalLM as Model, AutoTokenizer
ids = AutoTokenizer.from_pretrained(sys.argv[1])("We the people", return_tensors="pt").input_ids
pulled, kept = (Model.from_pretrained(name).eval()(ids).logits for name in sys.argv[1:])
print(torch.equal(pulled, kept), sum(int((p == 0).sum()) for p in Model.from_pretrained(sys.argv[1]).parameters()) > 0)
"""


class Killed:
    """The command in a folder, killed at moments of its work or by the Hub."""

    def __init__(self, hub, folder, commands):
        self.hub, self.folder, self.commands = hub, folder, commands
        self.said = ""

    def start(self, **moment):
        self.process = self.commands.start(self.folder, *COMMAND, **moment)

    def kill(self):
        os.kill(self.process, signal.SIGKILL)

    def end(self):
        done = self.commands.ended()
        self.said += done.stdout + done.stderr
        return done

    def kill_at_change(self, number):
        """Of a file or folder."""
        self.start(change=number)
        done = self.end()
        assert done.returncode == -signal.SIGKILL, done.stderr

    def kill_at_request(self, pattern, **fault):
        self.hub.fault(pattern, call=self.kill, **fault)
        self.start()
        done = self.end()
        assert done.returncode == -signal.SIGKILL, done.stderr


def check_no_half_folder(folder):
    if (folder / NAME).exists():
        names = set(contents(folder / NAME))
        assert {"config.json", "hf_farms_report.json", "README.md", "model.safetensors"} <= names
        assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_five_times_and_completed(tmp_path):
    chance = random.Random(7)
    variables = {"home": tmp_path / "home", "token": None}
    with LocalHub() as hub, Commands(environment(hub.endpoint, **variables)) as commands:
        hub.tokens = {TOKEN: "ada"}
        work = Killed(hub, tmp_path, commands)
        moments = [
            lambda: work.kill_at_change(chance.randint(1, 20)),
            lambda: work.kill_at_change(chance.randint(20, 35)),
            lambda: work.kill_at_request("PUT /upload", skip=chance.randint(0, 1), drop="request"),
            lambda: work.kill_at_request(f"POST /api/models/ada/{NAME}/commit", drop="request"),
            lambda: work.kill_at_request(f"POST /api/models/ada/{NAME}/commit"),
        ]
        for moment in moments:
            moment()
            check_no_half_folder(tmp_path)
        work.start()
        done = work.end()
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.endpoint}/ada/{NAME}"
        assert {path.name for path in tmp_path.iterdir()} <= {NAME, "home"}
        assert hub.files(f"ada/{NAME}") == contents(tmp_path / NAME)
        assert ".hf-farms-unfinished" not in {path.name for path in (tmp_path / NAME).iterdir()}
        # Sent whole at most once, though the command ran six times.
        assert len(hub.uploads) == len(set(hub.uploads))
        pulled = [sys.executable, "-c", PULL, f"ada/{NAME}", tmp_path / NAME]
        pulled = finished(pulled, env=environment(hub.endpoint, **variables))
        assert pulled.stdout.split() == ["True", "True"], pulled.stderr
        places = {**contents(tmp_path), **hub.files(f"ada/{NAME}"), "output": work.said.encode()}
        assert [name for name, data in places.items() if TOKEN.encode() in data] == []
        assert b"--no-baseline" in places["hf_farms_report.json"]  # the command is recorded, without the token


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub at http://127.0.0.1:9 could not be reached (ConnectError)."),
        ({"HF_HUB_OFFLINE": "1"}, "a push must reach the Hub, got HF_HUB_OFFLINE"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_said_before_torch_is_loaded(tmp_path, variables, sentence):
    code = RUN[2].replace("main()", "sys.modules['torch'] = None; main()").replace("from", "import sys; from", 1)
    done = finished(
        [sys.executable, "-c", code, "prune", "demo", "--push"],
        env=environment("http://127.0.0.1:9", tmp_path / "home", **variables),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert sentence in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] in ([], ["home"])
