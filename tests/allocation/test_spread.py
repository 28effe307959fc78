"""The spread that is not given: the default of the allocation, which files hold as a number."""

import json
import warnings
from dataclasses import replace

import pytest
from cards import EXAMPLES
from hf_farms_cards import render_card

from hf_farms import PruneReport
from hf_farms.allocation.plan import block_sparsities
from hf_farms.allocation.sparsity_maps import BlockScores, by_score
from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig
from hf_farms.config.effects import warn_unused
from hf_farms.errors import NoEffectWarning
from hf_farms.output.recipe import Recipe
from hf_farms.registries import ALLOCATIONS


def recipe(**options):
    return Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=PruneConfig(**options),
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(),
    )


@pytest.mark.parametrize("allocation", ["farms", "alpha", "uniform"])
def test_recipes_hold_the_number_so_that_those_of_earlier_versions_are_equal(allocation, tmp_path):
    given, default = recipe(allocation=allocation, spread=0.1), recipe(allocation=allocation)
    assert default == given
    assert default.flat()["prune.spread"] == 0.1
    assert default.differences(recipe(allocation=allocation, spread=0.2)) == ["prune.spread: 0.1, previously 0.2"]
    default.save(tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text()
    assert "spread: 0.1\n" in text
    (tmp_path / "recipe.yaml").write_text(text.replace("spread: 0.1", "spread: null"))
    assert Recipe.load(tmp_path / "recipe.yaml") == given


def test_the_default_is_that_of_the_entry_and_follows_the_allocation(monkeypatch):
    blocks = BlockScores(sizes=[1] * 3, scores=[1.0, 2.0, 3.0])
    config = PruneConfig(allocation="alpha", shrink=False, ends="measured")
    monkeypatch.setitem(ALLOCATIONS, "farms", replace(ALLOCATIONS["farms"], spread=0.4))
    assert by_score(blocks, config) == pytest.approx([0.45, 0.5, 0.55])
    assert by_score(blocks, replace(config, allocation="farms")) == pytest.approx([0.3, 0.5, 0.7])
    assert replace(config, allocation="farms").settled().spread == 0.4
    assert replace(config, spread=0.2).settled().spread == 0.2


def test_functions_of_entries_get_a_number(monkeypatch):
    monkeypatch.setattr("hf_farms.allocation.sparsity_maps.uniform", lambda blocks, config: [config.spread])
    assert block_sparsities(BlockScores(sizes=[1]), PruneConfig(allocation="uniform")) == [0.1]


def test_a_number_that_earlier_versions_wrote_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unused(recipe(allocation="uniform").prune)
    with pytest.warns(NoEffectWarning, match="`spread` has no effect: it applies to allocation 'farms'"):
        warn_unused(recipe(allocation="uniform", spread=0.3).prune)


def test_reports_hold_the_number_and_cards_call_without_the_default():
    report = EXAMPLES["minimal"][0]()
    data = json.loads(report.to_json())
    assert data["config"]["spread"] == 0.1
    data["config"]["spread"] = None
    assert PruneReport.from_json(json.dumps(data)).config == report.config
    config = PruneConfig(method="magnitude", allocation="farms")
    farms = replace(report, config=config)
    assert "spread" not in render_card(farms).partition("## How it was made")[2].partition("## Blocks")[0]
    other = replace(farms, config=replace(config, spread=0.2))
    assert "spread=0.2" in render_card(other)
