"""Tried plans: measured once, ranked by their latest stage, kept in a file."""

import json
import math

import pytest

from hf_farms.errors import OutputError
from hf_farms.search.sensitivity import SensitivityTable
from hf_farms.search.trials import Trial, Trials


def total(plans):
    return [float(sum(plan)) for plan in plans]


def test_a_plan_is_measured_once_in_each_stage_and_keeps_its_first_name():
    trials, measured = Trials(), []

    def losses(plans):
        measured.append(plans)
        return total(plans)

    tried = trials.measure([("one", (1, 2)), ("again", (1, 2)), ("two", (0, 2))], "screened", losses)
    assert [(trial.name, trial.plan, trial.losses) for trial in tried] == [
        ("one", (1, 2), {"screened": 3}),
        ("two", (0, 2), {"screened": 2}),
    ]
    assert [trial.name for trial in trials.measure([("one", (1, 2))], "screened", losses)] == ["one"]
    trials.measure([("other", (1, 2)), ("three", (0, 1))], "screened", losses)
    trials.measure([("other", (1, 2))], "refined", losses)
    assert measured == [[(1, 2), (0, 2)], [(0, 1)], [(1, 2)]]
    assert trials[1, 2].losses == {"screened": 3, "refined": 3}
    assert (len(trials), (0, 1) in trials, (9, 9) in trials) == (3, True, False)


def test_losses_of_later_stages_count_first():
    trials = Trials()
    assert trials.best is None
    screened = [("a", (1,)), ("b", (2,)), ("c", (3,)), ("d", (4,))]
    trials.measure(screened, "screened", total)
    assert trials.best.name == "a"
    trials.measure(screened[1:], "refined", lambda plans: [0.3, 0.2, 0.1])
    trials.measure(screened[1:3], "pruned", lambda plans: [7.0, 8.0])
    assert [trial.name for trial in trials.ranked()] == ["b", "c", "d", "a"]
    assert [trial.name for trial in trials.ranked(stage="refined")] == ["d", "c", "b"]
    assert [trial.name for trial in trials.ranked(stage="screened")] == ["a", "b", "c", "d"]
    assert [trial.loss for trial in trials.ranked()] == [7, 8, 0.1, 1]
    assert Trial("none", (5,)).loss == math.inf


def test_a_file_keeps_all_and_only_for_its_own_search(tmp_path):
    path = tmp_path / "state" / "trials.json"
    trials = Trials(path, key="mine")
    assert not path.exists()
    trials.seconds = 12.5
    trials.measure([("bad", (1, 9)), ("good", (1, 2))], "screened", lambda plans: [math.inf, 0.25])
    trials.set_table(SensitivityTable((4, 8), ((0.1, 0.2), (0.3, 0.4))))
    kept = json.loads(path.read_text())
    assert (kept["best"], kept["trials"][1]["losses"]) == ("good", {"screened": None})
    again = Trials(path, key="mine")
    assert again.ranked() == trials.ranked() == [Trial("good", (1, 2), {"screened": 0.25}), again[1, 9]]
    assert again[1, 9].losses == {"screened": math.inf}
    assert (again.table, again.seconds) == (trials.table, 12.5)
    before = path.read_text()
    with pytest.raises(OutputError, match=r"got '.*trials\.json': it belongs to other settings or data\.") as refused:
        Trials(path, key="another")
    assert refused.value.hint == "Choose another path, or delete the file to start again."
    assert path.read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        {"trials": [{"name": "a", "plan": [1], "losses": {}}, {"name": "b", "plan": [1, 2], "losses": {}}]},
        {"trials": [{"name": "a", "plan": [255], "losses": {}}]},
        {"trials": [{"name": "a", "plan": [-1], "losses": {}}]},
        {"trials": [{"name": "a", "plan": [1], "losses": {"screened": math.nan}}]},
        {"seconds": -1},
        {"seconds": math.inf},
        {"table": [[1]]},
    ],
)
def test_a_file_that_no_search_wrote_is_refused(tmp_path, change):
    path = tmp_path / "trials.json"
    Trials(path).measure([("a", (1, 2))], "screened", total)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        OutputError, match=r"trials must be a new file, or that of the same search, .*: it is no such file"
    ):
        Trials(path)


def test_a_file_of_endless_brackets_is_refused(tmp_path):
    path = tmp_path / "trials.json"
    path.write_text("[" * 100_000)
    with pytest.raises(OutputError, match="it is no such file"):
        Trials(path)
