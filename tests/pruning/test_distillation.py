"""`recover="distill"`: the kept weights of the whole model are trained in a real Trainer."""

import copy
import json
import random

import pytest
import torch
from families import family_model
from models import tiny, tiny_bert
from torch import nn

from hf_farms import PruneConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.config import CalibrationConfig
from hf_farms.data.calibration import calibration_sequences
from hf_farms.distillation import distilling
from hf_farms.distillation.distilling import HELD_OUT, split_sequences
from hf_farms.distillation.trained_weights import pruned_weights
from hf_farms.errors import HfFarmsWarning, ModelError, OutputError
from hf_farms.loading.opening import load_model
from hf_farms.pruning.removal_plan import prunable_layers

# Few sequences are fast.
pytestmark = pytest.mark.filterwarnings("ignore:calibration should have at least 64:hf_farms.errors.HfFarmsWarning")

UNIFORM = {"allocation": "uniform", "sparsity": 0.5, "method": "magnitude"}
BLOCKS = PruneConfig(**UNIFORM, recover="submodule")
DISTILL = PruneConfig(**UNIFORM, recover="distill", recover_passes=2, recover_rate=0.003)


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def mean_kl(dense, model, rows):
    with torch.no_grad():
        p, q = (m(rows).logits.double().log_softmax(dim=-1) for m in (dense, model))
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def is_training(stage):
    return stage.startswith("distill")


@pytest.fixture(scope="module")
def demo():
    """Four blocks of the demo: dense, as the training found them, and as it left them; calibration data and report."""
    loaded = load_model("demo")
    loaded.model.model.layers = loaded.model.model.layers[:4]
    ids, _ = calibration_sequences(
        CalibrationConfig(num_sequences=8, sequence_length=64), model=loaded.model, tokenizer=loaded.tokenizer
    )
    dense, found = copy.deepcopy(loaded.model), []

    def progress(stage, done, total):
        if is_training(stage) and done == 0:
            found.append(copy.deepcopy(loaded.model))

    report = prune(loaded.model, DISTILL, calibration=ids, progress=progress).report
    return dense, *found, loaded.model, ids[0], report


def test_kl_falls_on_sequences_that_nothing_was_fitted_to(demo):
    dense, blocks, distilled, ids, report = demo
    record = report.distillation
    assert record.accepted
    assert record.steps == 2 * 7
    held_out = ids[[7]]
    assert record.divergence_before == pytest.approx(mean_kl(dense, blocks, held_out), rel=1e-4)
    assert record.divergence == pytest.approx(mean_kl(dense, distilled, held_out), rel=1e-4)
    assert record.divergence < 0.95 * record.divergence_before
    # The blocks were recovered before.
    assert all(block.recovery for block in report.blocks)


def test_zeros_and_everything_outside_the_pruned_layers_stay(demo):
    _, blocks, distilled, _, report = demo
    pruned = pruned_weights(ModelBlockSource(blocks))
    for name, parameter in distilled.named_parameters():
        before = blocks.get_parameter(name)
        assert parameter.dtype == before.dtype
        assert parameter.requires_grad == before.requires_grad
        assert parameter.grad is None
        if name in pruned:
            assert torch.equal(parameter == 0, before == 0), name
            assert (parameter != before)[before != 0].float().mean() > 0.5, name
        else:
            assert torch.equal(parameter, before), name
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)


def test_weights_before_are_kept_where_kl_does_not_fall(many):
    model, twin = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    prune(twin, BLOCKS, calibration=many)
    config = PruneConfig(**UNIFORM, recover="distill", recover_passes=1, recover_rate=1.0)
    report = prune(model, config, calibration=many).report
    assert not report.distillation.accepted
    assert report.distillation.final_divergence == report.distillation.divergence_before
    assert same(model, twin)
    assert any("Distillation did not lower the KL" in note for note in report.notes)


def test_a_selection_text_accepts_and_all_calibration_is_fitted(many):
    model, dense = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    # Of other seeds than the calibration.
    other = [torch.randint(0, 100, (1, 30), generator=torch.Generator().manual_seed(i)) for i in range(10, 14)]
    report = prune(model, DISTILL, calibration=many, selection=other).report
    assert report.distillation.steps == 2 * 8
    accepted = mean_kl(dense, model, torch.cat(other[2:]))
    assert report.distillation.final_divergence == pytest.approx(accepted, rel=1e-3)


