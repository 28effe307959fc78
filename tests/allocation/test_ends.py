"""The first and the last block in the maps from alphas, against slow and obvious twins."""

import math
import statistics
from dataclasses import replace

import pytest
from spectral_reports import random_report, spectral_report

from hf_farms.allocation.ends import end_positions, place_ends
from hf_farms.allocation.lr import allocate_lr, lr_factors
from hf_farms.allocation.notes import spread_note
from hf_farms.allocation.plan import plan_sparsity
from hf_farms.allocation.sparsity import allocate_sparsity, apportion_groups, reliability
from hf_farms.allocation.sparsity_maps import BlockScores, by_score
from hf_farms.config import ENDS, LR_ENDS, LR_MAPS, FarmsLRConfig, PruneConfig
from hf_farms.errors import NoEffectWarning
from hf_farms.registries import ALLOCATIONS

CHANGED = [ends for ends in ENDS if ends != "measured"]


def without_ends(values, ends):
    """The values of the blocks that count as measured."""
    return values[1:] if ends.startswith("first") else values[1:-1]


def with_ends(values, ends, end):
    return [end, *values] if ends.startswith("first") else [end, *values, end]


def twin_scores(alphas, ends):
    """Alphas in the map, None for a block apart, written out."""
    if ends == "measured":
        return alphas
    others = without_ends(alphas, ends)
    if ends == "first-capped":
        return [min(alphas[0], *others), *others]
    kind = ends.removeprefix("first-")
    end = {"lowest": sorted(others)[0], "median": statistics.median(others), "apart": None}[kind]
    return with_ends(others, ends, end)


def twin_reliability(alphas, errors, ends):
    """That of the blocks that count as measured."""
    if ends == "measured" or (ends == "first-capped" and alphas[0] <= min(alphas)):
        return reliability(alphas, errors)
    return reliability(without_ends(alphas, ends), without_ends(errors, ends))


def twin_sparsities(report, config):
    """Bisect the factor of the ratios until the total is met."""
    alphas, sizes = [b.alpha for b in report.blocks], [b.num_weights for b in report.blocks]
    errors = [b.alpha_stderr for b in report.blocks]
    scores, spread = twin_scores(alphas, config.ends), config.spread
    if config.shrink:
        spread *= twin_reliability(alphas, errors, config.ends)
    inside = [score for score in scores if score is not None]
    low, width = min(inside), max(inside) - min(inside)

    def sparsities(factor):
        return [
            config.sparsity
            if score is None
            else min(factor * (1 - spread + 2 * spread * (score - low) / width), config.max_sparsity)
            for score in scores
        ]

    bounds = [0.0, 100.0]
    total = config.sparsity * sum(sizes)
    for _ in range(200):
        middle = sum(bounds) / 2
        bounds[sum(s * p for s, p in zip(sparsities(middle), sizes, strict=True)) > total] = middle
    return sparsities(bounds[0])


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("allocation", ["farms", "alpha"])
@pytest.mark.parametrize("count", [4, 5, 8])
def test_sparsities_are_those_of_the_twin_and_meet_the_total(ends, allocation, count):
    for seed, (sparsity, spread, highest, shrink) in enumerate(
        [(0.5, 0.1, 0.999, True), (0.7, 0.3, 0.8, False), (0.6, 0.9, 0.65, True), (0.9, 0.3, 0.95, False)]
    ):
        report = random_report(count, seed=seed, rows=8 if allocation == "farms" else None)
        config = PruneConfig(
            sparsity=sparsity, allocation=allocation, spread=spread, ends=ends, max_sparsity=highest, shrink=shrink
        )
        plan = plan_sparsity(report, config=config)
        assert plan == pytest.approx(twin_sparsities(report, config), abs=1e-9)
        sizes = [block.num_weights for block in report.blocks]
        assert math.fsum(s * p for s, p in zip(plan, sizes, strict=True)) == pytest.approx(sparsity * sum(sizes))
        assert max(plan) <= highest + 1e-12
        if ends.endswith("apart"):
            assert [plan[index] for index in end_positions(ends, count)] == [sparsity] * len(end_positions(ends, count))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", LR_MAPS)
