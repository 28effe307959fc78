"""Differences of two models over windows at the same places."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from models import tiny

from hf_farms.config import FarmsConfig
from hf_farms.reports.comparison import compare_spectra
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.pairing import PairedWindows
from hf_farms.workflows.analyze import compare_checkpoints

CONFIG = FarmsConfig(window_rows=16, windows_per_dim=2)


def blended(model, share):
    """A model with a little of the same noise in every weight, as of some steps of training."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture(scope="module")
def reports():
    model = tiny("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= torch.logspace(0, 1, parameter.shape[0])[:, None]
    return analyze(model, CONFIG), analyze(blended(model, 0.03), CONFIG)


def test_the_error_of_a_layer_is_that_of_the_differences_of_its_windows(reports):
    paired = PairedWindows(CONFIG)
    first, second = (report.blocks[1].layers[0] for report in reports)
    differences = torch.tensor(second.window_alphas).double() - torch.tensor(first.window_alphas).double()
    assert len(differences) == first.num_windows == 4
    error = paired.layer(first, second)
    # Two by two disjoint windows: rows and columns are random effects.
    grid = differences.double().view(2, 2)
    rows, cols = grid.mean(dim=1), grid.mean(dim=0)
    residual = float((grid - rows[:, None] - cols + grid.mean()).square().sum()) / 4
    between = float(rows.var() + cols.var()) / 2
    assert error == pytest.approx(math.sqrt(max(residual, between - residual)), rel=1e-4)
    assert paired.layer(first, first) == 0


def test_a_small_change_of_one_model_is_seen_against_its_paired_error(reports):
    alone, together = compare_spectra(*reports), compare_spectra(*reports, paired=PairedWindows(CONFIG))
    for one, other in zip(alone.blocks, together.blocks, strict=True):
        assert other.alpha.difference == one.alpha.difference
        assert other.alpha.stderr < one.alpha.stderr / 3
    (shift,) = (note for note in together.notes if note.startswith("Mean over 3 blocks, second minus first: "))
    assert shift.endswith("(windows at the same places are paired).")
    mean = sum(block.alpha.difference for block in together.blocks) / 3
    error = math.hypot(*(block.alpha.stderr for block in together.blocks)) / 3
    assert f": {mean:+.4f} ± {error:.4f} (" in shift
    assert any(note.endswith("(errors as of independent models, not paired).") for note in alone.notes)


def test_what_cannot_be_paired_has_the_error_of_independent_models(reports):
    other = analyze(tiny("llama", hidden_size=64), CONFIG)
    paired = PairedWindows(CONFIG)
    first = reports[0].blocks[0].layers
    assert paired.layer(first[0], other.blocks[0].layers[-1]) is None
    assert paired.block([(first[0], other.blocks[0].layers[-1])]) is None
    comparison = compare_spectra(reports[0], other, paired=paired)
    assert comparison.blocks[0].alpha.stderr is not None
    assert any(note.endswith("(errors as of independent models, not paired).") for note in comparison.notes)


def test_differences_of_medians_are_not_medians_of_differences(reports):
    pairs = [(first, second) for first, second in zip(*(report.blocks[0].layers for report in reports), strict=True)]
    assert PairedWindows(CONFIG).block(pairs) is not None
    assert PairedWindows(replace(CONFIG, block_score="median")).block(pairs) is None


def test_blocks_that_are_paired_are_counted(reports):
    class FirstAlone(PairedWindows):
        def block(self, pairs):
            return super().block(pairs) if ".0." in pairs[0][0].name else None

    notes = compare_spectra(*reports, paired=FirstAlone(CONFIG)).notes
    assert any(note.endswith("(windows at the same places are paired in 1 of them).") for note in notes)


def test_the_command_pairs_two_models_and_not_a_saved_report(tmp_path):
    tiny("llama", seed=0).save_pretrained(tmp_path / "a")
    blended(tiny("llama", seed=0), 0.03).save_pretrained(tmp_path / "b")
    fresh = compare_checkpoints(tmp_path / "a", tmp_path / "b", CONFIG)
    report = analyze(str(tmp_path / "a"), CONFIG)
    report.save(tmp_path / "a.json")
    saved = compare_checkpoints(tmp_path / "a.json", tmp_path / "b", CONFIG)
    for one, other in zip(fresh.blocks, saved.blocks, strict=True):
        assert one.alpha.difference == other.alpha.difference
        assert one.alpha.stderr < other.alpha.stderr
