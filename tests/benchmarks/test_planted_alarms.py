"""planted_alarms.py on models without training: what it measures, keeps and prints."""

import planted_alarms
import planted_jobs
import pytest
from planted_conditions import Plan, Setting
from planted_models import new_model
from safetensors.torch import save_file

SMALL = Setting(hidden=16, width=32)


def add(folder, name, group, planted=None):
    """Write an untrained model and its row."""
    (folder / "models").mkdir(exist_ok=True)
    plan = Plan(name, 1, group, SMALL, planted or {})
    state = {key: value for key, value in new_model(SMALL, 1).state_dict().items() if key != "lm_head.weight"}
    save_file(state, planted_jobs.weights_file(folder, name))
    planted_jobs.append(folder / "trained.jsonl", plan.as_json())


def test_models_are_measured_once_and_those_to_confirm_only_when_asked_for(tmp_path, monkeypatch):
    add(tmp_path, "a", "healthy")
    add(tmp_path, "b", "development", {3: "insert"})
    add(tmp_path, "c", "other")
    cache = tmp_path / "elsewhere.jsonl"
    models = planted_alarms.measure(tmp_path, cache, confirm=False)
    assert [(model.name, model.planted) for model in models] == [("a", {}), ("b", {3: "insert"})]
    assert all(len(model.alphas) == len(model.errors) == 8 for model in models)
    rows = cache.read_text()
    assert planted_alarms.measure(tmp_path, cache, confirm=False) == models
    assert cache.read_text() == rows
    assert [model.name for model in planted_alarms.measure(tmp_path, cache, confirm=True)] == ["a", "b", "c"]
    assert len(cache.read_text().splitlines()) == 3
    assert not (tmp_path / "alarms.jsonl").exists()


def model(name, group, alphas, planted=None):
    return planted_alarms.Alphas(name=name, group=group, planted=planted or {}, alphas=alphas, errors=[0.01] * 8)


HEALTHY = [1.79, 1.68, 1.66, 1.67, 1.65, 1.64, 1.63, 1.60]


def test_alarms_and_power_are_counted(capsys):
    models = [
        model("calm", "healthy", HEALTHY),
        model("loud", "healthy", [*HEALTHY[:4], 2.5, *HEALTHY[5:]]),
        model("late", "test", [*HEALTHY[:3], 2.1, *HEALTHY[4:]], {3: "insert", 5: "rate-3", 7: "insert"}),
    ]
    planted_alarms.report(models, confirm=True)
    lines = capsys.readouterr().out.splitlines()
    assert (
        "fitted: 1 of 2 models with a false alarm (50.0%; 95% interval 1.3% to 98.7%, one-sided 95% bound 97.5%)"
        in lines
    )
    assert "insert | 1 of 1 | 1" in lines
    assert "rate-3 | 0 of 1 | 0" in lines
    assert "models with planted blocks in which another block stands out: 0 of 1" in lines
    assert "other: no models" in lines


def test_with_the_excess_as_the_healthy_spread_no_block_stands_out(monkeypatch):
    tight = model("tight", "healthy", [1.7, 1.65, 1.651, 1.65, 1.75, 1.65, 1.649, 1.6])
    assert model("calm", "healthy", HEALTHY).excess < tight.excess
    spread = "hf_farms.reports.standing_out.HEALTHY_SPREAD"
    monkeypatch.setattr(spread, tight.excess)
    assert tight.outliers == set()
    monkeypatch.setattr(spread, tight.excess / 2)
    assert tight.outliers == {4}


def test_the_simulated_thresholds_are_those_in_use(capsys):
    planted_alarms.print_null([4, 8], 2000)
    heading, *rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert heading[0] == "inner blocks"
    for _, used, quantile, share in rows:
        assert float(quantile) == pytest.approx(float(used), rel=0.2)
        assert float(share.rstrip("%")) < 7


@pytest.mark.parametrize(
    ("count", "number", "low", "high"), [(0, 60, 0.0, 0.0596), (1, 60, 0.0004, 0.0894), (3, 60, 0.0104, 0.1392)]
)
def test_the_interval_is_that_of_clopper_and_pearson(count, number, low, high):
    assert planted_alarms.interval(count, number, 0.025) == pytest.approx((low, high), abs=1e-4)


def test_a_share_that_is_not_seen_has_an_upper_bound():
    assert planted_alarms.interval(0, 60, 0.05)[1] == pytest.approx(1 - 0.05 ** (1 / 60))
    assert planted_alarms.interval(4, 4, 0.05) == (pytest.approx(0.05**0.25), 1.0)
