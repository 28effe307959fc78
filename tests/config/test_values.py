"""Every field of every config: wrong values are refused in a sentence that names the field, right ones are taken."""

from dataclasses import fields

import numpy as np
import pytest

from hf_farms.config import (
    CalibrationConfig,
    EvaluationConfig,
    FarmsConfig,
    FarmsLRConfig,
    LayerwiseLRConfig,
    PruneConfig,
    S2FTConfig,
    SelectionConfig,
)

NAN, INFINITY = float("nan"), float("inf")
ARRAY = np.array(["auto", "mid"])
ENDS = ("measured", "first-capped", "first-lowest", "first-median", "first-apart", "lowest", "median", "apart")
SWITCH = ("True or False", ["no", 0, 1, None, "", np.True_], [True, False])
FRACTION = (r"at least 0 and below 1", [1, -0.1, NAN, "0.5", None, True, [0.1]], [0, 0.5])
SEED = ("an integer of at least 0", [-1, 0.5, True, "1", None, 2**63], [0, 7])
COUNT = ("a positive integer", [0, -1, 1.5, True, "8", None], [1, 512])
LENGTH = ("an integer of at least 2", [1, 2.0, True, "512", None], [2, 512])
SPECTRA = ("a FarmsConfig", ["x", None, {"window_rows": 8}, 3, PruneConfig()], [FarmsConfig(fit="peak")])
COLUMN = ("the name of a column", ["", " ", None, 3, b"text"], ["content"])
SPLIT = ("the name of a split", ["", None, True], ["validation"])
SUBSET = ("text or None", [3, True, b"en", ["en"]], ["en", None])


def choice(*names):
    return f"one of {', '.join(names)}", ["best", "", None, 3, True, [names[0]], ARRAY], list(names)


def choice_or_default(*names):
    """The same, where None becomes one of the names."""
    constraint, wrong, right = choice(*names)
    return constraint, [value for value in wrong if value is not None], right


