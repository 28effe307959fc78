"""Every method and pattern on every family: exact totals, shared statistics, what is said of few tokens."""

import copy
import warnings

import pytest
import torch
from families import FAMILIES, family_model, layers_of
from models import tiny, tiny_bert
from torch import nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.pruning.measuring import measure
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.sparsegpt import InputProducts
from hf_farms.pruning.wanda import InputNorm

METHODS = ["magnitude", "wanda", "ria", "sparsegpt"]
# Convolutions are refused; two stacks cannot be run one block after another.
PRUNED = sorted(set(FAMILIES) - {"resnet"})
# Widths that are no multiple of 4.
ODD = ("mamba", "jamba")


def batches_for(name, many):
    if name == "vit":
        return [{"pixel_values": torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(2))}]
    return many


@pytest.mark.filterwarnings("ignore:.* got no visible inputs")
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "N:4"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRUNED)
def test_the_total_is_met_to_the_weight(name, method, pattern, many):
    if name in ODD:
        pattern = pattern.replace("2:4", "1:2").replace("N:4", "N:2")
    model = family_model(name)
    before = {x.name: x.read().clone() for x in layers_of(model)}
    sparsity = 0.5 if pattern in ("2:4", "1:2") else 0.375
    config = PruneConfig(method=method, pattern=pattern, sparsity=sparsity, allocation="uniform")
    if method != "magnitude" and name == "t5":
        with pytest.raises(ModelError, match="blocks must form a single stack"):
            prune(model, config, calibration=many)
        return
    report = prune(model, config, calibration=batches_for(name, many)).report
    views = layers_of(model)
    zeros = {x.name: int((x.read() == 0).sum()) for x in views}
    size = sum(x.read().numel() for x in views)
    assert {x.name: x.num_zeros for b in report.blocks for x in b.layers} == zeros
    if pattern[0] == "N":
        reached = float(report.notes[0].split("removes ")[1].split(" ")[0])
        assert sum(zeros.values()) / size == pytest.approx(reached, rel=1e-5)
        assert abs(reached - sparsity) <= 0.125  # two blocks of 4 steps
    else:
        assert sum(zeros.values()) == round(sparsity * size)
    if pattern != "unstructured":
        group = int(pattern[-1])
        for view in views:
            counts = (view.read() == 0).reshape(-1, group).sum(1)
            assert counts.unique().numel() == 1, view.name
    if method != "sparsegpt":
        for view in views:
            after = view.read()
            assert torch.equal(after[after != 0], before[view.name][after != 0])


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_pattern_follows_the_allocation(method, many):
    model = tiny("llama", num_hidden_layers=6)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            layer.mlp.up_proj.weight.mul_(torch.linspace(1, 1 + i, 32) ** 3)
    config = PruneConfig(method=method, pattern="N:8", allocation="alpha", sparsity=0.55, spread=0.4, shrink=False)
    report = prune(model, config, calibration=many).report
    by_block = [round(8 * block.sparsity) for block in report.blocks]
    assert [block.sparsity for block in report.blocks] == [n / 8 for n in by_block]
    assert len(set(by_block)) > 1
    assert sum(by_block) == round(0.55 * 8 * 6)
    assert report.sparsity == sum(by_block) / 48
    assert all(abs(n / 8 - block.target) <= 1 / 8 for n, block in zip(by_block, report.blocks, strict=True))
    assert any(
        f"Pattern N:8: blocks keep {8 - max(by_block)} to {8 - min(by_block)} of every 8 weights" in note
        for note in report.notes
    )


