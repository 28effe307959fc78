"""The script that trains the demo models, with few steps and a short text."""

import copy
import json

import demo_card
import demo_data
import planted_jobs
import planted_models
import pytest
import torch
import train_demo
from planted_conditions import Setting
from planted_training import train

from hf_farms.demo import DEMO_FOLDERS, demo_text


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Plans of ten steps, and splits of a few speeches."""
    speech = demo_text("test").read_text(encoding="utf-8")
    for name, start, length in (("train", 0, 30_000), ("select", 30_000, 3_000), ("test", 33_000, 3_000)):
        (tmp_path / f"{name}.txt").write_text(speech[start : start + length], encoding="utf-8")
    monkeypatch.setattr(demo_data, "TEXT", tmp_path)
    monkeypatch.setattr(planted_jobs, "LONG_SETTING", Setting(steps=10, batch=1))
    planted_models.tokens.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    planted_models.tokens.cache_clear()


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_plans_are_the_demo_models_of_the_package():
    plans = train_demo.demo_plans()
    assert set(plans) == {folder.name for folder in DEMO_FOLDERS.values()}
    assert plans["model"].planted == {3: "insert", 5: "insert"}
    assert plans["model_healthy"].planted == {}
    assert plans["model"].setting == plans["model_healthy"].setting
    assert {folder.name: name for name, folder in DEMO_FOLDERS.items()} == demo_card.NAMES


@pytest.mark.usefixtures("short")
def test_weights_of_a_benchmark_give_the_same_bytes_as_its_training(tmp_path, monkeypatch):
    """One training for both ways: a second one may add numbers in another order, in memory at other addresses."""
    results = {plan.name: train(plan) for plan in train_demo.demo_plans().values()}
    for module in (planted_jobs, train_demo):
        monkeypatch.setattr(module, "train", lambda plan: copy.deepcopy(results[plan.name]))
    monkeypatch.setattr(planted_jobs, "all_plans", lambda: list(train_demo.demo_plans().values()))
    planted_jobs.train_missing(tmp_path / "run", 1, 1)
    train_demo.main(["--output", str(tmp_path / "read"), "--weights", str(tmp_path / "run")])
    train_demo.main(["--output", str(tmp_path / "trained")])
    read = files(tmp_path / "read")
    assert read == files(tmp_path / "trained")
    assert read["model/model.safetensors"] != read["model_healthy/model.safetensors"]
    for name in ("model", "model_healthy"):
        assert (tmp_path / "read" / name / "model.safetensors").stat().st_mode & 0o777 == 0o644
    card = read["model/README.md"].decode()
    assert "Blocks 3 and 5 (counted from 0) are under-trained on purpose" in card
    assert "| inserted late |" in card
    assert "**NOT COMPARED with the benchmark yet" in card
    assert "inserted late |" not in read["model_healthy/README.md"].decode()


def test_an_output_that_holds_a_model_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match="2"):
        train_demo.main(["--output", str(tmp_path)])
    assert "--output must have no model or be the folder of the demo" in capsys.readouterr().err


def test_the_separation_is_that_of_defects_from_healthy_inner_blocks():
    alphas = [9.0, 1.0, 2.1, 1.1, 1.2, 2.3, 9.0]
    assert demo_card.separation(alphas, {2: "insert", 5: "rate-0.1"}) == pytest.approx(2.2 - 1.1)
    assert demo_card.separation(alphas, {2: "insert", 5: "muon"}) == pytest.approx(2.1 - 1.1)
    assert demo_card.separation(alphas, {5: "muon"}) is None
    assert demo_card.separation(alphas, {}) == pytest.approx(2.3 - 1.2)


def test_the_card_compares_with_trained_models_of_the_same_kind(tmp_path):
    plan = train_demo.demo_plans()["model"]
    rows = [
        {"name": f"late-{value}", "planted": {"1": "insert"}, "measures": {"farms": [1, 1 + value, 1, 1, 1]}}
        for value in (0.5, 0.25, 0.125)
    ]
    rows += [
        {"name": plan.name, "planted": {"1": "insert"}, "measures": {"farms": [1, 9, 1, 1]}},
        {**rows[0], "name": "late-rescaled", "derived": "rescaled"},
        {"name": "trap", "planted": {"1": "muon"}, "measures": {"farms": [1, 9, 1, 1]}},
        {"name": "healthy", "planted": {}, "measures": {"farms": [1, 1.5, 1, 1, 1]}},
    ]
    (tmp_path / "measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert demo_card.separation_sentence(0.3, plan, tmp_path) == (
        "The mean alpha of the late blocks is 0.300 above the median of the other inner blocks. In the benchmark this "
        "difference is smaller in 2 of 3 other defective models (median 0.250, range 0.125 to 0.500)."
    )
    healthy = demo_card.separation_sentence(0.1, train_demo.demo_plans()["model_healthy"], tmp_path)
    assert "In the benchmark this difference is smaller in 0 of 1 other healthy models (median 0.500" in healthy