def stop_at(step):
    def progress(stage, done, total):
        if is_training(stage) and done == step:
            raise KeyboardInterrupt("as Ctrl-C does")

    return progress


def test_a_killed_training_continues_with_the_same_bits(many, tmp_path):
    expected, killed, again = (tiny("llama", num_hidden_layers=1) for _ in range(3))
    whole = prune(expected, DISTILL, calibration=many).report
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune(killed, DISTILL, calibration=many, checkpoints=tmp_path, progress=stop_at(9))
    assert not same(killed, expected)
    assert whole.distillation.accepted
    assert json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8
    # A kill while the next checkpoint was written.
    (tmp_path / "checkpoint-10").mkdir()
    steps = []
    report = prune(
        again, DISTILL, calibration=many, checkpoints=tmp_path, progress=lambda *step: steps.append(step)
    ).report
    assert [done for stage, done, _ in steps if is_training(stage)] == [0, *range(9, 15)]
    assert same(again, expected)
    assert report == whole
    # Finished: nothing is trained again.
    once_more = tiny("llama", num_hidden_layers=1)
    assert prune(once_more, DISTILL, calibration=many, checkpoints=tmp_path).report == whole
    assert same(once_more, expected)
    with pytest.raises(OutputError, match="its checkpoints belong to other settings, data or weights"):
        prune(tiny("llama", num_hidden_layers=1, seed=1), DISTILL, calibration=many, checkpoints=tmp_path)


def test_a_folder_of_something_else_is_refused(many, tmp_path):
    model, dense = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"checkpoints must be a new folder, .* it holds other files"):
        prune(model, DISTILL, calibration=many, checkpoints=tmp_path)
    # Before anything was pruned.
    assert same(model, dense)


def test_checkpoints_and_activations_have_folders_of_their_own(many, tmp_path):
    model = tiny("llama", num_hidden_layers=1)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="checkpoints must be another folder than activations, got "):
        prune(model, DISTILL, calibration=many, activations=tmp_path / "a", checkpoints=tmp_path / "b" / ".." / "a")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_folder_of_other_data_is_refused_before_anything_is_pruned(many, tmp_path):
    model, dense = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    prune(copy.deepcopy(model), DISTILL, calibration=[many[0][:2]], checkpoints=tmp_path)
    with pytest.raises(OutputError, match="its checkpoints belong to other settings, data or weights"):
        prune(model, DISTILL, calibration=many, checkpoints=tmp_path)
    assert same(model, dense)


def test_an_interrupted_training_leaves_weights_and_random_numbers_as_they_were(many):
    model, twin = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    prune(twin, BLOCKS, calibration=many)
    torch.manual_seed(5)
    random.seed(5)
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune(model, DISTILL, calibration=many, progress=stop_at(3))
    assert same(model, twin)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    numbers = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(torch.rand(3), numbers[0])
    assert random.random() == numbers[1]


def test_half_precision_is_trained_in_float32(many):
    model = tiny("llama", num_hidden_layers=1, dtype=torch.bfloat16)
    dtypes = set()

    def progress(stage, done, total):
        if is_training(stage) and done:
            dtypes.update(parameter.dtype for parameter in model.parameters())

    prune(model, DISTILL, calibration=many, progress=progress)
    assert dtypes == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    linear = [m.weight for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w == 0).sum()) for w in linear) == sum(w.numel() for w in linear) // 2


def test_predictions_that_are_not_finite_are_not_trained(many, monkeypatch):
    monkeypatch.setattr(distilling, "_divergence", lambda *args: float("inf"))
    with pytest.raises(ModelError, match="predictions of the pruned model must be finite for recover='distill'"):
        prune(tiny("llama", num_hidden_layers=1), DISTILL, calibration=many)


