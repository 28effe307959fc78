"""Folders of adapters: a valid adapter, or an error of the project."""

import json
import shutil

import pytest
import torch
from adapters import one_layer
from hostile import VALUES, faulty, faulty_bytes, faulty_json, files, nothing_written_outside, valid_or_refused, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_farms import S2FTAdapter
from hf_farms.hub.folders import check_publishable
from hf_farms.loading.names import ModelRef
from hf_farms.reports.folders import load_report
from hf_farms.s2ft.adapters.files import KEY, digest_of
from hf_farms.s2ft.adapters.loading import holds_adapter
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, load_selection, save_selection

NAMES = [
    *VALUES,
    "../../outside",
    "model.layers.1.mlp.down_proj",
    "float64",
    "outputs",
    "0" * 64,
    [2**40, 2**40],
    [48, 32],
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with an adapter of one layer."""
    folder = tmp_path_factory.mktemp("adapters") / "valid"
    one_layer((1, 4, 5)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def description_of(folder):
    return json.loads((folder / CONFIG_NAME).read_text())


def read_everything(folder):
    """Whatever reads the folder of an adapter."""
    valid_or_refused(lambda: holds_adapter(folder))
    valid_or_refused(lambda: load_selection(folder))
    valid_or_refused(lambda: load_report(folder))
    valid_or_refused(lambda: check_publishable(folder))
    found = valid_or_refused(lambda: S2FTAdapter.from_pretrained(folder))
    if found is None:
        return
    # Whatever is accepted can be saved again, and is the same then.
    again = folder.parent / "again"
    shutil.rmtree(again, ignore_errors=True)
    with nothing_written_outside(again):
        found.save_pretrained(again)
    loaded = S2FTAdapter.from_pretrained(again)
    assert loaded.patches.keys() == found.patches.keys()
    assert all(torch.equal(loaded.patches[name].values, patch.values) for name, patch in found.patches.items())


@files
@given(data=st.data())
def test_descriptions(adapter, folder, data):
    """With the digest and the tensors that fit, as only a program writes them, and without."""
    description = data.draw(faulty(description_of(adapter), NAMES))
    if data.draw(st.booleans()):
        description["digest"] = digest_of(description)
    metadata = {"format": "pt", KEY: json.dumps(description)}
    save_file(load_file(adapter / WEIGHTS_NAME), folder / WEIGHTS_NAME, metadata=metadata)
    if data.draw(st.booleans()):
        (folder / CONFIG_NAME).unlink(missing_ok=True)
    else:
        (folder / CONFIG_NAME).write_text(json.dumps(description))
    read_everything(folder)


@files
@given(data=st.data())
def test_tensors(adapter, folder, data):
    """Of other shapes, dtypes and names."""
    tensors = load_file(adapter / WEIGHTS_NAME)
    name = data.draw(st.sampled_from(sorted(tensors)))
    change = data.draw(st.sampled_from(["drop", "rename", "dtype", "empty", "flat", "scalar", "negative"]))
    tensor = tensors.pop(name)
    other = {
        "rename": tensor,
        "dtype": tensor.to(data.draw(st.sampled_from([torch.int8, torch.float16, torch.bool, torch.complex64]))),
        "empty": tensor[:0],
        "flat": tensor.flatten()[None, None],
        "scalar": tensor.flatten()[0].clone(),
        "negative": -tensor,
    }
    if change != "drop":
        tensors["../x" if change == "rename" else name] = other[change].contiguous()
    with safe_open(adapter / WEIGHTS_NAME, framework="pt") as file:
        save_file(tensors, folder / WEIGHTS_NAME, metadata=file.metadata())
    read_everything(folder)


@files
@given(data=st.data())
def test_files(adapter, folder, data):
    """Either file with faults of its text or of its bytes."""
    name = data.draw(st.sampled_from([CONFIG_NAME, WEIGHTS_NAME]))
    valid = (adapter / name).read_bytes()
    fault = faulty_bytes(valid)
    write(folder / name, data.draw(fault | faulty_json(json.loads(valid), NAMES) if name == CONFIG_NAME else fault))
    read_everything(folder)


@files
@given(data=st.data())
def test_selections_of_earlier_versions(tmp_path, data):
    selection = one_layer((1, 4, 5))
    from hf_farms.s2ft.selection import Selection

    save_selection(Selection(selection.selection, selection.channels), tmp_path)
    write(tmp_path / CONFIG_NAME, data.draw(faulty_json(description_of(tmp_path), NAMES)))
    valid_or_refused(lambda: load_selection(tmp_path))
    valid_or_refused(lambda: load_report(tmp_path))


PEFT = {"peft_type": "LORA", "base_model_name_or_path": "someone/model", "r": 8, "target_modules": ["q_proj"]}


@files
@given(content=faulty_json(PEFT))
def test_adapters_of_peft_are_named_by_their_config(tmp_path, content):
    write(tmp_path / "adapter_config.json", content)
    assert valid_or_refused(lambda: ModelRef.parse(tmp_path).check() or True) is None
