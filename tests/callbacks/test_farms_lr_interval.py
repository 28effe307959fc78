"""The interval "auto": a bounded cost that follows from shapes, decided once."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import family_model
from models import CHECKPOINTING, NEEDS_COMPILE, tiny
from trainers import same, trainer, weights

from hf_farms import FarmsConfig, FarmsLRCallback, FarmsLRConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks import farms_lr
from hf_farms.callbacks.schedule import decide_interval
from hf_farms.callbacks.step_cost import StepCost, measuring_factor
from hf_farms.spectra.analysis import analysis_cost

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")


@pytest.mark.parametrize(
    ("first", "total", "allowed", "expected"),
    [
        (0, 1000, 50.0, 100),  # no more than ten measurements
        (0, 1000, 10.0, 100),
        (100, 1000, 10.0, 100),
        (0, 1000, 3.9, 334),  # 0, 334, 668
        (100, 1000, 3.0, 300),
        (0, 1000, 0.2, 1000),  # at least one
        (0, 4, 100.0, 1),
        (9, 4, 1.0, 1),
    ],
)
def test_the_interval_for_an_allowed_number(first, total, allowed, expected):
    interval = decide_interval(first, total, allowed)
    assert interval == expected
    assert len(range(first, total, interval)) <= max(1, allowed)


def cost_of(model, run, **options):
    cost = StepCost(ModelBlockSource(model), **{"recomputes": False, **options})
    run(model)
    cost.remove()
    run(model)  # no longer counted
    return cost.multiply_adds


def test_the_cost_of_a_step_follows_from_shapes():
    model = tiny("llama")
    ids = torch.zeros(2, 12, dtype=torch.long)
    inside = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    assert cost_of(model, lambda m: m(input_ids=ids)) == 24 * inside * 3
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert cost_of(model, lambda m: m(input_ids=ids)) == 24 * inside * 2
    # Activation checkpointing runs the blocks again in the backward.
    twice = cost_of(model, lambda m: (m(input_ids=ids), m(input_ids=ids)), recomputes=True)
    assert twice == 24 * inside * 3


def test_the_cost_of_experts_is_that_of_the_chosen_ones():
    model = family_model("mixtral")
    ids = torch.zeros(1, 8, dtype=torch.long)
    source = ModelBlockSource(model)
    layers = [layer for index in range(len(source)) for layer in source.metadata(index).layers]
    share = model.config.num_experts_per_tok / model.config.num_local_experts
    sizes = [torch.Size(layer.shape).numel() * (share if layer.kind == "expert" else 1) for layer in layers]
    assert share < 1
    assert cost_of(model, lambda m: m(input_ids=ids)) == pytest.approx(8 * sum(sizes) * 3)


def train(folder, config, monkeypatch, share, **options):
    """A training in which one measurement is estimated to take this share of a training of 8 steps."""
    monkeypatch.setattr(farms_lr, "analysis_cost", lambda *args, **kwargs: share * 8 * 48 * INSIDE * 3)
    monkeypatch.setattr(farms_lr, "measuring_factor", lambda device: 1.0)
    callback = FarmsLRCallback(config)
    run = trainer(folder, callback, **options)
    run.train()
    return run, callback


INSIDE = sum(p.numel() for p in tiny("llama").model.layers.parameters() if p.ndim == 2)


@pytest.mark.parametrize(
    ("share", "steps", "text"),
    [
        (0.0025, [0, 2, 4, 6], "every 2 steps, 4 times: estimated 1.00% of the training."),
        (0.0049, [0, 4], "every 4 steps, 2 times: estimated 0.98% of the training."),
        (0.4, [0], "once, at step 0: estimated 40.00% of the training."),
    ],
)
def test_measuring_takes_the_share_that_is_allowed(share, steps, text, tmp_path, monkeypatch, capsys):
    run, callback = train(tmp_path, FarmsLRConfig(start=0), monkeypatch, share)
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == steps
    assert f"FarmsLRCallback measures {text}\n" in capsys.readouterr().out
    (entry,) = [e for e in run.state.log_history if "farms_lr/interval" in e]
    assert entry["farms_lr/interval"] == callback.memory["interval"]
    assert entry["farms_lr/estimated_share"] == pytest.approx(share * len(steps))
    assert not any(module._forward_hooks for module in run.model.modules())


def test_the_share_can_be_set_and_a_step_of_several_batches_counts_whole(tmp_path, monkeypatch):
    config = FarmsLRConfig(start=0, max_share=0.02)
    run, _ = train(tmp_path, config, monkeypatch, 0.02, gradient_accumulation_steps=2)
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == [0, 4]


def test_a_resumed_training_keeps_its_interval(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 3}
    whole, straight = train(tmp_path, FarmsLRConfig(start=0), monkeypatch, 0.0025, **options)
    monkeypatch.setattr(farms_lr, "StepCost", None)  # nothing is decided again
    again = FarmsLRCallback(FarmsLRConfig(start=0))
    resumed = trainer(tmp_path, again, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(whole.model), weights(resumed.model))
    assert again.memory == straight.memory
    assert again.memory["interval"] == 2


def test_a_checkpoint_of_an_earlier_version_keeps_its_tenth_of_all_steps(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=0, interval=0.25)), **options).train()
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["FarmsLRCallback"]["attributes"]["memory"]["interval"]
    path.write_text(json.dumps(state))
    monkeypatch.setattr(farms_lr, "StepCost", None)
    run = trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=0)))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == [0, 2, 4, 6]


def test_an_unknown_cost_means_one_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(StepCost, "add", lambda *_: None)
    monkeypatch.setattr(farms_lr, "trainer_flops", lambda: 0.0)
    run = trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=0)))
    run.train()
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == [0]
    assert "measures once, at step 0: the cost of a step is unknown.\n" in capsys.readouterr().out


@NEEDS_COMPILE
def test_the_cost_of_a_compiled_model_is_that_of_the_trainer(tmp_path, capsys):
    """Its blocks run no hooks."""
    callback = FarmsLRCallback(FarmsLRConfig(start=0))
    run = trainer(tmp_path, callback, torch_compile=True, torch_compile_backend="eager", max_steps=2)
    run.train()
    (entry,) = [e for e in run.state.log_history if "farms_lr/interval" in e]
    measuring = analysis_cost(ModelBlockSource(run.model), FarmsConfig()) * measuring_factor("cpu")
    flops = 6 * 48 * run.model.num_parameters(exclude_embeddings=True)
    assert entry["farms_lr/estimated_share"] == pytest.approx(measuring / (2 * flops / 2))
    assert "of the training." in capsys.readouterr().out


def test_the_estimate_in_the_guide_is_that_of_smollm2():
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_key_value_heads=3))
    ids = torch.zeros(4, 128, dtype=torch.long, device="meta")
    step = cost_of(model, lambda m: m(input_ids=ids))
    share = analysis_cost(ModelBlockSource(model), FarmsConfig()) * measuring_factor("cpu") / (1000 * step)
    text = f"measures every {decide_interval(0, 1000, 0.01 / share)} steps, 10 times: estimated {10 * share:.2%} of the"
    assert text in (Path(__file__).parents[2] / "docs" / "learning-rates.md").read_text()


def test_counting_changes_no_bit(tmp_path):
    config = FarmsLRConfig(start=0, monitor=True)
    run = trainer(tmp_path / "a", FarmsLRCallback(config), **{CHECKPOINTING: True})
    plain = trainer(tmp_path / "b", **{CHECKPOINTING: True})
    run.train(), plain.train()
    assert same(weights(run.model), weights(plain.model))
