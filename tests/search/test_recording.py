"""The record of a search in the report, and the key of its file."""

import math
from dataclasses import replace

import pytest
import torch

from hf_farms import PruneConfig
from hf_farms.search.grid import Grid
from hf_farms.search.recording import LARGEST, make_record, search_key
from hf_farms.search.sensitivity import SensitivityTable
from hf_farms.search.trials import Trial

GRID = Grid((100, 100), 0.5, 200, 0.999)


def test_a_record_has_all_measured_trials_in_their_order():
    trials = [
        Trial("best", (90, 110), {"screened": 0.3, "refined": 0.2, "pruned": 0.1}),
        Trial("second", (100, 100), {"screened": 0.2, "refined": 0.4, "pruned": 0.2}),
        Trial("third", (110, 90), {"screened": 0.4, "refined": 0.5, "pruned": 0.3}),
        Trial("broken", (180, 20), {"screened": math.inf}),
        Trial("unmeasured", (20, 180)),
    ]
    table = SensitivityTable((50, 100), ((0.1, math.inf), (0.2, 0.4)))
    record = make_record(
        GRID, table, winner=trials[0], trials=trials, tokens=(40, 60), complete=False, notes=["a", "b", "a"]
    )
    assert (record.winner, record.complete, record.notes) == ("best", False, ("a", "b"))
    assert record.sparsities == pytest.approx((0.45, 0.55))
    assert [trial.name for trial in record.trials] == ["best", "second", "third", "broken"]
    assert record.trials[0].sparsities == (0.45, 0.55)
    assert [(x.screened, x.refined, x.pruned) for x in record.trials] == [
        (0.3, 0.2, 0.1),
        (0.2, 0.4, 0.2),
        (0.4, 0.5, 0.3),
        (LARGEST, None, None),
    ]
    assert LARGEST == 1e30  # JSON has no infinity
    assert (record.table_sparsities, record.table) == ((0.25, 0.5), ((0.1, LARGEST), (0.2, 0.4)))
    assert (record.screen_tokens, record.refine_tokens) == (40, 60)
    assert record.rank_correlation == pytest.approx(1)


def test_losses_after_a_recovery_are_those_that_count():
    trials = [
        Trial("half", (95, 105), {"screened": 0.3, "refined": 0.2, "recovered": 0.1}),
        Trial("uniform", (100, 100), {"screened": 0.2, "refined": 0.3, "recovered": 0.2}),
        Trial("best", (90, 110), {"screened": 0.4, "refined": 0.1, "pruned": 0.01, "recovered": 0.3}),
    ]
    record = make_record(GRID, None, winner=trials[0], trials=trials, tokens=(40, 60))
    assert [(x.pruned, x.recovered) for x in record.trials] == [(None, 0.1), (None, 0.2), (0.01, 0.3)]
    assert record.rank_correlation == pytest.approx(-0.5)
    assert record.sentence == (
        "Best of 3 plans: half, KL to the dense model 0.1 nats per token after pruning and one pass of recovery (0.2 "
        "with uniform sparsity). Rank correlation of the search with sequential pruning and recovery over 3 plans: "
        "-0.50."
    )


def test_a_single_plan_is_no_plans():
    uniform = Trial("uniform", (100, 100), {"screened": 0.25})
    record = make_record(GRID, None, winner=uniform, trials=[uniform], tokens=(40, 0), complete=False)
    assert record.sentence.startswith("Best of 1 plan: uniform, KL to the dense model 0.25 nats per token on 40 tokens")


def test_nothing_is_refined_where_no_trial_is():
    record = make_record(GRID, None, winner=Trial("sensitivity", (90, 110)), tokens=(40, 60))
    assert (record.trials, record.table, record.table_sparsities) == ((), (), ())
    assert (record.refine_tokens, record.rank_correlation, record.complete) == (0, None, True)
    screened = Trial("uniform", (100, 100), {"screened": 0.3})
    record = make_record(GRID, None, winner=screened, trials=[screened], tokens=(40, 60))
    assert (record.screen_tokens, record.refine_tokens, record.trials[0].refined) == (40, 0, None)
    assert make_record(GRID, None, winner=screened).screen_tokens == 0


def test_the_key_tells_settings_and_data_apart_but_for_the_time(source, calibration, selection):
    batches = [{"input_ids": ids} for ids in selection]
    config = PruneConfig(allocation="auto")
    key = search_key(source, config, calibration, batches)
    assert key == search_key(source, replace(config, minutes=5), calibration, batches)
    masks = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
    turned = [dict(reversed(batch.items())) for batch in masks]
    assert search_key(source, config, [], masks) == search_key(source, config, [], turned) != key
    other = [*batches[:-1], {"input_ids": torch.roll(batches[-1]["input_ids"], 1)}]
    keys = {
        key,
        search_key(source, replace(config, sparsity=0.6), calibration, batches),
        search_key(source, replace(config, spectra=replace(config.spectra, fit="peak")), calibration, batches),
        search_key(source, config, calibration[:1], batches),
        search_key(source, config, calibration, batches[:-1]),
        search_key(source, config, calibration, other),
    }
    assert len(keys) == 6
