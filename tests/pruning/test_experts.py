"""Matrices of experts: few tokens or none, and statistics in portions."""

import copy

import pytest
import torch
from families import family_model, layers_of

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning import measuring
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.sparsegpt import InputProducts
from hf_farms.pruning.wanda import InputNorm


def test_experts_without_tokens_are_pruned_by_magnitude_and_counted(many):
    model = family_model("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = 0
        model.model.layers[0].mlp.gate.weight[:3] = 0
        model.model.layers[0].post_attention_layernorm.weight.fill_(1)
        # Ties go to the first experts, so that the last two are never chosen.
    dense = {x.name: x.read().clone() for x in layers_of(model)}
    report = prune(model, PruneConfig(method="sparsegpt", allocation="uniform"), calibration=many).report
    unused = [x for b in report.blocks for x in b.layers if x.num_tokens == 0]
    assert len(unused) == 6
    assert all(x.damping is None for x in unused)
    assert "6 of 24 expert matrices got no calibration tokens and were pruned by magnitude." in report.notes
    assert any(note.startswith("Expert matrices were measured on 0 to 320 calibration") for note in report.notes)
    for view in layers_of(model):
        if view.name in {x.name for x in unused}:
            kept = view.read() != 0
            assert torch.equal(view.read()[kept], dense[view.name][kept])
            assert (kept.sum(1) == kept.shape[1] // 2).all()


def test_experts_with_few_tokens_are_damped_and_counted():
    ids = [torch.randint(0, 100, (2, 25), generator=torch.Generator().manual_seed(2))]
    model = family_model("mixtral")
    report = prune(model, PruneConfig(method="sparsegpt", allocation="uniform"), calibration=ids).report
    few = [x for b in report.blocks for x in b.layers if 0 < x.num_tokens < 32]
    assert few
    assert all(x.damping > 0.01 for x in few)
    assert any("Hessians had fewer tokens than inputs" in note for note in report.notes)
    assert report.sparsity == 0.5


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_experts_in_portions_give_the_same(method, many, monkeypatch):
    model = family_model("qwen3_moe")
    twin = copy.deepcopy(model)
    config = PruneConfig(method=method, allocation="uniform")
    whole = prune(model, config, calibration=many).report
    monkeypatch.setattr(measuring, "BYTES_AT_ONCE", 2 * InputProducts.nbytes(32) if method == "sparsegpt" else 300)
    source = ModelBlockSource(twin)
    statistic = InputProducts if method == "sparsegpt" else InputNorm
    portions = list(measuring.measurement_passes(source.open(1).layers, statistic))
    assert len(portions) > 2
    assert sorted(x.name for p in portions for x in p) == sorted(x.name for x in source.open(1).layers)
    parted = prune(twin, config, calibration=many).report
    assert [x.num_zeros for b in whole.blocks for x in b.layers] == [
        x.num_zeros for b in parted.blocks for x in b.layers
    ]
    assert all(torch.equal(a.read(), b.read()) for a, b in zip(layers_of(model), layers_of(twin), strict=True))