@pytest.mark.parametrize("allocation", ["ramp", "uniform", "auto"])
def test_an_allocation_that_a_pattern_rounds_away_is_said(allocation):
    config = PruneConfig(method="magnitude", pattern="N:8", allocation=allocation)
    # A search that finds nothing better than uniform sparsity.
    scores = [0.5] * 6 if allocation == "auto" else None
    stages = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: stages.append(message)
        report = prune(
            tiny("llama", num_hidden_layers=6),
            config,
            scores=scores,
            progress=lambda stage, *steps: stages.append(stage),
        ).report
    told = [place for place, stage in enumerate(stages) if isinstance(stage, NoEffectWarning)]
    # Before the first block, and once.
    assert told == ([0] if allocation == "ramp" else [])
    assert {block.sparsity for block in report.blocks} == {0.5}
    (note,) = (note for note in report.notes if note.startswith("Pattern N:8: blocks keep 4 of every 8"))
    advice = "`allocation='ramp'` has no effect: its sparsities differ by less than 1/8. Choose a larger spread"
    assert (advice in note) == (allocation == "ramp")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_does_not_overflow(method, dtype, many):
    model = tiny("llama", dtype=dtype)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data.fill_(2000.0)  # the square of a norm overflows float16
        layer.self_attn.o_proj.weight.data.mul_(1e-3)
    report = prune(model, PruneConfig(method=method, allocation="uniform"), calibration=many).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert next(model.parameters()).dtype == dtype


def reconstruction(model, dense, many):
    with torch.no_grad():
        return sum(float((model(x).logits - dense(x).logits).square().sum()) for x in many)


def test_sparsegpt_keeps_the_output_better_than_masks_do(many):
    dense = tiny("llama")
    errors = {}
    for method in METHODS:
        model = copy.deepcopy(dense)
        prune(model, PruneConfig(method=method, allocation="uniform", sparsity=0.6), calibration=many)
        errors[method] = reconstruction(model, dense, many)
    assert errors["sparsegpt"] < 0.9 * errors["wanda"]
    assert errors["sparsegpt"] < 0.9 * errors["magnitude"]


def test_layers_with_one_input_share_a_statistic(many):
    source = ModelBlockSource(tiny("llama"))
    calls = source.capture({"input_ids": many[0]})
    block = source.open(0)
    inputs = {}
    hooks = [
        x.module.register_forward_pre_hook(lambda m, args, n=x.name: inputs.setdefault(n, args[0]))
        for x in block.layers
    ]
    runs = [(lambda: block(calls.hidden, calls.arguments[0]), None)] * 2
    with torch.no_grad():
        runs[0][0]()
        for hook in hooks:
            hook.remove()
        measured = measure(block.layers, InputNorm, runs)
    q, k, v, o, gate, up, down = (measured[x.name] for x in block.layers)
    assert q is k is v
    assert gate is up
    assert len({id(x) for x in (q, o, gate, down)}) == 4
    for layer in block.layers:
        expected = inputs[layer.name].flatten(0, 1).square().mean(0).sqrt()
        assert torch.allclose(measured[layer.name].prepared(), expected, rtol=1e-4)
        assert measured[layer.name].num_tokens == 2 * 320


def test_a_layer_that_runs_twice_shares_nothing_that_others_do_not_get():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))

        def forward(self, x):
            y = self.a(x) + self.b(x)
            return self.b(y) + self.c(x)

    with pytest.warns(HfFarmsWarning, match="No layout is known"):
        source = ModelBlockSource(nn.Sequential(Block(), Block()))
    block, x = source.open(0), torch.randn(50, 4)
    with torch.no_grad():
        y = block.module.a(x) + block.module.b(x)
        measured = measure(block.layers, InputProducts, [(lambda: block.module(x), None)] * 2)
    a, b, c = (measured[layer.name] for layer in block.layers)
    assert a is c
    assert (a.num_tokens, b.num_tokens) == (100, 200)
    assert torch.allclose(a._statistic._sum.float() / 100, x.T @ x / 50, atol=1e-5)
    assert torch.allclose(b._statistic._sum.float() / 200, (x.T @ x + y.T @ y) / 100, atol=1e-5)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe"])
