import json
import math
from dataclasses import replace

import pytest

from hf_farms.allocation.lr import allocate_lr, lr_factors, smoothed
from hf_farms.config import LR_MAPS, FarmsConfig, FarmsLRConfig
from hf_farms.reports import BlockSpectrum, LayerRecord, SpectralReport, StandingOut

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


def record(name, alpha, *, eigenvalues=100, shape=(10, 10), role="q"):
    numbers = dict.fromkeys(LayerRecord.__dataclass_fields__)
    numbers |= {"name": name, "role": role, "shape": shape, "alpha": alpha, "num_eigenvalues": eigenvalues}
    return LayerRecord(**numbers)


def report(blocks, outside=()):
    """Blocks of layers; their alpha is the mean."""
    found = []
    for index, layers in enumerate(blocks):
        alphas = [layer.alpha for layer in layers if layer.alpha is not None]
        mean = math.fsum(alphas) / len(alphas) if alphas else None
        found.append(BlockSpectrum(index=index, name=f"{index}", alpha=mean, alpha_stderr=None, layers=tuple(layers)))
    return SpectralReport(
        model="m",
        model_type="t",
        config=FarmsConfig(),
        window_rows=None,
        blocks=tuple(found),
        outside=tuple(outside),
        notes=(),
    )


BLOCKS = [[record(f"{i}.q", alpha), record(f"{i}.k", alpha + 0.5)] for i, alpha in enumerate((2.0, 3.0, 4.0, 2.5))]


def factors_of(blocks, beside=(), **options):
    return allocate_lr(report(blocks, beside), config=FarmsLRConfig(shrink=False, **options))


def test_layers_of_a_block_share_its_factor():
    factors = factors_of(BLOCKS)
    assert [factors[f"{i}.q"] for i in range(4)] == pytest.approx([0.5, 1.0, 1.5, 0.75])
    assert all(factors[f"{i}.q"] == factors[f"{i}.k"] for i in range(4))


def test_layers_have_factors_of_their_own():
    factors = factors_of(BLOCKS, unit="layer")
    assert factors["0.q"] == 0.5
    assert factors["2.k"] == 1.5
    assert factors["1.k"] == pytest.approx(0.5 + 1.5 / 2.5)


def test_first_and_last_are_left_out_on_request():
    factors = factors_of(BLOCKS, ends="apart")
    assert [factors[f"{i}.q"] for i in range(4)] == [1.0, 0.5, 1.5, 1.0]
    factors = factors_of(BLOCKS, ends="released", unit="layer")
    assert factors["0.q"] == factors["3.k"] == 1.0
    assert factors["0.k"] == 0.5


def test_layers_with_few_eigenvalues_and_routers_stay_at_one():
    few = [*BLOCKS, [record("4.q", 9.0, eigenvalues=49), record("4.k", 9.0, role="router")]]
    for unit in ("block", "layer"):
        factors = factors_of(few, unit=unit)
        assert factors["4.q"] == factors["4.k"] == 1.0
        assert max(factors.values()) == factors["2.k"] == 1.5
    assert factors_of(few, min_eigenvalues=49)["4.q"] == 1.5


def test_layers_without_a_tail_stay_at_one():
    assert factors_of([*BLOCKS, [record("4.q", None)]])["4.q"] == 1.0


def test_embeddings_and_head_stay_at_one_unless_asked_for():
    head = [record("head", 9.0)]
    assert factors_of(BLOCKS, head).get("head", 1.0) == 1.0
    assert factors_of(BLOCKS, head, outside=True)["head"] == 1.5
    assert factors_of(BLOCKS, head, outside=True, ends="apart")["0.q"] == 1.0


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_ends_take_alphas_of_other_blocks_and_not_of_embeddings_and_head(unit):
    beside = [record("embeddings", 1.5), record("head", 1.6)]
    factors = factors_of(BLOCKS, beside, outside=True, ends="lowest", unit=unit)
    assert factors["0.q"] == factors["3.k"] == factors["1.q"] > factors["embeddings"] == 0.5
    median = factors_of(BLOCKS, beside, outside=True, ends="first-median", unit=unit)
    assert median["0.q"] == pytest.approx((median["1.q"] + median["1.k"]) / 2)
    # Without other blocks, the ends stay out.
    alone = factors_of([BLOCKS[0], BLOCKS[2]], beside, outside=True, ends="lowest", unit=unit)
    assert [alone[name] for name in ("0.q", "2.k", "embeddings", "head")] == [1.0, 1.0, 0.5, 1.5]


def test_normalized_factors_have_mean_one_over_weights():
    sizes = [(10, 10), (20, 10), (5, 10), (40, 10)]
    blocks = [
        [record(f"{i}.q", alpha, shape=shape)] for i, (alpha, shape) in enumerate(zip(ALPHAS[:4], sizes, strict=True))
    ]
    factors = factors_of(blocks, normalize=True)
    total = sum(math.prod(shape) for shape in sizes)
    assert math.fsum(factors[f"{i}.q"] * math.prod(shape) for i, shape in enumerate(sizes)) / total == pytest.approx(1)
    plain = factors_of(blocks)
    assert factors["0.q"] / plain["0.q"] == pytest.approx(factors["3.q"] / plain["3.q"])
    assert factors["0.q"] != plain["0.q"]


def test_earlier_alphas_have_their_share():
    given = report(BLOCKS, [record("head", 4.0)])
    found = smoothed(given, layers={"0.q": 3.0, "head": 2.0}, blocks={"1": 5.25}, keep=0.75)
    assert found.blocks[0].layers[0].alpha == 0.75 * 3.0 + 0.25 * 2.0
    assert found.blocks[0].layers[1] == given.blocks[0].layers[1]
    assert [block.alpha for block in found.blocks] == [2.25, 0.75 * 5.25 + 0.25 * 3.25, 4.25, 2.75]
    assert found.outside[0].alpha == 2.5
    assert smoothed(given, layers={"0.q": 3.0}, blocks={"1": 5.25}, keep=0.0) == given


def test_smoothed_alphas_lose_the_statement_about_those_before():
    given = replace(report(BLOCKS), standing_out=StandingOut(sentence="Block 2 stands out."))
    assert smoothed(given, layers={}, blocks={"1": 5.25}, keep=0.5).standing_out is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map": "cubic"}, "map must be .*got 'cubic'"),
        ({"unit": "head"}, "unit must be .*got 'head'"),
        ({"quantity": "momentum"}, "quantity must be .*got 'momentum'"),
        ({"min_scale": 2.0}, r"min_scale must be at most max_scale \(1.5\), got 2.0"),
        ({"min_scale": 0.0}, "min_scale must be a positive number, got 0.0"),
        ({"max_scale": -1.0}, "max_scale must be a positive number, got -1.0"),
        ({"max_scale": math.inf}, "max_scale must be a positive number, got inf"),
        ({"interval": 0}, "interval must be .*positive number of steps.*got 0"),
        ({"interval": 1.0}, "interval must be .*between 0 and 1.*got 1.0"),
        ({"interval": "step"}, "interval must be .*got 'step'"),
        ({"start": -1}, "start must be .*got -1"),
        ({"start": 1.5}, "start must be .*got 1.5"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1, got 1.0"),
        ({"min_eigenvalues": 0}, "min_eigenvalues must be a positive integer, got 0"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FarmsLRConfig(**changes)
