"""Processes that make one result together: sums, parts, and errors of one of them."""

import json
import os

import pytest
import torch
from launch import run_script

from hf_farms.processes import (
    ONE_PROCESS,
    folder_of_rank,
    from_first_rank,
    hidden_launch,
    is_main_process,
    rows_of_rank,
)

SCRIPT = """
import json, os, sys
import torch
from hf_farms.errors import ModelError
from hf_farms.processes import working_ranks
ranks = working_ranks()
rank = ranks.index
result = {"ranks": [rank, ranks.count, ranks.device]}

total = torch.tensor([0.1, 2.0**60 * (1 - 2 * rank), 1.0], dtype=torch.float64)
ranks.sum_(total)
result["total"] = total.tolist()
for name, dtype in (("float", torch.float32), ("half", torch.bfloat16), ("bool", torch.bool)):
    # No rows on the first process, three on the second one.
    part = torch.arange(6 * rank).view(3 * rank, 2).to(dtype)
    result[name] = ranks.concatenate(part).float().tolist()
result["transposed"] = ranks.concatenate(torch.arange(6).view(2, 3).mT[: rank + 1]).tolist()

def attempt(name, work):
    try:
        with ranks.failing_together():
            work()
    except Exception as error:
        result[name] = [type(error).__name__, str(error), getattr(error, "hint", None)]

def fail(error, on):
    if rank in on:
        raise error
    return ranks.gather(rank)

attempt("of ours", lambda: fail(ModelError("weights must be finite", hint="Look."), [1]))
attempt("of others", lambda: fail(KeyError("x"), [0]))
attempt("on both", lambda: fail(ValueError(f"bad {rank}"), [0, 1]))
def nested():
    with ranks.failing_together():
        fail(ModelError("once"), [1])
attempt("nested", nested)
attempt("other steps", lambda: ranks.sum_(total) if rank else ranks.concatenate(total))
result["afterwards"] = ranks.gather(rank)
if rank == 1:
    sys.stdout.flush()
    os._exit(0)
attempt("lost", lambda: ranks.gather(rank))
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    # Before the second process leaves.
    text = SCRIPT.replace("if rank == 1:", "json.dump(result, open(f'{sys.argv[1]}/{rank}.json', 'w'))\nif rank == 1:")
    done = run_script(text, folder)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first | json.loads(done.stdout), second


def test_sums_and_parts_are_the_same_on_both(two):
    for rank, result in enumerate(two):
        assert result["ranks"][:2] == [rank, 2]
        assert result["total"] == [0.2, 0, 2]
        assert result["float"] == result["half"] == [[0, 1], [2, 3], [4, 5]]
        assert result["bool"] == [[0, 1], [1, 1], [1, 1]]
        assert result["transposed"] == [[0, 3], [0, 3], [1, 4]]


def test_an_error_of_one_is_raised_on_both_and_the_work_can_go_on(two):
    first, second = two
    assert first["of ours"] == second["of ours"] == ["ModelError", "weights must be finite", "Look."]
    assert first["of others"] == ["KeyError", "'x'", None]
    assert second["of others"] == ["HfFarmsError", "process 0 of 2 failed: KeyError('x')", None]
    assert [first["on both"][1], second["on both"][1]] == ["bad 0", "bad 1"]
    assert first["nested"] == second["nested"] == ["ModelError", "once", None]
    assert first["afterwards"] == second["afterwards"] == [0, 1]


def test_processes_that_take_other_steps_stop(two):
    for result in two:
        assert result["other steps"][1] == "processes must take the same steps, got different ones."


def test_a_process_that_ends_is_noticed_at_once(two):
    assert two[0]["lost"][1].startswith("processes must run until the result is complete, got one that ended")


class Rank:
    def __init__(self, index, count):
        self.index, self.count = index, count


@pytest.mark.parametrize("rows", [0, 1, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_rows_are_shared_without_gaps(rows, count):
    parts = [list(range(rows))[rows_of_rank(rows, Rank(index, count))] for index in range(count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_does_all_itself(tmp_path):
    part = torch.ones(2)
    ONE_PROCESS.sum_(part)
    assert ONE_PROCESS.concatenate(part) is part
    assert from_first_rank(lambda: 3, ONE_PROCESS) == 3
    with pytest.raises(KeyError, match="its own"), ONE_PROCESS.failing_together():
        raise KeyError("its own")
    assert folder_of_rank(tmp_path, ONE_PROCESS) == tmp_path
    assert folder_of_rank(None, Rank(1, 2)) is None
    assert folder_of_rank(tmp_path, Rank(1, 2)) == tmp_path / "rank-1"


def test_libraries_do_not_see_other_processes_in_the_context(monkeypatch):
    from accelerate import PartialState

    launch = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with hidden_launch():
        assert not any(name in os.environ for name in launch)
        # A choice of the user, which is not about the others.
        assert os.environ["ACCELERATE_USE_CPU"] == "true"
        assert is_main_process()
        assert PartialState(cpu=True).num_processes == 1
    with pytest.raises(KeyError, match="its own"), hidden_launch():
        raise KeyError("its own")
    assert {name: os.environ[name] for name in launch} == launch
    assert not is_main_process()
    # It is made from the environment again.
    assert not PartialState._shared_state
