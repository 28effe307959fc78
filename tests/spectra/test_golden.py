import json

import numpy as np
import pytest
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.spectrum import layer_spectrum

NAMES = {
    "alpha": "alpha",
    "ks_distance": "ks_distance",
    "spectral_norm": "spectral_norm",
    "frobenius_norm_sq": "frobenius_sq",
    "alpha_hat": "alpha_hat",
    "stable_rank": "stable_rank",
}


@pytest.mark.parametrize("fit", ["mid", "peak"])
@pytest.mark.parametrize("windows", ["windows", "whole"])
def test_numbers_of_the_released_code(golden, fit, windows):
    matrices = np.load(golden / "matrices.npz")
    cases = [
        case
        for case in json.loads((golden / "farms_linear.json").read_text())
        if case["fit"] == f"xmin_{fit}" and (case["window_rows"] is None) == (windows == "whole")
    ]
    assert len(cases) in (6, 30)
    for case in cases:
        config = FarmsConfig(
            window_rows=case["window_rows"],
            aspect_ratio=case.get("aspect_ratio_cols_over_rows", 1.0),
            windows_per_dim=case.get("windows_per_dim", "auto"),
            fit=fit,
            released_peak_bound=True,
        )
        spectrum = layer_spectrum(torch.from_numpy(matrices[case["matrix"]]), config)
        assert spectrum.num_eigenvalues == case["num_eigs"]
        for ours, theirs in NAMES.items():
            assert getattr(spectrum, ours) == pytest.approx(case[theirs], rel=1e-3), (case, ours)


def test_the_exact_bound_differs_from_the_released_one(golden):
    weight = torch.from_numpy(np.load(golden / "matrices.npz")["gauss_256x256"])
    released = layer_spectrum(weight, FarmsConfig(window_rows=None, fit="peak", released_peak_bound=True))
    exact = layer_spectrum(weight, FarmsConfig(window_rows=None, fit="peak"))
    assert exact.alpha > released.alpha + 1


def test_convolutions_of_the_released_code(golden):
    """Spectra of all places of a kernel pooled, alphas averaged over the pieces of the longer side; fit `mid`."""
    convs = np.load(golden / "convs.npz")
    cases = json.loads((golden / "farms_conv.json").read_text())
    assert len(cases) == 4
    for case in cases:
        weight = torch.from_numpy(convs[case["conv"]])
        spectrum = layer_spectrum(weight, FarmsConfig(aspect_ratio=case["aspect_ratio"]))
        assert spectrum.alpha == pytest.approx(case["alpha_farms"], rel=1e-5)
        assert spectrum.num_eigenvalues == case["num_eigs"]
        assert spectrum.alpha_stderr > 0
        whole = layer_spectrum(weight, FarmsConfig(window_rows=None))
        assert whole.alpha == pytest.approx(case["alpha_whole"], rel=1e-5)


def released_alpha_of_convolution(weight):
    """The released cutting, piece by piece: square pieces side by side, spectra pooled over the kernel, mean alpha."""
    out, ins, *_ = weight.shape
    matrices = weight.reshape(out, ins, -1).transpose(2, 0, 1)
    matrices = matrices.transpose(0, 2, 1) if out < ins else matrices
    rows, cols = matrices.shape[1:]
    alphas = []
    for piece in range(rows // cols):
        parts = [matrix[piece * cols : (piece + 1) * cols] for matrix in matrices]
        spectrum = np.sort(np.concatenate([np.linalg.svd(part, compute_uv=False) ** 2 for part in parts]))
        tail = spectrum[len(spectrum) // 2 :]
        alphas.append(1 + len(tail) / np.log(tail / tail[0]).sum())
    return np.mean(alphas), rows // cols * cols * len(matrices)


@pytest.mark.parametrize(
    "shape",
    [
        *((48, 20, 5, 5), (20, 48, 3, 3), (31, 10, 3), (10, 39, 7), (65, 16, 2, 2, 2), (13, 12, 1, 1), (17, 16, 3, 5)),
        # Grouped and depthwise: few inputs, or one, for each output.
        *((64, 6, 3, 3), (50, 4, 3), (7, 2, 3, 3), (9, 1, 3, 3)),
    ],
    ids=str,
)
def test_convolutions_whose_sides_do_not_divide(shape):
    weight = np.random.default_rng(0).standard_normal(shape)
    # Rows of different size, so that it matters which of them a piece holds.
    weight *= np.logspace(0, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    alpha, count = released_alpha_of_convolution(weight)
    spectrum = layer_spectrum(torch.from_numpy(weight))
    assert spectrum.alpha == pytest.approx(alpha, rel=1e-4)
    assert spectrum.num_eigenvalues == count
