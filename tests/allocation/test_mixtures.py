"""Weighted means of allocations: their names, and exact totals."""

import math

import pytest
from cards import EXAMPLES
from spectral_reports import random_report

from hf_farms.allocation.plan import plan_roles, plan_sparsity
from hf_farms.config import PruneConfig, default_output_name
from hf_farms.output.recipe import Recipe
from hf_farms.registries import ALLOCATIONS


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ramp+farms", (0.5, 0.5)), ("ramp:0.7+farms:0.3", (0.7, 0.3)), ("uniform:.25+alpha:7.5e-1", (0.25, 0.75))],
)
@pytest.mark.parametrize("spread", [None, 0.3])
def test_a_mixture_is_the_weighted_mean_of_its_parts(name, weights, spread):
    report = random_report(6, rows=None if "alpha" in name else 8)
    sizes = [block.num_weights for block in report.blocks]
    config = PruneConfig(allocation=name, spread=spread, sparsity=0.6)
    parts = [
        plan_sparsity(report, config=PruneConfig(allocation=part.partition(":")[0], spread=spread, sparsity=0.6))
        for part in name.split("+")
    ]
    got = plan_sparsity(report, config=config)
    assert got == pytest.approx(
        [sum(w * s for w, s in zip(weights, both, strict=True)) for both in zip(*parts, strict=True)]
    )
    assert math.fsum(s * p for s, p in zip(got, sizes, strict=True)) == pytest.approx(0.6 * sum(sizes), abs=1e-9)


def test_each_part_has_its_default_spread():
    scores = {"owl": [{"": 0.0}, {"": 1.0}], "dlp": [{"": 0.0}, {"": 1.0}]}
    config = PruneConfig(allocation="owl+dlp", ends="measured")
    plan = plan_roles([{"q": 5}] * 2, config, scores=scores)
    assert [block["q"] for block in plan] == pytest.approx([0.5 - (0.16 + 0.3) / 4, 0.5 + (0.16 + 0.3) / 4])
    assert config.settled().spread is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ramp+", "'' is none of uniform, farms"),
        ("ramp+lamp", "'lamp' is none of uniform, farms"),
        ("ramp + farms", "'ramp ' is none of"),
        ("ramp:1", "Name at least two, each once."),
        ("ramp+ramp", "Name at least two, each once."),
        ("ramp:0.5+farms", "Give every part a number as its weight, or none of them."),
        ("ramp:half+farms:half", "Give every part a number as its weight"),
        ("ramp:0.5+farms:0.6", "The weights must be above 0 and add up to 1."),
        ("ramp:1.5+farms:-0.5", "The weights must be above 0 and add up to 1."),
        ("ramp:nan+farms:1", "The weights must be above 0 and add up to 1."),
        ("alpha+farms", "Its parts need spectra of windows and of whole matrices: choose one of the two."),
        ("ramp+auto", "'auto' searches the sparsities itself: use it alone."),
        ("sensitivity:0.5+farms:0.5", "'sensitivity' searches the sparsities itself: use it alone."),
    ],
)
def test_a_malformed_mixture_is_refused_in_one_sentence_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=r"^allocation must be a sum of different allocations such as") as raised:
        PruneConfig(allocation=name)
    assert f"got {name!r}. {reason}" in str(raised.value)
    assert name not in ALLOCATIONS


def test_a_mixture_needs_what_its_parts_need():
    assert ALLOCATIONS["ramp+owl"].needs_activations
    assert PruneConfig(method="magnitude", allocation="farms+owl").needs_calibration
    assert ALLOCATIONS["farms+owl"].needs_spectra
    assert not ALLOCATIONS["ramp+uniform"].needs_spectra
    assert PruneConfig(allocation="ramp+alpha").measurement().window_rows is None
    with pytest.raises(ValueError, match="scores must be given for allocation 'owl', which needs activations"):
        plan_sparsity(random_report(4), config=PruneConfig(allocation="farms+owl"))
    with pytest.raises(ValueError, match="allocation must be 'uniform' for pattern '2:4', got 'ramp\\+farms'"):
        PruneConfig(allocation="ramp+farms", pattern="2:4")


def test_names_of_folders_have_no_signs():
    config = PruneConfig(allocation="ramp:0.7+farms:0.3")
    assert default_output_name("me/Llama", config) == "Llama-ramp0.7-farms0.3-wanda-50"


def test_a_recipe_holds_the_mixture(tmp_path):
    from hf_farms.config import CalibrationConfig, EvaluationConfig

    recipe = Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=PruneConfig(allocation="ramp:0.7+farms:0.3"),
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(),
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_cards_describe_and_cite_the_parts():
    from dataclasses import replace

    from hf_farms_cards import render_card

    report = EXAMPLES["full"][0]()
    options = {"pattern": "unstructured", "method": "wanda", "spread": None}
    card = render_card(replace(report, config=replace(report.config, allocation="ramp:0.7+farms:0.3", **options)))
    assert "Sparsities are 0.7 times those of `ramp` plus 0.3 times those of `farms`. `ramp`: Sparsity rises" in card
    assert "Each part has the default of its spread (`null` in the recipe): 0.1 for `ramp` and 0.1 for `farms`." in card
    assert "huang2025atp" in card
    assert "lu2024alphapruning" in card
    given = replace(report.config, allocation="ramp:0.7+farms:0.3", **options | {"spread": 0.2})
    assert "default of its spread" not in render_card(replace(report, config=given))
    card = render_card(replace(report, config=replace(report.config, allocation="ramp+owl", **options)))
    assert "Sparsities are the mean of those of `ramp` and `owl`." in card
