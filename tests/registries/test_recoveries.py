"""A recovery that is one class and one entry is found everywhere."""

import pytest
import torch
from models import tiny

from hf_farms import PruneConfig, PruneReport, prune
from hf_farms.errors import NoEffectWarning
from hf_farms.pruning.recovery import block_config
from hf_farms.registries import RECOVERIES, RecoveryEntry

DOUBLE = RecoveryEntry(
    needs="activations",
    function="registry_entries:Doubled",
    sentence="Double: the kept weights were multiplied by two.",
    citation="@misc{double}",
)


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setitem(RECOVERIES, "double", DOUBLE)


def test_the_command_line_offers_it_and_the_card_describes_it(double, hf_farms, completions, tmp_path):
    out = tmp_path / "out"
    options = ("--method", "magnitude", "--allocation", "uniform", "--evaluation", "none", "--calibration-samples", 2)
    assert "Recovery: error 0.5 → 0.25 " in hf_farms("prune", "demo", *options, "--recover", "double", "-o", out)
    assert completions("prune", "recover") == [*RECOVERIES]
    report = PruneReport.load(out / "hf_farms_report.json")
    assert report.config.recover == "double"
    assert report.calibration.num_sequences == 2
    assert report.recovery_errors() == (0.5, 0.25)
    card = (out / "README.md").read_text()
    assert "Double: the kept weights were multiplied by two. The squared error of their outputs" in card
    assert "fell from 0.5 to 0.25 (median)" in card
    assert "and the remaining ones updated; nothing else was changed" in card
    assert "@misc{double}" in card


def test_it_sees_each_block_before_and_after(double, ids):
    model, other = tiny("llama"), tiny("llama")
    config = PruneConfig(method="magnitude", allocation="uniform")
    prune(model, PruneConfig(method="magnitude", allocation="uniform", recover="double"), calibration=ids)
    prune(other, config)
    weights = [m.model.layers[1].mlp.up_proj.weight for m in (model, other)]
    assert torch.equal(weights[0], 2 * weights[1])


def test_options_of_another_recovery_have_no_effect(double, ids):
    applies = "it applies to recover 'submodule' or 'distill'."
    with pytest.warns(NoEffectWarning, match=f"`recover_passes` has no effect: {applies}"):
        prune(tiny("llama"), PruneConfig(allocation="uniform", recover="double", recover_passes=2), calibration=ids)


def test_what_it_needs_must_be_measured():
    with pytest.raises(ValueError, match="needs must be 'nothing' or 'activations' for a recovery, got 'windows'"):
        RecoveryEntry(needs="windows", function="a:b", sentence="")


def test_passes_fall_with_the_number_of_sequences_and_continuations_fill_up_to_128():
    passes = {1: 6, 32: 6, 33: 5, 48: 4, 64: 3, 96: 2, 128: 2, 1000: 2}
    assert {count: RECOVERIES["submodule"].default_passes(count) for count in passes} == passes
    assert {count: PruneConfig(recover="submodule").passes_over(count) for count in passes} == passes
    assert PruneConfig(recover="submodule", recover_passes=4).passes_over(1000) == 4
    continuations = {1: 3, 4: 12, 32: 96, 33: 95, 100: 28, 128: 0, 200: 0}
    for name in ("submodule", "distill"):
        assert {n: RECOVERIES[name].default_continuations(n) for n in continuations} == continuations
    assert RECOVERIES["none"].default_continuations(32) == 0
    for name in ("none", "distill"):
        assert RECOVERIES[name].default_passes(1) == RECOVERIES[name].default_passes(1000)
    assert {n: block_config(PruneConfig(recover="submodule"), n).recover_passes for n in passes} == passes
    # The first stage of a training.
    assert {n: block_config(PruneConfig(recover="distill"), n).recover_passes for n in passes} == passes
