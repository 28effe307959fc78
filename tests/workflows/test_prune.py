"""`prune_checkpoint` does what `hf-farms prune` does; `prune` takes names and writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_farms_cli.app import app
from processes import LIMIT
from typer.testing import CliRunner

from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, prune, prune_checkpoint
from hf_farms.data.calibration import calibration_sequences
from hf_farms.errors import NoEffectWarning, OutputError
from hf_farms.loading.opening import load_model
from hf_farms.output.folder import OutputFolder
from hf_farms.output.recipe import Recipe
from hf_farms.workflows.prune_plan import default_folder

SHORT = CalibrationConfig(num_sequences=2, sequence_length=64)
TEXT = EvaluationConfig(context_length=64, max_windows=2)
OPTIONS = ("--calibration-samples", "2", "--calibration-length", "64", "--context-length", "64")
OPTIONS += ("--evaluation-windows", "2", "--sparsity", "0.4", "--dtype", "bfloat16")
SETTINGS = {"config": PruneConfig(sparsity=0.4), "calibration": SHORT, "evaluation": TEXT}


def files(folder):
    """Bytes of a folder by name, without the command that wrote it."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = json.loads(found.pop("hf_farms_report.json"))
    command = report.pop("command")
    card = found.pop("README.md").decode()
    assert command in card
    lines = [line for line in card.splitlines() if "hf-farms prune" not in line]
    return command, found, report, lines


def test_python_writes_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hf-farms", "prune", "demo", *OPTIONS, "-o", "out"])
    done = CliRunner().invoke(app, sys.argv[1:])
    assert done.exit_code == 0, done.output
    (tmp_path / "out").rename(tmp_path / "command")
    seen = []
    report = prune_checkpoint(
        "demo", "out", **SETTINGS, load=LoadOptions(dtype="bfloat16"), progress=lambda stage, *_: seen.append(stage)
    )
    command, *expected = files(tmp_path / "command")
    assert command.startswith("hf-farms prune demo")
    recipe, *written = files(tmp_path / "out")
    assert report.command == recipe == "hf-farms prune recipe.yaml"
    assert written[0].keys() == expected[0].keys()
    assert written == expected
    assert {"Measuring spectra", "Dense perplexity", "prune"} <= set(seen)


def test_a_finished_folder_is_returned_with_a_warning_and_other_settings_are_refused(tmp_path):
    settings = {"config": PruneConfig(method="magnitude"), "evaluation": EvaluationConfig(source=None)}
    report = prune_checkpoint("demo", tmp_path / "out", **settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.warns(NoEffectWarning, match="out is finished already: nothing was pruned"):
        again = prune_checkpoint("demo", tmp_path / "out", **settings)
    assert again.blocks == report.blocks
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(OutputError, match=r"with other settings \(prune.sparsity: 0.3, previously 0.5\)"):
        prune_checkpoint(
            "demo",
            tmp_path / "out",
            config=PruneConfig(method="magnitude", sparsity=0.3),
            evaluation=settings["evaluation"],
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, r"^model must be a hub id, a folder or 'demo', got None\. To prune a model in memory, call"),
        ({"model": torch.nn.Linear(2, 2)}, r"^model must be a hub id, a folder or 'demo', got 'Linear'\. To prune"),
        ({"output": 3}, "^output must be the path of a folder, got 3"),
        ({"config": {"sparsity": 0.5}}, r"^config must be a PruneConfig, got \{'sparsity': 0.5\}"),
        ({"calibration": "speeches"}, "^calibration must be a CalibrationConfig, got 'speeches'"),
        ({"evaluation": "none"}, "^evaluation must be an EvaluationConfig, got 'none'"),
        ({"load": "cpu"}, "^load must be a LoadOptions, got 'cpu'"),
    ],
)
def test_arguments_of_other_types_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prune_checkpoint(**{"model": "demo", "output": tmp_path / "out", **arguments})
    assert not list(tmp_path.iterdir())


def test_the_result_folder_is_built_once(tmp_path, monkeypatch):
    built = []
    init = OutputFolder.__init__

    def counted(self, *arguments, **options):
        built.append(arguments)
        init(self, *arguments, **options)

    monkeypatch.setattr(OutputFolder, "__init__", counted)
    prune = ("prune", "demo", "--method", "magnitude", "--evaluation", "none", "-q", "-o", str(tmp_path / "out"))
    assert CliRunner().invoke(app, prune).exit_code == 0
    assert len(built) == 1


def test_a_model_is_pruned_by_name_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PruneConfig(allocation="uniform")
    result = prune("demo", config)
    assert not list(tmp_path.iterdir())
    assert result.report.model == "demo"
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-3)
    loaded = load_model("demo")
    batches, _ = calibration_sequences(CalibrationConfig(), model=loaded.model, tokenizer=loaded.tokenizer)
    assert prune(loaded.model, config, calibration=batches).model is loaded.model
    for one, other in zip(result.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_calibration_of_the_caller_is_used_for_a_model_by_name():
    ids = [torch.arange(3, 203)[None]]
    report = prune("demo", PruneConfig(allocation="uniform"), calibration=ids).report
    assert report.calibration.num_tokens == 200


def test_a_recipe_run_in_the_folder_of_its_result_is_that_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--method", "magnitude", "--evaluation", "none", "-q")
    done = CliRunner().invoke(app, ["prune", "demo", *options])
    assert done.exit_code == 0, done.output
    (folder,) = tmp_path.iterdir()
    before = sorted(folder.rglob("*"))
    for place, recipe in ((folder, "recipe.yaml"), (tmp_path, f"{folder.name}/recipe.yaml")):
        monkeypatch.chdir(place)
        done = CliRunner().invoke(app, ["prune", recipe])
        assert done.exit_code == 0, done.output
        assert "is finished already" in done.output
    assert sorted(folder.rglob("*")) == before
    # A recipe that lies elsewhere has its result in the current folder.
    (tmp_path / "project").mkdir()
    (folder / "recipe.yaml").rename(tmp_path / "project" / "recipe.yaml")
    monkeypatch.chdir(tmp_path / "project")
    assert default_folder(Recipe.load(Path("recipe.yaml")), Path("recipe.yaml")) == Path(folder.name)


@pytest.mark.parametrize("arguments", [["prune", "demo", "--dry-run"], ["prune", "--help"]])
def test_a_plan_loads_no_torch(arguments, tmp_path):
    code = "import sys; sys.modules['torch'] = None; from hf_farms_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
