import math

import pytest
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.powerlaw import fit_tail


def slow_ks(lam, i):
    n = len(lam) - i
    total = sum(math.log(lam[j] / lam[i]) for j in range(i, len(lam)))
    if total == 0:
        return None
    alpha = 1 + n / total
    return alpha, max(abs(1 - (lam[j] / lam[i]) ** (1 - alpha) - (j - i) / n) for j in range(i, len(lam)))


def slow_fit(lam, config):
    """One eigenvalue at a time, as the formulas are written."""
    lam = [x for x in lam if x > 0]
    if config.fit == "mid":
        return slow_ks(lam, int(len(lam) / config.tail_divisor))
    candidates = range(len(lam) - 1)
    if config.fit == "peak":
        logs = [math.log10(x) for x in lam]
        width = (logs[-1] - logs[0]) / 100
        bins = [0] * 100
        for x in logs:
            bins[min(99, int((x - logs[0]) / width))] += 1
        x = 10 ** (logs[0] + width * bins.index(max(bins)))
        low = math.log10(0.95 * x) if config.released_peak_bound else 0.95 * x
        candidates = [i for i in candidates if low <= lam[i] <= 1.5 * x]
    return min((fit for i in candidates if (fit := slow_ks(lam, i))), key=lambda fit: fit[1])


@pytest.mark.parametrize("size", [4, 10, 57, 200])
@pytest.mark.parametrize(
    "config",
    [
        FarmsConfig(),
        FarmsConfig(tail_divisor=1.5),
        FarmsConfig(fit="peak"),
        FarmsConfig(fit="peak", released_peak_bound=True),
        FarmsConfig(fit="goodness_of_fit"),
    ],
    ids=["mid", "mid-1.5", "peak", "released", "goodness"],
)
@pytest.mark.parametrize("zeros", [0, 2])
def test_fits_equal_the_slow_twin(size, config, zeros):
    generator = torch.Generator().manual_seed(size)
    lam = torch.rand(size, generator=generator, dtype=torch.float64).pow(-1.5).sort().values
    lam = torch.cat([torch.zeros(zeros, dtype=torch.float64), lam])
    alpha, distance, _ = fit_tail(lam[None], config)
    expected = slow_fit(lam.tolist(), config)
    assert alpha.item() == pytest.approx(expected[0], rel=1e-9)
    assert distance.item() == pytest.approx(expected[1], abs=1e-9)


def test_alpha_of_a_power_law_is_found():
    quantiles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    lam = (1 - quantiles) ** (-1 / (3.0 - 1))
    assert fit_tail(lam[None], FarmsConfig(fit="goodness_of_fit", tail_divisor=1))[0].item() == pytest.approx(
        3.0, abs=0.01
    )


@pytest.mark.parametrize("fit", ["mid", "peak", "goodness_of_fit"])
@pytest.mark.parametrize("lam", [[0.0, 0.0], [2.0, 2.0, 2.0], [1.0]], ids=["zeros", "equal", "single"])
def test_no_tail_no_alpha(fit, lam):
    assert math.isnan(fit_tail(torch.tensor([lam], dtype=torch.float64), FarmsConfig(fit=fit))[0].item())


def test_spectra_of_a_batch_do_not_mix():
    spectra = torch.rand(5, 40, dtype=torch.float64).sort().values
    together = fit_tail(spectra, FarmsConfig())[0]
    alone = torch.cat([fit_tail(row[None], FarmsConfig())[0] for row in spectra])
    assert torch.equal(together, alone)


def exhaustive(lam):
    """KS distance of every tail, in one table."""
    log, size = lam.log(), len(lam)
    i, j = torch.arange(size)[:, None], torch.arange(size)[None]
    in_tail, n = j >= i, (size - i).double()
    ratio = torch.where(in_tail, log[j] - log[i], 0.0)
    alpha = 1 + n / ratio.sum(dim=1, keepdim=True)
    distance = torch.where(in_tail, (1 - torch.exp((1 - alpha) * ratio) - (j - i) / n).abs(), 0.0).amax(dim=1)
    return alpha[:, 0], torch.where(torch.isfinite(alpha[:, 0]), distance, torch.inf)


def draw(kind, size):
    source = torch.Generator().manual_seed(size)
    uniform = torch.rand(size, generator=source, dtype=torch.float64)
    return (
        {
            "pareto": lambda: uniform ** (-1 / 1.7),  # every tail is a power law: the hardest to tell apart
            "gaussian": lambda: torch.linalg.eigvalsh(
                (lambda x: x @ x.T)(torch.randn((size, size), generator=source, dtype=torch.float64))
            ),
            "uniform": lambda: uniform,
            "lognormal": lambda: torch.randn(size, generator=source, dtype=torch.float64).mul(2).exp(),
            "two bumps": lambda: torch.cat([uniform[::2], 100 + uniform[1::2] ** (-1 / 3)]),
            "ties": lambda: (uniform * 20).ceil(),
            "mostly one value": lambda: torch.where(uniform < 0.9, 1.0, 1 / uniform),
        }[kind]()
        .sort()
        .values
    )


@pytest.mark.parametrize("size", [300, 1801])
@pytest.mark.parametrize(
    "kind", ["pareto", "gaussian", "uniform", "lognormal", "two bumps", "ties", "mostly one value"]
)
def test_the_search_finds_the_smallest_distance_of_all(kind, size):
    lam = draw(kind, size)
    alphas, distances = exhaustive(lam)
    fit = fit_tail(lam[None], FarmsConfig(fit="goodness_of_fit"))
    best = distances[:-1].argmin()
    assert fit.distance.item() == pytest.approx(distances[best].item(), rel=1e-9)
    assert fit.tail_min.item() == lam[best].item()
    assert fit.alpha.item() == pytest.approx(alphas[best].item(), rel=1e-9)


def test_the_tail_starts_where_the_fit_says():
    lam = torch.arange(1, 11, dtype=torch.float64)[None]
    assert fit_tail(lam, FarmsConfig()).tail_min.item() == 6.0
    assert fit_tail(lam, FarmsConfig(tail_divisor=1.5)).tail_min.item() == 7.0
