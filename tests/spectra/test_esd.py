import math

import pytest
import torch

import hf_farms.spectra.esd as esd
from hf_farms.config import FarmsConfig
from hf_farms.spectra.esd import window_eigenvalues, windows_eigenvalues
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.spectrum import layer_spectra, layer_spectrum
from hf_farms.spectra.windows import sample_windows


def exact(windows):
    """Squared singular values in float64, one window after another."""
    flat = windows.reshape(-1, *windows.shape[-2:])
    flat = flat.to(torch.complex128 if flat.is_complex() else torch.float64)
    return torch.stack([torch.linalg.svdvals(window).square().flip(0) for window in flat])


def decaying(k, decades, source):
    """A random k x k matrix whose singular values fall geometrically."""
    left, right = (torch.linalg.qr(torch.randn((k, k), generator=source, dtype=torch.float64)).Q for _ in range(2))
    return left * torch.logspace(0, -decades, k, dtype=torch.float64) @ right.T


def mid_alpha(eigenvalues):
    return fit_tail(eigenvalues.flatten().sort().values[None], FarmsConfig()).alpha.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [64, 130, 600])
def test_float32_gives_the_alpha_of_float64(dtype, k):
    windows = torch.randn((3, k, k), generator=torch.Generator().manual_seed(k)).to(dtype)
    fast = window_eigenvalues(windows, dtype=torch.float32)
    assert mid_alpha(fast) == pytest.approx(mid_alpha(exact(windows)), rel=1e-5)
    assert (fast >= 0).all()
    assert torch.equal(fast, fast.sort().values)


@pytest.mark.parametrize("decades", [1, 2, 4, 6])
def test_spectra_too_wide_for_float32_are_solved_exactly(decades):
    weight = decaying(128, decades, torch.Generator().manual_seed(decades))
    found = window_eigenvalues(weight[None], dtype=torch.float32)
    assert mid_alpha(found) == pytest.approx(mid_alpha(exact(weight[None])), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 40, 100, 127])
def test_lost_rank_is_found_from_float32_too(rank):
    source = torch.Generator().manual_seed(rank)
    weight = torch.randn((128, rank), generator=source) @ torch.randn((rank, 128), generator=source)
    found = window_eigenvalues(weight.double()[None], dtype=torch.float32)
    assert (found > 1e-9 * found[:, -1:]).sum() == rank


def test_only_the_windows_that_need_it_are_solved_twice(monkeypatch):
    source = torch.Generator().manual_seed(0)
    windows = torch.randn((5, 80, 80), generator=source)
    windows[2] = decaying(80, 6, source)
    solved = []
    solve = esd._solve
    monkeypatch.setattr(esd, "_solve", lambda x, dtype: solved.append((len(x), dtype)) or solve(x, dtype))
    window_eigenvalues(windows, dtype=torch.float32)
    assert sum(count for count, dtype in solved if dtype == torch.float64) == 1
    assert sum(count for count, dtype in solved if dtype == torch.float32) == 5


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_and_threads_change_nothing(monkeypatch, workers):
    windows = torch.randn((7, 70, 90), generator=torch.Generator().manual_seed(0))
    together = window_eigenvalues(windows)
    monkeypatch.setattr(esd, "CPU_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    assert torch.allclose(window_eigenvalues(windows), together, rtol=1e-9)


def test_groups_do_not_mix():
    source = torch.Generator().manual_seed(0)
    groups = [torch.randn((*shape, 20, 30), generator=source) for shape in [(2, 3), (1,), (4, 1)]]
    for found, group in zip(windows_eigenvalues(groups), groups, strict=True):
        assert torch.allclose(found, exact(group), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [30, 70, 520])
def test_wide_and_tall_windows(k):
    source = torch.Generator().manual_seed(k)
    for shape in ((2, k, k + 50), (2, k + 50, k)):
        windows = torch.randn(shape, generator=source)
        assert torch.allclose(window_eigenvalues(windows), exact(windows), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (70, 70)])
def test_complex_windows(dtype, shape):
    windows = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert torch.allclose(window_eigenvalues(windows), exact(windows), rtol=1e-9)


def test_a_real_weight_is_the_same_as_a_complex_one_without_imaginary_part():
    weight = torch.randn((64, 96), generator=torch.Generator().manual_seed(0))
    assert layer_spectrum(weight.to(torch.complex64)).alpha == pytest.approx(layer_spectrum(weight).alpha, rel=1e-5)


def test_complex_weights_of_fourier_layers_are_measured_mode_by_mode():
    weight = torch.randn((24, 24, 5), generator=torch.Generator().manual_seed(0), dtype=torch.complex64)
    spectrum = layer_spectrum(weight)
    modes = torch.cat([exact(weight[None, :, :, mode]).flatten() for mode in range(5)]).sort().values
    assert spectrum.num_windows == 5
    assert torch.allclose(spectrum.eigenvalues, modes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_weights_of_any_magnitude_have_the_same_alpha(scale):
    weight = torch.randn((96, 96), generator=torch.Generator().manual_seed(0))
    usual, scaled = layer_spectrum(weight), layer_spectrum(weight * scale)
    assert scaled.alpha == pytest.approx(usual.alpha, rel=1e-4)
    assert scaled.stable_rank == pytest.approx(usual.stable_rank, rel=1e-4)
    assert scaled.spectral_norm == pytest.approx(usual.spectral_norm * scale**2, rel=1e-4)


def test_many_weights_at_once_are_the_same_as_each_alone():
    source = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=source) for shape in [(64, 64), (128, 64), (64, 200), (40, 40, 3, 3)]]
    for together, weight in zip(layer_spectra(weights), weights, strict=True):
        alone = layer_spectrum(weight)
        assert (together.alpha, together.num_windows) == (pytest.approx(alone.alpha, rel=1e-9), alone.num_windows)


def test_a_window_of_zeros_counts_as_zeros():
    weight = torch.randn((128, 128), generator=torch.Generator().manual_seed(0))
    weight[:64] = 0
    spectrum = layer_spectrum(weight, FarmsConfig(window_rows=64, windows_per_dim=2))
    assert (spectrum.eigenvalues == 0).sum() == 128
    assert math.isfinite(spectrum.alpha)
    half = layer_spectrum(weight[64:], FarmsConfig(window_rows=64, windows_per_dim=2))
    assert spectrum.alpha == pytest.approx(half.alpha)


def test_windows_may_be_views_of_anything():
    weight = torch.randn((90, 60), generator=torch.Generator().manual_seed(0))
    windows = sample_windows(weight.T, FarmsConfig(window_rows=16))
    assert torch.allclose(window_eigenvalues(windows), exact(windows), rtol=1e-9, atol=1e-12)
