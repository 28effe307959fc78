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
