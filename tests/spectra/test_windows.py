import itertools

import pytest
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.windows import largest_window_rows, model_window_rows, plan_windows, sample_windows

SHAPES = [(64, 64), (33, 70), (70, 33), (16, 128), (5, 5), (2, 3), (1, 9)]


def slow_windows(weight, rows, cols, per_dim):
    """The released sliding window, one slice at a time."""
    m, n = weight.shape

    def starts(size, window):
        if per_dim == 1:
            return [0]
        step = max(1, (size - window) // (per_dim - 1))
        return [i * step for i in range(min(per_dim, max(1, (size - window) // step + 1)))]

    return [weight[a : a + rows, b : b + cols] for a in starts(m, rows) for b in starts(n, cols)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 4, 13, 1000])
@pytest.mark.parametrize("aspect_ratio", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("per_dim", [1, 2, 5])
def test_windows_equal_the_slow_twin(shape, rows, aspect_ratio, per_dim):
    weight = torch.arange(shape[0] * shape[1]).reshape(shape)
    config = FarmsConfig(window_rows=rows, aspect_ratio=aspect_ratio, windows_per_dim=per_dim)
    fitting = [r for r in range(1, rows + 1) if r <= shape[0] and max(1, round(aspect_ratio * r)) <= shape[1]]
    plan = plan_windows(*shape, config)
    assert plan.rows == max(fitting)
    assert plan.lowered == (max(fitting) < rows)
    expected = slow_windows(weight, plan.rows, plan.cols, per_dim)
    got = sample_windows(weight, config)
    assert got.shape == (len(plan.row_starts), len(plan.col_starts), plan.rows, plan.cols)
    assert all(torch.equal(a, b) for a, b in zip(got.reshape(-1, plan.rows, plan.cols), expected, strict=True))


def test_windows_are_a_view():
    weight = torch.randn(64, 64)
    assert sample_windows(weight, FarmsConfig(window_rows=16)).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (1, 9)])
@pytest.mark.parametrize("aspect_ratio", [1.0, 0.5, 2.0])
def test_auto_takes_several_disjoint_windows(shape, aspect_ratio):
    if shape == (2, 3) and aspect_ratio == 2.0:
        pytest.skip("two windows of one row and two columns need two rows: covered by the others")
    plan = plan_windows(*shape, FarmsConfig(aspect_ratio=aspect_ratio))
    assert plan.num_windows >= 2
    for starts, window in ((plan.row_starts, plan.rows), (plan.col_starts, plan.cols)):
        assert all(b - a >= window for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("m", "n", "rows"), [(4096, 4096, 2048), (4096, 11008, 4096), (1024, 4096, 1024), (192, 576, 192), (10, 12, 6)]
)
def test_largest_window_of_which_two_fit(m, n, rows):
    assert largest_window_rows(m, n) == rows


def test_one_size_for_a_model_is_decided_by_grouped_query_attention_but_not_by_a_router():
    attention = [(4096, 4096)] * 2 + [(1024, 4096)] * 2
    mlp = [(14336, 4096)] * 2 + [(4096, 14336)]
    assert model_window_rows(attention + mlp) == 1024
    assert model_window_rows([*attention, *mlp, (8, 4096)]) == 1024
    assert model_window_rows([(8, 16)]) == 8


def test_no_layers_no_windows():
    with pytest.raises(ValueError, match="shapes must be at least one layer"):
        model_window_rows([])


def test_an_aspect_ratio_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="aspect_ratio must be at most 4 for a weight of 8 x 4, got 50"):
        plan_windows(8, 4, FarmsConfig(aspect_ratio=50))
