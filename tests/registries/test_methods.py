"""A method that is one function and one entry is found everywhere."""

import pytest
import torch
from hf_farms_cards import render_card

from hf_farms import PruneConfig, PruneReport, prune
from hf_farms.errors import DataError
from hf_farms.registries import METHODS, MethodEntry

FIRST = MethodEntry(
    needs="nothing",
    function="registry_entries:remove_first",
    sentence="First: the first {sparsity:.0%} of every matrix were set to zero.",
    citation="@misc{first}",
)


@pytest.fixture
def first(monkeypatch):
    monkeypatch.setitem(METHODS, "first", FIRST)


def test_the_command_line_offers_plans_prunes_and_describes_with_it(first, hf_farms, completions, tmp_path):
    assert "magnitude, wanda, ria, sparsegpt, first." in hf_farms("prune", "--help")
    assert completions("prune", "method") == [*METHODS]
    out = tmp_path / "out"
    options = ("prune", "demo", "--method", "first", "--allocation", "uniform", "--evaluation", "none", "-o", out)
    assert "prune.method: first" in hf_farms(*options, "--dry-run")
    assert "demo, first, uniform" in hf_farms(*options)
    report = PruneReport.load(out / "hf_farms_report.json")
    assert (report.config.method, report.calibration, report.sparsity) == ("first", None, 0.5)
    card = (out / "README.md").read_text()
    assert "First: the first 50% of every matrix were set to zero." in card
    assert "@misc{first}" in card


def test_its_function_prunes(first, llama):
    prune(llama, PruneConfig(method="first", allocation="uniform"))
    weight = llama.model.layers[0].self_attn.q_proj.weight.reshape(-1)
    assert torch.equal(weight == 0, torch.arange(weight.numel()) < weight.numel() // 2)


def test_a_report_with_a_method_that_is_gone_is_refused(monkeypatch, llama):
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "first", FIRST)
        report = prune(llama, PruneConfig(method="first", allocation="uniform")).report
        text = report.to_json()
        assert PruneReport.from_json(text).config.method == "first"
        assert "First: the first" in render_card(report)
    with pytest.raises(DataError, match="method must be one of magnitude, wanda, ria, sparsegpt, got 'first'"):
        PruneReport.from_json(text)


def test_a_removed_method_is_refused(remove, hf_farms):
    remove(METHODS, "sparsegpt")
    assert "method must be one of magnitude, wanda, ria, got 'sparsegpt'" in hf_farms(
        "prune", "demo", "--method", "sparsegpt", "--dry-run", status=2
    )
