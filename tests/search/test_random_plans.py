"""Random search, the baseline of the others."""

import statistics

import pytest

from hf_farms import PruneConfig
from hf_farms.search import random_plans as module
from hf_farms.search.evaluation import plan_losses
from hf_farms.search.grid import Grid
from hf_farms.search.levels import build_codes
from hf_farms.search.random_plans import random_plans, random_search


def test_random_plans_have_the_total_and_the_seed_decides():
    grid = Grid((100, 120, 80), 0.5, 200, 0.999)
    plans = random_plans(grid, 10, seed=3)
    assert plans == random_plans(grid, 10, seed=3) != random_plans(grid, 10, seed=4)
    assert random_plans(grid, 10) == random_plans(grid, 10, seed=0)
    assert len(set(plans)) == len(plans) == 10
    for plan in plans:
        assert sum(level * size for level, size in zip(plan, grid.sizes, strict=True)) == pytest.approx(30_000, abs=60)


def test_deviations_of_random_plans_are_as_large_as_those_of_published_allocations():
    grid = Grid((100,) * 40, 0.5, 200, 0.999)
    widths = [statistics.pstdev(grid.sparsities(plan)) for plan in random_plans(grid, 40)]
    assert 0.005 < min(widths) < 0.03
    assert 0.07 < max(widths) < 0.13


def test_random_plans_stay_inside_the_limits():
    grid = Grid((100,) * 6, 0.9, 200, 0.95)
    plans = random_plans(grid, 30)
    assert max(max(plan) for plan in plans) <= 190
    low = Grid((100,) * 6, 0.02, 200, 0.95)
    assert min(min(plan) for plan in random_plans(low, 30)) == 0


def test_a_grid_with_few_plans_has_no_more():
    grid = Grid((10, 10), 0.5, 2, 0.999, grouped=True)
    assert random_plans(grid, 5) == [(1, 1)]


def test_random_search_takes_the_lowest_loss_of_its_plans(source, calibration, selection, monkeypatch):
    grid = Grid.of(source, PruneConfig(allocation="uniform"))
    codes = build_codes(source, grid, method="wanda", batches=calibration)
    batches = [{"input_ids": ids} for ids in selection[:2]]
    plans = random_plans(grid, 8, seed=2)
    losses = [plan_losses(source, codes, [plan], batches)[0] for plan in plans]
    passes = []
    monkeypatch.setattr(module, "plan_losses", lambda *args: passes.append(args[2]) or plan_losses(*args))
    plan, loss = random_search(source, codes, grid, batches, count=8, seed=2)
    assert plan == plans[losses.index(min(losses))]
    assert loss == pytest.approx(min(losses), rel=1e-5)
    assert passes == [plans[:6], plans[6:]]
    assert random_search(source, codes, grid, batches, count=1)[0] == random_plans(grid, 1, seed=0)[0]
    # One plan is no choice: another one of these must win for the test to tell a search from its first plan.
    assert plan not in (plans[0], plans[-1])
