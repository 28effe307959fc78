"""Grids, the table, the knapsack, moves and starts."""

import copy
import itertools
import random
from dataclasses import replace

import pytest
import torch

from hf_farms import PruneConfig, prune
from hf_farms.registries import ALLOCATIONS
from hf_farms.search.checking import rank_correlation
from hf_farms.search.evaluation import plan_losses
from hf_farms.search.grid import Grid
from hf_farms.search.knapsack import best_plan
from hf_farms.search.levels import build_codes
from hf_farms.search.moves import Moves
from hf_farms.search.sensitivity import SensitivityTable, measure_sensitivity, table_levels
from hf_farms.search.starts import Starts, mixtures


def removed(grid, plan):
    return sum(level * size for level, size in zip(plan, grid.sizes, strict=True)) / grid.steps / sum(grid.sizes)


@pytest.mark.parametrize("sizes", [(100,) * 4, (100, 250, 130, 75)])
def test_plans_near_sparsities_keep_the_total(sizes):
    grid = Grid(sizes, 0.5, 200, 0.999)
    plan = grid.nearest([0.2, 0.9, 0.4, 0.6])
    assert removed(grid, plan) == pytest.approx(0.5, abs=1e-3)
    exact = grid.exact(grid.sparsities(plan))
    assert sum(s * p for s, p in zip(exact, sizes, strict=True)) == pytest.approx(0.5 * sum(sizes))
    assert max(abs(a - b) for a, b in zip(exact, grid.sparsities(plan), strict=True)) < 0.005


def test_no_block_gets_more_than_the_limit(source):
    grid = Grid.of(source, PruneConfig(allocation="uniform", max_sparsity=0.6))
    assert (grid.steps, grid.top, grid.target, grid.grouped) == (200, 120, 0.5, False)
    block = source.model.model.layers[0]
    matrices = [weight.numel() for weight in block.parameters() if weight.ndim == 2]
    assert grid.sizes == (sum(matrices),) * 3
    plan = grid.nearest([0.9, 0.4, 0.1])
    assert max(plan) == plan[0] == 120
    assert removed(grid, plan) == pytest.approx(0.5, abs=1e-3)
    # A limit below the total cannot hold.
    assert Grid.of(source, PruneConfig(allocation="uniform", sparsity=0.7, max_sparsity=0.6)).top == 140
    # In floating point, 0.58 x 200 is a little less than 116.
    assert Grid((10, 10), 0.5, 200, 0.58).top == 116


def test_a_grid_of_a_pattern_counts_zeros_per_group(source):
    grid = Grid.of(source, PruneConfig(allocation="uniform", pattern="N:8"))
    assert (grid.steps, grid.top, grid.uniform) == (8, 7, (4, 4, 4))
    assert table_levels(grid) == (2, 3, 4, 5, 6)


def test_dense_blocks_stay_dense_where_the_others_can_reach_the_total():
    grid = Grid((100, 100, 100), 0.5, 200, 0.999)
    assert grid.exact([0.0, 0.6, 0.6]) == pytest.approx([0.0, 0.75, 0.75])
    assert sum(Grid((100, 100, 100), 0.8, 200, 0.999).exact([0.0, 0.6, 0.6])) == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("target", "levels"), [(0.5, (50, 80, 100, 120, 140)), (0.7, (70, 112, 140, 152, 164)), (0.0, (1, 2))]
)
def test_levels_of_the_table(target, levels):
    assert table_levels(Grid((10, 10), target, 200, 0.999)) == levels


def test_levels_of_groups_are_the_neighbors_of_the_target():
    assert table_levels(Grid((16, 16), 0.5, 16, 0.999, grouped=True)) == (6, 7, 8, 9, 10)
    assert table_levels(Grid((32, 32), 0.5, 32, 0.999, grouped=True)) == (8, 13, 16, 19, 22)


def test_the_table_prunes_one_block_alone(source, calibration, selection):
    grid = Grid.of(source, PruneConfig(allocation="uniform"))
    codes = build_codes(source, grid, method="wanda", batches=calibration)
    batches = [{"input_ids": ids} for ids in selection[:2]]
    table = measure_sensitivity(source, codes, grid, batches)
    assert table.levels == (50, 80, 100, 120, 140)
    alone = plan_losses(source, codes, [(0, 120, 0)], batches)[0]
    assert table.losses[1][3] == pytest.approx(alone, rel=1e-5)
    curve = table.interpolated(1)
    assert (curve[0], curve[120], len(curve)) == (0, table.losses[1][3], 141)
    assert curve[110] == pytest.approx((table.losses[1][2] + table.losses[1][3]) / 2)
    assert table.estimate((0, 120, 0)) == table.losses[1][3]
    assert table.estimate((0, 141, 0)) == float("inf")


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 8, 12)])
@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_finds_the_best_plan(sizes, seed):
    numbers = random.Random(seed)
    grid = Grid(sizes, 0.5, 8, 0.999, grouped=True)
    losses = [[0.0, *(numbers.random() for _ in range(7))] for _ in sizes]
    plans = [plan for plan in itertools.product(range(8), repeat=3) if removed(grid, plan) == 0.5]

    def total(plan):
        return sum(losses[block][level] for block, level in enumerate(plan))

    assert total(best_plan(losses, grid)) == pytest.approx(min(map(total, plans)))


