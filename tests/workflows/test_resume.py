"""`hf-farms prune`, killed: the same command goes on, and its folder has the same bytes as that of a run in peace."""

import hashlib
import json
import os
import random
import shutil
import signal

import pytest
from forked import Commands
from models import tiny

from hf_farms.demo import demo_model


@pytest.fixture(scope="module")
def commands():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with Commands() as found:
        yield found


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


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_kills(commands, model, folder, options, number, seed):
    """Kill before random changes of files, each time run again, compare; returns how many shards each kill left."""
    arguments = ("prune", model, *SETTINGS, *options)
    peace = folder / "peace"
    peace.mkdir()
    code, shown = commands.run(peace, *arguments)
    assert code == 0, shown
    changes = int(shown.rpartition("changes: ")[2])
    expected = hashes(peace / "out")
    assert {"README.md", "hf_farms_report.json", "recipe.yaml", "config.json"} < expected.keys()
    assert "model.safetensors" in expected
    found = []
    chance = random.Random(seed)
    for kill in range(number):
        place = folder / str(kill)
        place.mkdir()
        # Evenly over the work, and every other one in the middle of a file: the last changes remove what is left over.
        half = kill % 2 == 0
        moment = {"change": 1 + int(changes * (0.8 if half else 1) * (kill + chance.random()) / number), "half": half}
        code, shown = commands.run(place, *arguments, **moment)
        assert code == -signal.SIGKILL, shown
        found.append(len(list(place.glob("out*/*.safetensors"))))
        code, shown = commands.run(place, *arguments)
        assert code == 0, shown
        assert hashes(place / "out") == expected, (moment, found)
        assert sorted(path.name for path in place.iterdir()) == ["out"]
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

    second = f"*/.hf-farms-unfinished/{where}/*.json"
    assert commands.run(folder, *arguments, made=second, number=2)[0] == -signal.SIGKILL
    return arguments


def until_merged(commands, folder, *arguments):
    """Run until the shards of all blocks are about to be merged."""
    moment = {"made": "*/.hf-farms-unfinished/merged/*.json", "number": 1}
    assert commands.run(folder, *arguments, **moment)[0] == -signal.SIGKILL


def test_finished_blocks_are_not_pruned_again_and_other_settings_are_refused(commands, model, tmp_path):
    arguments = prepared(commands, model, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out.partial/*.safetensors")}
    code, shown = commands.run(tmp_path, *arguments, "--sparsity", 0.6, "--seed", 3)
    assert code == 1
    assert "which was begun otherwise (prune.sparsity: 0.6, previously 0.5; calibration.seed: 3, previously 0;" in shown
    assert "--overwrite" in shown
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("out.partial/*.safetensors")} == before
    # In the other form of the same work.
    until_merged(commands, tmp_path, *arguments, "--stream")
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out.partial/*.safetensors")}
    assert len(after) == 9 > len(before) > 1
    assert {p: after[p] for p in before} == before
    assert commands.run(tmp_path, *arguments, "--stream")[0] == 0


def test_work_that_was_begun_before_an_option_was_renamed_is_continued_to_the_same_bytes(commands, model, tmp_path):
    peace, killed = tmp_path / "peace", tmp_path / "killed"
    for folder in (peace, killed):
        folder.mkdir()
    arguments = prepared(commands, model, killed)
    assert commands.run(peace, *arguments)[0] == 0
    state = killed / "out.partial" / ".hf-farms-unfinished"
    begun = json.loads((state / "fingerprint.json").read_text())
    old = {key.replace("prune.spectra.", "prune.farms."): value for key, value in begun.items()}
    assert old.keys() != begun.keys()
    (state / "fingerprint.json").write_text(json.dumps(old))
    before = {p: p.stat().st_mtime_ns for p in killed.glob("out.partial/*.safetensors")}
    (spectra,) = state.glob("spectra*.json")
    spectra.write_text(json.dumps(json.loads(spectra.read_text()) | {"schema_version": 1}))
    until_merged(commands, killed, *arguments)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    assert commands.run(killed, *arguments)[0] == 0
    assert hashes(killed / "out") == hashes(peace / "out")


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
