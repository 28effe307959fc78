"""A map of learning rates that is one function and one entry is found everywhere. No command has an option for it."""

from dataclasses import replace

import pytest
from hf_farms_cards import render_card

from hf_farms import FarmsLRConfig, allocate_lr, analyze
from hf_farms.allocation.lr import lr_factors
from hf_farms.errors import DataError
from hf_farms.registries import LR_MAPS, LRMapEntry
from hf_farms.reports import TrainReport
from hf_farms.reports.training import BlockFactor, FarmsLRRecord, LRMeasurement

ONLY = LRMapEntry(
    needs="nothing",
    function="registry_entries:largest_only",
    sentence="the largest alpha at {max_scale:g}",
    options=("max_scale",),
)


def report(config):
    blocks = (BlockFactor(name="a", alpha=2.0, alpha_stderr=0.1, factor=1.0),)
    measurements = (LRMeasurement(step=1, epoch=None, seconds=0.5, blocks=blocks),)
    return TrainReport(
        model="ada/base",
        model_type="llama",
        num_parameters=10,
        num_trained=10,
        steps=3,
        epochs=None,
        farms_lr=FarmsLRRecord(config=config, measurements=measurements),
    )


@pytest.fixture
def only(monkeypatch):
    monkeypatch.setitem(LR_MAPS, "only", ONLY)


def test_its_function_gives_the_factors(only, llama):
    assert lr_factors([2.0, 4.0, 3.0], map="only", max_scale=1.25) == [1, 1.25, 1]
    config = FarmsLRConfig(map="only", max_scale=2, min_eigenvalues=1, shrink=False)
    spectra = analyze(llama)
    factors = allocate_lr(spectra, config=config)
    largest = max(spectra.blocks, key=lambda block: block.alpha)
    assert {name for name, factor in factors.items() if factor == 2} == {layer.name for layer in largest.layers}


def test_report_and_card_name_it(only):
    trained = TrainReport.from_json(report(FarmsLRConfig(map="only")).to_json())
    assert trained.farms_lr.config.map == "only"
    assert "(map only, unit block, the largest alpha at 1.5)" in render_card(trained)


def test_one_that_is_gone_is_refused(monkeypatch, remove):
    with monkeypatch.context() as patch:
        patch.setitem(LR_MAPS, "only", ONLY)
        text = report(FarmsLRConfig(map="only")).to_json()
    message = "map must be one of linear, sqrt, log2, step, sigmoid, got 'only'"
    with pytest.raises(DataError, match=message):
        TrainReport.from_json(text)
    for refused in (lambda: FarmsLRConfig(map="only"), lambda: lr_factors([2.0, 3.0], map="only")):
        with pytest.raises(ValueError, match=message):
            refused()
    remove(LR_MAPS, "sigmoid")
    with pytest.raises(ValueError, match="map must be one of linear, sqrt, log2, step, got 'sigmoid'"):
        FarmsLRConfig(map="sigmoid")


def test_an_option_that_is_not_handed_on_is_refused():
    with pytest.raises(ValueError, match="options must be among min_scale, max_scale, released_step, got"):
        replace(ONLY, options=("periods",))
    with pytest.raises(ValueError, match="needs must be 'nothing' for a map"):
        replace(ONLY, needs="windows")
