import dataclasses

import pytest

from hf_farms.config import (
    METHODS,
    RECOVERIES,
    CalibrationConfig,
    EvaluationConfig,
    FarmsConfig,
    PruneConfig,
    default_output_name,
)
from hf_farms.config.effects import warn_unused
from hf_farms.errors import NoEffectWarning


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FarmsConfig(window_rows=0), r"window_rows must be 'auto', None or a positive integer, got 0"),
        (lambda: FarmsConfig(window_rows=True), r"window_rows must be .* got True"),
        (lambda: FarmsConfig(windows_per_dim=None), r"windows_per_dim must be .* got None"),
        (lambda: FarmsConfig(aspect_ratio=0), r"aspect_ratio must be a positive number, got 0"),
        (lambda: FarmsConfig(aspect_ratio=float("nan")), r"aspect_ratio must be a positive number, got nan"),
        (lambda: FarmsConfig(fit="best"), r"fit must be one of mid, peak, goodness_of_fit, got 'best'"),
        (lambda: FarmsConfig(tail_divisor=0.5), r"tail_divisor must be a number above 1, got 0.5"),
        (lambda: FarmsConfig(tail_divisor=1), r"tail_divisor must be a number above 1, got 1. The tail begins at"),
        (lambda: FarmsConfig(tail_divisor="2"), r"tail_divisor must be a number above 1, got '2'"),
        (lambda: FarmsConfig(tail_divisor=True), r"tail_divisor must be a number above 1, got True"),
        (lambda: PruneConfig(sparsity=1.0), r"sparsity must be at least 0 and below 1, got 1.0"),
        (lambda: PruneConfig(sparsity=-0.1), r"sparsity must be at least 0 and below 1, got -0.1"),
        (lambda: PruneConfig(sparsity=float("nan")), r"sparsity must be at least 0 and below 1, got nan"),
        (lambda: PruneConfig(method="obs"), r"method must be one of magnitude, wanda, ria, sparsegpt, got 'obs'"),
        (lambda: PruneConfig(allocation="lamp"), r"allocation must be one of uniform, farms, .*, auto, got 'lamp'"),
        (lambda: PruneConfig(pattern="2/4"), r"pattern must be 'unstructured', 'N:M' with two numbers .* got '2/4'"),
        (lambda: PruneConfig(pattern="0:4"), r"pattern must be 'unstructured', 'N:M' .* got '0:4'"),
        (lambda: PruneConfig(pattern=None), r"pattern must be 'unstructured', 'N:M' .* got None"),
        (lambda: PruneConfig(pattern="N:1"), r"pattern must be groups of at least 2 weights, got 'N:1'"),
        (
            lambda: PruneConfig(pattern="4:4"),
            r"pattern must be N:M with N below M, got '4:4'. N of every M weights stay",
        ),
        (
            lambda: PruneConfig(pattern="2:4", sparsity=0.6, allocation="uniform"),
            r"sparsity must be 0.5 for pattern '2:4', got 0.6. 2 of every 4 weights stay",
        ),
        (
            lambda: PruneConfig(pattern="1:3", sparsity=0.66, allocation="uniform"),
            r"sparsity must be 0.6667 for pattern '1:3', got 0.66",
        ),
        (
            lambda: PruneConfig(pattern="N:8", sparsity=0.9),
            r"sparsity must be at most 0.875 for pattern 'N:8', got 0.9. "
            r"Lower it, use larger groups, or say `pattern='unstructured'`\.",
        ),
        (
            lambda: PruneConfig(damping=0),
            r"damping must be a positive number, got 0\. Use 0\.01, or 0\.1 for little calibration data\.",
        ),
        (
            lambda: PruneConfig(pattern="2:4"),
            r"allocation must be 'uniform' for pattern '2:4', got 'farms'. Say `allocation='uniform'`, or `pattern=",
        ),
        (lambda: PruneConfig(spread=1), r"spread must be None, or at least 0 and below 1, got 1"),
        (lambda: PruneConfig(max_sparsity=0), r"max_sparsity must be above 0 and at most 1, got 0"),
        (lambda: CalibrationConfig(source=""), r"calibration source must be .* got ''"),
        (lambda: CalibrationConfig(num_sequences=0), r"num_sequences must be a positive integer, got 0"),
        (lambda: CalibrationConfig(sequence_length=1), r"sequence_length must be an integer of at least 2, got 1"),
        (lambda: CalibrationConfig(seed=-1), r"seed must be an integer of at least 0, got -1"),
        (lambda: EvaluationConfig(context_length=1), r"context_length must be an integer of at least 2, got 1"),
        (lambda: EvaluationConfig(max_windows=0), r"max_windows must be None or a positive integer, got 0"),
    ],
)
def test_bad_values_are_refused_with_what_must_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("config", [FarmsConfig(), PruneConfig(), CalibrationConfig(), EvaluationConfig()])
def test_configs_are_frozen_and_keyword_only(config):
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        config.seed = 1
    with pytest.raises(TypeError, match="positional"):
        type(config)(0.5)


