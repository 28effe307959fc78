"""`recover_budget`: a distillation trains heads and channels that S2FT selects."""

import copy
import json

import pytest
import torch
from families import family_model
from models import tiny

from hf_farms import PruneConfig, S2FTConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.config import CalibrationConfig
from hf_farms.data.calibration import calibration_sequences
from hf_farms.distillation import trained_weights
from hf_farms.distillation.trained_weights import KeptWeights, SelectedChannels
from hf_farms.errors import HfFarmsWarning, ModelError, OutputError
from hf_farms.loading.opening import load_model
from hf_farms.pruning.recovery import training_disk_bytes
from hf_farms.s2ft.selection import select_channels
from hf_farms.s2ft.surgery import base_of, selection_of

# Few sequences are fast.
pytestmark = pytest.mark.filterwarnings("ignore:calibration should have at least 64:hf_farms.errors.HfFarmsWarning")

UNIFORM = {"allocation": "uniform", "sparsity": 0.5, "method": "magnitude"}
BLOCKS = PruneConfig(**UNIFORM, recover="submodule")
SELECTED = PruneConfig(**UNIFORM, recover="distill", recover_passes=2, recover_rate=0.01, recover_budget=0.1)


def llama(**changes):
    return tiny("llama", num_hidden_layers=1, **changes)


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def is_training(stage):
    return stage.startswith("distill")


def stop_at(step):
    def progress(stage, done, total):
        if is_training(stage) and done == step:
            raise KeyboardInterrupt("as Ctrl-C does")

    return progress


@pytest.mark.parametrize("fast", [False, True])
def test_only_the_selected_channels_change_and_zeros_stay(fast, monkeypatch):
    loaded = load_model("demo")
    model = loaded.model
    model.model.layers = model.model.layers[:2]
    ids, _ = calibration_sequences(
        CalibrationConfig(num_sequences=8, sequence_length=64), model=model, tokenizer=loaded.tokenizer
    )
    if fast:
        model.bfloat16()
        monkeypatch.setattr(trained_weights, "fit_dtype", lambda model: torch.bfloat16)
    selection = select_channels(model, S2FTConfig(budget=0.1))
    twin, dtypes = copy.deepcopy(model), set()

    def progress(stage, done, total):
        if is_training(stage) and done:
            dtypes.update((p.dtype, p.requires_grad) for p in model.parameters())

    prune(twin, BLOCKS, calibration=ids)
    record = prune(model, SELECTED, calibration=ids, progress=progress).report.distillation
    assert record.accepted
    assert record.divergence < record.divergence_before
    # Frozen weights stay in the dtype of the model, and slices are float32.
    assert dtypes == {(model.dtype, False), (torch.float32, True)}
    for name, after in model.named_parameters():
        before, channels = twin.get_parameter(name), selection.channels.get(name.removesuffix(".weight"), ())
        assert after.dtype == before.dtype
        assert after.requires_grad
        assert torch.equal(after == 0, before == 0), name
        changed = (after != before).any(0).nonzero().flatten().tolist() if after.ndim == 2 else []
        assert set(changed) == set(channels), name
    assert selection_of(model) is None
    assert base_of(model) is None


def test_a_killed_training_continues_with_the_same_bits(many, tmp_path):
    expected, again = llama(), llama()
    whole = prune(expected, SELECTED, calibration=many).report
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune(llama(), SELECTED, calibration=many, checkpoints=tmp_path, progress=stop_at(9))
    assert json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8
    steps = []
    report = prune(
        again, SELECTED, calibration=many, checkpoints=tmp_path, progress=lambda *step: steps.append(step)
    ).report
    assert [done for stage, done, _ in steps if is_training(stage)] == [0, *range(9, 15)]
    assert whole.distillation.accepted
    assert same(again, expected)
    assert report == whole
    other = PruneConfig(**UNIFORM, recover="distill", recover_passes=2, recover_rate=0.01)
    with pytest.raises(OutputError, match="its checkpoints belong to other settings, data or weights"):
        prune(llama(), other, calibration=many, checkpoints=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_put_back_where_kl_does_not_fall_and_after_an_interrupt(many, dtype):
    refused, stopped, twin = llama(dtype=dtype), llama(dtype=dtype), llama(dtype=dtype)
    prune(twin, BLOCKS, calibration=many)
    config = PruneConfig(
        **UNIFORM, recover="distill", recover_passes=1, recover_rate=1.0, recover_budget=SELECTED.recover_budget
    )
    assert not prune(refused, config, calibration=many).report.distillation.accepted
    assert same(refused, twin)
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune(stopped, SELECTED, calibration=many, progress=stop_at(3))
    assert same(stopped, twin)
    assert selection_of(stopped) is None


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_other_families(family, many):
    model = family_model(family)
    report = prune(model, SELECTED, calibration=many).report
    source = ModelBlockSource(model)
    layers = {layer.metadata.name: layer for i in range(len(source)) for layer in source.open(i).layers}
    for block in report.blocks:
        for layer in block.layers:
            assert int((layers[layer.name].read() == 0).sum()) == layer.num_zeros
    assert report.distillation.steps == 14


def test_a_budget_below_one_head_is_refused_before_anything_is_pruned(many):
    model, dense = llama(), llama()
    config = PruneConfig(**UNIFORM, recover="distill", recover_budget=1e-7)
    with pytest.raises(ValueError, match="budget must be"):
        prune(model, config, calibration=many)
    assert same(model, dense)


def test_a_model_without_heads_and_channels_is_refused_before_anything_is_pruned(many, monkeypatch):
    model, dense = llama(), llama()
    monkeypatch.setattr(trained_weights, "choose_channels", lambda coupled: {})
    with pytest.raises(ModelError, match=r"heads or feed-forward channels for recover_budget=0\.1, got LlamaForCausal"):
        prune(model, SELECTED, calibration=many)
    assert same(model, dense)


def test_a_budget_that_cannot_be_used_is_said_once(many):
    config = PruneConfig(**UNIFORM, recover="distill", recover_passes=1, recover_budget=0.9)
    with pytest.warns(HfFarmsWarning, match="budget") as warned:
        prune(llama(), config, calibration=many)
    assert len([warning for warning in warned if "budget" in str(warning.message)]) == 1


def test_less_memory_is_needed(many):
    source = ModelBlockSource(llama(dtype=torch.bfloat16))
    kept, selected = KeptWeights(source), SelectedChannels(source, 0.1)
    assert selected.num_bytes < 0.75 * kept.num_bytes


def test_less_disk_space_is_needed():
    source = ModelBlockSource(llama())
    whole = PruneConfig(**UNIFORM, recover="distill")
    assert training_disk_bytes(source, SELECTED) < 0.75 * training_disk_bytes(source, whole)
    assert training_disk_bytes(source, BLOCKS) == 0
