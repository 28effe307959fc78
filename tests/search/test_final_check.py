"""The last plans of a search are pruned block by block, or recovered, before one is taken."""

from dataclasses import replace

import pytest
import torch

from hf_farms.search import final_check, steps
from hf_farms.search.budget import Budget
from hf_farms.search.tokens import token_count
from hf_farms.search.trials import Trials

UNIFORM, ONE, TWO = ("uniform", (100, 100, 100)), ("one", (90, 100, 110)), ("two", (97, 100, 103))


@pytest.fixture
def recovered(state, monkeypatch):
    """Check plans before a recovery; losses are a function of the highest sparsity, and each takes a minute."""

    def check(loss, plans=(UNIFORM, ONE, TWO), minutes=None):
        def pruned_loss(source, config, sparsities, *, calibration, batches):
            state.seconds += 60
            return loss(round(sparsities[2], 3))

        monkeypatch.setattr(final_check, "pruned_loss", pruned_loss)
        search = state.begin(minutes)
        search.config = replace(search.config, recover="submodule")
        search.measure(plans, "screened")
        search.check(search.finalists())
        return search

    return check


def names(search):
    return [trial.name for trial in search.trials.ranked(stage="recovered")]


def test_the_best_finalist_uniform_and_the_second_are_pruned_while_there_is_time(state, monkeypatch):
    pruned = []

    def pruned_loss(source, config, sparsities, *, calibration, batches):
        pruned.append(([round(sparsity, 3) for sparsity in sparsities], token_count(batches)))
        state.seconds += 60
        return 1.0 / len(pruned)

    monkeypatch.setattr(final_check, "pruned_loss", pruned_loss)
    monkeypatch.setattr(final_check, "CHECK_TOKENS", 60)
    plans = [("uniform", (100, 100, 100)), ("one", (90, 100, 110)), ("two", (95, 100, 105)), ("three", (97, 100, 103))]
    for minutes, count in ((None, 3), (2.5, 2)):
        search = state.begin(minutes)
        search.measure(plans, "screened")
        pruned.clear()
        state.stages.clear()
        search.check(search.finalists())
        assert pruned == [([0.45, 0.5, 0.55], 60), ([0.5, 0.5, 0.5], 60), ([0.475, 0.5, 0.525], 60)][:count]
        stages = [(stage.partition(":")[0], done, total) for stage, done, total in state.stages if "check" in stage]
        assert stages == [("check", 1, 3), ("check", 2, 3), ("check", 3, 3)][:count]
        assert search.trials.best.name == ("two" if count == 3 else "uniform")
        stopped = "The time limit (`minutes`) ended the search before all finalists were pruned block by block."
        assert search.notes == ([] if count == 3 else [stopped])


@pytest.mark.parametrize(
    ("best", "last", "winner"),
    [
        (0.55, "three quarters of one", "one"),
        (0.535, "three quarters of one", "three quarters of one"),
        (0.526, "three quarters of one", "half of one"),
        (0.524, "a quarter of one", "half of one"),
        (0.51, "a quarter of one", "a quarter of one"),
        (0.5, "a quarter of one", "uniform"),
    ],
)
def test_a_plan_beside_the_best_of_three_comes_last_where_the_model_is_recovered(recovered, state, best, last, winner):
    search = recovered(lambda sparsity: abs(sparsity - best))
    checked = names(search)
    assert {*checked} == {"one", "uniform", "half of one", last}
    assert (checked[0], search.trials.best.name) == (winner, winner)
    assert all(
        set(trial.losses) == {"screened", "refined", "recovered"} for trial in search.trials.ranked(stage="recovered")
    )
    assert search.notes == [
        "4 of the plans were also pruned block by block and recovered, in one pass over at most 32 sequences."
    ]
    stages = [(stage.partition(":")[0], done, total) for stage, done, total in state.stages if "check" in stage]
    assert stages == [("check", number, 4) for number in range(1, 5)]
    # The same search on the same trials takes the same plans, though more were refined.
    assert [trial.name for trial in search.finalists()] == ["one", "two", "uniform"]


