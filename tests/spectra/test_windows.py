import itertools
import math

import pytest
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.windows import cut_windows, model_window_rows, plan_weight, plan_windows, sample_windows

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


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)], 512),
        ([(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)], 72),
        ([(32, 32), (16, 32)], 16),
        ([(128, 128)], 32),
        ([(1, 1)], 1),
    ],
    ids=["llama-7b", "smollm2", "tiny", "small", "scalar"],
)
def test_one_window_size_for_a_model(shapes, rows):
    assert model_window_rows(shapes) == rows


def test_neither_grouped_query_attention_nor_a_router_decides_the_window_size():
    attention = [(4096, 4096)] * 2 + [(1024, 4096)] * 2
    mlp = [(14336, 4096)] * 2 + [(4096, 14336)]
    assert model_window_rows(attention + mlp) == 512
    assert model_window_rows([*attention, *mlp, (8, 4096)]) == 512
    experts = [(1408, 2048), (1408, 2048), (2048, 1408)] * 60
    assert model_window_rows([(2048, 2048)] * 4 + experts) == 1408 // 8


@pytest.mark.parametrize(("aspect_ratio", "rows"), [(0.5, 32), (1.0, 32), (2.0, 16)])
def test_a_window_of_another_aspect_ratio_is_an_eighth_of_what_fits(aspect_ratio, rows):
    assert model_window_rows([(256, 256)], aspect_ratio) == max(32, rows)
    assert model_window_rows([(2560, 2560)], aspect_ratio) == 10 * rows


@pytest.mark.parametrize("shape", SHAPES)
def test_auto_windows_of_one_matrix_are_at_most_half_its_smaller_side(shape):
    plan = plan_windows(*shape, FarmsConfig())
    assert plan.rows == plan.cols == max(1, min(shape) // 2)
    assert plan.num_windows <= 64
    assert not plan.lowered


def test_eight_windows_along_each_side_are_disjoint_where_there_is_room_and_overlap_elsewhere():
    plan = plan_windows(512, 1024, FarmsConfig(window_rows=64))
    assert plan.row_starts == tuple(range(0, 512, 64))
    assert plan.col_starts == tuple(i * 137 for i in range(8))
    plan = plan_windows(128, 1024, FarmsConfig(window_rows=64))
    assert plan.row_starts == tuple(range(0, 65, 9))


def test_no_more_windows_count_than_fit_side_by_side():
    assert plan_windows(512, 1024, FarmsConfig(window_rows=64)).num_disjoint == (8, 8)
    assert plan_windows(128, 512, FarmsConfig(window_rows=64)).num_disjoint == ((63 + 64) / 64, 8)
    assert plan_windows(64, 512, FarmsConfig(window_rows=64, windows_per_dim=4)).num_disjoint == (1, 4)
    assert plan_windows(40, 30, FarmsConfig(window_rows=None)).num_disjoint == (1, 1)


@pytest.mark.parametrize(("out", "ins"), [(10, 4), (4, 10), (6, 6), (9, 2)])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 3, 1)])
@pytest.mark.parametrize("aspect_ratio", [1.0, 2.0])
def test_windows_of_convolutions_equal_the_slow_twin(out, ins, kernel, aspect_ratio):
    """For every place of the kernel a matrix, cut along its longer side into pieces Q times as long as wide."""
    weight = torch.arange(out * ins * math.prod(kernel)).reshape(out, ins, *kernel)
    plan = plan_weight(tuple(weight.shape), FarmsConfig(aspect_ratio=aspect_ratio))
    windows = cut_windows(weight, plan)
    matrices = [weight[(slice(None), slice(None), *place)] for place in itertools.product(*map(range, kernel))]
    matrices = [matrix if out >= ins else matrix.T for matrix in matrices]
    side, long = min(out, ins), max(out, ins)
    length = round(aspect_ratio * side)
    if length > long:
        side = max(s for s in range(1, side + 1) if round(aspect_ratio * s) <= long)
        length = round(aspect_ratio * side)
    assert (plan.rows, plan.cols, plan.kernel) == (length, side, len(matrices))
    pieces = windows.flatten(0, 1)
    assert pieces.shape[0] == plan.pieces
    for number, piece in enumerate(pieces[:: len(plan.col_starts)]):
        start = number * length
        assert piece.shape[1] == length
        expected = torch.stack([matrix[start : start + length, :side] for matrix in matrices])
        assert torch.equal(piece, expected)


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        ((48, 20, 5, 5), (0, 20)),
        ((20, 48, 3), (0, 20)),
        ((31, 10, 3, 3, 3), (0, 10, 20)),
        ((19, 10, 1), (0,)),
        ((32, 4, 3, 3), tuple(range(0, 32, 4))),
        ((30, 30, 3, 3), (0,)),
    ],
)
def test_pieces_of_a_convolution_lie_side_by_side_and_what_is_left_over_is_in_none(shape, starts):
    plan = plan_weight(shape, FarmsConfig())
    assert plan.row_starts == starts
    assert plan.col_starts == (0,)
    assert plan.rows == plan.cols == min(shape[:2])


def test_smaller_pieces_of_a_convolution_lie_side_by_side_in_both_directions():
    plan = plan_weight((23, 17, 3, 3), FarmsConfig(window_rows=5))
    assert plan.row_starts == (0, 5, 10, 15)
    assert plan.col_starts == (0, 5, 10)
    assert plan.pieces == 12


def test_flat_windows_that_fit_are_kept_where_the_released_code_clamps_to_the_smaller_side():
    plan = plan_windows(512, 64, FarmsConfig(window_rows=128, aspect_ratio=0.25))
    assert (plan.rows, plan.cols, plan.lowered) == (128, 32, False)
    released = min(128, 512, 64)
    assert released < plan.rows
    plan = plan_windows(512, 64, FarmsConfig(window_rows=1000, aspect_ratio=0.25))
    assert (plan.rows, plan.cols, plan.lowered) == (258, 64, True)
    for m, n in ((512, 64), (64, 512), (100, 100)):
        assert plan_windows(m, n, FarmsConfig(window_rows=1000)).rows == min(1000, m, n)


def test_no_layers_no_windows():
    with pytest.raises(ValueError, match="shapes must contain at least one layer"):
        model_window_rows([])


def test_an_aspect_ratio_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="aspect_ratio must be at most 4 for a weight of 8 x 4, got 50"):
        plan_windows(8, 4, FarmsConfig(aspect_ratio=50))
