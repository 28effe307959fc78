"""Ramp, OWL and DLP against the published formulas, and exact totals whatever clips."""

import math
import random

import pytest

from hf_farms.allocation.sparsity import allocate_by_difference
from hf_farms.allocation.sparsity_maps import BlockScores, by_depth, by_difference
from hf_farms.config import ENDS, PruneConfig
from hf_farms.errors import NoEffectWarning

MEASURED = {"ends": "measured"}


def total(sparsities, sizes):
    return math.fsum(s * p for s, p in zip(sparsities, sizes, strict=True)) / sum(sizes)


def published_density(scores, sparsity, strength):
    """Of OWL (scores: shares of outliers) and DLP (scores: relative importance), as in their code."""
    low, high = min(scores), max(scores)
    density = [2 * strength * (score - low) / (high - low) for score in scores]
    mean = sum(density) / len(density)
    return [d - mean + (1 - sparsity) for d in density]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_default_spread_of_owl_is_the_published_lambda(sparsity):
    outliers = [0.031, 0.012, 0.02, 0.0171, 0.04, 0.0333, 0.01]
    expected = [1 - density for density in published_density(outliers, sparsity, 0.08)]
    blocks = BlockScores(sizes=[70] * 7, scores=[1 - share for share in outliers])
    got = by_difference(blocks, PruneConfig(allocation="owl", sparsity=sparsity, **MEASURED))
    assert got == pytest.approx(expected, abs=1e-12)
    assert max(got) - min(got) == pytest.approx(0.16)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_default_spread_of_dlp_is_the_published_alpha(sparsity):
    medians = [3.1, 1.2, 2.0, 1.71, 4.0, 3.33, 1.0]
    expected = [1 - d for d in published_density([1 - m / sum(medians) for m in medians], sparsity, 0.15)]
    config = PruneConfig(allocation="dlp", sparsity=sparsity, **MEASURED)
    got = by_difference(BlockScores(sizes=[70] * 7, scores=medians), config)
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("blocks", [2, 3, 30])
def test_ramp_is_the_arithmetic_progression_of_atp(sparsity, blocks):
    for spread in (0.1, min(1, (1 - sparsity) / sparsity) - 1e-9):
        beta = 2 * sparsity * spread / (blocks - 1)
        assert beta <= min(2 * sparsity, 2 * (1 - sparsity)) / (blocks - 1)
        expected = [sparsity + beta * (depth - (blocks - 1) / 2) for depth in range(blocks)]
        config = PruneConfig(allocation="ramp", sparsity=sparsity, spread=spread, max_sparsity=1.0)
        assert by_depth(BlockScores(sizes=[9] * blocks), config) == pytest.approx(expected, abs=1e-12)


def test_at_half_both_meanings_of_spread_agree():
    blocks = BlockScores(sizes=[5] * 4, scores=[0.0, 1.0, 2.0, 3.0])
    ramp = by_depth(blocks, PruneConfig(allocation="ramp", spread=0.2))
    assert ramp == pytest.approx(by_difference(blocks, PruneConfig(allocation="owl", spread=0.2, **MEASURED)))
    assert ramp[0] / ramp[-1] == pytest.approx(0.8 / 1.2)
    assert ramp[-1] - ramp[0] == pytest.approx(0.2)


def slow_shift(scores, sizes, target, spread, high):
    """Bisection on the shift."""
    low, width = min(scores), max(scores) - min(scores)
    a, b = -3.0, 3.0
    for _ in range(200):
        middle = (a + b) / 2
        shifted = [min(max(middle + spread * (s - low) / width, 0), high) for s in scores]
        a, b = (middle, b) if total(shifted, sizes) < target else (a, middle)
    return shifted


@pytest.mark.parametrize("name", ["ramp", "owl", "dlp"])
@pytest.mark.parametrize("ends", ["measured", "apart", "first-capped"])
def test_the_total_is_exact_whatever_clips_and_of_blocks_of_any_size(name, ends):
    for seed in range(12):
        generator = random.Random(seed)
        count = generator.choice([4, 5, 9])
        sizes = [generator.randint(1, 1000) for _ in range(count)]
        blocks = BlockScores(sizes=sizes, scores=[generator.random() for _ in sizes])
        sparsity, highest = generator.choice([(0.5, 0.999), (0.05, 0.999), (0.97, 0.999), (0.6, 0.65)])
        spread = generator.choice([0.1, 0.9])
        config = PruneConfig(
            allocation=name, sparsity=sparsity, spread=spread, max_sparsity=highest, **({"ends": ends})
        )
        got = (by_depth if name == "ramp" else by_difference)(blocks, config)
        assert total(got, sizes) == pytest.approx(sparsity, abs=1e-12)
        assert all(0 <= s <= highest for s in got)
        if ends == "apart" and name != "ramp":
            assert got[0] == got[-1] == sparsity
        if ends == "measured" and name != "ramp":
            assert got == pytest.approx(slow_shift(blocks.scores, sizes, sparsity, spread, highest), abs=1e-9)


@pytest.mark.parametrize("ends", ENDS)
def test_blocks_without_weights_or_scores_get_the_total_and_do_not_count(ends):
    config = PruneConfig(allocation="dlp", ends=ends)
    scores = [2.0, 9.0, None, 3.0, 2.5, 1.0]
    got = by_difference(BlockScores(sizes=[10, 0, 10, 10, 10, 10], scores=scores), config)
    assert got[1] == got[2] == 0.5
    assert len(set(got)) > 2
    ramp = by_depth(BlockScores(sizes=[0, 10, 10]), PruneConfig(allocation="ramp"))
    assert ramp == pytest.approx([0.5, 0.45, 0.55])


def test_too_few_blocks_are_uniform():
    one = BlockScores(sizes=[10], scores=[3.0])
    assert by_depth(one, PruneConfig(allocation="ramp")) == [0.5]
    assert by_difference(one, PruneConfig(allocation="owl")) == [0.5]
    with pytest.warns(NoEffectWarning, match="`ends='apart'` leaves fewer than two scores to compare"):
        assert by_difference(BlockScores(sizes=[9] * 3, scores=[1, 2, 3]), PruneConfig(ends="apart", allocation="owl"))
    assert by_difference(BlockScores(sizes=[9] * 3, scores=[2.0] * 3), PruneConfig(allocation="owl")) == [0.5] * 3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="spread must be at least 0 and below 1, got 1"):
        allocate_by_difference([1.0, 2.0], sizes=[1, 1], target=0.5, spread=1)
    with pytest.raises(ValueError, match="scores must be finite"):
        allocate_by_difference([1.0, math.inf], sizes=[1, 1], target=0.5, spread=0.1)
