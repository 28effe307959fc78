"""Fields without an effect: each rule warns where it does not apply, and is silent where it does."""

import warnings
from dataclasses import fields, replace

import pytest

from hf_farms.config import (
    CalibrationConfig,
    EvaluationConfig,
    FarmsConfig,
    FarmsLRConfig,
    LoadOptions,
    PruneConfig,
    S2FTConfig,
    SelectionConfig,
)
from hf_farms.config.effect_inputs import AnalyzeArguments, EvaluateArguments, Inputs, PruneArguments
from hf_farms.config.effect_rules import RULES
from hf_farms.config.effects import given_fields, unused_fields, warn_unused
from hf_farms.errors import NoEffectWarning
from hf_farms.registries import FITS

PEAK = FarmsConfig(fit="peak")
LOCAL, HUB, TABLE, DATASET = Inputs(model="folder"), Inputs(model="hub"), Inputs(text="table"), Inputs(text="dataset")
PLAIN, BUILT_IN = Inputs(text="file"), Inputs(text="built-in")
SAVED, MODEL = Inputs(measured=False, checkpoint=False), Inputs(model="folder")
NO_CALIBRATION, NO_PERPLEXITY = Inputs(calibrates=False), Inputs(perplexity=False)

# A config in which the field is set and has no effect, the input, and the same for one in which it has.
CASES = {
    "tail_divisor": (FarmsConfig(fit="peak", tail_divisor=3), None, FarmsConfig(tail_divisor=3), None),
    "released_peak_bound": (
        FarmsConfig(released_peak_bound=True),
        None,
        FarmsConfig(fit="peak", released_peak_bound=True),
        None,
    ),
    "aspect_ratio": (FarmsConfig(window_rows=None, aspect_ratio=2), None, FarmsConfig(aspect_ratio=2), None),
    "windows_per_dim": (FarmsConfig(window_rows=None, windows_per_dim=2), None, FarmsConfig(windows_per_dim=2), None),
    "spread": (PruneConfig(allocation="uniform", spread=0.2), None, PruneConfig(allocation="alpha", spread=0.2), None),
    "granularity": (
        PruneConfig(allocation="ramp", granularity="layer"),
        None,
        PruneConfig(allocation="ramp+owl", granularity="layer"),
        None,
    ),
    "shrink": (PruneConfig(allocation="uniform", shrink=False), None, PruneConfig(shrink=False), None),
    "ends": (PruneConfig(allocation="uniform", ends="apart"), None, PruneConfig(ends="apart"), None),
    "damping": (PruneConfig(damping=0.1), None, PruneConfig(method="sparsegpt", damping=0.1), None),
    "block_size": (PruneConfig(block_size=64), None, PruneConfig(method="sparsegpt", block_size=64), None),
    "max_sparsity": (
        PruneConfig(allocation="uniform", max_sparsity=0.9),
        None,
        PruneConfig(allocation="uniform", pattern="N:8", max_sparsity=0.9),
        None,
    ),
    "recover_passes": (
        PruneConfig(recover_passes=2),
        None,
        PruneConfig(recover="submodule", recover_passes=2),
        None,
    ),
    "recover_rate": (
        PruneConfig(recover_rate=0.1),
        None,
        PruneConfig(recover="submodule", recover_rate=0.1),
        None,
    ),
    "recover_budget": (
        PruneConfig(recover="submodule", recover_budget=0.1),
        None,
        PruneConfig(recover="distill", recover_budget=0.1),
        None,
    ),
    "minutes": (PruneConfig(minutes=5), None, PruneConfig(allocation="auto", minutes=5), None),
    "spectra": (PruneConfig(allocation="uniform", spectra=PEAK), None, PruneConfig(spectra=PEAK), None),
    "spectra.tail_divisor": (
        PruneConfig(spectra=replace(PEAK, tail_divisor=3)),
        None,
        PruneConfig(spectra=FarmsConfig(tail_divisor=3)),
        None,
    ),
    **{
        f"spectra.{field}": (
            PruneConfig(allocation="alpha", spectra=FarmsConfig(**{field: 8})),
            None,
            PruneConfig(spectra=FarmsConfig(**{field: 8})),
            None,
        )
        for field in ("window_rows", "aspect_ratio", "windows_per_dim")
    },
    "keep": (S2FTConfig(keep="largest"), None, S2FTConfig(strategy="weight", keep="largest"), None),
    "seed": (S2FTConfig(strategy="weight", seed=1), None, S2FTConfig(seed=1), None),
    "S2FTConfig.spread": (S2FTConfig(spread=0.2), None, S2FTConfig(budget_allocation="farms", spread=0.2), None),
    "S2FTConfig.spectra": (S2FTConfig(spectra=PEAK), None, S2FTConfig(budget_allocation="farms", spectra=PEAK), None),
    "min_scale": (FarmsLRConfig(map="sqrt", min_scale=0.6), None, FarmsLRConfig(min_scale=0.6), None),
    "max_scale": (FarmsLRConfig(map="log2", max_scale=1.6), None, FarmsLRConfig(map="step", max_scale=1.6), None),
    "released_step": (FarmsLRConfig(released_step=True), None, FarmsLRConfig(map="step", released_step=True), None),
    "interval": (FarmsLRConfig(frozen=True, interval=5), None, FarmsLRConfig(interval=5), None),
    "smoothing": (FarmsLRConfig(frozen=True, smoothing=0.5), None, FarmsLRConfig(smoothing=0.5), None),
    "max_share": (FarmsLRConfig(interval=5, max_share=0.1), None, FarmsLRConfig(max_share=0.1), None),
    **{
        f"FarmsLRConfig.{field}": (
            FarmsLRConfig(monitor=True, **{field: value}),
            None,
            FarmsLRConfig(**{field: value}),
            None,
        )
        for field, value in {
            "map": "sqrt",
            "quantity": "both",
            "shrink": False,
            "normalize": True,
            "ends": "apart",
            "min_eigenvalues": 4,
        }.items()
    },
    "spectra.block_score": (
        FarmsLRConfig(unit="layer", spectra=FarmsConfig(block_score="median")),
        None,
        FarmsLRConfig(spectra=FarmsConfig(block_score="median")),
        None,
    ),
    **{
        f"CalibrationConfig.{field}": (
            CalibrationConfig(**{field: value}),
            NO_CALIBRATION,
            CalibrationConfig(**{field: value}),
            DATASET,
        )
        for field, value in {
            "source": "a.txt",
            "column": "x",
            "subset": "x",
            "split": "x",
            "num_sequences": 3,
            "sequence_length": 3,
            "num_continuations": 3,
            "seed": 3,
        }.items()
    },
    **{
        f"SelectionConfig.{field}": (
            SelectionConfig(**{field: value}),
            Inputs(selects=False),
            SelectionConfig(**{field: value}),
            DATASET,
        )
        for field, value in {
            "source": "a.txt",
            "column": "x",
            "subset": "x",
            "split": "x",
            "sequence_length": 3,
        }.items()
    },
    "num_continuations": (
        CalibrationConfig(source="self", num_continuations=3),
        DATASET,
        CalibrationConfig(num_continuations=3),
        DATASET,
    ),
    "column": (CalibrationConfig(column="x"), PLAIN, CalibrationConfig(column="x"), TABLE),
    "subset": (CalibrationConfig(subset="x"), TABLE, CalibrationConfig(subset="x"), DATASET),
    "split": (CalibrationConfig(split="x"), TABLE, CalibrationConfig(split="x"), BUILT_IN),
    "source": (EvaluationConfig(source="a.txt"), NO_PERPLEXITY, EvaluationConfig(source="a.txt"), PLAIN),
    **{
        f"EvaluationConfig.{field}": (
            EvaluationConfig(source=None, **{field: value}),
            None,
            EvaluationConfig(**{field: value}),
            DATASET,
        )
        for field, value in {
            "column": "x",
            "subset": "x",
            "split": "x",
            "context_length": 3,
            "max_windows": 3,
        }.items()
    },
    "device": (LoadOptions(device="cpu"), SAVED, LoadOptions(device="cpu"), MODEL),
    "allow_pickle": (LoadOptions(allow_pickle=True), SAVED, LoadOptions(allow_pickle=True), MODEL),
    "revision": (LoadOptions(revision="x"), LOCAL, LoadOptions(revision="x"), HUB),
    "outside": (AnalyzeArguments(outside=True), SAVED, AnalyzeArguments(outside=True), MODEL),
    **{
        field: (EvaluateArguments(**{field: value}), None, EvaluateArguments(**{field: value}, tasks=("arc",)), None)
        for field, value in {"num_fewshot": 0, "limit": 5, "batch_size": 4, "include_path": "x"}.items()
    },
    "base": (EvaluateArguments(perplexity=False, base=True), None, EvaluateArguments(base=True), None),
}
# Fields that always have an effect.
ALWAYS = {
    FarmsConfig: {"window_rows", "fit", "block_score"},
    PruneConfig: {"sparsity", "method", "pattern", "allocation", "refine", "recover"},
    S2FTConfig: {"budget", "roles", "strategy", "budget_allocation", "layout", "write_back", "max_channels"},
    FarmsLRConfig: {
        *("unit", "outside", "start", "frozen", "monitor", "spectra"),
    },
    CalibrationConfig: set(),
    EvaluationConfig: set(),
    LoadOptions: {"dtype", "stream"},
}


