"""A fit that is one function and one entry is found everywhere."""

import json
from dataclasses import fields, replace

import pytest
import torch
from hf_farms_cards import render_card

from hf_farms import FarmsConfig, PruneConfig, SpectralReport, layer_spectrum, prune
from hf_farms.config import CalibrationConfig, EvaluationConfig
from hf_farms.errors import DataError
from hf_farms.output.recipe import Recipe
from hf_farms.registries import FITS, FitEntry

LARGEST = FitEntry(
    needs="nothing", function="registry_entries:fit_largest", sentence="The tail is the largest of {windows_per_dim}."
)
# The field of a PruneConfig that says how spectra are measured.
SPECTRA = next(
    field.name for field in fields(PruneConfig) if isinstance(getattr(PruneConfig(), field.name), FarmsConfig)
)


@pytest.fixture
def largest(monkeypatch):
    monkeypatch.setitem(FITS, "largest", LARGEST)


def test_the_command_line_offers_it_and_reports_what_it_measured(largest, hf_farms, completions, tmp_path):
    assert "Start of the tail: mid, peak, goodness_of_fit, largest." in hf_farms("analyze", "--help")
    assert completions("analyze", "fit") == [*FITS]
    assert "fit largest" in hf_farms("analyze", "demo", "--fit", "largest", "-o", tmp_path / "report.json")
    report = SpectralReport.load(tmp_path / "report.json")
    assert report.config.fit == "largest"
    assert {layer.alpha == layer.num_eigenvalues for block in report.blocks for layer in block.layers} == {True}


def test_its_function_measures(largest):
    spectrum = layer_spectrum(torch.randn(12, 16), FarmsConfig(fit="largest", window_rows=None))
    assert (spectrum.alpha, spectrum.tail_min) == (12, spectrum.spectral_norm)


def test_plan_report_and_card_name_it(largest, llama):
    config = replace(PruneConfig(method="magnitude"), **{SPECTRA: FarmsConfig(fit="largest", windows_per_dim=3)})
    recipe = Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=config,
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(),
    )
    assert f"prune.{SPECTRA}.fit: largest" in recipe.describe()
    report = prune(llama, config).report
    assert json.loads(report.to_json())["config"][SPECTRA]["fit"] == "largest"
    assert "The tail is the largest of 3." in render_card(report)


def test_a_report_with_a_fit_that_is_gone_is_refused(monkeypatch, llama):
    from hf_farms import analyze

    with monkeypatch.context() as patch:
        patch.setitem(FITS, "largest", LARGEST)
        text = analyze(llama, FarmsConfig(fit="largest")).to_json()
        assert SpectralReport.from_json(text).config.fit == "largest"
    with pytest.raises(DataError, match="fit must be one of mid, peak, goodness_of_fit, got 'largest'"):
        SpectralReport.from_json(text)


def test_a_removed_fit_is_refused(remove, hf_farms):
    remove(FITS, "goodness_of_fit")
    message = "fit must be one of mid, peak, got 'goodness_of_fit'"
    assert message in hf_farms("analyze", "demo", "--fit", "goodness_of_fit", status=2)


def test_a_fit_is_given_eigenvalues_and_nothing_else():
    with pytest.raises(ValueError, match="needs must be 'nothing' for a fit"):
        FitEntry(needs="windows", function="m:f", sentence="")