@pytest.mark.parametrize("count", [4, 5, 8])
def test_factors_are_those_of_the_twin(ends, name, count):
    report = random_report(count, seed=1)
    config = FarmsLRConfig(map=name, ends=ends)
    alphas, errors = [b.alpha for b in report.blocks], [b.alpha_stderr for b in report.blocks]
    scores = twin_scores(alphas, ends)
    mapped = lr_factors([score for score in scores if score is not None], map=name)
    trust = twin_reliability(alphas, errors, ends)
    assert 0 < trust < 1
    remaining = iter(mapped)
    expected = [1.0 if score is None else 1 + trust * (next(remaining) - 1) for score in scores]
    factors = allocate_lr(report, config=config)
    assert [factors[f"{i}.0"] for i in range(count)] == pytest.approx(expected)
    unshrunk = allocate_lr(report, config=replace(config, shrink=False))
    assert [unshrunk[f"{i}.0"] for i in range(count)] == pytest.approx(
        [1 + (factor - 1) / trust for factor in expected]
    )


def test_a_first_block_with_the_lowest_alpha_counts_as_measured():
    low, high = (
        replace(report, blocks=(replace(report.blocks[0], alpha=alpha), *report.blocks[1:]))
        for report, alpha in ((random_report(6), 1.0), (random_report(6), 9.0))
    )

    def plan(report, ends):
        return plan_sparsity(report, config=PruneConfig(ends=ends))

    assert plan(low, "first-capped") == plan(low, "measured") != plan(low, "first-lowest")
    assert plan(high, "first-capped") == plan(high, "first-lowest") != plan(high, "measured")
    assert plan(low, "first-capped")[0] < min(plan(low, "first-capped")[1:])


def test_measured_is_the_map_without_the_option():
    report = random_report(6)
    alphas, errors = [b.alpha for b in report.blocks], [b.alpha_stderr for b in report.blocks]
    sizes = [b.num_weights for b in report.blocks]
    plan = allocate_sparsity(alphas, sizes=sizes, target=0.5, spread=0.1, stderr=errors)
    assert plan_sparsity(report, config=PruneConfig(ends="measured")) == plan
    factors = allocate_lr(report, config=FarmsLRConfig(ends="measured"))
    assert list(factors.values()) == lr_factors(alphas, stderr=errors)


def test_a_replaced_score_takes_the_error_of_the_block_that_it_copies():
    alphas, errors = [9.0, 2.0, 3.0, 2.5, 8.0], [0.9, 0.1, None, 0.3, 0.8]
    assert place_ends(alphas, errors, ends="lowest").errors == [0.1, 0.1, None, 0.3, 0.1]
    assert place_ends(alphas, errors, ends="median").errors == [0.3, 0.1, None, 0.3, 0.3]
    even = place_ends([9.0, 2.0, 3.0, 2.5, 2.6], [0.9, 0.1, None, 0.3, 0.4], ends="first-median")
    assert (even.scores[0], even.errors[0]) == (2.55, 0.25)
    assert place_ends(alphas, [None] * 5, ends="median").errors == [None] * 5
    apart = place_ends(alphas, errors, ends="apart")
    assert apart.scores == [None, 2.0, 3.0, 2.5, None]
    assert (apart.mapped, apart.own) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("ends", CHANGED)
def test_noise_of_the_ends_does_not_count(ends):
    """Only the ends differ: that is no signal. Their errors are large: that is no noise."""
    first = ends.startswith("first")
    alphas = (2.9, 2.0, 2.01, 1.99, 2.0, 2.0 if first else 2.9)
    alike = spectral_report([[(alpha, 0.1, 10)] for alpha in alphas])
    assert plan_sparsity(alike, config=PruneConfig(ends=ends)) == pytest.approx([0.5] * 6)
    assert set(allocate_lr(alike, config=FarmsLRConfig(ends=ends)).values()) == {1.0}
    assert spread_note(alike, PruneConfig(ends=ends)).startswith("The blocks' alphas differ by no more than chance")
    noisy = spectral_report(
        [[(alpha, error, 10)] for alpha, error in ((2.9, 5), (2, 0), (2.5, 0), (2.2, 0), (2.3, 0 if first else 5))]
    )
    assert spread_note(noisy, PruneConfig(ends=ends)) is None
    assert spread_note(noisy, PruneConfig(ends="measured")) is not None


@pytest.mark.parametrize("ends", CHANGED)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_two_other_blocks_are_uniform_with_a_warning(ends, count):
    report = random_report(count)
    config, rates = PruneConfig(ends=ends, shrink=False), FarmsLRConfig(ends=ends, shrink=False)
    if ends == "first-capped" and count < 3:
        assert plan_sparsity(report, config=config) == plan_sparsity(report, config=replace(config, ends="measured"))
        return
    if count == 3 and ends.startswith("first"):
        assert len(set(plan_sparsity(report, config=config))) > 1
        assert len(set(allocate_lr(report, config=rates).values())) > 1
        return
    sentence = f"`ends='{ends}'` leaves fewer than two scores to compare: "
    with pytest.warns(NoEffectWarning, match=f"{sentence}every block gets the total sparsity. Use `ends='measured'`"):
        assert plan_sparsity(report, config=config) == [0.5] * count
    with pytest.warns(NoEffectWarning, match=f"{sentence}all factors are 1"):
        assert set(allocate_lr(report, config=rates).values()) == {1.0}
    assert spread_note(report, PruneConfig(ends=ends)) is None


