"""S2FTCallback: the adapter of every checkpoint, with the base that the training started from."""

import pytest
import torch
from models import tiny
from s2ft_models import EARLY, INDEXED, LAYOUTS, plain, trainer
from trainers import same
from transformers import AutoModelForCausalLM

from hf_farms import S2FTAdapter, S2FTCallback, restore
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.reports.folders import training_report
from hf_farms.s2ft.saving import load_selection
from hf_farms.s2ft.surgery import selection_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

SAVING = {"save_strategy": "steps", "save_steps": 2}


def merged(folder, dtype):
    """The weights of the base with the adapter of a folder."""
    model = tiny("llama", dtype=dtype)
    S2FTAdapter.from_pretrained(folder).merge(model)
    return plain(model)


@LAYOUTS
@EARLY
def test_every_checkpoint_has_the_adapter(config, early, tmp_path):
    """Of its step, from the base: merged, it is the model of the checkpoint bit for bit."""
    dtype = torch.bfloat16
    run = trainer(tmp_path, S2FTCallback(config), early=early, model=tiny("llama", dtype=dtype), **SAVING)
    run.train()
    for step in (2, 4):
        stored = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}", dtype=dtype)
        assert same(merged(tmp_path / f"checkpoint-{step}", dtype), plain(stored))
    assert same(merged(tmp_path, dtype), plain(run.model))
    assert not same(merged(tmp_path / "checkpoint-2", dtype), plain(run.model))
    selection = selection_of(run.model)
    assert load_selection(tmp_path / "checkpoint-2") == selection
    layers = training_report(tmp_path / "checkpoint-2").s2ft.layers
    assert {layer.name: layer.num_selected for layer in layers} == {n: len(c) for n, c in selection.channels.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@EARLY
def test_a_resumed_training_keeps_the_base(early, dtype, tmp_path):
    """Also where the model was loaded from the checkpoint, and again from that of the resumed run."""
    trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=tiny("llama", dtype=dtype), **SAVING).train()
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
        options = {**SAVING, "max_steps": step + 2}
        callback = S2FTCallback(selection=load_selection(checkpoint))
        run = trainer(tmp_path, callback, early=early, model=model, **options)
        run.train(resume_from_checkpoint=str(checkpoint))
        assert same(merged(tmp_path, dtype), plain(run.model))
        assert same(merged(tmp_path / f"checkpoint-{step + 2}", dtype), plain(run.model))
    base = tiny("llama", dtype=dtype)
    before = plain(base)
    adapter = S2FTAdapter.from_model(restore(run.model))
    adapter.unmerge(run.model)
    assert same(plain(run.model), before)


@EARLY
def test_a_checkpoint_without_base_is_resumed_with_a_warning(early, tmp_path):
    trainer(tmp_path, S2FTCallback(INDEXED), early=early, **SAVING).train()
    checkpoint = tmp_path / "checkpoint-2"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    del state["param_groups"][0]["s2ft"]["base"]
    torch.save(state, checkpoint / "optimizer.pt")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    start = plain(model)
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=model, **SAVING)
    with pytest.warns(HfFarmsWarning, match="earlier version, without the slices of the base model") as caught:
        run.train(resume_from_checkpoint=str(checkpoint))
    assert len([warning for warning in caught if "earlier version" in str(warning.message)]) == 1
    adapter = S2FTAdapter.from_model(restore(run.model))
    adapter.unmerge(run.model)
    assert same(plain(run.model), start)


def test_a_second_training_goes_on_from_the_first_base(tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED))
    run.train()
    run.train()
    assert same(merged(tmp_path, torch.float32), plain(run.model))


@EARLY
def test_a_resumed_second_training_does_not_name_the_base_of_the_first(early, tmp_path):
    """The resumed run gets a plain model, as a new process that loads the base and then the checkpoint."""

    def named():
        model = tiny("llama")
        model.config._name_or_path = "meta/tiny"
        return model

    def resumed(folder):
        checkpoint = tmp_path / folder / "checkpoint-2"
        run = trainer(tmp_path / "new", S2FTCallback(INDEXED), early=early, model=named(), **SAVING)
        run.train(resume_from_checkpoint=str(checkpoint))
        return S2FTAdapter.from_model(run.model).base_model

    first = trainer(tmp_path / "first", S2FTCallback(INDEXED), early=early, model=named(), **SAVING)
    first.train()
    model = restore(first.model)
    with pytest.warns(HfFarmsWarning, match="an earlier training of S2FT in its weights"):
        trainer(tmp_path / "second", S2FTCallback(INDEXED), early=early, model=model, **SAVING).train()
    assert S2FTAdapter.from_pretrained(tmp_path / "second" / "checkpoint-2").base_model is None
    assert resumed("second") is None
    assert resumed("first") == "meta/tiny"


def test_weights_without_a_name_in_checkpoints_have_their_selection_saved(tmp_path, monkeypatch):
    def fail(model, names):
        raise ModelError("trained weights must be stored unchanged")

    monkeypatch.setattr("hf_farms.s2ft.adapters.making.checkpoint_names", fail)
    run = trainer(tmp_path, S2FTCallback(INDEXED), max_steps=1)
    with pytest.warns(HfFarmsWarning, match=r"Only the selection is saved, .*: trained weights must be stored unch"):
        run.train()
    assert load_selection(tmp_path) == selection_of(run.model)