def test_the_knapsack_of_odd_sizes_meets_the_total():
    grid = Grid((1013, 2011, 997, 5003), 0.6, 200, 0.999)
    losses = [[weight * level**2 for level in range(190)] for weight in (1, 4, 2, 3)]
    plan = best_plan(losses, grid)
    assert removed(grid, plan) == pytest.approx(0.6, abs=1e-3)
    assert plan[0] > plan[2]


@pytest.fixture
def table():
    return SensitivityTable((50, 100, 150), tuple((0.1 * b, 0.3 * b, 0.9 * b) for b in (1, 2, 3, 4, 5, 6)))


def test_moves_keep_the_total_and_differ(table):
    grid = Grid((100, 100, 200, 100, 100, 100), 0.5, 200, 0.999)
    moves, again = Moves(grid, table), Moves(grid, table)
    plan = grid.nearest([0.4, 0.5, 0.5, 0.5, 0.5, 0.6])
    for _ in range(4):
        tried = moves.around(plan, 6)
        assert tried == again.around(plan, 6)
        assert len({moved for _, moved in tried} - {plan}) == 6
        assert all(removed(grid, moved) == pytest.approx(0.5, abs=1e-3) for _, moved in tried)


def test_moves_that_helped_are_added_up_and_the_table_names_pairs(table):
    grid = Grid((100,) * 6, 0.5, 200, 0.999)
    moves = Moves(grid, table)
    helped = [(110, 90, 100, 100, 100, 100), (100, 100, 108, 92, 100, 100)]
    name, plan = moves.around(grid.uniform, 6, helped=helped)[0]
    assert (name, plan) == ("all changes that helped", (110, 90, 108, 92, 100, 100))
    # Block 0 is hurt least, and block 5 gains most.
    names = [name for name, _ in Moves(grid, table).around(grid.uniform, 6)]
    assert "block 0 more, block 5 less" in names


def test_moves_of_groups_come_first_and_then_the_distance_to_uniform(table):
    grid = Grid((100,) * 6, 0.5, 200, 0.999)
    moves, plan = Moves(grid, table), (90, 94, 98, 102, 106, 110)
    tried = [dict(moves.around(plan, 6)) for _ in range(3)]
    assert list(tried[0])[:3] == ["later blocks more", "ends less, middle more", "first blocks less"]
    assert list(tried[1])[:3] == ["later blocks less", "ends more, middle less", "last blocks less"]
    assert list(tried[2])[:2] == ["distance to uniform times 1.4", "distance to uniform times 0.7"]
    assert tried[2]["distance to uniform times 1.4"] == (86, 92, 97, 103, 108, 114)

    def change(number, name):
        return [after - before for after, before in zip(tried[number][name], plan, strict=True)]

    # Eight levels are 0.04.
    more, less = change(0, "later blocks more"), change(1, "later blocks less")
    assert (more[0], more[-1], more) == (-8, 8, sorted(more))
    assert (less[0], less[-1]) == (8, -8)
    bent = change(0, "ends less, middle more")
    assert bent[0] == bent[5] < 0 < bent[2] == bent[3]
    first, last = change(0, "first blocks less"), change(1, "last blocks less")
    assert max(first[0], last[-1]) < -10
    assert min(first[1:]) > 0 < min(last[:-1])


def test_a_pair_exchanges_weights_and_a_tenth_of_the_blocks_are_an_end():
    table = SensitivityTable((50, 150), ((0.1, 0.2), (1.0, 9.0)))
    tried = Moves(Grid((100, 400), 0.5, 200, 0.999), table).around((100, 100), 6)
    # Ten levels of the one are as many weights as 2.5 of the other: the nearest plan of the total.
    assert ("block 0 more, block 1 less", (112, 97)) in tried
    deep = SensitivityTable((50, 150), ((0.1, 0.2),) * 20)
    moves = Moves(Grid((100,) * 20, 0.5, 200, 0.999), deep)
    first, last = (dict(moves.around((100,) * 20, 3))[f"{end} blocks less"] for end in ("first", "last"))
    assert [level < 100 for level in first] == [True] * 2 + [False] * 18
    assert [level < 100 for level in last] == [False] * 18 + [True] * 2


