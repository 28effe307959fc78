"""Each function and callback that takes a config warns once of a field without an effect, at the line of its caller."""

import warnings

import pytest
from models import tiny

from hf_farms import (
    CalibrationConfig,
    FarmsConfig,
    FarmsLRConfig,
    PruneConfig,
    S2FTConfig,
    allocate_lr,
    analyze,
    apply_s2ft,
    prune,
    prune_checkpoint,
    select_channels,
)
from hf_farms.callbacks.farms_lr import FarmsLRCallback
from hf_farms.callbacks.s2ft import S2FTCallback
from hf_farms.errors import NoEffectWarning, OutputError
from hf_farms.workflows.analyze import analyze_checkpoint, compare_checkpoints
from hf_farms.workflows.evaluate import evaluate_checkpoint

BOUND = FarmsConfig(released_peak_bound=True)


def finished_elsewhere(tmp_path):
    """A folder that holds something else: the checks come first, and the work is refused."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"output folder|output must"):
        prune_checkpoint(
            "demo",
            tmp_path,
            config=PruneConfig(method="magnitude", allocation="uniform"),
            calibration=CalibrationConfig(num_sequences=3),
        )


CALLS = {
    "analyze": (lambda _: analyze(tiny("llama"), BOUND), "released_peak_bound"),
    "analyze_checkpoint": (lambda _: analyze_checkpoint("demo", BOUND), "released_peak_bound"),
    "analyze_checkpoint, revision": (lambda _: analyze_checkpoint("demo", revision="x"), "revision"),
    "compare_checkpoints": (lambda _: compare_checkpoints("demo", "demo", BOUND), "released_peak_bound"),
    "prune": (
        lambda _: prune(tiny("llama"), PruneConfig(method="magnitude", spectra=BOUND)),
        "spectra.released_peak_bound",
    ),
    "prune_checkpoint": (finished_elsewhere, "calibration.num_sequences"),
    "select_channels": (
        lambda _: select_channels(tiny("llama"), S2FTConfig(budget=0.05, budget_allocation="farms", spectra=BOUND)),
        "spectra.released_peak_bound",
    ),
    "apply_s2ft": (lambda _: apply_s2ft(tiny("llama"), S2FTConfig(budget=0.05, keep="largest")), "keep"),
    "allocate_lr": (
        lambda _: allocate_lr(analyze(tiny("llama")), config=FarmsLRConfig(map="sqrt", max_scale=2.0)),
        "max_scale",
    ),
    "FarmsLRCallback": (lambda _: FarmsLRCallback({"frozen": True, "smoothing": 0.5}), "smoothing"),
    "S2FTCallback": (lambda _: S2FTCallback(S2FTConfig(spread=0.2)), "spread"),
    "evaluate_checkpoint": (lambda _: evaluate_checkpoint("demo", metrics=["sparsity"], limit=5), "limit"),
    "evaluate_checkpoint, text": (
        lambda _: evaluate_checkpoint("demo", text={"column": "text", "max_windows": 1, "context_length": 32}),
        "text.column",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_field_without_an_effect_is_warned_of_once(name, tmp_path):
    call, field = CALLS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(tmp_path)
    found = [warning for warning in caught if "has no effect" in str(warning.message)]
    assert [str(warning.message).partition(":")[0] for warning in found] == [f"`{field}` has no effect"]
    assert found[0].category is NoEffectWarning
    assert found[0].filename == __file__


def test_what_runs_inside_is_not_warned_of_again():
    # The spectra of whole matrices have no windows, whatever the config says of them.
    config = PruneConfig(method="magnitude", allocation="alpha", spectra=FarmsConfig(windows_per_dim=4))
    with pytest.warns(NoEffectWarning, match="`spectra.windows_per_dim` has no effect") as caught:
        prune(tiny("llama"), config)
    assert len(caught) == 1
