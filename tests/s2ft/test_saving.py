import json
import os

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

from hf_farms import S2FTConfig, select_channels
from hf_farms.errors import DataError
from hf_farms.reports import versions
from hf_farms.s2ft import saving
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, load_selection, save_selection
from hf_farms.s2ft.selection import Selection

CONFIG = S2FTConfig(budget=0.1, roles=("v", "down"), seed=3, layout="permuted")


@pytest.fixture
def saved(tmp_path, llama):
    selection = select_channels(llama, CONFIG)
    save_selection(selection, tmp_path / "run" / "checkpoint-5", model=llama)
    return tmp_path / "run" / "checkpoint-5", selection


def test_a_selection_comes_back(saved):
    folder, selection = saved
    assert load_selection(folder) == load_selection(str(folder)) == selection
    assert sorted(os.listdir(folder)) == [WEIGHTS_NAME, CONFIG_NAME]
    tensors = load_file(folder / WEIGHTS_NAME)
    assert tensors.keys() == {f"{name}.index" for name in selection.channels}
    assert all(tensor.dtype == torch.int64 and tensor.ndim == 1 for tensor in tensors.values())
    content = json.loads((folder / CONFIG_NAME).read_text())
    assert content["schema_version"] == 2
    assert content["selection"]["roles"] == ["v", "down"]
    assert content["versions"] == versions()


def test_the_base_model_is_written_down(tmp_path):
    model = tiny("llama")
    model.config._name_or_path, model.config._commit_hash = "someone/model", "abc123"
    save_selection(Selection(CONFIG, {"a": (1,)}), tmp_path, model=model)
    content = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert (content["base_model"], content["base_revision"]) == ("someone/model", "abc123")
    save_selection(Selection(CONFIG, {"a": (1,)}), tmp_path)
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["base_model"] is None


def test_an_empty_selection_and_one_in_the_place_of_another(tmp_path):
    for channels in ({"a": (0, 7), "b.index": (2,)}, {}, {"c": (5,)}):
        save_selection(Selection(CONFIG, channels), tmp_path)
        assert load_selection(tmp_path) == Selection(CONFIG, channels)


def truncate(folder):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-9])


def change(**changes):
    def call(folder):
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return call


def tensor(value):
    return lambda folder: save_file({"layer.index": value}, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / CONFIG_NAME).unlink(), "No such file"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "No such file"),
        (truncate, "deserializ"),
        (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b""), "deserializ"),
        (lambda folder: (folder / CONFIG_NAME).write_text('{"schema'), "Unterminated"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[]"), "list indices"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{}"), "schema_version"),
        (lambda folder: (folder / CONFIG_NAME).write_bytes(b"\xff\xfe"), "utf-8"),
        (change(schema_version=3), "schema version 3"),
        (change(selection={"budget": 3}), "budget must be above 0 and below 1, got 3"),
        (tensor(torch.tensor([1.0])), "an index of layer that is not one of ascending channels"),
        (tensor(torch.tensor([[1]])), "an index of layer that is not one of ascending channels"),
        (tensor(torch.tensor([2, 1])), "an index of layer that is not one of ascending channels"),
        (tensor(torch.tensor([1, 1])), "an index of layer that is not one of ascending channels"),
        (tensor(torch.tensor([], dtype=torch.int64)), "an index of layer that is not one of ascending channels"),
    ],
)
def test_missing_truncated_and_foreign_files(saved, damage, match):
    folder, _ = saved
    damage(folder)
    with pytest.raises(
        DataError, match=rf"checkpoint-5' must hold a selection \({CONFIG_NAME}, .*got (?s:.)*({match})"
    ):
        load_selection(folder)


@pytest.mark.parametrize("name", ["save_file", "json_converter", "versions"])
def test_nothing_is_half_written(saved, name, monkeypatch):
    folder, selection = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(saving, name, fail)
    with pytest.raises(OSError, match="disk full"):
        save_selection(Selection(CONFIG, {"other": (1,)}), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    assert load_selection(folder) == selection
