"""Several processes: what one of them made or could not make, on all."""

import threading

import pytest
from processes import LIMIT

from hf_farms.errors import HfFarmsError, ModelError
from hf_farms.processes import (
    ONE_PROCESS,
    all_rank_results,
    check_same,
    first_rank_result,
    launched_processes,
    launched_ranks,
)


def test_help_shows_a_name_for_the_default():
    assert repr(ONE_PROCESS) == "ONE_PROCESS"


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, index, shared, barrier):
        self.index, self.count, self._shared, self._barrier = index, barrier.parties, shared, barrier

    def gather(self, item):
        self._shared[self.index] = item
        self._barrier.wait(timeout=LIMIT)
        return [self._shared[index] for index in range(self.count)]


def on_all(make, *, count=3):
    """What comes back on every rank, or the error that is raised there."""
    shared, barrier, found = {}, threading.Barrier(count), {}

    def run(index):
        try:
            found[index] = all_rank_results(lambda: make(index), Threads(index, shared, barrier))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(count)]


def test_everything_comes_together():
    assert on_all(lambda index: index * 2) == [[0, 2, 4]] * 3
    assert first_rank_result(lambda: 7, ONE_PROCESS) == 7


def test_an_error_of_one_process_is_raised_on_all_and_nobody_waits():
    def fail(index):
        if index == 1:
            raise ModelError("weights must be finite", hint="Look.")

    found = on_all(fail)
    assert [type(error) for error in found] == [ModelError] * 3
    assert {error.hint for error in found} == {"Look."}


def test_an_error_that_is_none_of_ours_keeps_its_kind_where_it_was_raised():
    def fail(index):
        if index == 2:
            raise MemoryError("no room")

    first, second, third = on_all(fail)
    assert isinstance(third, MemoryError)
    for error in (first, second):
        assert type(error) is HfFarmsError
        assert str(error) == "process 2 of 3 failed: MemoryError('no room')"


def test_one_process_raises_as_it_is():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        all_rank_results(fail, ONE_PROCESS)


class Gathered:
    """One of several ranks, with what all of them sent."""

    def __init__(self, *items):
        self.count, self._items = len(items), list(items)

    def gather(self, item):
        return self._items


def test_arguments_that_differ_between_processes():
    check_same(ONE_PROCESS, {"sparsity": 0.5})
    alike = {"sparsity": "0.5", "model": "'demo'"}
    check_same(Gathered(alike, alike), {})
    why = r"sparsity must be the same on all processes, got 0\.5 in process 0 and 0\.6 in process 2\. Start all"
    with pytest.raises(ValueError, match=why):
        check_same(Gathered(alike, alike, {**alike, "sparsity": "0.6"}), {})
    with pytest.raises(ValueError, match=r"revision must be .* got none in process 0 and 'x' in process 1"):
        check_same(Gathered(alike, {**alike, "revision": "'x'"}), {})


@pytest.mark.parametrize("value", ["two", "", "-1"])
def test_variables_that_no_launcher_has_set(value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert launched_processes() == 1
    assert launched_ranks() is ONE_PROCESS


def test_processes_that_were_not_launched(monkeypatch):
    def unreachable(**options):
        raise ValueError("`MASTER_ADDR` env was not set")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", unreachable)
    with pytest.raises(
        HfFarmsError, match=r"able to reach each other, got variables of several .*MASTER_ADDR"
    ) as caught:
        launched_ranks()
    assert "unset WORLD_SIZE" in caught.value.hint