def test_masked_tokens_do_not_count(name, method):
    sequence = torch.randint(0, 100, (6, 20), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([sequence, torch.zeros(6, 12, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(6, 20, dtype=torch.long), torch.zeros(6, 12, dtype=torch.long)], dim=1)
    model = family_model(name)
    twin = copy.deepcopy(model)
    config = PruneConfig(method=method, allocation="uniform")
    report = prune(model, config, calibration=[sequence]).report
    other = prune(twin, config, calibration=[{"input_ids": padded, "attention_mask": mask}]).report
    tokens = [x.num_tokens for b in report.blocks for x in b.layers]
    assert [x.num_tokens for b in other.blocks for x in b.layers] == tokens
    for ours, theirs in zip(layers_of(model), layers_of(twin), strict=True):
        differ = (ours.read() == 0) != (theirs.read() == 0)
        assert differ.float().mean() < 0.01, ours.name  # rounding may turn a tie


def test_fewer_tokens_than_inputs_is_a_warning_and_a_note(llama):
    few = [torch.randint(0, 100, (1, 20), generator=torch.Generator().manual_seed(2))]
    with pytest.warns(HfFarmsWarning, match=r"got 20 tokens for 48 inputs in model\.layers\.0\.mlp\.down_proj"):
        report = prune(llama, PruneConfig(method="sparsegpt", allocation="uniform"), calibration=few).report
    assert report.sparsity == 0.5
    assert any("21 of 21 Hessians had fewer tokens than inputs" in note for note in report.notes)
    assert report.blocks[0].layers[6].damping == pytest.approx(0.01 * 48 / 20)


def test_damping_and_block_size_reach_every_layer(many):
    models = [tiny("llama") for _ in range(4)]
    options = [{}, {"damping": 0.01, "block_size": 128}, {"damping": 0.3}, {"block_size": 4}]
    for model, given in zip(models, options, strict=True):
        config = PruneConfig(method="sparsegpt", allocation="uniform", **given)
        report = prune(model, config, calibration=many).report
        assert {x.damping for block in report.blocks for x in block.layers} == {config.damping}
        assert not any("Hessians" in note for note in report.notes)
    weights = [model.model.layers[1].mlp.down_proj.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0] == 0, weights[3] == 0)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_encoder_is_pruned_on_activations_too(method, many):
    report = prune(tiny_bert(), PruneConfig(method=method, allocation="uniform"), calibration=many).report
    assert report.sparsity == 0.5
    assert report.calibration.num_tokens == 320


def test_patches_of_images_are_tokens():
    images = [{"pixel_values": torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(2))}]
    report = prune(family_model("vit"), PruneConfig(allocation="uniform"), calibration=images).report
    assert (report.calibration.num_sequences, report.calibration.num_tokens) == (40, 40 * 5)


@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_that_does_not_fit_a_layer_is_refused_before_work(method, many):
    model = tiny("llama", intermediate_size=50)
    before = copy.deepcopy(model.state_dict())
    config = PruneConfig(method=method, pattern="2:4", allocation="uniform")
    with pytest.raises(
        ModelError,
        match=r"inputs of every layer must be a multiple of 4 for pattern '2:4', got 50 in model\.layers\.0\.mlp\.down",
    ):
        prune(model, config, calibration=many)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_nan_in_activations_names_the_layer(method, llama, many):
    llama.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinity at the input of model\.layers\.1\.self_attn\.q_proj"):
        prune(llama, PruneConfig(method=method, allocation="uniform"), calibration=many)


def test_a_weight_that_is_used_without_its_module_is_pruned_by_magnitude_and_named(many):
    with pytest.warns(
        HfFarmsWarning, match=r"2 layers, first backbone\.layers\.0\.mixer\.dt_proj, got no visible inputs"
    ):
        report = prune(family_model("mamba"), PruneConfig(allocation="uniform"), calibration=many).report
    assert report.sparsity == 0.5
    assert any("first backbone.layers.0.mixer.dt_proj, got no visible inputs" in note for note in report.notes)


def test_a_block_none_of_whose_layers_is_used_is_refused():
    source = ModelBlockSource(family_model("llama"))
    runs = [(lambda: None, None)]
    with pytest.raises(
        ModelError, match=r"layers must be used on the calibration data, got no input in model\.layers\.1"
    ):
        measure(source.open(1).layers, InputNorm, runs)