def test_double_precision_in_inference_mode(many):
    model = tiny("llama", num_hidden_layers=1, dtype=torch.float64)
    with torch.no_grad():
        model.lm_head.weight.mul_(1 / 3)
    dense = copy.deepcopy(model)
    with torch.inference_mode():
        report = prune(model, DISTILL, calibration=many).report
    assert report.distillation.accepted
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float64
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)


@pytest.mark.filterwarnings("ignore:sparsity is 0:hf_farms.errors.NoEffectWarning")
def test_a_dense_model_stays_as_it_is(many):
    model, dense = tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)
    config = PruneConfig(method="magnitude", allocation="uniform", sparsity=0, recover="distill", recover_passes=1)
    record = prune(model, config, calibration=many).report.distillation
    assert record.divergence_before == 0
    assert not record.accepted
    assert same(model, dense)


def test_padding_is_not_fitted(many):
    ids, mask = many[0], torch.ones_like(many[0])
    mask[:, 30:] = 0
    models = [tiny("llama", num_hidden_layers=1), tiny("llama", num_hidden_layers=1)]
    for model, pad in zip(models, (3, 77), strict=True):
        batch = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
        prune(model, DISTILL, calibration=[batch])
    assert same(*models)


@pytest.mark.parametrize("family", ["opt", "mixtral"])
def test_other_families(family, many):
    model = family_model(family)
    report = prune(model, DISTILL, calibration=many).report
    source = ModelBlockSource(model)
    zeros = sum(int((x.read() == 0).sum()) for i in range(len(source)) for x in prunable_layers(source.open(i).layers))
    assert zeros == sum(layer.num_zeros for block in report.blocks for layer in block.layers)
    assert report.distillation.steps == 14


def test_a_streamed_model_is_refused_before_anything_is_measured(many, tmp_path):
    tiny("llama", num_hidden_layers=1).save_pretrained(tmp_path)
    source = load_model(str(tmp_path), tokenizer=False, stream=True).source

    def progress(*step):
        pytest.fail("something was measured")

    with pytest.raises(ModelError, match="must be in memory as a whole for recover='distill', got one that is stream"):
        prune(source, DISTILL, calibration=many, progress=progress)


@pytest.mark.parametrize("model", [tiny_bert, lambda: family_model("t5")])
def test_models_that_do_not_predict_the_next_token_are_refused(model, many):
    with pytest.raises(ModelError, match="the KL to the dense model must be measured on a causal language model"):
        prune(model(), DISTILL, calibration=many)


def test_every_eighth_sequence_is_held_out_where_no_text_accepts():
    assert HELD_OUT == 8
    assert split_sequences(16) == ([*range(7), *range(8, 15)], [7, 15])
    assert split_sequences(3) == ([0, 1], [2])
    assert split_sequences(1) == ([0], [0])
    assert split_sequences(9, 2) == ([*range(9)], [9, 10])


@pytest.mark.filterwarnings("error")
def test_blocks_and_the_whole_model_are_fitted_to_all_sequences():
    ids = torch.randint(0, 100, (66, 12), generator=torch.Generator().manual_seed(0))
    other = torch.randint(0, 100, (4, 30), generator=torch.Generator().manual_seed(1))
    model, blocks, found = tiny("llama", num_hidden_layers=2), tiny("llama", num_hidden_layers=2), []

    def progress(stage, done, total):
        if is_training(stage) and done == 0:
            found.append(copy.deepcopy(model))

    config = PruneConfig(**UNIFORM, recover="distill", recover_passes=1)
    report = prune(model, config, calibration=[ids], selection=[other], progress=progress).report
    # With as many passes as by default over so many sequences.
    expected = prune(blocks, BLOCKS, calibration=[ids], selection=[other]).report
    assert same(*found, blocks)
    assert [block.recovery for block in report.blocks] == [block.recovery for block in expected.blocks]
    assert report.distillation.steps == 66


def test_a_training_on_few_sequences_is_said():
    model = tiny("llama", num_hidden_layers=1)
    ids = torch.randint(0, 100, (63, 12), generator=torch.Generator().manual_seed(0))
    with pytest.warns(HfFarmsWarning, match=r"at least 64 sequences for `recover='distill'`, got 63: .* Give more "):
        prune(model, PruneConfig(**UNIFORM, recover="distill", recover_passes=1), calibration=[ids])
