"""An S2FT strategy that is one function and one entry is found everywhere. No command has an option for it."""

from dataclasses import replace

import pytest
from hf_farms_cards import render_card

from hf_farms import S2FTConfig, select_channels
from hf_farms.errors import DataError
from hf_farms.registries import STRATEGIES, StrategyEntry
from hf_farms.reports import TrainReport
from hf_farms.reports.training import LayerSelection, S2FTRecord

FIRST = StrategyEntry(
    needs="activations",
    function="registry_entries:count_down",
    sentence="counted down, the {keep} first",
    options=("keep",),
)


def report(config):
    return TrainReport(
        model="ada/base",
        model_type="llama",
        num_parameters=100,
        num_trained=10,
        steps=3,
        epochs=None,
        s2ft=S2FTRecord(config=config, layers=(LayerSelection(name="model.layers.0.mlp.down_proj", num_selected=2),)),
    )


@pytest.fixture
def first(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "first", FIRST)


def test_its_function_selects(first, llama):
    config = S2FTConfig(strategy="first", budget=0.05, keep="largest")
    assert config.needs_data
    selection = select_channels(llama, config, calibration=[{}, {}])
    assert {tuple(range(len(channels))) for channels in selection.channels.values()} == {*selection.channels.values()}
    last = select_channels(llama, replace(config, keep="smallest"), calibration=[{}, {}])
    assert {max(channels) for name, channels in last.channels.items() if "down" in name} == {47}
    with pytest.raises(ValueError, match="calibration must be given for strategy 'first', got None"):
        select_channels(llama, config)


def test_report_and_card_name_it(first):
    trained = TrainReport.from_json(report(S2FTConfig(strategy="first")).to_json())
    assert trained.s2ft.config.strategy == "first"
    assert "are selected (counted down, the smallest first)" in render_card(trained)


def test_one_that_is_gone_is_refused(monkeypatch, remove):
    with monkeypatch.context() as patch:
        patch.setitem(STRATEGIES, "first", FIRST)
        text = report(S2FTConfig(strategy="first")).to_json()
    message = "strategy must be one of random, weight, activation, product, gradient, got 'first'"
    with pytest.raises(DataError, match=message):
        TrainReport.from_json(text)
    with pytest.raises(ValueError, match=message):
        S2FTConfig(strategy="first")
    remove(STRATEGIES, "gradient")
    with pytest.raises(ValueError, match="strategy must be one of random, weight, activation, product, got 'gradient'"):
        S2FTConfig(strategy="gradient")


def test_scores_that_are_not_one_for_each_unit_are_refused(monkeypatch, llama):
    entry = StrategyEntry(needs="nothing", function="registry_entries:one_score", sentence="")
    monkeypatch.setitem(STRATEGIES, "one", entry)
    with pytest.raises(ValueError, match=r"strategy 'one' must return scores of shapes \[\[\(4,\), \(48,\)\], .* got"):
        select_channels(llama, S2FTConfig(strategy="one", budget=0.05))
    with pytest.raises(ValueError, match="needs must be nothing, matrix, activations or gradients"):
        replace(entry, needs="windows")