def warnings_of(config, inputs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unused(config, inputs)
    assert {warning.category for warning in caught} <= {NoEffectWarning}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", CASES)
def test_a_field_without_an_effect_is_warned_of(name):
    unused, inputs, used, other_inputs = CASES[name]
    field = name.removeprefix(f"{type(unused).__name__}.")
    (message,) = warnings_of(unused, inputs)
    assert message.startswith(f"`{field}` has no effect: it applies to ")
    assert message.endswith(".")
    assert warnings_of(used, other_inputs) == []


def test_the_block_size_has_no_effect_with_a_pattern():
    config = PruneConfig(method="sparsegpt", pattern="2:4", block_size=64, allocation="uniform")
    assert warnings_of(config, None) == ["`block_size` has no effect: it applies to pattern 'unstructured'."]
    other = PruneConfig(pattern="2:4", block_size=64, allocation="uniform")
    assert warnings_of(other, None) == ["`block_size` has no effect: it applies to method 'sparsegpt'."]


@pytest.mark.parametrize("allocation", ["sensitivity", "auto"])
def test_a_search_gives_each_block_one_sparsity(allocation):
    (message,) = warnings_of(PruneConfig(allocation=allocation, granularity="layer"), None)
    assert message == "`granularity` has no effect: it applies to allocation 'farms', 'alpha', 'owl' or 'dlp'."


def test_choices_of_which_one_is_enough_are_not_joined_by_and_alone():
    # "Allocation 'auto' and recover 'submodule'" reads as if both were needed.
    (message,) = warnings_of(CalibrationConfig(seed=1), NO_CALIBRATION)
    assert message == (
        "`seed` has no effect: it applies to method 'wanda', 'ria' or 'sparsegpt', to refine 'swaps', to allocation "
        "'owl' or 'dlp' and to recover 'submodule' or 'distill', which need calibration text."
    )
    (message,) = warnings_of(SelectionConfig(sequence_length=64), Inputs(selects=False))
    assert message == (
        "`sequence_length` has no effect: it applies to allocation 'sensitivity' or 'auto' and to recover 'submodule' "
        "or 'distill'."
    )


def test_every_rule_has_a_case():
    cases = {(type(case[0]), name.removeprefix(f"{type(case[0]).__name__}.")) for name, case in CASES.items()}
    # Only a command line can ask for the default.
    cases.add((PruneArguments, "baseline"))
    assert {(rule.kind, field) for rule in RULES for field in rule.fields} <= cases


@pytest.mark.parametrize("kind", ALWAYS)
def test_every_field_has_a_rule_or_always_an_effect(kind):
    ruled = {field for rule in RULES if rule.kind is kind for field in rule.fields if "." not in field}
    assert ruled | ALWAYS[kind] == {field.name for field in fields(kind)}
    assert not ruled & ALWAYS[kind]


@pytest.mark.parametrize("kind", [*ALWAYS, AnalyzeArguments, PruneArguments, EvaluateArguments])
def test_defaults_are_not_warned_of(kind):
    assert warnings_of(kind(), None) == []
    assert warnings_of(kind(), Inputs(model="demo", text="self", measured=False, calibrates=False)) == []


def test_the_choices_in_a_message_are_those_of_the_registry(monkeypatch):
    config = FarmsConfig(released_peak_bound=True)
    assert warnings_of(config, None) == ["`released_peak_bound` has no effect: it applies to fit 'peak'."]
    monkeypatch.setitem(FITS, "late", replace(FITS["goodness_of_fit"], options=("released_peak_bound",)))
    assert unused_fields(config)["released_peak_bound"] == "it applies to fit 'peak' or 'late'."
    assert "released_peak_bound" not in unused_fields(FarmsConfig(fit="late"))


def test_given_fields_count_with_their_default_too_and_nothing_else_does():
    config = PruneConfig(allocation="uniform", shrink=False)
    with given_fields({"spread"}), pytest.warns(NoEffectWarning, match="`spread` has no effect") as caught:
        warn_unused(config)
    assert len(caught) == 1
    with given_fields(()):
        assert warnings_of(config, None) == []
    with given_fields({"baseline"}), pytest.warns(NoEffectWarning, match="`baseline` has no effect"):
        warn_unused(PruneArguments(evaluates=False))


def test_a_prefix_names_the_argument():
    with pytest.warns(NoEffectWarning, match=r"^`text\.column` has no effect: it applies to tables and datasets\."):
        warn_unused(EvaluationConfig(), Inputs(text="built-in"), prefix="text.", given={"column"})


def test_the_reason_says_that_uniform_sparsity_is_the_default_of_a_recovery():
    default = "With recover 'submodule' the default is 'uniform'."
    reasons = unused_fields(PruneConfig(recover="submodule", spread=0.1, max_sparsity=0.7))
    fields_of_allocations = {"granularity", "spread", "shrink", "ends", "minutes", "max_sparsity", "spectra"}
    assert {field for field, reason in reasons.items() if reason.endswith(default)} == fields_of_allocations
    for config in (PruneConfig(allocation="uniform"), PruneConfig(allocation="farms", recover="submodule")):
        assert not any("default" in reason for reason in unused_fields(config).values())
