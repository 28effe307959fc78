"""Maps for each role: alphas and scores compare within a role only, and every role meets the total."""

import math
import re

import pytest
from families import family_model
from models import tiny

from hf_farms import PruneConfig, analyze, plan_sparsity, prune
from hf_farms.allocation.sparsity import allocate_by_difference, allocate_sparsity
from hf_farms.blocks import ModelBlockSource
from hf_farms.config import FarmsConfig
from hf_farms.errors import NoEffectWarning
from hf_farms.pruning.removal_plan import plan_removals, plan_targets, role_sizes
from hf_farms.pruning.scoring import score_blocks

# Windows that fit into every layer of the tiny models.
WINDOWS = FarmsConfig(window_rows=4, windows_per_dim=2)
LAYER = {"granularity": "layer", "shrink": False}


def zeros_of(report):
    return sum(layer.num_zeros for block in report.blocks for layer in block.layers)


def weights_of(report):
    return sum(layer.num_weights for block in report.blocks for layer in block.layers)


def test_each_role_of_farms_has_its_own_map(llama):
    spectra = analyze(llama, WINDOWS)
    config = PruneConfig(spread=0.3, ends="measured", spectra=WINDOWS, sparsity=0.6, **LAYER)
    plan = plan_targets(ModelBlockSource(llama), config, spectra=spectra)
    for role in ("q", "k", "v", "o", "gate", "up", "down"):
        layers = [next(layer for layer in block.layers if layer.role == role) for block in spectra.blocks]
        expected = allocate_sparsity(
            [layer.alpha for layer in layers],
            sizes=[math.prod(layer.shape) for layer in layers],
            target=0.6,
            spread=0.3,
        )
        assert [block[role] for block in plan] == pytest.approx(expected)
    assert len({tuple(block.values()) for block in plan}) == 3
    means = plan_sparsity(spectra, config=config)
    sizes = role_sizes(ModelBlockSource(llama))
    assert means == pytest.approx(
        [sum(block[r] * n for r, n in s.items()) / sum(s.values()) for block, s in zip(plan, sizes, strict=True)]
    )


@pytest.mark.parametrize("allocation", ["owl", "dlp"])
def test_scores_are_those_of_a_role(allocation, llama, ids):
    config = PruneConfig(allocation=allocation, ends="measured", granularity="layer")
    source = ModelBlockSource(llama)
    scores = score_blocks(source, config, ids)
    plan = plan_targets(source, config, scores=scores)
    for role, size in role_sizes(source)[0].items():
        values = [block[role] for block in scores[allocation]]
        expected = allocate_by_difference(values, sizes=[size] * 3, target=0.5, spread=config.effective_spread)
        assert [block[role] for block in plan] == pytest.approx(expected)
    with pytest.raises(ValueError, match="scores must be given for role 'q' with `granularity='layer'`, got none"):
        plan_targets(source, config, scores=[1, 2, 3])


@pytest.mark.parametrize("allocation", ["farms", "dlp", "ramp+owl", "ramp:0.2+farms:0.8"])
@pytest.mark.parametrize("sparsity", [0.333, 0.97])
def test_the_total_is_met_to_the_weight(allocation, sparsity, ids):
    model = tiny("llama", num_hidden_layers=4)
    spectral = {"spectra": WINDOWS, "shrink": False} if "farms" in allocation else {}
    config = PruneConfig(allocation=allocation, sparsity=sparsity, spread=0.3, granularity="layer", **spectral)
    report = prune(model, config, calibration=ids).report
    assert zeros_of(report) == round(sparsity * weights_of(report))
    for block in report.blocks:
        for layer in block.layers:
            assert layer.target is not None
            assert layer.num_zeros / layer.num_weights == pytest.approx(layer.target, abs=2 / layer.num_weights)


def test_groups_are_chosen_for_each_layer(llama):
    spectra = analyze(llama, WINDOWS)
    config = PruneConfig(method="magnitude", pattern="N:8", sparsity=0.55, spread=0.4, spectra=WINDOWS, **LAYER)
    report = prune(llama, config, spectra=spectra).report
    assert abs(zeros_of(report) - 0.55 * weights_of(report)) <= 16 * 32 / 16
    assert any("layers keep" in note for note in report.notes)
    shares = [{layer.num_zeros / layer.num_weights for layer in block.layers} for block in report.blocks]
    assert all((8 * share).is_integer() for block in shares for share in block)
    assert max(map(len, shares)) > 1


def test_blocks_and_roles_that_do_not_differ_are_planned_as_without(llama):
    source = ModelBlockSource(llama)
    for options in ({"allocation": "ramp"}, {"allocation": "uniform"}):
        config = PruneConfig(**options)
        layer = PruneConfig(granularity="layer", **options)
        assert plan_removals(source, plan_targets(source, layer), layer) == plan_removals(
            source, plan_targets(source, config), config
        )
    with pytest.warns(NoEffectWarning, match="`granularity` has no effect: it applies to allocation 'farms', 'alpha'"):
        prune(llama, PruneConfig(method="magnitude", allocation="ramp", granularity="layer"))


@pytest.mark.parametrize(
    ("name", "allocation"),
    [("mixtral", "farms"), ("mixtral", "owl+ramp"), ("t5", "farms"), ("mamba", "owl+ramp"), ("jamba", "dlp")],
)
def test_roles_of_other_architectures(name, allocation, ids):
    """Experts, cross-attention, and roles that only some blocks have or that no input is seen of."""
    model = family_model(name)
    spectral = {"spectra": WINDOWS, "shrink": False} if "farms" in allocation else {}
    config = PruneConfig(method="magnitude", allocation=allocation, granularity="layer", **spectral)
    batches = [batch.reshape(-1, batch.shape[-1]) % 60 for batch in ids]
    report = prune(model, config, calibration=batches).report
    assert zeros_of(report) == round(0.5 * weights_of(report))


def test_too_few_blocks_are_warned_of_once(llama):
    config = PruneConfig(method="magnitude", ends="apart", granularity="layer", spectra=WINDOWS)
    with pytest.warns(NoEffectWarning, match="`ends='apart'` leaves fewer than two scores") as caught:
        report = prune(llama, config).report
    assert len(caught) == 1
    assert {block.sparsity for block in report.blocks} == {0.5}


def test_the_note_on_shrinkage_names_the_roles(llama):
    report = prune(llama, PruneConfig(method="magnitude", granularity="layer", spectra=WINDOWS)).report
    (note,) = (note for note in report.notes if "Measurement error" in note)
    assert re.search(r" to 100\.0% \(\w+\) of the variance between alphas of a role, so ", note)
    assert re.search(r"from 0\.1 to between 0 and 0(\.\d+)?\.$", note)


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_routers_do_not_count_in_the_total(granularity):
    source = ModelBlockSource(family_model("mixtral"))
    config = PruneConfig(spectra=WINDOWS, shrink=False, ends="measured", spread=0.4, granularity=granularity)
    plan = plan_targets(source, config, spectra=analyze(source, WINDOWS))
    sizes = role_sizes(source)
    assert "router" not in sizes[0]
    removed = math.fsum(roles[r] * n for roles, block in zip(plan, sizes, strict=True) for r, n in block.items())
    assert removed == pytest.approx(0.5 * sum(n for block in sizes for n in block.values()), rel=1e-12)
    assert len({tuple(roles.values()) for roles in plan}) == len(plan)
