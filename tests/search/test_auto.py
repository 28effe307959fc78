"""The allocations `sensitivity` and `auto` through `prune`."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from hf_farms import PruneConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import DataError, HfFarmsWarning, OutputError
from hf_farms.search import checking, steps
from hf_farms.search.auto import search_auto, search_sensitivity
from hf_farms.search.checking import check_config


@pytest.fixture
def config(registered):
    return PruneConfig(allocation="auto", spectra=registered.spectra)


@pytest.fixture(autouse=True)
def few(monkeypatch, registered):
    """Two sequences screen, two refine; six moves."""
    from hf_farms.registries import ALLOCATIONS

    monkeypatch.delitem(ALLOCATIONS, "failing")
    for name, value in {"SCREEN_TOKENS": 40, "REFINE_TOKENS": 40, "TABLE_TOKENS": 20, "MOVES": 6}.items():
        monkeypatch.setattr(steps, name, value)


def search(source, config, calibration, selection, **options):
    return search_auto(source, config, calibration=calibration, selection=selection, **options)


def test_the_best_plan_of_all_starts_and_moves_wins(source, model, config, calibration, selection):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages = []
    record = search(
        source, config, calibration, selection, progress=lambda stage, done, total: stages.append((stage, done, total))
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    names = {trial.name for trial in record.trials}
    assert {"uniform", "mine", "alpha", "sensitivity"} <= names
    # Of 6 moves, one may lead to a plan that was tried under another name.
    assert sum(name.startswith("move ") for name in names) >= 5
    assert record.complete
    assert (record.screen_tokens, record.refine_tokens) == (40, 40)
    pruned = [trial for trial in record.trials if trial.pruned is not None]
    assert record.trial("uniform") in pruned
    assert record.best.pruned == min(trial.pruned for trial in pruned)
    assert min(trial.screened for trial in record.trials) < record.trial("uniform").screened
    assert sum(record.sparsities) == pytest.approx(1.5)
    assert stages[-1][0].startswith(f"check: best so far {record.winner}, KL ")
    assert stages[-1][1:] == (3, 3)


def test_the_loss_after_pruning_is_that_of_the_pruned_model(source, model, config, calibration, selection):
    record = search(source, config, calibration, selection)
    best = record.best
    refine = [{"input_ids": ids} for ids in (selection[1], selection[3])]
    with torch.no_grad():
        dense = [model(**batch).logits.log_softmax(dim=-1) for batch in refine]
        prune(model, config, calibration=calibration, scores=record.sparsities)
        pruned = [model(**batch).logits.log_softmax(dim=-1) for batch in refine]
    losses = [(p.exp() * (p - q)).sum(dim=-1).mean() for p, q in zip(dense, pruned, strict=True)]
    assert best.pruned == pytest.approx(float(sum(losses) / 2), rel=1e-4)


def test_a_search_is_deterministic_and_continues_where_it_stopped(
    model, config, calibration, selection, tmp_path, monkeypatch
):
    whole = search(ModelBlockSource(model), config, calibration, selection)
    file = tmp_path / "state" / "trials.json"

    def interrupt(stage, done, total):
        if stage.startswith("search: ") and "move" in file.read_text():
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does") as interrupted:
        search(ModelBlockSource(model), config, calibration, selection, trials=file, progress=interrupt)
    kept = json.loads(file.read_text())
    assert interrupted.value.__notes__[0].startswith(f"Best allocation so far: {kept['best']}, KL ")
    plans = []
    measured = steps.plan_losses
    monkeypatch.setattr(steps, "plan_losses", lambda *args: plans.extend(args[2]) or measured(*args))
    continued = search(ModelBlockSource(model), config, calibration, selection, trials=file)
    # Only the finalists are left.
    assert len(plans) <= 5
    assert continued.winner == whole.winner
    assert continued.sparsities == whole.sparsities
    assert [trial.name for trial in continued.trials] == [trial.name for trial in whole.trials]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"key": "other"}', "it belongs to other settings"),
        ("my notes", "it is no such file"),
        ("[1]", "it is no such"),
    ],
)
def test_a_file_of_another_search_is_not_overwritten(source, config, calibration, selection, tmp_path, text, reason):
    file = tmp_path / "trials.json"
    file.write_text(text)
    with pytest.raises(OutputError, match=f"trials must be a new file, .* got '.*trials.json': {reason}"):
        search(source, config, calibration, selection, trials=file)
    assert file.read_text() == text


def test_a_search_stops_when_its_minutes_are_over(source, registered, calibration, selection):
    seconds = iter(range(0, 10**6, 20))
    config = PruneConfig(allocation="auto", spectra=registered.spectra, minutes=1)
    record = search(source, config, calibration, selection, clock=lambda: next(seconds))
    assert not record.complete
    assert record.trial("uniform") is not None
    assert record.refine_tokens == 0
    assert record.winner == min(record.trials, key=lambda trial: trial.screened).name
    assert record.notes[-1].startswith(
        "The time limit (`minutes`) ended the search before it was complete: the best plan"
    )


def test_sensitivity_is_the_knapsack_of_the_table(source, config, calibration, selection):
    record = search_sensitivity(source, config, calibration=calibration, selection=selection)
    assert record.winner == "sensitivity"
    assert record.table_sparsities == (0.25, 0.4, 0.5, 0.6, 0.7)
    assert sum(record.sparsities) == pytest.approx(1.5)
    least = min(range(3), key=lambda block: record.table[block][-1])
    assert record.sparsities[least] == max(record.sparsities)


@pytest.mark.parametrize("allocation", ["auto", "sensitivity"])
def test_prune_takes_the_searched_sparsities(model, registered, calibration, selection, allocation):
    config = PruneConfig(
        allocation=allocation, spectra=registered.spectra if allocation == "auto" else PruneConfig().spectra
    )
    report = prune(model, config, calibration=calibration, selection=selection).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    targets = [block.target for block in report.blocks]
    assert targets == pytest.approx(report.search.sparsities)
    assert type(report).from_json(report.to_json()) == report


def test_sparsegpt_is_searched_on_masks_of_wanda(source, registered, many, selection):
    config = PruneConfig(allocation="sensitivity", method="sparsegpt")
    record = search_sensitivity(source, config, calibration=many, selection=selection)
    assert "The search used masks of 'wanda' in place of 'sparsegpt'" in record.notes[0]


def test_a_refinement_is_not_searched_which_is_said(source, registered, many, selection):
    config = PruneConfig(allocation="sensitivity", refine="swaps")
    record = search_sensitivity(source, config, calibration=many, selection=selection)
    assert "The search used masks as they are before refinement by 'swaps'." in record.notes


def test_the_check_prunes_with_refinement_and_granularity_of_the_config(source, model, config, calibration, selection):
    config = replace(config, granularity="layer", refine="swaps")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = search(source, config, calibration, selection)
    assert {"owl, spread 0.08", "dlp"} & {trial.name for trial in record.trials}
    assert record.best.pruned is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_finalists_are_recovered_in_one_pass_over_some_of_the_sequences(
    source, model, config, calibration, selection, monkeypatch
):
    monkeypatch.setattr(checking, "CHECK_SEQUENCES", 2)
    config = replace(config, recover="submodule", recover_passes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfFarmsWarning)  # of few sequences
        record = search(source, config, calibration, selection)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    recovered = {trial.name: trial for trial in record.trials if trial.recovered is not None}
    assert not [trial for trial in record.trials if trial.pruned is not None]
    assert "uniform" in recovered
    assert any(name.startswith("half of ") for name in recovered)
    assert record.best.recovered == min(trial.recovered for trial in recovered.values())
    refine = [{"input_ids": ids} for ids in (selection[1], selection[3])]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", HfFarmsWarning)
        dense = [model(**batch).logits.log_softmax(dim=-1) for batch in refine]
        # Of three sequences, evenly spaced.
        two = [{"input_ids": calibration[0]["input_ids"][:1]}, {"input_ids": calibration[0]["input_ids"][1:]}]
        prune(model, replace(config, recover_passes=1), calibration=two, scores=record.sparsities)
        after = [model(**batch).logits.log_softmax(dim=-1) for batch in refine]
    losses = [(p.exp() * (p - q)).sum(dim=-1).mean() for p, q in zip(dense, after, strict=True)]
    assert record.best.recovered == pytest.approx(float(sum(losses) / 2), rel=1e-4)


@pytest.mark.filterwarnings("ignore::hf_farms.errors.HfFarmsWarning")
def test_a_check_of_recovered_plans_continues_and_passes_over_other_losses(
    model, config, calibration, selection, tmp_path
):
    config, file = replace(config, recover="submodule"), tmp_path / "trials.json"
    whole = search(ModelBlockSource(model), config, calibration, selection)

    def interrupt(stage, done, total):
        if stage.startswith("check"):
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        search(ModelBlockSource(model), config, calibration, selection, trials=file, progress=interrupt)
    kept = json.loads(file.read_text())
    assert sum("recovered" in trial["losses"] for trial in kept["trials"]) == 1
    # Earlier versions kept losses after all passes as those of pruned plans.
    kept["trials"][-1]["losses"]["pruned"] = 0.0
    file.write_text(json.dumps(kept))
    continued = search(ModelBlockSource(model), config, calibration, selection, trials=file)
    assert (continued.winner, continued.sparsities) == (whole.winner, whole.sparsities)
    again = search(ModelBlockSource(model), config, calibration, selection, trials=file)
    assert (again.winner, len(again.trials)) == (whole.winner, len(whole.trials))
    checked = [trial.recovered is not None for trial in whole.trials]
    assert [trial.recovered is not None for trial in again.trials] == checked
    assert checked[: sum(checked)] == [True] * sum(checked)


def test_finalists_are_not_trained_as_a_whole():
    assert check_config(PruneConfig(recover="none", refine="swaps")) == PruneConfig(recover="none", refine="swaps")
    for recover in ("submodule", "distill"):
        config = PruneConfig(recover=recover, recover_passes=7, recover_rate=0.1)
        checked = check_config(config)
        assert (checked.recover, checked.recover_passes) == ("submodule", 1)
        assert checked.recover_rate == (0.1 if recover == "submodule" else None)


def test_magnitude_needs_no_calibration(model, registered, selection):
    config = PruneConfig(allocation="auto", method="magnitude", pattern="N:8", spectra=registered.spectra)
    report = prune(model, config, selection=selection).report
    assert report.calibration is None
    assert report.search.trial("uniform") is not None
    assert not [trial for trial in report.search.trials if trial.name.startswith(("owl", "dlp"))]
    untried = "Allocations that need calibration data were not tried, as method 'magnitude' uses none: 'owl', 'dlp'."
    assert untried in report.search.notes
    # Blocks have whole numbers of zeros per group.
    assert all(8 * sparsity == round(8 * sparsity) for sparsity in report.search.best.sparsities)


def test_selection_data_is_checked(source, config, calibration, selection):
    with pytest.raises(DataError, match=r"selection must be given for allocation 'auto', got None"):
        prune(source, config, calibration=calibration)
    with pytest.raises(DataError, match=r"selection must have at least four sequences, two in each half, got 3"):
        search(source, config, calibration, selection[:3])
    with pytest.raises(DataError, match=r"selection token ids must be below 100, got 100"):
        search(source, config, calibration, [torch.full((4, 9), 100)])
    same = [*selection[:4], calibration[1]["input_ids"]]
    with pytest.raises(DataError, match=r"selection text must not be the calibration text, got a sequence that is in"):
        search(source, config, calibration, same)


def test_a_model_that_cannot_be_restored_is_not_pruned_for_a_check(model, config, calibration, selection):
    source = ModelBlockSource(model)
    source.results = type("Results", (), {"record": lambda self, index: None})()
    record = search(source, config, calibration, selection)
    assert record.rank_correlation is None
    assert record.refine_tokens == 40
    assert any("not pruned block by block before the choice" in note for note in record.notes)
    record = search(source, replace(config, recover="submodule"), calibration, selection)
    unchecked = "Plans were not pruned block by block or recovered before the choice, as the model is not in memory."
    assert record.notes == ("The search measured plans without recovery.", unchecked)