def test_the_best_and_uniform_come_first_when_there_is_little_time(recovered):
    for minutes, checked in ((3.5, {"one", "uniform", "half of one"}), (2.5, {"one", "uniform"}), (1.5, {"one"})):
        search = recovered(lambda _: 1.0, (UNIFORM, ONE), minutes)
        assert {*names(search)} == checked
        assert search.is_cut
        # No check begins that does not fit.
        assert search.budget.left() >= 0
        assert {trial.name for trial in search.trials.ranked()} == {"one", "uniform"} | checked
        assert search.notes[0].startswith("The time limit (`minutes`) ended the search")
        verb = "was" if len(checked) == 1 else "were"
        assert search.notes[1].startswith(
            f"{len(checked)} of the plans {verb} also pruned block by block and recovered"
        )


def test_the_second_finalist_is_checked_where_no_level_lies_between(recovered, monkeypatch):
    monkeypatch.setattr(final_check, "between", lambda name, plan, grid, share: (f"half of {name}", grid.uniform))
    search = recovered(lambda _: 1.0, (UNIFORM, ONE, ("three", (88, 100, 112))))
    assert {*names(search)} == {"one", "uniform", "three"}


def test_a_last_plan_that_was_checked_before_is_left_out(recovered, state):
    # Levels are whole: between a change by two and half of it there is none.
    search = recovered(lambda sparsity: -sparsity, (UNIFORM, ("near", (98, 100, 102))))
    assert {*names(search)} == {"near", "uniform", "half of near"}
    steps = [(done, total) for stage, done, total in state.stages if stage.startswith("check")]
    assert steps == [(1, 4), (2, 4), (3, 4), (3, 3)]


def test_no_plan_lies_between_where_uniform_is_the_best(recovered, monkeypatch):
    monkeypatch.setattr(
        steps, "plan_losses", lambda source, codes, plans, batches, **_: [1.0 + abs(plan[0] - 100) for plan in plans]
    )
    search = recovered(lambda _: 1.0, (UNIFORM, ONE))
    assert {*names(search)} == {trial.name for trial in search.trials.ranked()} == {"uniform", "one"}


@pytest.mark.parametrize(("options", "passes"), [({}, 2), ({"method": "magnitude"}, 0), ({"recover": "submodule"}, 9)])
def test_the_time_of_a_check_is_estimated_from_that_of_a_plan(state, options, passes):
    search = state.begin()
    search.config = replace(search.config, **options)
    search.calibration = [{"input_ids": torch.zeros(40, 10, dtype=torch.long)}]
    assert final_check.check_seconds(search) == 0
    search.measure([UNIFORM], "screened")
    # A plan takes a second for 40 tokens; a recovery takes 32 of the 40 sequences, and all are measured twice.
    tokens = passes * (320 if "recover" in options else 400) + 2 * token_count(search.refine)
    assert final_check.check_seconds(search) == pytest.approx(tokens / 40)


def test_a_search_that_goes_on_knows_the_time_of_a_plan_and_what_was_checked(state, monkeypatch, tmp_path):
    def pruned_loss(source, config, sparsities, *, calibration, batches):
        state.seconds += 60
        return 1.0

    monkeypatch.setattr(final_check, "pruned_loss", pruned_loss)
    path = tmp_path / "trials.json"
    search = state.begin(1.5)
    search.trials = Trials(path)
    search.measure([UNIFORM, ONE, TWO], "screened")
    search.check(search.finalists())
    assert {trial.name for trial in search.trials.ranked(stage="pruned")} == {"one"}
    monkeypatch.setattr(final_check, "check_seconds", lambda search: 60 * search.budget.seconds_per_plan)
    for seconds, checked in ((59, {"one"}), (61, {"one", "uniform"})):
        again = state.begin(seconds / 60)
        again.trials = Trials(path)
        again.budget = Budget(seconds / 60, clock=lambda: state.seconds, seconds_per_plan=again.trials.seconds_per_plan)
        again.measure([UNIFORM, ONE, TWO], "screened")
        again.check(again.finalists())
        # The plan of before takes no time, and tells nothing about the next one.
        assert {trial.name for trial in again.trials.ranked(stage="pruned")} == checked
