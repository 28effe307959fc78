"""An allocation that is one function and one entry is found everywhere, also one that needs activations."""

import json
from dataclasses import replace

import pytest
import torch

from hf_farms import PruneConfig, PruneReport, analyze, plan_sparsity, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import DataError
from hf_farms.pruning.scoring import score_blocks
from hf_farms.registries import ALLOCATIONS, AllocationEntry

DEPTH = AllocationEntry(
    needs="nothing",
    function="registry_entries:deeper_is_sparser",
    sentence="Blocks lose more the deeper they are.",
    citation="@misc{depth}",
)
OUTLIERS = AllocationEntry(
    needs="activations",
    function="hf_farms.allocation.sparsity_maps:by_score",
    score="registry_entries:mean_outlier",
    statistic="hf_farms.pruning.wanda:InputNorm",
    sentence="Blocks lose more the larger their outliers are, spread {spread:g}.",
    options=("spread", "shrink"),
)


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(ALLOCATIONS, "depth", DEPTH)
    monkeypatch.setitem(ALLOCATIONS, "outliers", OUTLIERS)


def test_the_command_line_offers_plans_prunes_and_describes_with_it(added, hf_farms, completions, tmp_path):
    assert f"{', '.join(ALLOCATIONS)}." in hf_farms("prune", "--help")
    assert completions("prune", "allocation") == [*ALLOCATIONS]
    out = tmp_path / "out"
    options = ("prune", "demo", "--method", "magnitude", "--allocation", "depth", "--evaluation", "none", "-o", out)
    plan = hf_farms(*options, "--dry-run")
    assert "prune.allocation: depth" in plan
    assert "calibration" not in plan
    assert "demo, magnitude, depth" in hf_farms(*options)
    report = PruneReport.load(out / "hf_farms_report.json")
    assert report.config.allocation == "depth"
    targets = [0.43, 0.45, 0.47, 0.49, 0.51, 0.53, 0.55, 0.57]
    assert [block.target for block in report.blocks] == pytest.approx(targets)
    assert [block.sparsity for block in report.blocks] == pytest.approx(targets, abs=1e-4)
    card = (out / "README.md").read_text()
    assert "Blocks lose more the deeper they are." in card
    assert "@misc{depth}" in card
    assert "lu2024alphapruning" not in card


def test_one_that_needs_activations_gets_them_from_the_command_line_too(added, hf_farms, tmp_path):
    out = tmp_path / "out"
    options = ("prune", "demo", "--method", "magnitude", "--allocation", "outliers", "--evaluation", "none", "-o", out)
    options = (*options, "--calibration-samples", "2", "--calibration-length", "32")
    assert "calibration.source: speeches" in hf_farms(*options, "--dry-run")
    hf_farms(*options, "--stream")
    report = PruneReport.load(out / "hf_farms_report.json")
    targets = [block.target for block in report.blocks]
    assert max(targets) / min(targets) == pytest.approx(1.1 / 0.9)
    assert (report.calibration.num_sequences, report.calibration.num_tokens) == (2, 64)
    assert "Blocks lose more the larger their outliers are, spread 0.1." in (out / "README.md").read_text()


def test_activations_are_those_of_the_dense_model(added, llama, ids):
    config = PruneConfig(method="magnitude", allocation="outliers", spread=0.3)
    # Slow and obvious: the inputs of every layer in one pass of the whole model.
    squares = {}

    def add(name):
        def hook(module, arguments):
            rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
            squares[name] = squares.get(name, 0) + rows.square().sum(0)

        return hook

    layers = {
        name: module for name, module in llama.model.layers.named_modules() if isinstance(module, torch.nn.Linear)
    }
    hooks = [module.register_forward_pre_hook(add(name)) for name, module in layers.items()]
    with torch.no_grad():
        for batch in ids:
            llama(batch if batch.ndim == 2 else batch[None])
    for hook in hooks:
        hook.remove()
    expected = []
    for block in range(3):
        products = [
            module.weight.detach().abs() * squares[name].sqrt()
            for name, module in layers.items()
            if name.startswith(f"{block}.")
        ]
        expected.append(sum(float(p.max() / p.mean()) for p in products) / len(products))
    scores = score_blocks(ModelBlockSource(llama), config, ids)
    assert [block[""] for block in scores["outliers"]] == pytest.approx(expected, rel=1e-4)
    targets = [block.target for block in prune(llama, config, calibration=ids).report.blocks]
    assert [sorted(targets).index(t) for t in targets] == [sorted(expected).index(e) for e in expected]
    assert max(targets) / min(targets) == pytest.approx(1.3 / 0.7)


def test_one_that_needs_activations_is_refused_without(added, llama):
    config = PruneConfig(method="magnitude", allocation="outliers")
    with pytest.raises(DataError, match="calibration must be given for allocation 'outliers', got None") as refused:
        prune(llama, config)
    assert refused.value.hint == "Pass token ids, or choose allocation='farms'."
    with pytest.raises(ValueError, match="scores must be given for allocation 'outliers', which needs activations"):
        plan_sparsity(analyze(llama), config=config)
    with pytest.raises(ValueError, match="allocation must be one that needs activations, got 'farms'"):
        score_blocks(ModelBlockSource(llama), PruneConfig(), [])


def test_scores_that_are_there_already_are_used(added, llama, monkeypatch):
    config = PruneConfig(method="magnitude", allocation="outliers", shrink=False)
    with monkeypatch.context() as patch:
        # Nothing is measured: without scores this function would be missed.
        patch.setitem(ALLOCATIONS, "outliers", replace(OUTLIERS, score="registry_entries:missing"))
        ids = [torch.arange(20)]
        targets = [b.target for b in prune(llama, config, calibration=ids, scores=[1, 2, 3]).report.blocks]
        with pytest.raises(AttributeError, match="missing"):
            prune(llama, config, calibration=ids)
    assert targets == pytest.approx([0.45, 0.5, 0.55])


def test_a_function_that_returns_no_sparsity_for_each_block_is_refused(monkeypatch, llama):
    entry = AllocationEntry(needs="nothing", function="registry_entries:too_many", sentence="")
    monkeypatch.setitem(ALLOCATIONS, "many", entry)
    with pytest.raises(ValueError, match="allocation 'many' must return a sparsity between 0 and 1 for each of 3"):
        prune(llama, PruneConfig(method="magnitude", allocation="many"))


def test_a_report_with_an_allocation_that_is_gone_is_refused(monkeypatch, llama):
    report = prune(llama, PruneConfig(method="magnitude", allocation="uniform")).report
    data = json.loads(report.to_json())
    data["config"]["allocation"] = "depth"
    with pytest.raises(DataError, match=r"allocation must be one of uniform, farms, alpha, .*got 'depth'"):
        PruneReport.from_json(json.dumps(data))
    monkeypatch.setitem(ALLOCATIONS, "depth", DEPTH)
    assert PruneReport.from_json(json.dumps(data)).config.allocation == "depth"


def test_a_removed_allocation_is_refused(remove, hf_farms):
    remove(ALLOCATIONS, "dlp")
    assert "got 'dlp'" in hf_farms("prune", "demo", "--allocation", "dlp", "--dry-run", status=2)
