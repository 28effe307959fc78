import json
import math

import pytest

from hf_farms.allocation.lr import lr_factors
from hf_farms.config import LR_MAPS

ALPHAS = [2.5, 1.5, 3.0, 2.0, 4.0]


@pytest.mark.parametrize("name", ["linear", "sqrt", "log2", "step"])
def test_maps_of_the_released_code(golden, name):
    case = json.loads((golden / "lr_maps.json").read_text())
    expected = case["maps"]["tb_linear_map" if name == "linear" else f"tb_{name}"]
    scales = {"min_scale": case["min_scale"], "max_scale": case["max_scale"]}
    factors = lr_factors(case["alphas"], map=name, released_step=True, **scales)
    assert [case["base_lr"] * factor for factor in factors] == pytest.approx(expected, rel=1e-6)


def test_the_sigmoid_of_model_balancing(golden):
    case = json.loads((golden / "lr_maps.json").read_text())
    released = case["maps"]["tb_sigmoid"]
    low, high = 10 ** (-released["sigmoid_min"] / 2), 10 ** (released["sigmoid_max"] / 2)
    factors = lr_factors(case["alphas"], map="sigmoid", min_scale=low, max_scale=high)
    assert [case["base_lr"] * factor for factor in factors] == pytest.approx(released["lr"], rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "step", "sigmoid"])
def test_factors_lie_between_the_scales_and_rise_with_alpha(name):
    factors = lr_factors(ALPHAS, map=name, min_scale=0.4, max_scale=1.6)
    assert sorted(range(5), key=factors.__getitem__) == sorted(range(5), key=ALPHAS.__getitem__)
    assert min(factors) == pytest.approx(0.4, abs=0.01)
    assert max(factors) == pytest.approx(1.6, abs=0.01)


@pytest.mark.parametrize("name", ["sqrt", "log2"])
def test_proportional_maps_have_mean_one(name):
    assert math.fsum(lr_factors(ALPHAS, map=name)) / 5 == pytest.approx(1)


def test_equal_alphas_share_a_step():
    assert lr_factors([2.0, 2.0, 3.0], map="step", min_scale=0.5, max_scale=1.5) == pytest.approx([0.75, 0.75, 1.5])


@pytest.mark.parametrize("name", LR_MAPS)
def test_no_signal_no_effect(name):
    assert lr_factors([2.0] * 4, map=name) == [1.0] * 4
    assert lr_factors([], map=name) == []
    assert lr_factors([2.0], map=name) == [1.0]
    assert lr_factors([2.0, 2.01, 1.99], map=name, stderr=[0.1] * 3) == [1.0] * 3


def test_factors_shrink_by_reliability():
    exact = lr_factors([2.0, 3.0, 4.0])
    noisy = lr_factors([2.0, 3.0, 4.0], stderr=[0.5] * 3)
    assert noisy == pytest.approx([1 + 0.75 * (factor - 1) for factor in exact])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map": "cubic"}, "map must be one of linear, sqrt, log2, step, sigmoid, got 'cubic'"),
        ({"min_scale": 2.0}, "scales must be 0 < min_scale <= max_scale, got 2.0 and 1.5"),
        ({"min_scale": 0.0}, "scales must be 0 < min_scale <= max_scale, got 0.0 and 1.5"),
        ({"alphas": [2.0, math.nan]}, "alphas must be finite and above 1, got"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lr_factors(**{"alphas": ALPHAS, **changes})
