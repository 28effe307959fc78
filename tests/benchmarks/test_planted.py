"""The benchmark of planted defects: derived models, measures and statistics against slow obvious ones."""

import json
import math
from dataclasses import replace
from itertools import product

import planted_figure
import planted_jobs
import planted_measures
import planted_models
import planted_report
import planted_results
import planted_truth
import pytest
import torch
from planted_conditions import Plan, Setting
from planted_derived import DERIVED, random_vectors, rank_cut, rescale, spoil
from planted_measures import MEASURES, OF_HISTORY, OF_WEIGHTS, measure_text, measure_weights, share_above_edge
from planted_models import new_model, windows
from torch import nn

from hf_farms import FarmsConfig, analyze

TINY = Setting(layers=3, hidden=64, width=96, steps=5, batch=1)


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    """Train on the select speeches: the training text takes seconds to tokenize."""
    text = planted_models.tokens("select")
    monkeypatch.setattr(planted_models, "tokens", lambda split: text)


@pytest.fixture(autouse=True)
def one_thread():
    """Work as the script does; more threads only wait for each other on such small matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    model = new_model(TINY, 1).eval()
    for parameter in model.parameters():
        # Far from the initial weights, so that every block matters.
        parameter.data.mul_(1 + 0.5 * torch.randn(parameter.shape)).mul_(3 if parameter.ndim == 2 else 1)
    return model


@torch.no_grad()
def log_probabilities(model):
    return model(input_ids=windows("select", planted_measures.WINDOWS)).logits.log_softmax(-1)


def test_random_vectors_keep_the_singular_values_only():
    weight = torch.randn(12, 20)
    other = random_vectors(weight, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.svdvals(other), torch.linalg.svdvals(weight))
    assert torch.cosine_similarity(other.flatten(), weight.flatten(), dim=0).abs() < 0.3


def test_rank_cut_keeps_the_largest_quarter():
    weight = torch.randn(12, 20)
    values = torch.linalg.svdvals(rank_cut(weight, torch.Generator()))
    torch.testing.assert_close(values[:3], torch.linalg.svdvals(weight)[:3])
    assert values[3:].max() < 1e-4


@pytest.mark.parametrize("condition", DERIVED)
def test_one_block_is_spoiled(condition):
    before, after = new_model(TINY, 1), new_model(TINY, 1)
    position = spoil(after, condition, family=7)
    changed = [
        not torch.equal(a.mlp.up_proj.weight, b.mlp.up_proj.weight)
        for a, b in zip(before.model.layers, after.model.layers, strict=True)
    ]
    assert changed == [index == position for index in range(3)]


def test_rescaling_changes_norms_and_no_output(model):
    other = new_model(TINY, 1).eval()
    other.load_state_dict(model.state_dict())
    rescale(other, family=3)
    torch.testing.assert_close(log_probabilities(other), log_probabilities(model), rtol=1e-4, atol=1e-4)
    before, after = measure_weights(model)["measures"], measure_weights(other)["measures"]
    for name in ("farms", "whole mid", "whole peak", "stable rank", "entropy", "above edge", "participation"):
        assert after[name] == pytest.approx(before[name], rel=1e-4)
    assert all(abs(a / b - 1) > 0.02 for a, b in zip(after["frobenius"], before["frobenius"], strict=True))


def test_alphas_are_those_of_analyze(model):
    row = measure_weights(model)
    for name, config in {
        "farms": FarmsConfig(),
        "whole mid": FarmsConfig(window_rows=None),
        "whole peak": FarmsConfig(window_rows=None, fit="peak", released_peak_bound=True),
    }.items():
        blocks = analyze(model, config).blocks
        assert row["measures"][name] == pytest.approx([block.alpha for block in blocks], rel=1e-4)
        if name != "whole peak":
            alphas = [next(layer.alpha for layer in block.layers if layer.role == "down") for block in blocks]
            assert row["layers"]["down"][name] == pytest.approx(alphas, rel=1e-4)


def test_measures_of_spectra(model):
    measures = measure_weights(model)["measures"]
    for index, block in enumerate(model.model.layers):
        matrices = [p.detach().double() for p in block.parameters() if p.ndim == 2]
        values = [torch.linalg.svdvals(matrix) for matrix in matrices]
        slow = {
            "stable rank": [(s**2).sum() / s[0] ** 2 for s in values],
            "frobenius": [-matrix.norm() for matrix in matrices],
            "spectral": [-s[0] for s in values],
            "participation": [(s**2).sum() ** 2 / (s**4).sum() for s in values],
            "max / median": [-(s[0] ** 2) / (s**2).median() for s in values],
        }
        for name, each in slow.items():
            assert measures[name][index] == pytest.approx(float(sum(each)) / 7, rel=1e-5)


def test_no_eigenvalue_of_noise_is_above_the_edge():
    noise = torch.randn(400, 200, dtype=torch.float64)
    spiked = noise + 30 * torch.outer(torch.randn(400).double(), torch.randn(200).double()) / 200
    assert share_above_edge(torch.linalg.svdvals(0.1 * noise) ** 2, noise.shape) < 0.01
    assert share_above_edge(torch.linalg.svdvals(spiked) ** 2, spiked.shape) == pytest.approx(1 / 200)


def test_measures_of_text_are_those_of_whole_models(model):
    measures = measure_text(model)
    reference = log_probabilities(model)
    blocks = list(model.model.layers)
    for index in range(3):
        model.model.layers = nn.ModuleList(block for block in blocks if block is not blocks[index])
        without = log_probabilities(model)
        model.model.layers = nn.ModuleList(blocks)
        kl = nn.functional.kl_div(without, reference, log_target=True, reduction="none").sum(-1).mean()
        assert measures["kl"][index] == pytest.approx(-float(kl), rel=1e-4)
    batch = windows("select", planted_measures.WINDOWS)
    output = model(input_ids=batch, labels=batch, output_hidden_states=True)
    cosine = nn.functional.cosine_similarity(*output.hidden_states[:2], dim=-1).mean()
    assert measures["cosine"][0] == pytest.approx(float(cosine.detach()), rel=1e-4)
    parameters = [p for p in blocks[1].parameters() if p.ndim == 2]
    gradients = torch.autograd.grad(output.loss, parameters)
    assert measures["gradient"][1] == pytest.approx(sum(float(g.norm()) for g in gradients) / 7, rel=1e-4)


FAMILY = replace(TINY, layers=6)


def small_family():
    planted = {0: "rate-0.1", 2: "freeze-10", 3: "insert", 5: "muon"}
    plans = [Plan("test-9-healthy", 9, "test", FAMILY), Plan("test-9-0", 9, "test", FAMILY, planted)]
    return [*plans, Plan("single", 8, "healthy", FAMILY)]


def test_blocks_of_defects_and_of_their_twin_are_trained(monkeypatch):
    plans = [*small_family(), Plan("test-8-0", 8, "test", FAMILY, {1: "insert"})]
    assert planted_truth.blocks_to_train(plans) == {"test-9-0": [0, 2, 3], "test-9-healthy": [0, 2, 3]}
    monkeypatch.setattr(planted_truth, "ALL_BLOCKS", (9,))
    assert planted_truth.blocks_to_train(plans) == {"test-9-0": [*range(6)], "test-9-healthy": [*range(6)]}


def test_only_one_block_is_trained_for_the_truth(monkeypatch, tmp_path):
    monkeypatch.setattr(planted_truth, "STEPS", 2)
    trained = []
    monkeypatch.setattr(planted_truth, "load", lambda *_: trained.append(new_model(TINY, 1).eval()) or trained[-1])
    monkeypatch.setattr(planted_truth, "loss", lambda *_: 1.0)
    drop = planted_truth.loss_drop(tmp_path, Plan("any", 1, "test", TINY), 1, before=1.5)
    start = new_model(TINY, 1).state_dict()
    changed = {name for name, value in trained[0].state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {name for name, _ in new_model(TINY, 1).named_parameters() if ".layers.1." in name}
    assert drop == 0.5


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Three tiny trained models with all measures."""
    monkeypatch.setattr(planted_jobs, "all_plans", small_family)
    monkeypatch.setattr(planted_truth, "STEPS", 2)
    monkeypatch.setattr(planted_measures, "WINDOWS", 2)
    loss = planted_jobs.loss
    for module in (planted_jobs, planted_measures, planted_truth):
        monkeypatch.setattr(module, "loss", lambda model, split: loss(model, split, 2))
    planted_jobs.train_missing(tmp_path, 1, 1)
    for part in (1, 2):
        planted_measures.measure_missing(tmp_path, tmp_path, part, 2)
        planted_truth.train_blocks(tmp_path, tmp_path, part, 2)
    return tmp_path


