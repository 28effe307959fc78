"""Layers of a real model against what the released code made of them; tests/golden/README.md says how."""

import numpy as np
import pytest
import torch

from hf_farms.pruning.methods import pruning_method
from hf_farms.pruning.patterns import Removal

SETTINGS = {"50": (0.5, None), "60": (0.6, None), "2of4": (0.5, (2, 4)), "4of8": (0.5, (4, 8))}
# Columns whose threshold the released SparseGPT takes together.
COLUMNS = 128
STORED_ROWS = 48
# Two float32 Cholesky factors of a 576 x 576 matrix agree to about 3e-6 in what they make of the weights; damping by
# 0.0101 in place of 0.01 already moves them by 4e-4.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def released(golden):
    with np.load(golden / "released_masks.npz") as data:
        return {name: torch.from_numpy(value) for name, value in data.items()}


def zeros_of(released, layer, method, setting):
    shape = released[f"{layer}_weight"].shape
    bits = np.unpackbits(released[f"{layer}_{method}_{setting}"].numpy())
    return torch.from_numpy(bits[: shape.numel()].astype(bool)).view(shape)


def pruned(released, layer, method, count, group):
    """What `prune` makes of the layer: the statistic, a sequence at a time, and the method with it."""
    weight, inputs = released[f"{layer}_weight"].float(), released[f"{layer}_inputs"]
    functions = pruning_method(method)
    statistic = functions.statistic(weight.shape[1], weight.device)
    for sequence in inputs:
        statistic.add(sequence)
    return functions.prune(weight, statistic.prepared(layer), Removal(count, group))


def relative_error(released, setting, got, rows=None):
    """Of the corrected weights, in the rows for which they are stored, or those of them that are marked."""
    kept = released[f"k_proj_sparsegpt_{setting}_kept"]
    zeros = zeros_of(released, "k_proj", "sparsegpt", setting)
    expected = torch.zeros(STORED_ROWS, got.shape[1])
    expected[~zeros[:STORED_ROWS]] = kept
    chosen = slice(None) if rows is None else rows[:STORED_ROWS]
    return (got[:STORED_ROWS] - expected)[chosen].norm() / expected[chosen].norm()


@pytest.mark.parametrize("layer", ["k_proj", "down_proj"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_wanda_removes_the_same_weights(released, layer, setting):
    ratio, group = SETTINGS[setting]
    rows, columns = released[f"{layer}_weight"].shape
    got = pruned(released, layer, "wanda", rows * int(columns * ratio), group)
    assert torch.equal(got == 0, zeros_of(released, layer, "wanda", setting))
    weight = released[f"{layer}_weight"].float()
    assert torch.equal(got[got != 0], weight[got != 0])


@pytest.mark.parametrize("setting", ["2of4", "4of8"])
def test_sparsegpt_removes_the_same_weights_of_groups(released, setting):
    ratio, group = SETTINGS[setting]
    got = pruned(released, "k_proj", "sparsegpt", int(released["k_proj_weight"].numel() * ratio), group)
    assert torch.equal(got == 0, zeros_of(released, "k_proj", "sparsegpt", setting))
    assert relative_error(released, setting, got) < TOLERANCE


def test_sparsegpt_removes_the_same_weights_when_as_many_go(released):
    zeros = zeros_of(released, "k_proj", "sparsegpt", "50")
    got = pruned(released, "k_proj", "sparsegpt", int(zeros.sum()), None)
    assert torch.equal(got == 0, zeros)
    assert relative_error(released, "50", got) < TOLERANCE


def test_sparsegpt_with_the_exact_count_leaves_one_more_of_every_128_columns(released):
    """The released threshold is the first score that should stay, and goes too.

    The row that lost a weight more is corrected for it, so that its later scores are others than here. In all other
    rows both sides cut the same scores at two thresholds, so that one mask contains the other.
    """
    zeros = zeros_of(released, "k_proj", "sparsegpt", "50")
    got = pruned(released, "k_proj", "sparsegpt", zeros.numel() // 2, None) == 0
    same = torch.ones(len(zeros), dtype=torch.bool)
    for start in range(0, zeros.shape[1], COLUMNS):
        theirs, mine = (mask[:, start : start + COLUMNS] for mask in (zeros, got))
        assert mine.sum() == mine.numel() // 2
        assert theirs.sum() == mine.sum() + 1
        here, there = (mine & ~theirs)[same], (theirs & ~mine)[same]
        assert not (here.any() and there.any())
        if start == 0:
            assert not here.any()
        same &= (mine == theirs).all(dim=1)
    assert (got != zeros).float().mean() < 1e-3


def test_rows_with_the_same_mask_are_corrected_alike_whatever_the_others_lost(released):
    zeros = zeros_of(released, "k_proj", "sparsegpt", "50")
    got = pruned(released, "k_proj", "sparsegpt", zeros.numel() // 2, None)
    same = ((got == 0) == zeros).all(dim=1)
    assert STORED_ROWS / 2 < same[:STORED_ROWS].sum() < STORED_ROWS
    assert relative_error(released, "50", got, same) < TOLERANCE
