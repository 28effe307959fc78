import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_farms_cli.app import app
from launch import launch
from models import tiny
from processes import finished, free_port
from typer.testing import CliRunner

from hf_farms.config import FarmsConfig
from hf_farms.errors import NoEffectWarning
from hf_farms.reports import SpectralReport
from hf_farms.reports.comparison import SpectralComparison
from hf_farms.spectra.analysis import analyze

pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def said(done):
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two checkpoints of one architecture."""
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        tiny("llama", seed=seed).save_pretrained(root / str(seed))
    return root / "0", root / "1"


def test_a_comparison_is_a_table_json_a_file_and_a_figure(folders, tmp_path):
    table = run("analyze", folders[0], "--compare", folders[1], "--figures", tmp_path / "f")
    assert table.exit_code == 0, table.output
    assert "difference" in table.stdout
    assert "blocks differ by more than two standard errors" in said(table)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["comparison.png"]
    assert f"Wrote {tmp_path / 'f' / 'comparison.png'}." in " ".join(table.stdout.split())
    done = run("analyze", folders[0], "--compare", folders[1], "--format", "json", "-o", tmp_path / "c.json")
    comparison = SpectralComparison.from_json(done.stdout)
    assert SpectralComparison.load(tmp_path / "c.json") == comparison
    assert (comparison.first, comparison.second) == tuple(map(str, folders))
    quiet = run("analyze", folders[0], "--compare", folders[1], "-q")
    assert [float(line) for line in quiet.stdout.split()] == pytest.approx(
        [block.alpha.difference for block in comparison.blocks], abs=1e-4
    )


def test_saved_reports_are_compared_without_measuring(folders, tmp_path):
    for number, folder in enumerate(folders):
        assert run("analyze", folder, "-o", tmp_path / f"{number}.json", "-q").exit_code == 0
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    saved = run("analyze", files[0], "--compare", files[1], "--format", "json")
    fresh = run("analyze", folders[0], "--compare", folders[1], "--format", "json")
    # Windows are not saved, so that only models can be paired.
    assert [block["alpha"]["difference"] for block in json.loads(saved.stdout)["blocks"]] == [
        block["alpha"]["difference"] for block in json.loads(fresh.stdout)["blocks"]
    ]
    assert "not paired" in " ".join(json.loads(saved.stdout)["notes"])
    assert "are paired" in " ".join(json.loads(fresh.stdout)["notes"])
    assert run("analyze", files[0], "--layers").exit_code == 0
    refused = run("analyze", files[0], "--fit", "peak")
    assert refused.exit_code == 1
    assert "options must be those of the report" in said(refused)


def test_a_model_of_another_size_is_measured_with_the_windows_of_the_first(folders):
    done = run("analyze", folders[0], "--compare", "demo", "--format", "json")
    assert SpectralComparison.from_json(done.stdout).config.window_rows == 16


def test_figures_of_one_model(folders, tmp_path):
    done = run("analyze", folders[0], "--figures", tmp_path / "f", "--esd", "*layers.1.mlp.*", "--outside", "-q")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"alpha_by_depth.png", "alpha_by_role.png", "esd.png"}
    names = ", ".join(str(tmp_path / "f" / name) for name in ("alpha_by_depth.png", "alpha_by_role.png", "esd.png"))
    assert f"Wrote {names}." in said(done)
    assert all(float(line) > 1 for line in done.stdout.splitlines())


def test_only_figures_of_ours_are_replaced(folders, tmp_path):
    figures = tmp_path / "f"
    assert run("analyze", folders[0], "--figures", figures).exit_code == 0
    drawn = (figures / "alpha_by_role.png").read_bytes()
    assert run("analyze", folders[0], "--figures", figures).exit_code == 0
    (figures / "alpha_by_role.png").write_bytes(theirs := drawn.replace(b"hf-farms", b"gnuplot5"))
    done = run("analyze", folders[0], "--figures", figures)
    assert done.exit_code == 1
    assert "--figures must not replace what others drew" in said(done)
    assert "Move that file away, or choose another --figures." in said(done)
    assert (figures / "alpha_by_role.png").read_bytes() == theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figures", "f", "--esd", "layers.0.up"], "got 'layers.0.up'. Did you mean 'model.layers."),
        (["--compare", "no/such/model"], "model must be a hub id or an existing folder, got 'no/such/model'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments, message, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("analyze", folders[0], *arguments)
    assert done.exit_code == 1
    assert message in said(done)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("./nowhere", "model must be a hub id or an existing folder, got './nowhere'"),
        ("no/such-model", "'no/such-model' is not on this machine and the Hub is switched off"),
        ("notes.txt", "model must be a folder or a hub id, got the file 'notes.txt'"),
        ("broken.json", "report must be a JSON object"),
        ("empty", "model folder must have a config.json, got 'empty' without"),
        ("bare", "model folder must have weights (*.safetensors), got 'bare' without"),
        ("other.json", "spectra must be measured alike, got fit 'mid' and 'peak'"),
        ("gpt2", "blocks of the same names or the same number of blocks, got 3 and 2 blocks without a name in common"),
    ],
)
def test_what_cannot_be_compared_with_is_refused_before_anything_is_measured(
    other, message, folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("not a report")
    Path("broken.json").write_text("{")
    Path("empty").mkdir()
    tiny("llama").config.save_pretrained("bare")
    if other == "other.json":
        run("analyze", folders[1], "--fit", "peak", "-o", other, "-q")
    if other == "gpt2":
        from families import family_model

        family_model("gpt2").save_pretrained(other)
    done = run("analyze", folders[0], "--compare", other)
    assert done.exit_code == 1
    assert message in said(done)
    assert "Measuring" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "."], "output must be a file, got the folder '.'"),
        (["--output", "taken/r.json"], "output must be in a writable folder, got 'taken'"),
        (["--figures", "taken"], "figures must be a folder, got the file 'taken'"),
        (["--figures", "f", "--esd", "lm_head"], "esd must be the name of a measured layer, got 'lm_head'"),
    ],
)
def test_what_cannot_be_written_or_drawn_is_refused_before_anything_is_measured(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    # Measuring it would end in another error.
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained("broken")
    Path("taken").touch()
    done = run("analyze", "broken", *arguments)
    assert done.exit_code == 1
    assert message in said(done)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "taken"}


def test_spectra_of_a_report_cannot_be_drawn(folders, tmp_path):
    run("analyze", folders[0], "-o", tmp_path / "r.json", "-q")
    done = run("analyze", tmp_path / "r.json", "--figures", tmp_path / "f", "--esd", "*")
    assert "esd must be of a model, got a report, which holds no eigenvalues" in said(done)


def test_every_option_of_the_measurement_can_be_said(folders):
    options = ["--window-rows", "16", "--windows-per-dim", "15", "--fit", "peak", "--released-peak-bound"]
    done = run("analyze", folders[0], *options, "--tail-divisor", "1.5", "--format", "json")
    found = SpectralReport.from_json(done.stdout)
    assert found.config == replace(FarmsConfig.paper(), window_rows=16, tail_divisor=1.5)
    with pytest.warns(NoEffectWarning, match="`tail_divisor` has no effect: it applies to fit 'mid'"):
        again = analyze(str(folders[0]), found.config)
    assert found.blocks == again.blocks


def test_what_was_measured_is_said(folders, tmp_path):
    from families import family_model

    family_model("resnet").save_pretrained(tmp_path)
    assert "windows sized by the shape of each convolution, fit mid" in run("analyze", tmp_path).stdout
    assert "whole matrices, fit mid" in run("analyze", folders[0], "--window-rows", "none").stdout
    assert "windows of 16 rows, fit mid" in run("analyze", folders[0]).stdout


def test_embeddings_are_shown_when_asked_for(folders):
    assert "embed_tokens" not in run("analyze", folders[0]).stdout
    assert "embed_tokens" in run("analyze", folders[0], "--outside").stdout
    assert "lm_head" in run("analyze", folders[0], "--outside", "--layers").stdout


def test_pickled_weights_must_be_allowed(tmp_path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused = run("analyze", tmp_path)
    assert refused.exit_code == 1
    assert "--allow-pickle" in said(refused)
    assert run("analyze", tmp_path, "--allow-pickle", "-q").exit_code == 0


def test_a_warning_is_not_repeated_as_a_note(tmp_path):
    from families import family_model

    family_model("qwen3_next").save_pretrained(tmp_path)
    done = run("analyze", tmp_path)
    assert said(done).count("were left out, first") == 1


def test_two_processes_of_accelerate_give_the_report_of_one(tmp_path):
    options = ["demo", "--outside", "--format", "json", "-o", str(tmp_path / "r.json")]
    # --multi_gpu starts processes beside each other; without a GPU they work on the CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", free_port(), "-m", "hf_farms_cli", "analyze", *options]
    done = finished(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = SpectralReport.from_json(done.stdout)
    assert SpectralReport.load(tmp_path / "r.json") == report
    assert report == SpectralReport.from_json(run("analyze", "demo", "--outside", "--format", "json").stdout)


def test_an_error_on_one_process_ends_all_with_one_sentence(tmp_path):
    model = tiny("llama")
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    done = launch("-m", "hf_farms_cli", "analyze", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("NaN or infinity in model.layers.2.mlp.up_proj.weight") == 1