def test_a_grid_with_few_plans_has_few_moves(table):
    grid = Grid((100, 100), 0.5, 2, 0.999, grouped=True)
    small = SensitivityTable((1,), ((0.1,), (0.2,)))
    assert Moves(grid, small).around((1, 1), 6) == []


def test_every_registered_allocation_is_a_start(source, calibration, registered):
    grid = Grid.of(source, PruneConfig(allocation="auto"))
    starts = Starts(
        source,
        PruneConfig(allocation="auto", spectra=registered.spectra),
        grid,
        batches=calibration,
        spectra=None,
        folder=None,
        progress=lambda *_: None,
    )
    with pytest.warns(match="Allocation 'failing' was not tried: it fails"):
        names = [name for name, _ in starts.plans()]
    assert {"uniform", "farms", "farms, spread 0.05", "farms, spread 0.2", "owl, spread 0.08", "dlp", "mine"} <= set(
        names
    )
    assert {"farms, ends measured", "farms, ends apart", "owl, ends apart"} <= set(names)
    assert not {"ramp, ends apart", "farms, ends first-capped"} & set(names)
    assert len(set(names)) == len(names)
    assert not {"auto", "sensitivity", "failing"} & set(names)
    assert starts.notes == ["Allocation 'failing' was not tried: it fails"]


def test_starts_are_the_plans_that_prune_takes(source, model, calibration, registered, monkeypatch):
    monkeypatch.delitem(ALLOCATIONS, "failing")
    config = PruneConfig(allocation="auto", spectra=registered.spectra, shrink=False, granularity="layer")
    grid = Grid.of(source, config)
    starts = Starts(source, config, grid, batches=calibration, spectra=None, folder=None, progress=lambda *_: None)
    plans = dict(starts.plans())
    for name, options in {
        "uniform": {"allocation": "uniform"},
        "farms": {"allocation": "farms", "shrink": False},
        "farms, ends measured": {"allocation": "farms", "ends": "measured", "shrink": False},
        "ramp, spread 0.2": {"allocation": "ramp", "spread": 0.2},
        "dlp": {"allocation": "dlp"},
    }.items():
        spectra = registered.spectra if "farms" in name else PruneConfig().spectra
        report = prune(copy.deepcopy(model), PruneConfig(**options, spectra=spectra), calibration=calibration).report
        assert plans[name] == grid.nearest([block.target for block in report.blocks]), name
    assert len({plans[name] for name in ("uniform", "farms", "ramp", "ramp, spread 0.2", "dlp")}) == 5
    without = Starts(source, config, grid, batches=[], spectra=None, folder=None, progress=lambda *_: None)
    assert not {"owl", "dlp"} & {name for name, _ in without.plans()}


def test_all_scores_take_one_pass_and_one_that_fails_does_not_stop_the_others(
    source, calibration, registered, monkeypatch
):
    monkeypatch.delitem(ALLOCATIONS, "failing")
    stages = []

    def names():
        stages.clear()
        config = PruneConfig(allocation="auto", spectra=registered.spectra)
        grid = Grid.of(source, config)
        progress = lambda stage, done, total: stages.append((stage, done))  # noqa: E731
        starts = Starts(source, config, grid, batches=calibration, spectra=None, folder=None, progress=progress)
        return {name for name, _ in starts.plans()}, starts.notes

    tried, notes = names()
    assert {"owl", "dlp"} <= tried
    assert notes == []
    assert stages.count(("score", 3)) == 1
    monkeypatch.setitem(ALLOCATIONS, "dlp", replace(ALLOCATIONS["dlp"], score=registered.unscored))
    with pytest.warns(match="Allocation 'dlp' was not tried: it has no score"):
        tried, notes = names()
    assert "owl" in tried
    assert "dlp" not in tried
    assert stages.count(("score", 3)) == 1


def test_mixtures_are_means():
    grid = Grid((100, 100), 0.5, 200, 0.999)
    assert mixtures([("one", (80, 120)), ("other", (100, 100))], grid) == [("mixture of one and other", (90, 110))]
    best = [(name, (90 + number, 110 - number)) for number, name in enumerate("abcd")]
    names = [name for name, _ in mixtures(best, grid)]
    assert names == ["mixture of a and b", "mixture of a and c", "mixture of b and c"]


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2], [1, 1, 1]) is None
    assert rank_correlation([1, 2], [1, 2]) is None
    expected = torch.corrcoef(torch.tensor([[1.0, 2.5, 2.5, 4.0], [2.0, 1.0, 3.0, 4.0]]))[0, 1]
    assert rank_correlation([1, 5, 5, 9], [3, 1, 4, 8]) == pytest.approx(float(expected))