def test_scripts_run_to_their_end(folder, capsys):
    lines = (folder / "measured.jsonl").read_text().splitlines()
    rows = {row["name"]: row for row in map(json.loads, lines)}
    family = [f"{name}{end}" for name in ("test-9-0", "test-9-healthy") for end in ("", "-rescaled")]
    assert sorted(rows) == sorted([*family, *(f"test-9-healthy-{name}" for name in DERIVED), "single"])
    for name, row in rows.items():
        known = OF_WEIGHTS if "rescaled" in name else MEASURES[: -len(OF_HISTORY)] if "derived" in row else MEASURES
        assert tuple(row["measures"]) == known
        assert all(len(values) == 6 and all(map(math.isfinite, values)) for values in row["measures"].values())
    assert {*planted_truth.truth_of(folder)} == {*product(("test-9-0", "test-9-healthy"), (0, 2, 3))}
    results = planted_results.read(folder)
    text = planted_report.report(results)
    assert "| rate-0.1 | 1 | " in text
    assert all(f"## {title}\n" in text for title in planted_report.SECTIONS)
    planted_figure.draw(results, folder / "figure.svg")
    assert "FARMS alpha" in (folder / "figure.svg").read_text()
    # Nothing is measured twice.
    capsys.readouterr()
    planted_measures.measure_missing(folder, folder)
    planted_truth.train_blocks(folder, folder)
    assert capsys.readouterr().out.count("0 models measured") == 1
    assert len((folder / "measured.jsonl").read_text().splitlines()) == len(lines)