def test_a_block_without_alpha_gets_the_mean_of_the_blocks_that_are_no_ends():
    layers = [[(9.0, 0.1, 10)], [(2.0, 0.1, 10)], [(None, None, 10)], [(3.0, 0.1, 10)], [(9.0, 0.1, 10)]]
    report, config = spectral_report(layers), PruneConfig(ends="lowest", shrink=False, spread=0.2)
    assert plan_sparsity(report, config=config) == pytest.approx(
        allocate_sparsity([2.0, 2.0, 2.5, 3.0, 2.0], sizes=[10] * 5, target=0.5, spread=0.2)
    )
    # Of learning rates such a block stays out; so does a first block without alpha, which is no end of others.
    assert allocate_lr(report, config=FarmsLRConfig(ends="lowest", shrink=False))["2.0"] == 1.0
    first = spectral_report([[(None, None, 10)], *layers[1:4], [(3.5, 0.1, 10)]])
    factors = allocate_lr(first, config=FarmsLRConfig(ends="first-lowest", shrink=False))
    assert factors == {"0.0": 1.0, "1.0": 0.5, "2.0": 1.0, "3.0": pytest.approx(7 / 6), "4.0": 1.5}
    assert plan_sparsity(first, config=replace(config, ends="first-apart"))[0] == 0.5


@pytest.mark.parametrize("ends", LR_ENDS)
def test_all_layers_of_an_end_are_placed(ends):
    blocks = [[(a, None, 10), (a + 0.5, None, 10)] for a in (4.0, 2.0, 3.0, 2.4, 5.0)]
    factors = allocate_lr(spectral_report(blocks), config=FarmsLRConfig(unit="layer", ends=ends, shrink=False))
    alphas = [alpha for block in blocks for alpha, _, _ in block]
    others = alphas[2:] if ends.startswith("first") else alphas[2:-2]
    end = {"capped": min(others), "lowest": min(others), "median": statistics.median(others)}.get(
        ends.removeprefix("first-")
    )
    placed = {
        "measured": alphas,
        "released": [None, *alphas[1:-1], None],
    }.get(ends, [end, end, *others] if ends.startswith("first") else [end, end, *others, end, end])
    inside = [alpha for alpha in placed if alpha is not None]
    low, width = min(inside), max(inside) - min(inside)
    expected = [1.0 if alpha is None else 0.5 + (alpha - low) / width for alpha in placed]
    assert list(factors.values()) == pytest.approx(expected)


def test_groups_of_weights_keep_ends_apart_at_the_total():
    config = PruneConfig(pattern="N:8", ends="apart", shrink=False, spread=0.5)
    report = spectral_report([[(alpha, None, 80)] for alpha in (9.0, 2.0, 2.6, 3.0, 9.0)])
    plan = plan_sparsity(report, config=config)
    zeros = apportion_groups(plan, sizes=[80] * 5, total=200, group=8, highest=config.max_sparsity)
    assert sum(zeros) == 20
    assert zeros[0] == zeros[-1] == 4
    assert len(set(zeros[1:-1])) > 1


def test_an_allocation_that_does_not_read_ends_is_not_changed(monkeypatch):
    blocks = BlockScores(sizes=[1] * 4, scores=[9.0, 1.0, 2.0, 3.0])
    apart = PruneConfig(ends="apart", shrink=False)
    assert by_score(blocks, apart)[0] == 0.5
    monkeypatch.setitem(ALLOCATIONS, "farms", replace(ALLOCATIONS["farms"], options=("spread", "shrink")))
    assert by_score(blocks, apart) == by_score(blocks, PruneConfig(ends="measured", shrink=False))
    with pytest.raises(ValueError, match=r"scores must have the length of sizes, got 4 and 3\. Give one for each"):
        by_score(replace(blocks, sizes=[1] * 3), apart)


def test_the_first_or_both_ends_are_changed():
    assert [sorted(end_positions(ends, 5)) for ends in LR_ENDS] == [[], *[[0]] * 4, *[[0, 4]] * 4]
    assert end_positions("lowest", 0) == set()
