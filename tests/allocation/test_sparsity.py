import json
import math
import random
import statistics

import pytest

from hf_farms.allocation.sparsity import allocate_sparsity, apportion, apportion_groups, reliability

LLAMA_7B_BLOCK = 4 * 4096 * 4096 + 3 * 4096 * 11008


def total(sparsities, sizes):
    return math.fsum(s * p for s, p in zip(sparsities, sizes, strict=True)) / sum(sizes)


def test_block_sparsities_of_the_released_code(golden):
    data = json.loads((golden / "allocation_llama7b.json").read_text())
    scores = [sum(data["alphas"][7 * i : 7 * i + 7]) / 7 for i in range(data["blocks"])]
    assert len(data["cases"]) == 8
    for case in data["cases"]:
        got = allocate_sparsity(
            scores, sizes=[LLAMA_7B_BLOCK] * 32, target=case["target"], spread=case["spread"], bounds=(0.0, 1.0)
        )
        assert got == pytest.approx(case["block_sparsity"], abs=1e-6)


@pytest.mark.parametrize("target", [0.0, 1e-9, 0.3, 0.5, 0.9, 0.99, 0.9989, 0.9995, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_the_total_is_met_whatever_clips(target, spread, blocks):
    random.seed(blocks)
    scores = [random.uniform(1, 5) for _ in range(blocks)]
    sizes = [random.randint(1, 1000) for _ in range(blocks)]
    got = allocate_sparsity(scores, sizes=sizes, target=target, spread=spread)
    assert total(got, sizes) == pytest.approx(target, abs=1e-12)
    assert all(0 <= s <= max(0.999, target) for s in got)


def slow_fill(scores, sizes, target, spread, low, high):
    """Bisection on the scale of the map, which is monotone."""
    span = max(scores) - min(scores)
    ratios = [1 - spread + 2 * spread * (b - min(scores)) / span for b in scores]
    a, b = 0.0, 1e6
    for _ in range(200):
        c = (a + b) / 2
        a, b = (c, b) if total([min(max(c * r, low), high) for r in ratios], sizes) < target else (a, c)
    return [min(max(a * r, low), high) for r in ratios]


@pytest.mark.parametrize("bounds", [(0.0, 0.999), (0.0, 0.6), (0.45, 0.55), (0.5, 0.5)])
def test_bounds_equal_the_slow_twin(bounds):
    scores, sizes = [1.0, 2.0, 2.5, 4.0, 4.1], [10, 20, 5, 40, 3]
    got = allocate_sparsity(scores, sizes=sizes, target=0.5, spread=0.6, bounds=bounds)
    assert got == pytest.approx(slow_fill(scores, sizes, 0.5, 0.6, *bounds), abs=1e-9)
    assert total(got, sizes) == pytest.approx(0.5)


def test_a_larger_alpha_loses_more():
    got = allocate_sparsity([1.0, 3.0, 2.0], sizes=[1, 1, 1], target=0.5, spread=0.2)
    assert got[0] < got[2] < got[1]
    assert got[1] / got[0] == pytest.approx(1.2 / 0.8)


def test_equal_alphas_give_equal_sparsities():
    assert allocate_sparsity([2.0] * 3, sizes=[1, 5, 9], target=0.4, spread=0.3) == pytest.approx([0.4] * 3)


def test_noise_alone_changes_nothing():
    assert allocate_sparsity([1.9, 2.0, 2.1], sizes=[1] * 3, target=0.5, spread=0.3, stderr=[0.2] * 3) == pytest.approx(
        [0.5] * 3
    )


def test_errors_shrink_the_spread():
    scores, sizes = [1.0, 2.0, 3.0], [1] * 3
    exact = allocate_sparsity(scores, sizes=sizes, target=0.5, spread=0.2)
    noisy = allocate_sparsity(scores, sizes=sizes, target=0.5, spread=0.2, stderr=[0.5] * 3)
    assert noisy == pytest.approx(allocate_sparsity(scores, sizes=sizes, target=0.5, spread=0.2 * 0.75))
    assert max(noisy) < max(exact)


def test_reliability():
    assert reliability([1.0, 2.0, 3.0], [0.5] * 3) == pytest.approx(0.75)
    assert reliability([1.0, 2.0, 3.0], [None, None, None]) == 1.0
    assert reliability([1.0, 2.0, 3.0], [None, 0.5, None]) == pytest.approx(1 - 0.25 / 3)
    assert reliability([1.0], [0.1]) == 0.0
    assert reliability([2.0, 2.0], [None, None]) == 0.0


@pytest.mark.parametrize(("blocks", "quantile"), [(2, 5.024), (3, 7.378 / 2), (11, 20.483 / 10), (31, 46.979 / 30)])
def test_scores_that_noise_may_have_made_have_no_reliability(blocks, quantile):
    """97.5% quantiles of chi-squared over its degrees of freedom, from tables."""
    scores = [float(i) for i in range(blocks)]
    variance = statistics.variance(scores)
    for ratio, trusted in ((0.93 * quantile, False), (1.07 * quantile, True)):
        found = reliability(scores, [math.sqrt(variance / ratio)] * blocks)
        assert found == (pytest.approx(1 - 1 / ratio) if trusted else 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [1]}, "scores must have the length of sizes, at least 1, got 2 and 1"),
        ({"sizes": [1, 0]}, r"sizes must be positive, got \[1, 0\]"),
        ({"target": 1.0}, "target must be at least 0 and below 1, got 1.0"),
        ({"spread": 1.0}, "spread must be at least 0 and below 1, got 1.0"),
        ({"bounds": (0.6, 0.5)}, "bounds must be ordered"),
        ({"stderr": [0.1]}, "stderr must have the length of scores, got 1 and 2"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"sizes": [1, 1], "target": 0.5, "spread": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        allocate_sparsity([1.0, 2.0], **arguments)


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="scores must be finite"):
        allocate_sparsity([1.0, float("nan")], sizes=[1, 1], target=0.5, spread=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_whole_numbers_add_up(seed):
    random.seed(seed)
    caps = [random.randint(1, 50) for _ in range(random.randint(1, 9))]
    whole = random.randint(0, sum(caps))
    shares = [whole * cap / sum(caps) for cap in caps]
    counts = apportion(whole, shares, caps)
    assert sum(counts) == whole
    assert all(
        0 <= count <= cap and abs(count - share) < 1 for count, share, cap in zip(counts, shares, caps, strict=True)
    )


def test_more_than_there_is_cannot_be_shared_out():
    with pytest.raises(ValueError, match="total must be at most 3, got 4"):
        apportion(4, [2.0, 2.0], [1, 2])


def nearest(targets, sizes, total, group):
    return abs(total * group - sum(c * p for c, p in zip(targets, sizes, strict=True)))


@pytest.mark.parametrize("sparsity", [0, 0.01, 0.3, 0.5, 0.55, 0.813, 0.875])
@pytest.mark.parametrize("seed", range(5))
def test_groups_of_equal_blocks_get_the_largest_remainders(sparsity, seed):
    generator = random.Random(seed)
    scores = [generator.random() for _ in range(13)]
    sizes = [800] * 13
    targets = allocate_sparsity(scores, sizes=sizes, target=sparsity, spread=0.3, bounds=(0, 0.875))
    total = round(sparsity * sum(sizes))
    zeros = apportion_groups(targets, sizes=sizes, total=total, group=8, highest=0.999)
    assert zeros == apportion(round(sparsity * 13 * 8), [8 * t for t in targets], [7] * 13)


@pytest.mark.parametrize("seed", range(30))
def test_groups_of_unequal_blocks_come_near_and_no_single_change_comes_nearer(seed):
    generator = random.Random(seed)
    sizes = [8 * generator.randint(1, 60) for _ in range(generator.randint(1, 9))]
    sparsity = generator.random() * 0.875
    targets = allocate_sparsity(
        [generator.random() for _ in sizes], sizes=sizes, target=sparsity, spread=0.4, bounds=(0, 0.875)
    )
    total = round(sparsity * sum(sizes))
    zeros = apportion_groups(targets, sizes=sizes, total=total, group=8, highest=1.0)
    assert all(0 <= z <= 7 for z in zeros)
    error = nearest(zeros, sizes, total, 8)
    assert error <= max(sizes) / 2 + 8
    for i in range(len(sizes)):
        for step in (-1, 1):
            changed = [z + step * (i == j) for j, z in enumerate(zeros)]
            assert not 0 <= changed[i] <= 7 or nearest(changed, sizes, total, 8) >= error


def test_groups_keep_at_least_one_and_obey_the_highest_sparsity():
    assert apportion_groups([0.95, 0.8], sizes=[80, 80], total=140, group=8, highest=0.999) == [7, 7]
    assert apportion_groups([0.7, 0.3], sizes=[80, 80], total=80, group=8, highest=0.625) == [5, 3]
    # A bound below the target gives way.
    assert apportion_groups([0.5, 0.5], sizes=[80, 80], total=80, group=8, highest=0.1) == [4, 4]
