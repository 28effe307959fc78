"""Why FARMS exists: alpha of a whole matrix moves with its shape, alpha over windows of one aspect ratio does not."""

import math
import statistics
from functools import cache

import pytest
import torch

from hf_farms.allocation.lr import lr_factors
from hf_farms.allocation.plan import plan_sparsity
from hf_farms.config import FarmsConfig, PruneConfig
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.spectrum import layer_spectrum

WHOLE, WINDOWS = FarmsConfig(window_rows=None), FarmsConfig()
SHAPES = [(256, 256 * ratio) for ratio in (1, 2, 4, 8, 16)] + [(256 * ratio, 256) for ratio in (2, 4, 8, 16)]
MODEL_SHAPES = [(144, 144), (48, 144), (48, 144), (144, 144), (384, 144), (384, 144), (144, 384)]


def gaussian(source):
    return torch.randn((4096, 4096), generator=source)


def heavy_entries(source):
    """Independent Student-t(3) entries."""
    normal = torch.randn((4096, 4096), generator=source)
    scale = sum(torch.randn((4096, 4096), generator=source).square() for _ in range(3)) / 3
    return normal / scale.sqrt()


def power_law_signal(source):
    """A power law of 512 directions over noise, as in trained weights."""
    left, right = (torch.randn(shape, generator=source) for shape in ((4096, 512), (512, 4096)))
    return 3 * left * torch.arange(1, 513) ** -0.8 @ right + torch.randn((4096, 4096), generator=source)


@cache
def alphas_by_shape(make, draws=3):
    """Mean alpha of sub-matrices of every shape, all from the same matrices: of the whole, and over windows."""
    found = {config: {shape: [] for shape in SHAPES} for config in (WHOLE, WINDOWS)}
    for draw in range(draws):
        matrix = make(torch.Generator().manual_seed(draw))
        for (m, n), config in ((shape, config) for shape in SHAPES for config in found):
            found[config][m, n].append(layer_spectrum(matrix[:m, :n], config).alpha)
    return [{shape: statistics.fmean(alphas) for shape, alphas in by_shape.items()} for by_shape in found.values()]


@pytest.mark.parametrize("make", [gaussian, heavy_entries, power_law_signal])
def test_windows_move_at_least_ten_times_less_than_the_whole_matrix(make):
    whole, windows = (max(alphas.values()) - min(alphas.values()) for alphas in alphas_by_shape(make))
    assert whole > 0.1
    assert whole > 10 * windows


def marchenko_pastur_alpha(m, n, points=200_000):
    """alpha of the law itself, with the tail from its median: by quadrature of the density."""
    q = min(m, n) / max(m, n)
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    # The substitution removes the poles of the density at the edges.
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) / points * math.pi
    x = (low + high) / 2 - (high - low) / 2 * angle.cos()
    weight = ((x - low) * (high - x)).sqrt() / x * angle.sin()
    share = weight.cumsum(0) / weight.sum()
    median = x[torch.searchsorted(share, 0.5)]
    tail = x > median
    return 1 + (weight[tail].sum() / (weight[tail] * (x[tail] / median).log()).sum()).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_weights_follow_the_marchenko_pastur_law(shape):
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    whole = statistics.fmean(layer_spectrum(weight, WHOLE).alpha for weight in weights)
    windows = statistics.fmean(layer_spectrum(weight, WINDOWS).alpha for weight in weights)
    assert whole == pytest.approx(marchenko_pastur_alpha(*shape), rel=0.02)
    assert windows == pytest.approx(marchenko_pastur_alpha(1, 1), rel=0.02)


@pytest.mark.parametrize("aspect_ratio", [0.25, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("shape", [(512, 512), (512, 2048), (2048, 512)])
def test_gaussian_windows_follow_the_law_of_their_own_aspect_ratio(shape, aspect_ratio):
    config = FarmsConfig(window_rows=round(128 / math.sqrt(aspect_ratio)), aspect_ratio=aspect_ratio)
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    alpha = statistics.fmean(layer_spectrum(weight, config).alpha for weight in weights)
    assert alpha == pytest.approx(marchenko_pastur_alpha(1, aspect_ratio), rel=0.02)


def test_the_law_moves_with_the_shape():
    assert marchenko_pastur_alpha(1, 16) - marchenko_pastur_alpha(1, 1) > 1.5


class Gaussian(torch.nn.Module):
    """Blocks like those of a Llama, of independent Gaussian weights."""

    def __init__(self, blocks, seed):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.layers = torch.nn.ModuleList()
        for _ in range(blocks):
            linear = [torch.nn.Linear(n, m, bias=False) for m, n in MODEL_SHAPES]
            for layer in linear:
                torch.nn.init.normal_(layer.weight, generator=source)
            self.layers.append(torch.nn.ModuleList(linear))


@pytest.mark.filterwarnings("ignore:No layout is known")
@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_differ_by_chance_get_equal_sparsities_and_learning_rates(seed):
    report = analyze(Gaussian(12, seed))
    alphas, errors = [block.alpha for block in report.blocks], [block.alpha_stderr for block in report.blocks]
    assert lr_factors(alphas, stderr=errors) == [1.0] * 12
    assert plan_sparsity(report, config=PruneConfig(sparsity=0.5)) == pytest.approx([0.5] * 12)
    assert len({block.alpha for block in report.blocks}) == 12
