"""Shards of a checkpoint are merged in place, and a kill at any step leaves what the next run finishes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_farms import EvaluationConfig, PruneConfig, prune_checkpoint
from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.files.shards import weight_map
from hf_farms.output import merging
from hf_farms.output.merging import merge_shards

INDEX = "model.safetensors.index.json"


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


@pytest.fixture
def sharded(tmp_path):
    """Four shards of tensors of several widths, and their names."""
    folder, names = tmp_path / "m", [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    folder.mkdir()
    for number, name in enumerate(names):
        content = {
            f"{number}.odd": torch.arange(3, dtype=torch.bfloat16) + number,
            f"{number}.wide": torch.randn(10, 10, dtype=torch.float64),
            f"{number}.weight": torch.randn(20, 10),
            f"{number}.flag": torch.tensor([True]),
            f"{number}.none": torch.empty(0, 3),
        }
        save_file(content, folder / name, metadata={"format": "pt"})
    (folder / INDEX).write_text("{}")
    return folder, names


def test_a_small_model_is_one_file_without_an_index(sharded, tmp_path):
    folder, names = sharded
    before = tensors(folder)
    seen = []
    merge_shards(folder, tmp_path / "state", names, progress=lambda *step: seen.append(step))
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert same(tensors(folder), before)
    assert seen == [(done, 4) for done in range(5)]
    assert not (tmp_path / "state").exists()
    # Again: a later process finds it done.
    merge_shards(folder, tmp_path / "state", names)
    assert same(tensors(folder), before)


@pytest.mark.parametrize("size", [900, 1700, 2000, 4000])
def test_files_are_as_large_as_those_of_save_pretrained(size, tmp_path):
    model = tiny("llama", seed=1)
    model.save_pretrained(tmp_path / "m", max_shard_size=12_000)
    names = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    before = tensors(tmp_path / "m")
    model.save_pretrained(tmp_path / "expected", max_shard_size=size * 10)
    expected = json.loads((tmp_path / "expected" / INDEX).read_text())
    merge_shards(tmp_path / "m", tmp_path / "state", names, max_shard_size=size * 10)
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    # The order of tensors may be another one.
    assert index["metadata"] == expected["metadata"]
    assert index["weight_map"].keys() == expected["weight_map"].keys()
    for file in set(index["weight_map"].values()):
        content = load_file(tmp_path / "m" / file)
        assert sum(tensor.nbytes for tensor in content.values()) <= size * 10 or len(content) == 1
    assert abs(len(set(index["weight_map"].values())) - len(set(expected["weight_map"].values()))) <= 1
    assert weight_map(tmp_path / "m" / INDEX) == {
        name: path.name
        for path in (tmp_path / "m").glob("*.safetensors")
        for name in safe_open(path, "pt").keys()  # noqa: SIM118
    }
    assert same(tensors(tmp_path / "m"), before)
    ids = torch.arange(12)[None]
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(back(ids).logits, model(ids).logits)


def test_shards_that_need_no_change_stay(sharded, tmp_path):
    folder, names = sharded
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    merge_shards(folder, tmp_path / "state", names, max_shard_size=1700)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


class Killed(BaseException):
    pass


def killing(monkeypatch, at):
    """Stop at a step that changes the disk."""
    steps = 0

    def step():
        nonlocal steps
        steps += 1
        if steps == at:
            raise Killed("at a step")

    def wrap(owner, name, *, after):
        original = getattr(owner, name)

        def call(*arguments, **options):
            if not after:
                step()
            result = original(*arguments, **options)
            if after:
                step()
            return result

        monkeypatch.setattr(owner, name, call)

    wrap(merging, "_copy_bytes", after=False)
    wrap(os, "fsync", after=False)
    wrap(merging, "write_text", after=True)
    for name in ("unlink", "replace"):
        wrap(Path, name, after=False)
        wrap(Path, name, after=True)
    wrap(shutil, "rmtree", after=False)


@pytest.mark.parametrize("size", ["5GB", 3000])
def test_a_kill_at_any_step_loses_nothing(sharded, tmp_path, size):
    folder, names = sharded
    before = tensors(folder)
    shutil.copytree(folder, tmp_path / "expected")
    merge_shards(tmp_path / "expected", tmp_path / "state", names, max_shard_size=size)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    at, most = 0, 0
    while True:
        at += 1
        work, state = tmp_path / f"m{at}", tmp_path / f"s{at}"
        shutil.copytree(folder, work)
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, at)
            try:
                merge_shards(work, state, names, max_shard_size=size)
            except Killed:
                most = max(most, at)
            else:
                break
        merge_shards(work, state, names, max_shard_size=size)
        assert {path.name: path.read_bytes() for path in work.iterdir()} == expected, at
        assert not state.exists()
    assert most > 30
    assert same(tensors(tmp_path / "expected"), before)


def test_no_second_copy_is_on_the_disk(sharded, tmp_path, monkeypatch):
    folder, names = sharded
    total, largest = (f(path.stat().st_size for path in folder.glob("*.safetensors")) for f in (sum, max))
    used = []
    original = merging._copy_shard

    def measured(path, state, pieces):
        original(path, state, pieces)
        files = [*folder.glob("*.safetensors"), *state.glob("*.safetensors")]
        used.append(sum(512 * file.stat().st_blocks for file in files))

    monkeypatch.setattr(merging, "_copy_shard", measured)
    merge_shards(folder, tmp_path / "state", names)
    # Blocks of the file system are larger than these tensors.
    assert len(used) == 4
    assert [len(list(folder.glob("*.safetensors")))] == [1]
    assert max(used) <= total + largest + 8 * 4096


def test_without_room_for_a_shard_nothing_is_merged(sharded, tmp_path, monkeypatch):
    folder, names = sharded
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.warns(HfFarmsWarning, match="4 files of weights were not merged into fewer: the disk has 1e-09 GB"):
        merge_shards(folder, tmp_path / "state", names)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == names


def test_lost_work_is_refused(sharded, tmp_path):
    folder, names = sharded

    def stop(done, total):
        if done == 2:
            raise Killed("at a step")

    with pytest.raises(Killed, match="at a step"):
        merge_shards(folder, tmp_path / "state", names, progress=stop)
    (tmp_path / "state" / "model.safetensors").unlink()
    with pytest.raises(
        OutputError, match=r"unfinished work must be complete, got 'model.safetensors' without all its tensors"
    ):
        merge_shards(folder, tmp_path / "state", names)


@pytest.mark.parametrize("at", [4, 9, 14])
def test_a_prune_killed_while_it_merges_goes_on_from_there(tmp_path, at):
    settings = {"config": PruneConfig(method="magnitude"), "evaluation": EvaluationConfig(source=None)}
    prune_checkpoint("demo", tmp_path / "whole" / "out", **settings)
    assert [path.name for path in (tmp_path / "whole" / "out").glob("model*")] == ["model.safetensors"]

    def stop(stage, done, total):
        if stage == "Merging shards" and done == at % 9:
            raise Killed("at a step")

    with pytest.raises(Killed, match="at a step"):
        prune_checkpoint("demo", tmp_path / "killed" / "out", **settings, progress=stop)
    stages = []
    report = prune_checkpoint(
        "demo", tmp_path / "killed" / "out", **settings, progress=lambda stage, *_: stages.append(stage)
    )
    assert set(stages) == {"Merging shards"}
    names = sorted(path.name for path in (tmp_path / "whole" / "out").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed" / "out").iterdir()) == names
    for name in ("model.safetensors", "hf_farms_report.json", "README.md", "recipe.yaml"):
        one, other = (tmp_path / folder / "out" / name for folder in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name
    assert report.sparsity == 0.5
