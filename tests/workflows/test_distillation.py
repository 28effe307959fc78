"""`hf-farms prune --recover distill`: a killed training continues, report and card say what it gained."""

import shutil
from pathlib import Path

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, SelectionConfig, prune_checkpoint
from hf_farms.data import selection
from hf_farms.errors import ModelError, OutputError
from hf_farms.reports import PruneReport

# Few sequences are fast.
pytestmark = pytest.mark.filterwarnings("ignore:calibration should have at least 64:hf_farms.errors.HfFarmsWarning")

CONFIG = PruneConfig(allocation="uniform", recover="distill", recover_passes=2, recover_rate=0.002)
OPTIONS = {
    "config": CONFIG,
    "calibration": CalibrationConfig(num_sequences=3, sequence_length=128, num_continuations=0),
    "evaluation": EvaluationConfig(source=None),
    "selection": SelectionConfig(sequence_length=64),
}
COMMAND = (
    *("--allocation", "uniform", "--recover", "distill", "--recover-passes", "2"),
    *("--recover-rate", "0.002", "--calibration-samples", "3", "--calibration-length", "128"),
    *("--calibration-continuations", "0"),
    *("--evaluation", "none", "--select-length", "64"),
)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(selection, "ACCEPTANCE_TOKENS", 256)


@pytest.fixture
def model(short_demo):
    return short_demo


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_a_killed_training_gives_the_folder_of_one_in_peace(model, tmp_path):
    def stop(stage, done, total):
        if stage.startswith("distill") and done == 4:
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(model, tmp_path / "killed", progress=stop, **OPTIONS)
    partial = tmp_path / "killed.partial"
    (last,) = partial.rglob("checkpoint-*")
    assert last.name == "checkpoint-3"
    assert weights(partial) == {}
    seen = []
    prune_checkpoint(model, tmp_path / "killed", progress=lambda *step: seen.append(step), **OPTIONS)
    assert [done for stage, done, _ in seen if stage.startswith("distill")] == [0, 4, 5, 6]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["prune", model, *COMMAND, "-o", str(tmp_path / "whole")])
    assert result.exit_code == 0, result.output
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole") != {}
    assert not list(tmp_path.rglob("checkpoint-*"))
    _check_report(tmp_path / "whole", " ".join((result.output + result.stderr).split()))


def _check_report(folder: Path, printed: str) -> None:
    report = PruneReport.load(folder / "hf_farms_report.json")
    record = report.distillation
    assert record.accepted
    assert record.divergence < record.divergence_before
    assert record.steps == 6
    assert report.config.recover_passes == 2
    kl = f"KL to the dense model {record.divergence_before:.4g} → {record.divergence:.4g} nats per token after 6 steps"
    assert f"Distillation: {kl} (on 256 tokens of the selection text that nothing was fitted to)" in printed
    assert "Distilling (2 passes, up to 0.0" in printed
    card = (folder / "README.md").read_text()
    assert "With the zeros fixed, the remaining weights of the attention" in card
    assert "Then all remaining weights of the pruned layers were trained together" in card
    assert f"fell from {record.divergence_before:.3g} to {record.divergence:.3g} nats per token" in card
    assert "@article{wagner2025recovery" in card
    assert "@article{hinton2015distilling" in card


def test_a_streamed_model_is_refused_before_anything_is_measured(model, tmp_path):
    with pytest.raises(ModelError, match="model must be in memory as a whole for recover='distill'") as refused:
        prune_checkpoint(model, tmp_path / "out", load=LoadOptions(stream=True), **OPTIONS)
    assert "recover='submodule'" in refused.value.hint
    assert not (tmp_path / "out.partial").exists()


def test_the_disk_must_hold_the_checkpoints(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    # Room for the model twice, and not for two checkpoints of weights and moments of Adam.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_500_000))
    with pytest.raises(OutputError, match=r"output must fit on the disk, got 0\.0035 GB free for 0\.0"):
        prune_checkpoint(model, tmp_path / "out", baseline=False, **OPTIONS)