def test_the_papers_setting():
    config = FarmsConfig.paper()
    assert (config.window_rows, config.aspect_ratio, config.windows_per_dim) == (2000, 1.0, 15)
    assert (config.fit, config.released_peak_bound) == ("peak", True)


def test_alpha_is_measured_on_whole_matrices_and_farms_on_windows():
    assert PruneConfig(allocation="alpha").measurement() == FarmsConfig(window_rows=None)
    assert PruneConfig(allocation="farms").measurement() == FarmsConfig()


@pytest.mark.parametrize(
    ("model", "config", "name"),
    [
        ("meta-llama/Llama-2-7b", PruneConfig(), "Llama-2-7b-farms-wanda-50"),
        ("./models/mine/", PruneConfig(sparsity=0.625, method="magnitude"), "mine-farms-magnitude-62.5"),
        ("demo", PruneConfig(allocation="uniform", sparsity=0.07), "demo-uniform-wanda-7"),
        (
            "demo",
            PruneConfig(allocation="uniform", pattern="2:4", method="sparsegpt"),
            "demo-uniform-sparsegpt-50-2of4",
        ),
        ("demo", PruneConfig(refine="swaps"), "demo-farms-wanda-swaps-50"),
        ("demo", PruneConfig(pattern="N:8", sparsity=0.6), "demo-farms-wanda-60-Nof8"),
    ],
)
def test_output_name(model, config, name):
    assert default_output_name(model, config) == name


@pytest.mark.parametrize(
    ("config", "group"),
    [
        (PruneConfig(), None),
        (PruneConfig(pattern="2:4", allocation="uniform"), (2, 4)),
        (PruneConfig(pattern="1:3", sparsity=0.6667, allocation="uniform"), (1, 3)),
        (PruneConfig(pattern="N:16"), (None, 16)),
    ],
)
def test_patterns_are_read(config, group):
    assert config.group == group


def test_only_magnitude_needs_no_calibration():
    assert [m for m in METHODS if not PruneConfig(method=m).needs_calibration] == ["magnitude"]


def test_uniform_sparsity_is_the_default_where_a_recovery_follows():
    assert {name: PruneConfig(recover=name).allocation for name in RECOVERIES} == {
        "none": "farms",
        "submodule": "uniform",
        "distill": "uniform",
    }
    assert PruneConfig(recover="submodule", allocation="farms").allocation == "farms"
    assert PruneConfig(allocation="uniform").allocation == "uniform"
    # A copy keeps the name, whatever it changes; None is the default again.
    copy = dataclasses.replace(PruneConfig(), recover="submodule")
    assert copy.allocation == "farms"
    assert dataclasses.replace(copy, allocation=None).allocation == "uniform"
    # Nothing chosen needs a pattern of one N then.
    assert PruneConfig(recover="submodule", pattern="2:4").allocation == "uniform"


def test_options_of_an_allocation_that_a_recovery_does_not_have_are_said():
    with pytest.warns(NoEffectWarning, match=r"`spread` has no effect: it applies to allocation 'farms', .* or 'dlp'"):
        warn_unused(PruneConfig(recover="submodule", spread=0.2))
    # Warnings are errors here.
    warn_unused(PruneConfig(recover="submodule"))
    warn_unused(PruneConfig(recover="submodule", allocation="farms", spread=0.2))
