from dataclasses import replace
from statistics import stdev

import pytest

from hf_farms.allocation.block_scores import COMBINE, block_scores
from hf_farms.allocation.notes import spread_note
from hf_farms.allocation.plan import plan_sparsity
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.config import BLOCK_SCORES, PruneConfig
from hf_farms.spectra.analysis import analyze


def test_plan_is_the_map_on_block_scores(llama):
    report = analyze(llama)
    config = PruneConfig(sparsity=0.6, spread=0.3)
    expected = allocate_sparsity(
        [block.alpha for block in report.blocks],
        sizes=[block.num_weights for block in report.blocks],
        target=0.6,
        spread=0.3,
        stderr=[block.alpha_stderr for block in report.blocks],
    )
    assert plan_sparsity(report, config=config) == expected
    assert plan_sparsity(report, config=PruneConfig(shrink=False)) != [0.5] * 3
    assert plan_sparsity(report, config=PruneConfig(allocation="uniform")) == [0.5] * 3


def test_alpha_and_farms_refuse_each_others_measurement(llama):
    windows, whole = analyze(llama), analyze(llama, PruneConfig(allocation="alpha").measurement())
    assert len(plan_sparsity(whole, config=PruneConfig(allocation="alpha"))) == 3
    with pytest.raises(ValueError, match="report must be measured on whole matrices"):
        plan_sparsity(windows, config=PruneConfig(allocation="alpha"))
    with pytest.raises(ValueError, match="report must be measured on windows"):
        plan_sparsity(whole, config=PruneConfig(allocation="farms"))


def test_a_block_without_alpha_gets_the_mean(llama):
    for parameter in llama.model.layers[0].parameters():
        parameter.data.zero_()
    plan = plan_sparsity(analyze(llama), config=PruneConfig(shrink=False, ends="measured"))
    assert min(plan[1:]) < plan[0] < max(plan[1:])


def test_the_note_says_what_shrinkage_did(llama):
    report = analyze(llama)
    deviation = stdev(block.alpha for block in report.blocks)

    def note(error):
        blocks = tuple(replace(block, alpha_stderr=error) for block in report.blocks)
        return spread_note(replace(report, blocks=blocks), PruneConfig(ends="measured"))

    # 1 - 0.4^2
    assert note(0.4 * deviation) == (
        "Measurement error is 16.0% of the variance between the blocks' alphas, "
        "so the spread of the sparsities was reduced from 0.1 to 0.084."
    )
    assert note(deviation) == (
        "The blocks' alphas differ by no more than chance, so the spread of the sparsities was reduced from 0.1 to 0."
    )
    assert note(None) is None
    assert spread_note(replace(report, blocks=report.blocks[:1]), PruneConfig()) is None
    assert spread_note(report, PruneConfig(allocation="uniform")) is None
    assert spread_note(report, PruneConfig(shrink=False)) is None


def test_an_unknown_block_score_is_refused():
    with pytest.raises(ValueError, match="block_score must be one of mean, median, trimmed, standardised, got 'mode'"):
        block_scores([[]], "mode")
    assert set(COMBINE) == set(BLOCK_SCORES)


@pytest.mark.parametrize("allocation", ["auto", "sensitivity"])
def test_an_allocation_that_prune_searches_is_no_plan_of_a_report(llama, allocation):
    message = (
        f"^allocation must be one that is planned without pruned models, got '{allocation}', which `prune` chooses on "
        r"a selection text. Call prune\(model, config, calibration=..., selection=...\); the sparsities are in "
    )
    with pytest.raises(ValueError, match=message):
        plan_sparsity(analyze(llama), config=PruneConfig(allocation=allocation))
