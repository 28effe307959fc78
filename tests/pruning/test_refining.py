"""`refine="swaps"` on every method: errors fall, counts and patterns stay, SparseGPT refits."""

import copy
from functools import partial

import pytest
import torch
from families import layers_of
from models import tiny

from hf_farms.config import PruneConfig
from hf_farms.errors import DataError, HfFarmsWarning
from hf_farms.pruning.methods import pruning_method
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.refining import DAMPING, with_products
from hf_farms.pruning.sparsegpt import InputProducts, refit, sparsegpt
from hf_farms.pruning.swaps import swap_masks
from hf_farms.pruning.wanda import InputNorm
from hf_farms.registries import METHODS


def inputs_of(tokens, columns):
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(columns, columns, generator=generator) + 2 * torch.eye(columns)
    return torch.randn(tokens, columns, generator=generator) @ mix


def measured(kind, inputs, **options):
    statistic = with_products(kind)(inputs.shape[1], torch.device("cpu"))
    for part in inputs.split(50):
        statistic.add(part)
    return statistic.prepared("layer", **options)


@pytest.mark.parametrize("group", [None, (2, 4)])
@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_no_row_increases(method, group):
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(2))
    inputs, removal = inputs_of(400, 32), Removal(192, group)
    functions = pruning_method(method, PruneConfig(method=method, refine="swaps", allocation="uniform"))
    prepared = measured(pruning_method(method).statistic, inputs)
    pruned = functions.prune(weight, prepared.own, removal)
    result = functions.apply(weight, prepared, removal)
    refined, reduction = result.weight, result.error_reduction
    before, after = ((inputs @ (w - weight).T).square().sum(0) for w in (pruned, refined))
    assert (after <= 1.001 * before).all()
    assert after.sum() < 0.99 * before.sum()
    assert reduction == pytest.approx(1 - float(after.sum() / before.sum()), rel=0.02)
    assert torch.equal((refined == 0).sum(1), (pruned == 0).sum(1))
    if group:
        assert ((refined == 0).view(-1, 4).sum(1) == 2).all()
    if method != "sparsegpt":
        assert torch.equal(refined[refined != 0], weight[refined != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_refit_of_the_mask_of_sparsegpt_gives_its_weights(dtype):
    weight = torch.randn(9, 48, generator=torch.Generator().manual_seed(3)).to(dtype)
    inputs = inputs_of(300, 48)
    inputs[:, 5] = 0
    products = InputProducts(48, torch.device("cpu"))
    products.add(inputs)
    factor = products.prepared("layer")
    pruned = sparsegpt(weight, factor, Removal(200))
    removed = pruned == 0
    assert torch.equal(refit(weight, factor, removed), pruned)
    other = refit(weight, factor, removed, block_size=8)
    assert torch.equal(other == 0, removed)
    assert torch.allclose(other.float(), pruned.float(), rtol=1e-2, atol=1e-2)


def test_the_own_statistic_is_the_same_and_products_are_damped():
    inputs = inputs_of(100, 16)
    norm = InputNorm(16, torch.device("cpu"))
    for part in inputs.split(50):
        norm.add(part)
    prepared = measured(InputNorm, inputs)
    assert torch.equal(prepared.own, norm.prepared("layer"))
    expected = inputs.T @ inputs / 100
    expected.diagonal().mul_(1 + DAMPING * 16 / 100)
    assert torch.allclose(prepared.products, expected, rtol=1e-4, atol=1e-4)
    assert prepared.damping == pytest.approx(DAMPING * 16 / 100)
    shared = measured(InputProducts, inputs, damping=0.2)
    assert shared.damping == 0.2
    assert torch.allclose(shared.products, expected, rtol=1e-4, atol=1e-4)
    products = InputProducts(16, torch.device("cpu"))
    products.add(inputs)
    assert torch.allclose(shared.own.upper, products.prepared("layer", damping=0.2).upper, rtol=1e-3, atol=1e-5)


def test_fewer_tokens_than_inputs_are_damped_by_more():
    inputs = inputs_of(4, 16)
    diagonal = (inputs.T @ inputs / 4).diagonal()
    assert torch.allclose(measured(None, inputs).products.diagonal(), diagonal * (1 + DAMPING * 4), rtol=1e-4)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_keeps_its_counts_and_its_report_tells_the_reduction(method, pattern, many):
    model = tiny("llama")
    twin = copy.deepcopy(model)
    options = {"method": method, "pattern": pattern, "allocation": "uniform"}
    plain = prune(twin, PruneConfig(**options), calibration=many).report
    report = prune(model, PruneConfig(**options, refine="swaps"), calibration=many).report
    counts = [[(x.name, x.num_zeros) for block in r.blocks for x in block.layers] for r in (plain, report)]
    assert counts[0] == counts[1]
    assert all(x.error_reduction is None for block in plain.blocks for x in block.layers)
    reductions = [x.error_reduction for block in report.blocks for x in block.layers]
    assert all(0 <= reduction < 1 for reduction in reductions)
    assert max(reductions) > 0.02
    assert report.calibration.num_tokens == 320
    if pattern == "2:4":
        assert all(((view.read() == 0).view(-1, 4).sum(1) == 2).all() for view in layers_of(model))
    if method != "sparsegpt":
        for ours, theirs in zip(layers_of(model), layers_of(twin), strict=True):
            if ".layers.0." in ours.name:  # later blocks have other inputs
                assert torch.equal((ours.read() == 0).sum(1), (theirs.read() == 0).sum(1))


def test_rows_at_the_limit_of_rounds_are_counted_and_noted(many, monkeypatch):
    config = PruneConfig(refine="swaps", allocation="uniform")
    finished = prune(tiny("llama"), config, calibration=many).report
    assert [x.unfinished_rows for block in finished.blocks for x in block.layers] == [0] * 21
    assert not any("rounds of swaps" in note for note in finished.notes)
    monkeypatch.setattr("hf_farms.pruning.refining.swap_masks", partial(swap_masks, max_rounds=1))
    report = prune(tiny("llama"), config, calibration=many).report
    counts = [x.unfinished_rows for block in report.blocks for x in block.layers if x.unfinished_rows]
    assert sum(counts) > 0
    (note,) = [note for note in report.notes if "rounds of swaps" in note]
    assert note.startswith(
        f"{sum(counts):,} rows in {len(counts)} of 21 layers were left at the limit of 100 rounds of"
    )
    plain = prune(tiny("llama"), PruneConfig(allocation="uniform"), calibration=many).report
    assert all(x.unfinished_rows is None for block in plain.blocks for x in block.layers)


def test_fewer_tokens_than_inputs_is_a_warning_and_a_note(llama):
    few = [torch.randint(0, 100, (1, 20), generator=torch.Generator().manual_seed(2))]
    with pytest.warns(HfFarmsWarning, match=r"got 20 tokens for 48 inputs in model\.layers\.0\.mlp\.down_proj"):
        report = prune(llama, PruneConfig(refine="swaps", allocation="uniform"), calibration=few).report
    assert report.notes[0].startswith("21 of 21 layers were refined on fewer tokens than inputs: up to 0.024 of each")
    assert report.blocks[0].layers[6].damping == pytest.approx(DAMPING * 48 / 20)


def test_magnitude_with_swaps_needs_calibration(llama):
    config = PruneConfig(method="magnitude", refine="swaps", allocation="uniform")
    assert config.needs_calibration
    with pytest.raises(DataError, match="calibration must be given for refine 'swaps', got None"):
        prune(llama, config)


def test_few_tokens_are_a_warning(llama):
    few = [torch.randint(0, 100, (1, 20), generator=torch.Generator().manual_seed(2))]
    with pytest.warns(HfFarmsWarning, match=r"got 20 tokens for 48 inputs in model\.layers\.0\.mlp\.down_proj"):
        prune(llama, PruneConfig(method="wanda", refine="swaps", allocation="uniform"), calibration=few)


def test_a_method_that_cannot_refit_is_refused(monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(METHODS, "sparsegpt", replace(METHODS["sparsegpt"], refit=None))
    with pytest.raises(ValueError, match="refine must be 'none' for method 'sparsegpt', which updates"):
        PruneConfig(method="sparsegpt", refine="swaps")
