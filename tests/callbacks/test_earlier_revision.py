"""Trainings that revision 90059e8 began go on from its checkpoints, and its reports are read."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from earlier import training
from safetensors.torch import load_file

from hf_farms import FarmsLRCallback, FarmsLRConfig, S2FTCallback, S2FTConfig, apply_s2ft
from hf_farms.errors import HfFarmsWarning
from hf_farms.reports.training import TrainReport
from hf_farms.s2ft.saving import load_selection
from hf_farms.s2ft.surgery import selection_of

WRITTEN = Path(__file__).parents[1] / "golden" / "90059e8"
FARMS_LR = FarmsLRConfig(start=0, interval=3, min_eigenvalues=4, ends="measured")
S2FT = S2FTConfig(budget=0.1)
CALLBACKS = {"farms_lr": lambda: FarmsLRCallback(FARMS_LR), "s2ft": lambda: S2FTCallback(S2FT)}

# The latter: names that have changed since.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.* is named .* now:DeprecationWarning")


def weights(folder):
    return load_file(folder / "checkpoint-8" / "model.safetensors")


def history(folder):
    return [json.loads(line) for line in (folder / "farms_lr.jsonl").read_text().splitlines()]


def distance(a, b):
    """The largest difference of two checkpoints: zero on the machine that wrote both."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_training_goes_on_and_ends_as_one_in_peace(name, tmp_path):
    shutil.copytree(WRITTEN / name, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-8")
    # Its checkpoints have no slices of the base.
    expected = pytest.warns(HfFarmsWarning, match="by an earlier version") if name == "s2ft" else nullcontext()
    with expected:
        training(tmp_path / "resumed", CALLBACKS[name]()).train(resume_from_checkpoint=True)
    training(tmp_path / "peace", CALLBACKS[name]()).train()
    moved = distance(weights(WRITTEN / name), load_file(WRITTEN / name / "checkpoint-4" / "model.safetensors"))
    assert moved > 1e-4
    for other in (weights(WRITTEN / name), weights(tmp_path / "peace")):
        # Less than rounding on another machine makes of it, and much more than any part that was lost.
        assert distance(weights(tmp_path / "resumed"), other) < 0.01 * moved


def test_the_learning_rates_of_the_checkpoint_go_on(tmp_path):
    shutil.copytree(WRITTEN / "farms_lr", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-8")
    before = history(WRITTEN / "farms_lr")
    training(tmp_path / "resumed", CALLBACKS["farms_lr"](), save_strategy="no").train(resume_from_checkpoint=True)
    after = history(tmp_path / "resumed")
    assert [entry["step"] for entry in before] == [entry["step"] for entry in after] == [0, 3, 6]
    assert [entry["blocks"] for entry in before[:2]] == [entry["blocks"] for entry in after[:2]]
    for old, new in zip(before[2]["blocks"], after[2]["blocks"], strict=True):
        assert new["factor"] == pytest.approx(old["factor"], rel=1e-3)


def test_its_reports_are_read():
    learning = TrainReport.load(WRITTEN / "farms_lr" / "hf_farms_report.json")
    assert learning.farms_lr.config == FARMS_LR
    assert [measurement.step for measurement in learning.farms_lr.measurements] == [0, 3, 6]
    selected = TrainReport.load(WRITTEN / "s2ft" / "hf_farms_report.json")
    assert selected.s2ft.config == S2FT
    assert selected.num_trained < 0.1 * selected.num_parameters


def test_its_selection_is_read_and_applied(tmp_path):
    selection = load_selection(WRITTEN / "s2ft")
    assert selection.config == S2FT
    model = training(tmp_path, CALLBACKS["farms_lr"]()).model
    apply_s2ft(model, selection=selection)
    assert selection_of(model).channels == selection.channels
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == sum(
        torch.as_tensor(channels).numel() * 16 for channels in selection.channels.values()
    )