FIELDS = {
    (FarmsConfig, "window_rows"): (
        "'auto', None or a positive integer",
        ["all", 0, -8, 8.0, True, [8], ARRAY],
        ["auto", None, 8],
    ),
    (FarmsConfig, "aspect_ratio"): ("a positive number", [0, -1, NAN, INFINITY, "1", None, True], [0.5, 2]),
    (FarmsConfig, "windows_per_dim"): ("'auto' or a positive integer", ["all", 0, 1.5, None, True, ARRAY], ["auto", 4]),
    (FarmsConfig, "fit"): choice("mid", "peak", "goodness_of_fit"),
    (FarmsConfig, "tail_divisor"): ("a number above 1", [1, 0.5, NAN, INFINITY, "2", None, True], [1.5, 4]),
    (FarmsConfig, "released_peak_bound"): SWITCH,
    (FarmsConfig, "block_score"): choice("mean", "median", "trimmed", "standardised"),
    (PruneConfig, "sparsity"): FRACTION,
    (PruneConfig, "method"): choice("magnitude", "wanda", "ria", "sparsegpt"),
    (PruneConfig, "pattern"): ("'unstructured', 'N:M'", ["2:4:8", "", None, 24, ["2:4"], "0:4", "a:b"], ["N:8"]),
    (PruneConfig, "allocation"): choice_or_default(
        *("uniform", "farms", "alpha", "ramp", "owl", "dlp", "sensitivity", "auto")
    ),
    (PruneConfig, "spread"): (f"None, or {FRACTION[0]}", [1, -0.1, NAN, "0.5", True, [0.1]], [0, 0.5, None]),
    (PruneConfig, "granularity"): choice("block", "layer"),
    (PruneConfig, "shrink"): SWITCH,
    (PruneConfig, "ends"): choice(*ENDS),
    (PruneConfig, "damping"): ("a positive number", [0, -0.1, NAN, INFINITY, "1", None, True], [0.1, 1]),
    (PruneConfig, "block_size"): COUNT,
    (PruneConfig, "refine"): choice("none", "swaps"),
    (PruneConfig, "max_sparsity"): ("above 0 and at most 1", [0, 1.1, NAN, "1", None, True], [0.9, 1]),
    (PruneConfig, "recover"): choice("none", "submodule", "distill"),
    (PruneConfig, "recover_passes"): ("None or a positive integer", [0, -1, 1.5, True, "8"], [None, 1, 512]),
    (PruneConfig, "recover_budget"): ("None, or above 0 and below 1", [0, 1, NAN, "1", True], [None, 0.001, 0.9]),
    (PruneConfig, "recover_rate"): ("None, or above 0 and at most 1", [0, 1.1, NAN, "1", True], [None, 0.001, 1]),
    (PruneConfig, "minutes"): ("None or above 0", [0, -1, NAN, INFINITY, "1", True], [None, 0.5, 60]),
    (PruneConfig, "spectra"): SPECTRA,
    (CalibrationConfig, "source"): ("'speeches', 'self', a file or a dataset id", ["", " ", None, 3], ["self"]),
    (CalibrationConfig, "column"): COLUMN,
    (CalibrationConfig, "subset"): SUBSET,
    (CalibrationConfig, "split"): SPLIT,
    (CalibrationConfig, "num_sequences"): COUNT,
    (CalibrationConfig, "sequence_length"): LENGTH,
    (CalibrationConfig, "num_continuations"): (
        "None or an integer of at least 0",
        [-1, 0.5, True, "1", 2**63],
        [None, 0, 7],
    ),
    (CalibrationConfig, "seed"): SEED,
    (SelectionConfig, "source"): ("'speeches', a file or a dataset id", ["", " ", None, 3], ["a.txt"]),
    (SelectionConfig, "column"): COLUMN,
    (SelectionConfig, "subset"): SUBSET,
    (SelectionConfig, "split"): SPLIT,
    (SelectionConfig, "sequence_length"): LENGTH,
    (EvaluationConfig, "source"): ("'speeches', a file, a dataset id or None", ["", " ", 3, False], ["self", None]),
    (EvaluationConfig, "column"): COLUMN,
    (EvaluationConfig, "subset"): SUBSET,
    (EvaluationConfig, "split"): SPLIT,
    (EvaluationConfig, "context_length"): LENGTH,
    (EvaluationConfig, "max_windows"): ("None or a positive integer", [0, -1, 1.5, True, "40"], [None, 1]),
    (FarmsLRConfig, "map"): choice("linear", "sqrt", "log2", "step", "sigmoid"),
    (FarmsLRConfig, "min_scale"): ("a positive number", [0, -1, NAN, INFINITY, "1", None, True], [0.1, 1]),
    (FarmsLRConfig, "max_scale"): ("a positive number", [0, -1, NAN, INFINITY, "1", None, True], [2, 1.1]),
    (FarmsLRConfig, "released_step"): SWITCH,
    (FarmsLRConfig, "unit"): choice("block", "layer"),
    (FarmsLRConfig, "quantity"): choice("lr", "weight_decay", "both", "constant_decay"),
    (FarmsLRConfig, "shrink"): SWITCH,
    (FarmsLRConfig, "normalize"): SWITCH,
    (FarmsLRConfig, "ends"): choice(*ENDS, "released"),
    (FarmsLRConfig, "min_eigenvalues"): COUNT,
    (FarmsLRConfig, "outside"): SWITCH,
    (FarmsLRConfig, "start"): ("'warmup', a step,", ["epoch", -1, 1.0, NAN, None, True, ARRAY], ["warmup", 0, 9, 0.5]),
    (FarmsLRConfig, "interval"): (
        "'epoch', a positive",
        ["step", 0, 1.0, NAN, None, True, ARRAY],
        ["epoch", 1, 0.5, "auto"],
    ),
    (FarmsLRConfig, "max_share"): ("above 0 and below 1", [0, 1, NAN, None, True, "1", ARRAY], [0.01, 0.5]),
    (FarmsLRConfig, "monitor"): SWITCH,
    (LayerwiseLRConfig, "quantity"): choice("lr", "weight_decay", "both", "constant_decay"),
    (LayerwiseLRConfig, "interval"): ("'epoch' or a positive", ["step", 0, 0.5, NAN, None, True, ARRAY], ["epoch", 2]),
    (FarmsLRConfig, "frozen"): SWITCH,
    (FarmsLRConfig, "smoothing"): FRACTION,
    (FarmsLRConfig, "spectra"): SPECTRA,
    (S2FTConfig, "budget"): ("above 0 and below 1", [0, 1, NAN, "0.1", None, True], [0.5]),
    (S2FTConfig, "roles"): (
        "a tuple with some of",
        ["down", (), None, 3, {"down": 1}],
        [("q", "k"), ["up"], iter(["gate", "v"])],
    ),
    (S2FTConfig, "strategy"): choice("random", "weight", "activation", "product", "gradient"),
    (S2FTConfig, "keep"): choice("largest", "smallest"),
    (S2FTConfig, "seed"): SEED,
    (S2FTConfig, "budget_allocation"): choice("uniform", "farms"),
    (S2FTConfig, "spread"): FRACTION,
    (S2FTConfig, "spectra"): SPECTRA,
    (S2FTConfig, "layout"): choice("indexed", "permuted"),
    (S2FTConfig, "write_back"): SWITCH,
    (S2FTConfig, "max_channels"): ("None or a positive integer", [0, -1, 1.5, True, "256"], [None, 1, 256]),
}


def test_the_table_has_every_field():
    kinds = dict.fromkeys(kind for kind, _ in FIELDS)
    assert set(FIELDS) == {(kind, field.name) for kind in kinds for field in fields(kind)}


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_wrong_values_are_refused_and_right_ones_taken(kind, name):
    constraint, wrong, right = FIELDS[kind, name]
    for value in wrong:
        with pytest.raises(ValueError, match=r" must be .*, got ") as raised:
            kind(**{name: value})
        assert str(raised.value).split(" must be ")[0].split()[-1] in (name, "source"), value
        assert f"{constraint}" in str(raised.value), value
        assert "\n" not in str(raised.value)
    for value in right:
        assert getattr(kind(**{name: value}), name) == value or name == "roles"


def test_long_values_do_not_bury_the_sentence():
    with pytest.raises(ValueError, match=r"got an object of class list\.$"):
        PruneConfig(spectra=[1] * 1000)
    with pytest.raises(ValueError, match=r"must be a FarmsConfig, got 'x{200}'\.\.\.\.$"):
        PruneConfig(spectra="x" * 1000)
    with pytest.raises(ValueError, match=r"got \{'fit': 'mid'\}\. Write FarmsConfig\(\.\.\.\)\.$"):
        PruneConfig(spectra={"fit": "mid"})
