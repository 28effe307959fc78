"""The index of shards and the header of a safetensors file: valid weights, or an error of the project."""

import json
import shutil

import pytest
import torch
from hostile import (
    VALUES,
    faulty_bytes,
    faulty_json,
    files,
    json_bytes,
    nothing_written_outside,
    valid_or_refused,
    write,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_farms.blocks import TensorFiles
from hf_farms.files.shards import shard_names
from hf_farms.hub.folders import check_folder, check_publishable
from hf_farms.loading.files import weight_files
from hf_farms.s2ft.adapters.checkpoints import open_checkpoint
from hf_farms.s2ft.adapters.patched_files import Change

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TENSORS = {"a.weight": torch.arange(12.0).view(3, 4), "b.weight": torch.ones(2, 2, dtype=torch.bfloat16)}
INDEX_DOCUMENT = {"metadata": {"total_size": 56}, "weight_map": dict(zip(TENSORS, SHARDS, strict=True))}
# Names of files as nobody should write them, and some that are there.
NAMES = [*VALUES, *SHARDS, "../outside.safetensors", "/etc/outside.safetensors", "below/model.safetensors", INDEX]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two shards, and a file beside its folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    write(folder / INDEX, json_bytes(INDEX_DOCUMENT))
    for (name, tensor), shard in zip(TENSORS.items(), SHARDS, strict=True):
        save_file({name: tensor}, folder / shard, metadata={"format": "pt"})
    save_file(TENSORS, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    return folder


def read_all(paths):
    stored = TensorFiles(paths, mapped=False)
    for name in stored.names:
        assert stored.blank(name).shape == stored.read(name).shape
    return stored


@files
@given(content=faulty_json(INDEX_DOCUMENT, NAMES))
def test_an_index_names_files_of_its_folder(folder, content):
    write(folder / INDEX, content)
    for name in valid_or_refused(lambda: shard_names(folder / INDEX)) or ():
        assert folder.resolve() in (folder / name).resolve().parents
    paths = valid_or_refused(lambda: weight_files("m", str(folder), None, allow_pickle=False))
    for path in paths or ():
        assert folder in path.parents
    valid_or_refused(lambda: check_publishable(folder))


@files
@given(content=faulty_json(INDEX_DOCUMENT, NAMES))
def test_a_copy_of_a_checkpoint_is_written_into_its_folder(folder, content):
    """Whatever the index of the source is."""
    write(folder / INDEX, content)
    output = folder.parent / "copy"
    shutil.rmtree(output, ignore_errors=True)
    changes = {"a.weight": Change(0, torch.tensor([1]), torch.zeros(1, 4))}

    def copy():
        open_checkpoint(folder).write(output, changes, reads=(), progress=lambda done, count: None)

    with nothing_written_outside(output):
        valid_or_refused(copy)


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@st.composite
def faulty_safetensors(draw, path):
    """A header with faults, whose length fits, does not, or is huge; or a file with faulty bytes."""
    header, tensors = header_of(path)
    if draw(st.booleans()):
        return draw(faulty_bytes(path.read_bytes()))
    text = draw(faulty_json(header, [*VALUES, "F32", "BF16", "F4", [2**40, 2**40], [0, 2**63], [8, 0], [0, 4], [-1]]))
    length = draw(st.sampled_from([len(text)] * 6 + [0, len(text) + 1, 2**31, 2**63 - 1, 2**64 - 1]))
    return length.to_bytes(8, "little") + text + tensors


@files
@given(data=st.data())
def test_headers_of_safetensors(folder, data):
    path = folder / "model.safetensors"
    for name in (*SHARDS, INDEX):
        (folder / name).unlink(missing_ok=True)
    save_file(TENSORS, path, metadata={"format": "pt"})
    write(path, data.draw(faulty_safetensors(path)))
    stored = valid_or_refused(lambda: read_all([path]))
    valid_or_refused(lambda: check_folder(folder))
    if stored is not None and "a.weight" in stored.names and stored.read("a.weight").shape == (3, 4):
        changes = {"a.weight": Change(0, torch.tensor([1]), torch.zeros(1, 4, dtype=stored.read("a.weight").dtype))}
        target = folder / "copy.safetensors"
        target.unlink(missing_ok=True)

        def copy():
            open_checkpoint(folder).write(folder / "copy", changes, reads=(), progress=lambda done, count: None)

        shutil.rmtree(folder / "copy", ignore_errors=True)
        if valid_or_refused(lambda: copy() or True):
            assert load_file(folder / "copy" / "model.safetensors")["a.weight"][1].any() == False  # noqa: E712
