"""`hf-farms prune`, killed: the same command goes on, and its folder has the same bytes as that of a run in peace."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from models import tiny

from hf_farms.demo import demo_model

# Imports once; every line is a command that runs in a fork and can be killed there.
SERVER = """
import json, os, sys
import transformers
from transformers.models.llama import modeling_llama
import hf_farms_cli.app, hf_farms_cli.pipeline

for line in sys.stdin:
    job = json.loads(line)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.chdir(job["folder"])
            log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["hf-farms", *job["arguments"]]
            hf_farms_cli.app.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    # Not before it is asked for: until then the number is not given to another process.
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Commands of `hf-farms`, one after another."""

    def __init__(self):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder, *arguments, kill_when=None):
        """Exit status (minus the signal) and what was printed.

        Args:
            kill_when: returns when the command is to be killed; it may have ended by then.
        """
        job = {"folder": str(folder), "arguments": [str(a) for a in arguments]}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        if kill_when is not None:
            kill_when()
            os.kill(pid, signal.SIGKILL)
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return code, " ".join((folder / "log").read_text().split())

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()


@pytest.fixture(scope="module")
def commands():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    found = Commands()
    yield found
    found.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Eight blocks in several shards, with the tokenizer of the demo."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model") / "eight"
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    tiny("llama", num_hidden_layers=8, vocab_size=len(tokenizer), hidden_size=64).save_pretrained(
        folder, max_shard_size="200KB"
    )
    tokenizer.save_pretrained(folder)
    return folder


SETTINGS = ("--calibration-samples", 16, "--calibration-length", 64, "--evaluation-windows", 4, "-o", "out")
# What a run leaves behind one after another: 9 shards, 8 records, stages, configs, report, card.
FILES = 24


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def random_moment(folder, chance, share):
    """Some time after some file has appeared: evenly over what is done, not over the seconds that it takes.

    Args:
        folder: where the files appear.
        chance: random numbers.
        share: from which share of the files to which.
    """
    files, pause = FILES * chance.uniform(*share), chance.uniform(0, 0.01)

    def wait():
        deadline = time.monotonic() + 100
        while not (folder / "out").exists() and time.monotonic() < deadline:
            if sum(1 for path in folder.rglob("*") if path.is_file()) >= files:
                break
            time.sleep(0.001)
        time.sleep(pause)

    return wait


def check_kills(commands, model, folder, options, number, seed):
    """Kill at random moments, each time run again, compare; returns how many shards there were at each kill."""
    arguments = ("prune", model, *SETTINGS, *options)
    peace = folder / "peace"
    peace.mkdir()
    code, shown = commands.run(peace, *arguments)
    assert code == 0, shown
    expected = hashes(peace / "out")
    assert {"README.md", "hf_farms_report.json", "recipe.yaml", "config.json"} < expected.keys()
    assert sum(name.endswith(".safetensors") for name in expected) == 9
    found = []
    chance = random.Random(seed)
    for kill in range(number):
        place = folder / str(kill)
        place.mkdir()
        code, _ = commands.run(
            place, *arguments, kill_when=random_moment(place, chance, (kill / number, (kill + 1) / number))
        )
        assert code in (-signal.SIGKILL, 0)
        found.append(len(list(place.glob("out*/*.safetensors"))))
        code, shown = commands.run(place, *arguments)
        assert code == 0, shown
        assert hashes(place / "out") == expected, (kill, found)
        assert sorted(path.name for path in place.iterdir()) == ["log", "out"]
    return found


@pytest.mark.parametrize("options", [("--stream",), ("--no-stream", "--method", "sparsegpt")])
def test_kill_9_and_the_same_command_again(commands, model, tmp_path, options):
    check_kills(commands, model, tmp_path, options, number=2, seed=len(options))


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_kill_9_at_ten_moments(commands, model, tmp_path, stream):
    finished = check_kills(commands, model, tmp_path, (stream,), number=10, seed=6)
    # Before, between and after the blocks.
    assert len(set(finished)) > 3, finished


def prepared(commands, model, folder, *options, where="blocks"):
    """A run that was killed when two blocks were finished."""
    arguments = ("prune", model, *SETTINGS, *options)

    def two_blocks():
        deadline = time.monotonic() + 100
        records = folder / "out.partial" / ".hf-farms-unfinished" / where
        while len(list(records.glob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)

    assert commands.run(folder, *arguments, kill_when=two_blocks)[0] == -signal.SIGKILL
    return arguments


def test_finished_blocks_are_not_pruned_again_and_other_settings_are_refused(commands, model, tmp_path):
    arguments = prepared(commands, model, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out.partial/*.safetensors")}
    code, shown = commands.run(tmp_path, *arguments, "--sparsity", 0.6, "--seed", 3)
    assert code == 1
    assert "which was begun otherwise (prune.sparsity: 0.6, there 0.5; calibration.seed: 3, there 0;" in shown
    assert "--overwrite" in shown
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("out.partial/*.safetensors")} == before
    # In the other form of the same work.
    assert commands.run(tmp_path, *arguments, "--stream")[0] == 0
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/*.safetensors")}
    assert {p.name for p, stamp in before.items() if after[p.name] == stamp} == {p.name for p in before}


def test_a_kill_while_uniform_sparsity_is_measured(commands, model, tmp_path):
    folders = [tmp_path / name for name in ("peace", "killed", "without")]
    for folder in folders:
        folder.mkdir()
    peace, killed, without = folders
    options = ("--allocation", "alpha")
    assert commands.run(peace, "prune", model, *SETTINGS, *options)[0] == 0
    arguments = prepared(commands, model, killed, *options, where="uniform/blocks")
    assert commands.run(killed, *arguments)[0] == 0
    assert hashes(killed / "out") == hashes(peace / "out")
    # It decides no byte of the model: who has lost patience may leave it out.
    arguments = prepared(commands, model, without, *options, where="uniform/blocks")
    assert commands.run(without, *arguments, "--no-baseline")[0] == 0
    different = {name for name, value in hashes(peace / "out").items() if hashes(without / "out")[name] != value}
    assert different == {"README.md", "hf_farms_report.json"}
    assert not (without / "out" / ".hf-farms-unfinished").exists()


def test_other_weights_under_the_same_name_are_refused(commands, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    arguments = prepared(commands, copy, tmp_path)
    shard = sorted(copy.glob("*.safetensors"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, shown = commands.run(tmp_path, *arguments)
    assert code == 1
    assert f"weights.{shard.name}: " in shown
    shard.write_bytes(content)
    assert commands.run(tmp_path, *arguments)[0] == 0


def test_overwrite_begins_again(commands, model, tmp_path):
    arguments = prepared(commands, model, tmp_path)
    assert commands.run(tmp_path, *arguments, "--sparsity", 0.6, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "out" / "hf_farms_report.json").read_text())["config"]["sparsity"] == 0.6


def test_a_shard_that_is_damaged_ends_with_a_sentence_and_its_repair_goes_on(commands, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    arguments = prepared(commands, copy, tmp_path, "--stream")
    shard = sorted(copy.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    os.truncate(shard, len(content) // 2)
    code, shown = commands.run(tmp_path, *arguments)
    assert code == 1
    assert shown.startswith("Error: ")
    assert shard.name in shown or "could not be loaded" in shown
    assert "Traceback" not in shown
    shard.write_bytes(content)
    assert commands.run(tmp_path, *arguments)[0] == 0
