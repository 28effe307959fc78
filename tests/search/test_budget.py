"""The time of a search."""

import math

import pytest

from hf_farms.search.budget import Budget


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds
        return "done"


def test_a_limit_counts_from_the_start_and_time_used_includes_earlier_runs():
    clock = Clock()
    budget = Budget(2, clock=clock, before=30)
    assert (budget.limited, budget.left(), budget.used(), budget.over()) == (True, 120, 30, False)
    clock.now += 50
    assert (budget.left(), budget.used(), budget.over()) == (70, 80, False)
    clock.now += 69.5
    assert not budget.over()
    clock.now += 0.5
    assert (budget.left(), budget.used(), budget.over()) == (0, 150, True)


def test_without_a_limit_there_is_always_time():
    clock = Clock()
    budget = Budget(None, clock=clock)
    clock.now += 1e9
    assert (budget.limited, budget.left(), budget.used(), budget.over()) == (False, math.inf, 1e9, False)


def test_the_time_of_a_plan_is_the_mean_over_all_measured_ones():
    clock = Clock()
    budget = Budget(1, clock=clock)
    assert budget.seconds_per_plan == 0
    assert budget.timed(lambda: clock.work(6), plans=2) == "done"
    clock.now += 40  # other work
    assert budget.seconds_per_plan == 3
    budget.timed(lambda: clock.work(1), plans=0.5)
    assert budget.seconds_per_plan == pytest.approx(7 / 2.5)
