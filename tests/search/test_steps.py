"""The steps of a search on losses that are known: the squared distance to a plan."""

from types import SimpleNamespace

import pytest

from hf_farms.errors import DataError
from hf_farms.search import steps
from hf_farms.search.tokens import evenly, split_by_tokens, token_count


def test_plans_are_measured_a_few_at_a_time_while_there_is_time(state):
    search = state.begin(minutes=0.2)
    plans = [(f"plan {shift}", (100 - shift, 100, 100 + shift)) for shift in range(20)]
    measured = search.measure(plans, "screened")
    # 12 seconds, one for each plan, and six in a pass.
    assert [trial.name for trial in measured] == [name for name, _ in plans[:12]]
    assert [(len(tried), count) for tried, count in state.passes] == [(6, 2), (6, 2)]
    assert search.budget.seconds_per_plan == 1
    assert search.trials.seconds == 12
    assert state.stages == [
        ("search: best so far plan 5, KL 50", 6, 20),
        ("search: best so far plan 10, KL 0", 12, 20),
    ]
    # The first pass is made in any case, so that there is a best plan.
    assert len(state.begin(minutes=1e-9).measure(plans, "screened")) == 6


def test_the_starts_are_uniform_the_allocations_the_knapsack_and_mixtures_of_the_best(state, monkeypatch):
    class Starts:
        notes = ("a note",)

        def __init__(self, *args, **options):
            pass

        def plans(self):
            yield from (("farms", (96, 100, 104)), ("again", (100, 100, 100)), ("ramp", (70, 100, 130)))

    monkeypatch.setattr(steps, "Starts", Starts)
    table = SimpleNamespace(best_plan=lambda grid: (72, 100, 128))
    monkeypatch.setattr(steps, "measure_sensitivity", lambda *args, **options: table)
    search = state.begin()
    search.screen_starts()
    assert {trial.name: trial.plan for trial in search._visited.values()} == {
        "uniform": (100, 100, 100),
        "farms": (96, 100, 104),
        "ramp": (70, 100, 130),
        "sensitivity": (72, 100, 128),
        "half of sensitivity": (86, 100, 114),
        "mixture of half of sensitivity and farms": (91, 100, 109),
        "mixture of half of sensitivity and uniform": (93, 100, 107),
        "mixture of farms and uniform": (98, 100, 102),
    }
    assert search.notes == ["a note"]


def test_moves_start_from_the_best_plan_and_from_what_helped(state, monkeypatch):
    monkeypatch.setattr(steps, "MOVES", 5)
    monkeypatch.setattr(steps, "MOVES_AT_ONCE", 3)
    search, seen = state.begin(), []
    search.measure([("uniform", (100, 100, 100)), ("worse", (120, 100, 80))], "screened")

    def proposals(plan, count, helped):
        seen.append((plan, count, list(helped)))
        first, middle, last = plan
        ways = [(first - 5, middle, last + 5), (first - 20, middle, last + 20), (first - 2, middle, last + 2)]
        return [(f"way {number}", way) for number, way in enumerate(ways[:count])]

    search.try_moves(proposals)
    assert seen == [
        ((100, 100, 100), 3, []),
        ((95, 100, 105), 2, [(95, 100, 105), (98, 100, 102)]),
    ]
    assert [trial.name for trial in search.trials.ranked()] == [
        "move 4: way 0",
        "move 1: way 0",
        "move 3: way 2",
        "uniform",
        "move 2: way 1",  # as good as uniform, which is no help
        "move 5: way 1",
        "worse",
    ]
    state.passes.clear()
    search.try_moves(lambda plan, count, helped: [])
    assert state.passes == []


def test_moves_end_when_the_finalists_need_the_time_left(state):
    search = state.begin(minutes=1)
    search.measure([("uniform", (100, 100, 100))], "screened")
    # Five finalists on six sequences take 15 seconds, of which there are fewer.
    state.seconds = 46
    search.try_moves(lambda plan, count, helped: pytest.fail("no time is left"))
    state.seconds = 44
    called = []
    search.try_moves(lambda plan, count, helped: called.append(plan) or [])
    assert called == [(100, 100, 100)]
    unlimited = state.begin()
    unlimited.measure([("uniform", (100, 100, 100))], "screened")
    assert not unlimited._must_finish()


def test_moves_end_when_two_checks_need_the_time_left(state, monkeypatch):
    monkeypatch.setattr(steps, "check_seconds", lambda search: 10 * search.budget.seconds_per_plan)
    for minutes, left in ((1, 35), (0.5, 15)):
        # The finalists take 15 seconds, and two checks 20; of half a minute nothing is kept for them.
        search = state.begin(minutes)
        search.measure([("uniform", (100, 100, 100))], "screened")
        assert not search._must_finish()
        state.seconds += search.budget.left() - left
        assert not search._must_finish()
        state.seconds += 1
        search.try_moves(lambda plan, count, helped: pytest.fail("no time is left"))
        assert search.is_cut


def test_finalists_are_the_best_plans_the_best_start_and_uniform(state):
    search = state.begin()
    starts = [("uniform", (100, 100, 100)), ("farms", (96, 100, 104)), ("ramp", (98, 100, 102))]
    moves = [(f"move {shift}: shift", (90 + shift, 100, 110 - shift)) for shift in range(5)]
    search.measure([*starts, *moves], "screened")
    state.passes.clear()
    finalists = search.finalists()
    assert [trial.name for trial in finalists] == [
        "move 0: shift",
        "move 1: shift",
        "move 2: shift",
        "farms",
        "uniform",
    ]
    assert [(len(tried), count) for tried, count in state.passes] == [(5, 6)]
    few = state.begin()
    few.measure(starts[:1], "screened")
    assert few.finalists() == []
    few.measure(starts[1:2], "screened")
    assert [trial.name for trial in few.finalists()] == ["farms", "uniform"]


def test_the_table_takes_its_share_of_the_time(state, monkeypatch):
    measured = []
    monkeypatch.setattr(steps, "measure_sensitivity", lambda *args, **options: measured.append(len(args[3])) or "table")
    search = state.begin(minutes=1)
    search.measure([("uniform", (100, 100, 100))], "screened")
    # 5 L / 2 plans of two sequences take 7.5 seconds: there are 0.4 x 10 left.
    state.seconds = 50
    assert search.table() == "table"
    assert search.notes == ["The sensitivity table was measured on 1 of 2 sequences: `minutes`."]
    assert search.table() == "table"
    plenty = state.begin(minutes=60)
    plenty.measure([("uniform", (100, 100, 100))], "screened")
    assert (plenty.table(), plenty.notes) == ("table", [])
    assert measured == [1, 2]


def test_tokens_of_screening_and_of_finalists_are_apart_where_the_text_is_long_enough(state, selection):
    batches = [{"input_ids": ids} for ids in selection]
    screen, refine = split_by_tokens(batches, 40, 120)
    assert (token_count(screen), token_count(refine)) == (40, 120)
    assert [next(i for i, batch in enumerate(batches) if batch is other) for other in screen] == [0, 4]
    assert not any(batch is other for batch in screen for other in refine)
    screen, refine = split_by_tokens(batches[:3], 40, 120)
    assert (token_count(screen), refine) == (40, batches[:3])
    with pytest.raises(DataError, match="selection must hold at least one token, got none"):
        split_by_tokens([], 40, 120)
    assert evenly(batches, 4) == batches[::2]
    assert evenly(batches, 9) == batches
