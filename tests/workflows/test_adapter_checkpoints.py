"""Adapters merged into checkpoints on disk, taken out again, and made of two checkpoints."""

import json
import os
import shutil
import signal
import sys

import pytest
import torch
from adapters import same
from models import tiny
from processes import at, finished
from random_adapters import merged, random_adapter
from safetensors.torch import load_file, save_file

from hf_farms import S2FTAdapter
from hf_farms.demo import demo_model
from hf_farms.errors import ModelError, OutputError
from hf_farms.workflows.adapter_checkpoints import diff_checkpoints, merge_checkpoint, unmerge_checkpoint

DTYPES = [torch.float32, torch.bfloat16]
SHARDS = "30KB"
DOWN = "model.layers.1.mlp.down_proj.weight"


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(folder, model, adapter=None, **options):
    """Save a model in several shards, with files of a tokenizer."""
    model.save_pretrained(folder, max_shard_size=SHARDS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# the base")
    if adapter is not None:
        adapter.save_pretrained(folder.parent / "adapter", **options)
    return folder


@pytest.fixture(params=DTYPES, ids=str)
def made(request, tmp_path):
    """A base of several shards, an adapter of it, and what a merge in memory saves."""
    model = tiny("llama", dtype=request.param)
    adapter = random_adapter(model, roles=("q", "o", "down"))
    base = saved(tmp_path / "base", model, adapter)
    tuned = saved(tmp_path / "tuned", merged(model, adapter))
    assert len(list(base.glob("*.safetensors"))) > 2
    return base, tmp_path / "adapter", tuned


@pytest.fixture
def small(tmp_path):
    model = tiny("llama")
    return saved(tmp_path / "base", model, random_adapter(model)), tmp_path / "adapter"


def test_a_merge_on_disk_writes_what_a_merge_in_memory_saves(made, tmp_path):
    base, adapter, tuned = made
    steps = []
    out = merge_checkpoint(base, adapter, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert out == tmp_path / "out"
    expected = files(tuned)
    del expected["README.md"]  # of another model
    assert files(out) == expected
    assert steps[0][:2] == ("Merging", 0)
    assert steps[-1][1] == steps[-1][2] == len(list(base.glob("*.safetensors")))
    back = unmerge_checkpoint(out, adapter, tmp_path / "back")
    assert files(back) == {name: content for name, content in files(base).items() if name != "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "tuned", "out", "back"}


def test_the_adapter_of_two_checkpoints_gives_the_tuned_one(made, tmp_path):
    base, adapter, tuned = made
    made_of_two = diff_checkpoints(base, tuned, tmp_path / "diff")
    assert {name: len(p.indices) for name, p in made_of_two.patches.items()} == {
        name: len(p.indices) for name, p in S2FTAdapter.from_pretrained(adapter).patches.items()
    }
    out = merge_checkpoint(base, tmp_path / "diff", tmp_path / "out")
    assert same(tensors(out), tensors(tuned))
    diff_checkpoints(base, tuned, tmp_path / "half", include_base=False)
    with pytest.raises(ModelError, match="must hold the slices of its base to be unmerged, got one that was saved"):
        unmerge_checkpoint(out, tmp_path / "half", tmp_path / "back")


def test_the_demo_is_a_base(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype="auto")
    random_adapter(model, blocks=[0]).save_pretrained(tmp_path / "adapter")
    out = merge_checkpoint("demo", tmp_path / "adapter", tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (demo_model() / "tokenizer.json").read_bytes()
    AutoModelForCausalLM.from_pretrained(out)
    assert same(tensors(unmerge_checkpoint(out, tmp_path / "adapter", tmp_path / "back")), tensors(demo_model()))


def test_names_of_older_checkpoints_are_found(tmp_path):
    """GPT-2 on the Hub has names without the prefix that save_pretrained writes."""
    from families import family_model

    model = family_model("gpt2")
    adapter = random_adapter(model)
    base = saved(tmp_path / "base", model, adapter)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors(base).items()}
    for path in base.glob("model*"):
        path.unlink()
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    out = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert tensors(out).keys() == old.keys()
    model = type(model).from_pretrained(base)
    adapter.merge(model)
    assert same(model.state_dict(), type(model).from_pretrained(out).state_dict())


def test_bits_of_nan_and_of_zeros_are_kept(tmp_path):
    model = tiny("llama", dtype=torch.bfloat16)
    adapter = random_adapter(model)
    with torch.no_grad():
        model.get_parameter(DOWN)[0, :] = float("nan")
        model.get_parameter(DOWN)[1, :] = -0.0
    adapter = random_adapter(model)
    base = saved(tmp_path / "base", model, adapter)
    out = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert same(tensors(out), merged(model, adapter).state_dict())


def test_other_files_of_the_folder_are_not_copied(small, tmp_path):
    base, adapter = small
    for name in ("optimizer.pt", "trainer_state.json", "notes.md", "LICENSE"):
        (base / name).write_text("x")
    (base / "chat_template.jinja").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("x")
    out = merge_checkpoint(base, adapter, tmp_path / "out")
    names = {path.name for path in out.iterdir() if not path.name.startswith("model")}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "LICENSE"}


def refuse(call, match, folder, error=ModelError):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(error, match=match):
        call()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_merge_refuses_another_base(small, tmp_path):
    base, adapter = small
    out = tmp_path / "out"
    other = saved(tmp_path / "other", tiny("llama", seed=1))
    refuse(
        lambda: merge_checkpoint(other, adapter, out),
        r"the adapter, got '.*other' with other weights in model\.layers\.0",
        tmp_path,
    )
    half = saved(tmp_path / "half", tiny("llama", dtype=torch.bfloat16))
    refuse(lambda: merge_checkpoint(half, adapter, out), r"dtype of the adapter \(float32\), got bfloat16 in", tmp_path)
    wide = saved(tmp_path / "wide", tiny("llama", intermediate_size=64))
    refuse(lambda: merge_checkpoint(wide, adapter, out), r"got \(32, 64\) instead of \(32, 48\) in model", tmp_path)
    short = saved(tmp_path / "short", tiny("llama", num_hidden_layers=2))
    refuse(
        lambda: merge_checkpoint(short, adapter, out),
        r"every weight of the adapter, got .* without model\.layers\.2",
        tmp_path,
    )
    refuse(
        lambda: unmerge_checkpoint(base, adapter, out), "must have this adapter merged into it, got '.*base'", tmp_path
    )
    twice = merge_checkpoint(base, adapter, tmp_path / "twice")
    refuse(lambda: merge_checkpoint(twice, adapter, out), "'.*twice', which holds the adapter already, in", tmp_path)


def test_a_merge_refuses_damaged_and_pickled_files(small, tmp_path):
    base, adapter = small
    out = tmp_path / "out"
    shard = sorted(base.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    refuse(lambda: merge_checkpoint(base, adapter, out), "truncated or corrupted model-00002-of", tmp_path)
    shard.unlink()
    refuse(
        lambda: merge_checkpoint(base, adapter, out),
        "checkpoint must be complete, got .* without model-00002",
        tmp_path,
    )
    for path in base.glob("model*"):
        path.unlink()
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="must be safetensors, got pickled ones") as error:
        merge_checkpoint(base, adapter, out)
    assert "save_pretrained" in error.value.hint
    assert "allow" not in error.value.hint


def test_an_index_that_names_files_outside_the_folder_is_refused(small, tmp_path):
    base, adapter = small
    index = base / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][DOWN] = "../adapter/s2ft_adapter.safetensors"
    index.write_text(json.dumps(content))
    refuse(lambda: merge_checkpoint(base, adapter, tmp_path / "out"), "files in the folder of the model", tmp_path)


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("base", "which has files|must not be the model"),
        ("base/out", "must not be inside the model"),
        ("adapter/out", "must not be inside the adapter"),
        ("full", "must be a new folder, got '.*full', which has files"),
        ("out.partial", "must not end in .partial"),
        ("file", "must be a folder, got the file"),
        ("taken", "'.*taken.partial' is needed for unfinished work, but has content that hf-farms did not write"),
    ],
)
def test_nothing_is_written_over_other_files(small, tmp_path, place, match):
    base, adapter = small
    for name in ("full", "taken.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    refuse(lambda: merge_checkpoint(base, adapter, tmp_path / place), match, tmp_path, OutputError)


def test_a_diff_refuses_what_is_no_adapter(small, tmp_path):
    base, _ = small
    out = tmp_path / "out"
    refuse(lambda: diff_checkpoints(base, base, out), "must differ from its base, got two LlamaForCausalLM", tmp_path)
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter(DOWN)[:, 3] += 1
        model.model.norm.weight[0] += 1
    tuned = saved(tmp_path / "tuned", model)
    share = r"channels of linear layers only, got 3\.0% of the changed weights outside of such channels, in model\.norm"
    refuse(lambda: diff_checkpoints(base, tuned, out), share, tmp_path)
    short = saved(tmp_path / "short", tiny("llama", num_hidden_layers=2))
    refuse(
        lambda: diff_checkpoints(base, short, out),
        "same weights by name, got .*, which differ in model.layers.2",
        tmp_path,
    )
    half = saved(tmp_path / "half", tiny("llama", dtype=torch.bfloat16))
    refuse(lambda: diff_checkpoints(base, half, out), r"one shape and dtype, got .* torch\.bfloat16 and", tmp_path)


def test_a_diff_refuses_checkpoints_with_other_ties(tmp_path):
    base = saved(tmp_path / "base", tiny("llama"))
    model = tiny("llama", tie_word_embeddings=True)
    with torch.no_grad():
        model.get_parameter(DOWN)[:, 3] += 1
    tuned = saved(tmp_path / "tuned", model)
    for pair, tied in (((base, tuned), "model"), ((tuned, base), "base")):
        match = f"must tie the same weights, got a {tied} that ties lm_head"
        refuse(lambda pair=pair: diff_checkpoints(*pair, tmp_path / "out"), match, tmp_path)


# The moment is counted in changes of files.
CODE = (
    "import sys; from hf_farms.workflows.adapter_checkpoints import merge_checkpoint; merge_checkpoint(*sys.argv[1:])"
)


def test_a_killed_merge_leaves_no_output_and_is_repeated(small, tmp_path):
    base, adapter = small
    expected = files(merge_checkpoint(base, adapter, tmp_path / "expected"))
    work = tmp_path / "work"
    for change in (2, 5, 9):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        command = [sys.executable, "-c", CODE, base, adapter, "out"]
        done = finished(command, cwd=work, env={**os.environ, **at(signal.SIGKILL, change=change)})
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = {path.name for path in work.iterdir()}
        assert left <= {"out.partial"} or (left == {"out", "out.partial"} and files(work / "out") == expected)
        if "out" not in left:
            assert files(merge_checkpoint(base, adapter, work / "out")) == expected
            assert [path.name for path in work.iterdir()] == ["out"]
