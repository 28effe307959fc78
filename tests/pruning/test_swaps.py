"""1-swaps against brute force over all pairs."""

import pytest
import torch

from hf_farms.pruning import swap_search
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.swap_search import Rows, best_pairs, group_pairs, largest_correlations
from hf_farms.pruning.swaps import SMALLEST_GAIN, output_errors, swap_masks


def problem(rows, columns, share=0.5, seed=0, group=None, tokens=300):
    """Weights, the mask of the smallest weights, and the products of correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) + 2 * torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mix * torch.logspace(-1, 1, columns)
    weight = torch.randn(rows, columns, generator=generator)
    count = round(rows * columns * share)
    removed = Removal(count, group).mask(weight.abs())
    return weight, removed, inputs.T @ inputs / tokens


def error_of(w, gone, products):
    lost = torch.where(gone, w, 0).double()
    return float(lost @ products.double() @ lost)


def slow_best(w, gone, products, size=None):
    """The smallest change of the error by a swap in one row, each pair tried."""
    before, best = error_of(w, gone, products), float("inf")
    for i in range(len(w)):
        for j in range(len(w)):
            if not gone[i] and gone[j] and w[j] != 0 and (size is None or i // size == j // size):
                tried = gone.clone()
                tried[i], tried[j] = True, False
                best = min(best, error_of(w, tried, products) - before)
    return best


def rows_of(weight, removed, products):
    lost = torch.where(removed, weight, 0)
    errors = output_errors(lost, products).float()
    return Rows.make(weight, removed, lost @ products, products, least=-SMALLEST_GAIN * errors)


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (8, 24), (4, 33)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_best_swap_is_that_of_all_pairs(shape, share):
    weight, removed, products = problem(*shape, share)
    rows = rows_of(weight, removed, products)
    pairs = best_pairs(rows, products, largest_correlations(products))
    for row in range(shape[0]):
        expected = slow_best(weight[row], removed[row], products)
        if pairs.change[row] < rows.least[row]:
            assert float(pairs.change[row]) == pytest.approx(expected, rel=1e-3)
            swapped = removed[row].clone()
            assert not swapped[pairs.kept[row]]
            assert swapped[pairs.lost[row]]
            swapped[pairs.kept[row]], swapped[pairs.lost[row]] = True, False
            change = error_of(weight[row], swapped, products) - error_of(weight[row], removed[row], products)
            assert change == pytest.approx(expected, rel=1e-3)
        else:
            assert expected >= 2 * float(rows.least[row])


@pytest.mark.parametrize("group", [(2, 4), (3, 8), (1, 12)])
def test_the_best_swap_of_groups_is_that_of_all_pairs_in_them(group):
    weight, removed, products = problem(6, 24, group[0] / group[1], group=group)
    change, kept, lost = group_pairs(rows_of(weight, removed, products), products, group[1])
    assert torch.equal(kept // group[1], lost // group[1])
    for row in range(6):
        expected = slow_best(weight[row], removed[row], products, group[1])
        assert float(change[row]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("candidates", [1, 2, 5, 32])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_at_the_end_no_swap_reduces_the_error(share, candidates, monkeypatch):
    monkeypatch.setattr(swap_search, "CANDIDATES", candidates)
    monkeypatch.setattr(swap_search, "ENTRIES_AT_ONCE", 200)
    weight, removed, products = problem(7, 24, share)
    before = removed.clone()
    result = swap_masks(weight, removed, products)
    assert result.unfinished == 0
    assert torch.equal(removed, before)
    assert torch.equal(result.removed.sum(1), removed.sum(1))
    assert (result.after <= result.before).all()
    assert float(result.after.sum()) < 0.95 * float(result.before.sum())
    for row in range(7):
        errors = [error_of(weight[row], mask[row], products) for mask in (removed, result.removed)]
        assert [float(result.before[row]), float(result.after[row])] == pytest.approx(errors, rel=1e-4)
        assert slow_best(weight[row], result.removed[row], products) > -2 * SMALLEST_GAIN * errors[1]


@pytest.mark.parametrize("group", [(2, 4), (5, 8)])
def test_groups_keep_their_pattern_and_end_without_a_swap(group):
    weight, removed, products = problem(7, 24, group[0] / group[1], group=group)
    result = swap_masks(weight, removed, products, group=group[1])
    assert (result.removed.view(-1, group[1]).sum(1) == group[0]).all()
    assert result.unfinished == 0
    assert float(result.after.sum()) < 0.95 * float(result.before.sum())
    for row in range(7):
        least = -2 * SMALLEST_GAIN * float(result.after[row])
        assert slow_best(weight[row], result.removed[row], products, group[1]) > least


def test_independent_inputs_leave_the_mask_of_wanda():
    weight, _, products = problem(8, 32)
    products = products.diagonal().diag()
    removed = Removal(128).mask(weight.abs() * products.diagonal().sqrt())
    assert torch.equal(swap_masks(weight, removed, products).removed, removed)


@pytest.mark.parametrize("full", [True, False])
def test_a_mask_of_everything_or_nothing_stays(full):
    weight, removed, products = problem(4, 12)
    removed = torch.full_like(removed, full)
    result = swap_masks(weight, removed, products)
    assert torch.equal(result.removed, removed)
    assert torch.equal(result.before, result.after)


def test_unused_inputs_and_weights_of_zero():
    weight, removed, products = problem(6, 24)
    weight[:, 4], removed[:, 4] = 0, True
    products[3], products[:, 3] = 0, 0
    result = swap_masks(weight, removed, products)
    assert result.removed[:, 4].all()  # else the number of zeros would change
    assert torch.isfinite(result.after).all()
    assert (result.after <= result.before).all()


def test_rows_do_not_depend_on_each_other(monkeypatch):
    weight, removed, products = problem(9, 24)
    whole = swap_masks(weight, removed, products).removed
    monkeypatch.setattr("hf_farms.pruning.swaps.ENTRIES_AT_ONCE", 48)
    assert torch.equal(swap_masks(weight, removed, products).removed, whole)


def test_the_limit_of_rounds_is_told(monkeypatch):
    monkeypatch.setattr(swap_search, "CANDIDATES", 1)
    weight, removed, products = problem(6, 40)
    result = swap_masks(weight, removed, products, max_rounds=1)
    assert result.unfinished > 0
    assert (result.after <= result.before).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    weight, removed, products = problem(6, 24)
    result = swap_masks(weight.to(dtype), removed, products)
    assert torch.equal(result.removed, swap_masks(weight.to(dtype).float(), removed, products).removed)
