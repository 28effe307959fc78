"""Sentences on allocations that measure activations, and on maps for each role."""

from dataclasses import replace

import pytest
from cards import EXAMPLES
from hf_farms_cards import render_card

from hf_farms.config import PruneConfig
from hf_farms.reports import SearchRecord, SearchTrial


def report(*, by_layer=False, **options):
    """A report with blocks that differ; with targets of layers if they have them."""
    example = EXAMPLES["full"][0]()
    blocks = []
    for index, block in enumerate(example.blocks):
        layers = tuple(replace(layer, target=0.4 + 0.01 * index if by_layer else None) for layer in block.layers)
        blocks.append(replace(block, layers=layers, sparsity=0.5 if by_layer else 0.4 + 0.01 * index))
    return replace(example, config=PruneConfig(**options), blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("allocation", "sentence", "citation"),
    [
        ("ramp", "Sparsity rises linearly with depth ([ATP]", "huang2025atp"),
        ("owl", "Blocks with more outliers", "yin2024owl"),
        ("dlp", "Blocks are pruned more, the larger the median", "chen2025dlp"),
    ],
)
def test_each_allocation_is_described_and_cited(allocation, sentence, citation):
    card = render_card(report(allocation=allocation))
    assert sentence in card
    assert citation in card
    assert "alphas of different positions" not in card


def test_ends_of_scores_are_no_alphas():
    card = render_card(report(allocation="owl", ends="first-capped"))
    assert (
        "As scores of different positions compare badly, the score of the first block counts as at most the lowest of "
        "the others." in card
    )


def test_maps_for_each_role_are_described_where_they_made_layers_differ():
    clause = "Each role (the query projections, and so on) is distributed over blocks by itself"
    assert clause in render_card(report(by_layer=True, allocation="dlp", granularity="layer"))
    assert clause not in render_card(report(allocation="dlp"))
    options = {"allocation": "dlp", "granularity": "layer", "pattern": "N:8"}
    assert "the same number is kept throughout a layer." in render_card(report(by_layer=True, **options))
    assert "the same number is kept throughout a block." in render_card(report(allocation="dlp", pattern="N:8"))


@pytest.mark.parametrize(
    ("stage", "end"), [("recovered", " and recovered in one pass."), ("pruned", " as this model.")]
)
def test_the_table_of_plans_says_what_was_done_before_the_choice(stage, end):
    trials = tuple(
        SearchTrial(name=name, sparsities=(0.5,), screened=loss, refined=loss, **{stage: loss / 4})
        for name, loss in (("half of ramp", 0.2), ("uniform", 0.3))
    )
    search = SearchRecord(
        winner="half of ramp", sparsities=(0.5,), trials=trials, screen_tokens=2048, refine_tokens=16_384
    )
    card = render_card(replace(report(allocation="auto", recover="submodule"), search=search))
    assert f"| plan | KL, screened | KL, refined | KL, {stage} |\n" in card
    assert "| half of ramp | 0.2000 | 0.2000 | 0.0500 |\n" in card
    assert f"and of a few after they were pruned block by block{end}\n" in card


@pytest.mark.parametrize("complete", [True, False])
def test_a_search_that_the_time_ended_compared_what_it_had_tried(complete):
    trials = tuple(SearchTrial(name=name, sparsities=(0.5,), screened=0.2) for name in ("farms", "uniform"))
    search = SearchRecord(winner="farms", sparsities=(0.5,), trials=trials, screen_tokens=2048, complete=complete)
    card = render_card(replace(report(allocation="auto"), search=search))
    assert ("mixtures of them and changes of the best were compared by the KL divergence" in card) == complete
    early = "a time limit ended the search early: the plans tried until then were compared by the KL divergence"
    assert (early in card) != complete


PLANS = {
    "move 7: later blocks less": 0.1,
    "move 5: block 1 more, block 2 less": 0.11,
    "move 6: later blocks more": 0.12,
    "move 4: later blocks more": 0.13,
    "half of sensitivity": 0.2,
    "sensitivity": 0.21,
    "a quarter of sensitivity": 0.215,
    "mixture of farms, spread 0.2 and owl": 0.22,
    "mixture of owl and ramp": 0.23,
    "farms, spread 0.2": 0.3,
    "farms": 0.31,
    "farms, ends apart": 0.32,
    "uniform": 0.4,
    "owl, spread 0.08": 0.5,
    "owl": 0.51,
    "dlp": 0.6,
}


def plans_of(card):
    table = card.partition("| plan |")[2].partition("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]


def test_the_table_of_plans_has_every_kind_of_plan():
    """With the best plans alone, it may have moves only."""
    trials = tuple(SearchTrial(name=name, sparsities=(0.5,), screened=loss) for name, loss in PLANS.items())
    search = SearchRecord(winner=trials[0].name, sparsities=(0.5,), trials=trials, screen_tokens=2048)
    searched = replace(report(allocation="auto"), search=search)
    card = render_card(searched)
    others = [
        "move 4: later blocks more",
        "sensitivity",
        "a quarter of sensitivity",
        "mixture of owl and ramp",
        "farms",
        "farms, ends apart",
        "owl",
    ]
    assert plans_of(card) == [name for name in PLANS if name not in others]
    end = "which are changes of a plan. 7 other plans are in [`hf_farms_report.json`](hf_farms_report.json).\n"
    assert f"The table has the best plan of each kind, and the best few moves, {end}" in card

    # What was pruned for the final check, and the winner, stand there in any case.
    trials = tuple(replace(trial, pruned=0.1) if trial.name == "owl" else trial for trial in trials)
    card = render_card(replace(searched, search=replace(search, trials=trials, winner="farms")))
    assert plans_of(card) == [name for name in PLANS if name not in others or name in ("owl", "farms")]
    assert "5 other plans are in" in card
    card = render_card(replace(searched, search=replace(search, trials=trials[:4])))
    assert "1 other plan is in" in card
    assert "other plan" not in render_card(replace(searched, search=replace(search, trials=trials[:3])))
