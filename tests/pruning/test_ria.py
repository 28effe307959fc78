import pytest
import torch

from hf_farms.pruning.methods import pruning_method
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.ria import ria, ria_scores
from hf_farms.pruning.wanda import InputNorm


def slow_scores(weight, inputs, power):
    """The formula of the paper, an entry at a time, in float64."""
    w, x = weight.double().abs(), inputs.double()
    scores = torch.zeros_like(w)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            columns, row = sum(w[k, j] for k in range(w.shape[0])), sum(w[i, k] for k in range(w.shape[1]))
            share = (w[i, j] / columns if columns else 0) + (w[i, j] / row if row else 0)
            scores[i, j] = share * x[:, j].norm() ** power
    return scores


def released_mask(weight, inputs, kept):
    """Return the mask of the released `prune_ria`, whose threshold also takes the first weight that should stay."""
    scaler_row = torch.norm(inputs.T, p=2, dim=1) ** 2 / len(inputs)
    metric = (
        torch.abs(weight) / torch.sum(torch.abs(weight), dim=0)
        + torch.abs(weight) / torch.sum(torch.abs(weight), dim=1).reshape(-1, 1)
    ) * (torch.sqrt(scaler_row.reshape((1, -1)))) ** 0.5
    threshold = torch.sort(metric.flatten())[0][weight.numel() - kept - 1]
    return metric <= threshold


def norm_of(inputs):
    norm = InputNorm(inputs.shape[-1], torch.device("cpu"))
    norm.add(inputs)
    return norm.prepared("layer")


def layer(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator), torch.randn(
        200, columns, generator=generator
    ) * torch.logspace(-1, 1, columns)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (5, 33)])
@pytest.mark.parametrize("power", [0.5, 1.0, 0.0])
def test_scores_equal_the_slow_twin(shape, power):
    weight, inputs = layer(*shape)
    expected = slow_scores(weight, inputs, power) / 200 ** (power / 2)  # the norm here is a root mean square
    assert torch.allclose(ria_scores(weight, norm_of(inputs), power=power).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_mask_is_that_of_the_released_code(share):
    weight, inputs = layer(48, 96)
    count = round(share * weight.numel())
    pruned = ria(weight, norm_of(inputs), Removal(count))
    assert torch.equal(pruned == 0, released_mask(weight, inputs, weight.numel() - count))
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    rows = (pruned == 0).sum(dim=1)
    assert rows.min() < rows.max()  # rows share the count freely


@pytest.mark.parametrize("group", [(2, 4), (5, 8)])
def test_groups_lose_their_lowest_scores(group):
    weight, inputs = layer(6, 40)
    zeros, size = group
    pruned = ria(weight, norm_of(inputs), Removal(weight.numel() * zeros // size, group))
    scores = slow_scores(weight, inputs, 0.5).view(-1, size)
    expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argsort(dim=1)[:, :zeros], True)
    assert torch.equal(pruned == 0, expected.view_as(pruned))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_float32(dtype):
    weight, inputs = layer(64, 32)
    weight = (3000 * weight).to(dtype)  # the sum of a column overflows float16
    before = weight.clone()
    scores = ria_scores(weight, norm_of(inputs))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, ria_scores(weight.float(), norm_of(inputs)))
    pruned = ria(weight, norm_of(inputs), Removal(1024))
    assert pruned.dtype == dtype
    assert int((pruned == 0).sum()) == 1024
    assert torch.equal(weight, before)


def test_unused_inputs_and_rows_and_columns_of_zeros_go_first():
    weight, inputs = layer(8, 16)
    inputs[:, 3] = 0
    weight[2], weight[:, 5] = 0, 0
    scores = ria_scores(weight, norm_of(inputs))
    assert torch.isfinite(scores).all()
    first = torch.zeros_like(weight, dtype=torch.bool)
    first[2], first[:, 5], first[:, 3] = True, True, True
    assert torch.equal(scores == 0, first)
    pruned = ria(weight, norm_of(inputs), Removal(int(first.sum()) + 10))
    assert (pruned[first] == 0).all()
    assert int((pruned == 0).sum()) == int(first.sum()) + 10


def test_nothing_but_zeros():
    assert torch.equal(ria(torch.zeros(3, 4), torch.ones(4), Removal(6)), torch.zeros(3, 4))


def test_the_entry_has_the_statistic_of_wanda():
    assert pruning_method("ria").statistic is InputNorm
