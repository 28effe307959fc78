import math
import statistics

import pytest
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.esd import window_eigenvalues
from hf_farms.spectra.spectrum import layer_spectrum
from hf_farms.spectra.windows import sample_windows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "rows", "aspect_ratio"), [((48, 48), 16, 1.0), ((37, 91), 11, 2.0), ((91, 37), 20, 0.5)]
)
def test_eigenvalues_equal_squared_singular_values(dtype, shape, rows, aspect_ratio):
    weight = torch.randn(shape).to(dtype)
    windows = sample_windows(weight, FarmsConfig(window_rows=rows, aspect_ratio=aspect_ratio))
    flat = windows.reshape(-1, *windows.shape[-2:]).double()
    expected = torch.stack([torch.linalg.svdvals(window).square().sort().values for window in flat])
    assert torch.allclose(window_eigenvalues(windows), expected, rtol=1e-9, atol=1e-12)


def test_small_eigenvalues_keep_their_digits():
    left, right = (torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q for _ in range(2))
    singular = torch.logspace(-4, 0, 40, dtype=torch.float64)
    weight = left * singular @ right.T
    got = window_eigenvalues(weight[None])[0]
    assert torch.allclose(got, singular.square(), rtol=1e-6)


def test_thread_count_is_left_as_it_was():
    before = torch.get_num_threads()
    window_eigenvalues(torch.randn(3, 8, 8))
    assert torch.get_num_threads() == before


def test_weight_is_not_modified_and_needs_no_contiguity():
    weight = torch.randn(40, 24).T
    copy = weight.clone()
    spectrum = layer_spectrum(weight)
    assert torch.equal(weight, copy)
    assert spectrum.alpha == layer_spectrum(copy.contiguous()).alpha


def test_metrics_follow_their_definitions():
    spectrum = layer_spectrum(torch.randn(40, 30), FarmsConfig(window_rows=None))
    lam = spectrum.eigenvalues
    p = lam / lam.sum()
    assert torch.equal(lam, lam.sort().values)
    assert spectrum.num_eigenvalues == len(lam) == 30
    assert spectrum.window_shape == (40, 30)
    assert spectrum.spectral_norm == lam.max().item()
    assert spectrum.frobenius_norm_sq == pytest.approx(lam.sum().item())
    assert spectrum.stable_rank == pytest.approx((lam.sum() / lam.max()).item())
    assert spectrum.alpha_hat == pytest.approx(spectrum.alpha * math.log10(lam.max()))
    assert spectrum.entropy == pytest.approx((-(p * p.log()).sum() / math.log(30)).item())


def test_one_window_has_no_standard_error():
    assert layer_spectrum(torch.randn(20, 20), FarmsConfig(window_rows=None)).alpha_stderr is None
    assert layer_spectrum(torch.randn(20, 20)).alpha_stderr > 0


def test_overlapping_windows_do_not_shrink_the_error():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    disjoint = layer_spectrum(weight, FarmsConfig(window_rows=32))
    overlapping = layer_spectrum(weight, FarmsConfig(window_rows=32, windows_per_dim=20))
    assert overlapping.num_windows == 400
    assert overlapping.alpha_stderr > 0.3 * disjoint.alpha_stderr


def signal_over_noise(m, n, seed):
    """A power law of singular values in random directions, and noise."""
    source, k = torch.Generator().manual_seed(seed), min(m, n) // 2
    left, right = torch.randn((m, k), generator=source), torch.randn((k, n), generator=source)
    return (
        left * (torch.arange(1, k + 1) / k) ** -0.5 @ right / math.sqrt(n) + torch.randn((m, n), generator=source) / 2
    )


@pytest.mark.parametrize(
    ("shape", "rows"), [((256, 256), 32), ((256, 256), 64), ((128, 512), 72), ((72, 288), 72), ((100, 100), 60)]
)
def test_the_error_is_the_deviation_of_alpha_also_where_windows_overlap(shape, rows):
    config = FarmsConfig(window_rows=rows)
    spectra = [layer_spectrum(signal_over_noise(*shape, seed), config) for seed in range(80)]
    deviation = statistics.stdev(spectrum.alpha for spectrum in spectra)
    error = statistics.fmean(spectrum.alpha_stderr for spectrum in spectra)
    assert 0.8 * deviation < error < 1.5 * deviation


def test_rows_that_do_not_fit_are_lowered_and_said():
    spectrum = layer_spectrum(torch.randn(10, 50), FarmsConfig(window_rows=30))
    assert spectrum.window_shape == (10, 10)
    assert spectrum.rows_lowered


@pytest.mark.parametrize(
    "weight", [torch.zeros(8, 8), torch.eye(8), torch.ones(8, 8)], ids=["zeros", "identity", "ones"]
)
def test_a_weight_without_a_tail_has_no_alpha(weight):
    spectrum = layer_spectrum(weight)
    assert spectrum.alpha is None
    assert spectrum.alpha_stderr is None
    assert math.isfinite(spectrum.entropy)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.randn(3), r"weight must be a matrix with at least one entry, got shape \(3,\)"),
        (torch.randn(0, 3), r"weight must be a matrix with at least one entry, got shape \(0, 3\)"),
        (torch.tensor([[1.0, float("nan")]]), "weight must be finite, got NaN"),
        (torch.tensor([[1.0, float("inf")]]), "weight must be finite, got NaN or infinity"),
    ],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        layer_spectrum(weight)
