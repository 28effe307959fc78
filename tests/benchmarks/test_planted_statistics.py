"""Statistics of planted models against slow obvious ones."""

import gzip
import math
import statistics

import numpy as np
import pytest
from planted_jobs import rows_of
from planted_statistics import (
    auc,
    best_rival,
    bootstrap,
    bootstrap_spearman,
    d_prime,
    family_counts,
    holm,
    interval,
    of_layers,
    planted_blocks,
    position_means,
    shares,
    spearman,
    two_sided,
)


def row(name, family, farms, planted=None, group="test", **other):
    measures = {"farms": farms, "norm": [-value for value in farms]}
    return {"name": name, "family": family, "group": group, "planted": planted or {}, "measures": measures} | other


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    healthy = [row(f"healthy-{i}", i, list(rng.normal(size=4)), group="healthy") for i in range(3)]
    defects = [row(f"m-{i}", i // 2, list(rng.normal(size=4).round(1)), {"1": "insert", "3": "muon"}) for i in range(6)]
    return [*healthy, *defects]


def test_means_are_of_healthy_reference_models_of_the_same_depth():
    means = position_means(
        [
            row("a", 1, [1.0, 2.0], group="healthy"),
            row("b", 2, [3.0, 6.0], group="development"),
            row("deeper", 3, [5.0, 5.0, 5.0], group="healthy"),
            row("rescaled", 2, [99.0, 99.0], group="development", derived="rescaled"),
            row("planted", 2, [99.0, 99.0], {"0": "insert"}, group="development"),
            row("test", 2, [99.0, 99.0]),
        ]
    )
    assert sorted(means) == [2, 3]
    assert means[2]["farms"].tolist() == [2, 4]
    assert means[2]["norm"].tolist() == [-2, -4]


def test_auc_and_d_prime_are_within_models(rows):
    means = position_means(rows)
    blocks = [b for b in planted_blocks(rows, means) if b.condition == "insert"]
    expected, distances, squares, freedom = [], [], 0.0, 0
    for each in rows[3:]:
        values = [
            v - statistics.fmean(r["measures"]["farms"][i] for r in rows[:3])
            for i, v in enumerate(each["measures"]["farms"])
        ]
        healthy = [values[0], values[2]]
        expected.append(sum(1.0 if values[1] > h else 0.5 if values[1] == h else 0.0 for h in healthy) / 2)
        distances.append(values[1] - statistics.fmean(healthy))
        squares += 1 * statistics.variance(healthy)
        freedom += 1
    assert shares(blocks, "farms").tolist() == expected
    assert auc(blocks, "farms") == pytest.approx(statistics.fmean(expected))
    assert auc(blocks, "norm") == pytest.approx(1 - statistics.fmean(expected))
    assert d_prime(blocks, "farms") == pytest.approx(statistics.fmean(distances) / math.sqrt(squares / freedom))


def test_ties_count_half_and_a_missing_measure_not_at_all():
    rows = [row("a", 1, [2.0, 2.0, 2.0], group="healthy"), row("b", 2, [3.0, 3.0, 2.0], {"0": "insert"})]
    blocks = planted_blocks(rows, position_means(rows))
    assert auc(blocks, "farms") == 0.75
    assert math.isnan(auc(blocks, "other"))
    assert best_rival(blocks, ["other", "norm"]) == "norm"


def test_a_rival_of_equal_auc_wins_by_d_prime():
    reference = row("a", 1, [0.0, 0.0, 0.0], group="healthy")
    planted = row("b", 2, [5.0, 1.0, -1.0], {"0": "insert"})
    reference["measures"]["far"] = [0.0, 0.0, 0.0]
    planted["measures"]["far"] = [9.0, 1.0, -1.0]
    blocks = planted_blocks([reference, planted], position_means([reference, planted]))
    assert best_rival(blocks, ["farms", "far", "norm"]) == "far"


def test_layers_compare_with_healthy_layers_of_all_roles():
    def layers(*alphas):
        return {f"role-{i}": {"farms": a, "whole mid": a} for i, a in enumerate(alphas)}

    rows = [
        row("a", 1, [0.0, 0.0], group="healthy", layers=layers([1.0, 0.0], [3.0, 0.0])),
        row("b", 2, [0.0, 0.0], {"0": "insert"}, layers=layers([4.0, 1.0], [6.0, 3.0])),
    ]
    (block,) = planted_blocks(rows, position_means(rows, of_layers), of_layers)
    # The mean of the first position over roles is 2: 4 and 6 become 2 and 4.
    assert block.own["farms"].tolist() == [2, 4]
    assert auc([block], "farms") == 0.75


def test_bootstrap_draws_whole_families():
    values, families = np.array([1.0, 2.0, 4.0, np.nan, 8.0]), [7, 7, 9, 9, 8]
    slow = []
    members = {7: [1.0, 2.0], 8: [8.0], 9: [4.0]}
    for counts in family_counts(3, draws=200):
        drawn = [v for family, k in zip(members, counts, strict=True) for v in members[family] * k]
        slow.append(statistics.fmean(drawn))
    assert bootstrap(values, families, draws=200).tolist() == pytest.approx(slow)
    assert np.isnan(bootstrap(np.array([np.nan]), [1], draws=2)).all()


def test_families_are_drawn_with_replacement():
    counts = family_counts(3, draws=30_000)
    assert (counts.sum(axis=1) == 3).all()
    expected = {(0, 0, 3): 1 / 27, (1, 1, 1): 6 / 27, (0, 1, 2): 3 / 27}
    for pattern, probability in expected.items():
        assert (counts == pattern).all(axis=1).mean() == pytest.approx(probability, abs=0.01)


def test_p_values():
    assert two_sided(np.array([1.0] * 99)) == pytest.approx(0.02)
    assert two_sided(np.array([-1.0] * 9 + [1.0] * 90)) == pytest.approx(0.2)
    assert two_sided(np.zeros(99)) == 1
    assert interval(np.arange(1001.0)) == (25, 975)


def test_holm_rejects_in_order_until_the_first_that_it_keeps():
    values = dict(zip("abcde", (0.011, 0.04, 0.001, 0.02, 0.6), strict=True))
    adjusted = holm(values)
    for level in (0.005, 0.01, 0.05, 0.08, 0.3, 0.99):
        rejected = set()
        for number, name in enumerate(sorted(values, key=values.get)):
            if values[name] > level / (5 - number):
                break
            rejected.add(name)
        assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_spearman_is_the_correlation_of_obvious_ranks():
    x, y = np.array([3.0, 1.0, 3.0, 7.0, -2.0]), np.array([1.0, 1.0, 5.0, 4.0, 0.0])

    def slow(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    assert spearman(x, y) == pytest.approx(statistics.correlation(slow(x), slow(y)))
    assert spearman(x, np.ones(5)) == 0


def test_bootstrap_of_spearman_draws_whole_families():
    rng = np.random.default_rng(1)
    x, y = rng.integers(4, size=9).astype(float), rng.normal(size=9).round(1)
    families = [3, 1, 1, 2, 2, 3, 3, 4, 4]
    slow = []
    for counts in family_counts(4, draws=100):
        drawn = [
            i
            for family, k in zip((1, 2, 3, 4), counts, strict=True)
            for i in np.flatnonzero(np.array(families) == family).tolist() * k
        ]
        slow.append(spearman(x[drawn], y[drawn]))
    assert bootstrap_spearman(x, y, families, draws=100).tolist() == pytest.approx(slow)


def test_rows_are_read_from_the_compressed_file_too(tmp_path):
    lines = b'{"name": "a", "auc": 1}\n{"name": "b", "auc": 0}\n'
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "plain.jsonl").write_bytes(lines)
    assert rows_of(tmp_path / "packed.jsonl") == rows_of(tmp_path / "plain.jsonl") != {}
    assert rows_of(tmp_path / "none.jsonl") == {}
