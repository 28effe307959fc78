"""What a command must not write over is refused before any work; what is printed may not be writable."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from hf_farms_cli.app import app
from models import tiny
from reports import spectral
from typer.testing import CliRunner

from hf_farms.demo import demo_model
from hf_farms.reports import REPORT_NAME

pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner()
FAST = ("--method", "magnitude", "--allocation", "uniform", "--evaluation", "none", "--no-baseline")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "out"
    done = runner.invoke(app, ["prune", "demo", *FAST, "-o", str(folder), "-q"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def work(pruned, tmp_path, monkeypatch):
    """A folder with a model that breaks every measurement, a result, a text, a report and a pipe."""
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained("broken")
    shutil.copytree(pruned, "out")
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "spectra.json").write_text(spectral().to_json())
    (tmp_path / "tasks").mkdir()
    (tmp_path / "link").symlink_to("broken")
    os.mkfifo("pipe")
    return tmp_path


def contents(folder):
    found = {path.relative_to(folder): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "broken", "-o", "pipe"], "output must be a regular file or not exist, got the pipe 'pipe'"),
        (["analyze", "broken", "-o", "broken/config.json"], "output must not be inside the model"),
        (["analyze", "link", "-o", "broken/new.json"], "output must not be inside the model"),
        (["analyze", "demo", "--compare", "broken", "-o", "broken/r"], "be inside the model to compare with"),
        (["analyze", "broken", "--figures", "pipe"], "figures must be a folder, got the pipe 'pipe'"),
        (["analyze", "broken", "--figures", "broken"], "figures must not be the model"),
        (["analyze", "broken", "-o", "f", "--figures", "f"], "output must be another place than the figures"),
        (["analyze", "broken", "-o", "f/esd.png", "--figures", "f"], "output must be another place than the figures"),
        (["analyze", "broken", "-o", "n" * 300], "output must have names of at most 255 bytes, got 300 in"),
        (["eval", "broken", "-o", "pipe"], "output must be a regular file or not exist, got the pipe 'pipe'"),
        (["eval", "broken", "-o", "broken/r.json"], "output must not be inside the model"),
        (["eval", "broken", "--text", "text.txt", "-o", "text.txt"], "output must not be the text"),
        (["analyze", "broken", "-o", "text.txt"], "an earlier report of the same command, got 'text.txt', which is"),
        (["analyze", "broken", "--compare", "demo", "-o", "text.txt"], "Hint: Choose another --output, or delete that"),
        (
            ["analyze", "broken", "-o", "out/hf_farms_report.json"],
            "an earlier report of the same command, got 'out",
        ),
        (["eval", "broken", "-o", "notes.json"], "an earlier report of the same command, got 'notes.json', which is"),
        (["eval", "broken", "-o", "spectra.json"], "an earlier report of the same command, got 'spectra.json', which"),
        (["prune", "broken", "-o", "pipe", "--overwrite"], "output must be a folder, got the pipe 'pipe'"),
        (["prune", "broken", "-o", "broken", "--overwrite"], "output must not be the model"),
        (["prune", "broken", "-o", "broken"], "output must not be the model"),
        (["prune", "link", "-o", "broken/sub", "--overwrite"], "output must not be inside the model"),
        (["prune", "out", "-o", "out", "--overwrite"], "output must not be the model"),
        (["prune", "out/recipe.yaml", "-o", "out", "--overwrite"], "output must not contain the recipe"),
        (["prune", "broken", "-o", "tasks/" + "n" * 250], "output must have names of at most 247 bytes"),
        (["prune", "n" * 250], "output must have names of at most 247 bytes"),
        (["card", "out", "-o", "pipe"], "output must be a regular file or not exist, got the pipe 'pipe'"),
        (["card", "out", "-o", "out/config.json", "--yes"], "output must not be inside the model"),
    ],
)
def test_what_must_not_be_written_over_is_refused_before_any_work(arguments, message, work):
    before = contents(work)
    done = runner.invoke(app, arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert contents(work) == before


def test_the_same_command_replaces_its_own_file_and_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").touch()
    for name in ("report.json", "empty.json"):
        for command in (["analyze", "demo"], ["analyze", "demo"], ["analyze", "demo", "--compare", "demo-healthy"]):
            done = runner.invoke(app, [*command, "--fit", "mid", "-o", name, "-q"])
            assert done.exit_code == 0, done.stderr
            assert f"Wrote {name}." in done.stderr
        assert set(json.loads((tmp_path / name).read_text())) > {"first", "second"}


@pytest.mark.parametrize("name", [REPORT_NAME, "README.md", "figures/blocks.png", "figures"])
@pytest.mark.parametrize("command", ["eval", "card"])
def test_a_link_or_a_pipe_in_a_result_is_not_written_through(command, name, work):
    place = work / "out" / name
    place.rename(work / "elsewhere")
    place.symlink_to(work / "elsewhere")
    before = contents(work)
    done = runner.invoke(app, [command, "out", *(["--metrics", "sparsity"] if command == "eval" else [])])
    if name == REPORT_NAME:  # is read through the link, and stays
        assert done.exit_code == 0
        assert place.is_symlink()
        return
    assert done.exit_code == 1
    assert "the link" in done.stderr or "no link" in done.stderr
    assert contents(work) == before


def test_evaluating_keeps_a_card_of_the_users_own(work):
    (work / "out" / "README.md").write_text("# Mine\n")
    report = json.loads((work / "out" / REPORT_NAME).read_text())
    (work / "out" / REPORT_NAME).write_text(json.dumps(report | {"tasks": [], "perplexity": None}))
    done = runner.invoke(app, ["eval", "out", "--metrics", "perplexity", "--no-base", "--windows", "2"])
    assert done.exit_code == 0, done.output
    assert "README.md stays as it is" in " ".join(done.stderr.split())
    assert (work / "out" / "README.md").read_text() == "# Mine\n"
    assert json.loads((work / "out" / REPORT_NAME).read_text())["perplexity"] is not None


def test_a_result_is_replaced_by_another(work):
    done = runner.invoke(app, ["prune", "demo", *FAST, "--sparsity", "0.3", "-o", "out", "--overwrite", "-q"])
    assert done.exit_code == 0, done.output
    assert json.loads((work / "out" / REPORT_NAME).read_text())["sparsity"] == pytest.approx(0.3, abs=0.01)
    assert not list(work.glob("*.partial"))


@pytest.mark.parametrize(
    ("given", "where", "expected"),
    [
        (".", "mine", "../mine-farms-wanda-50"),
        ("./", "mine", "../mine-farms-wanda-50"),
        ("..", "mine/sub", "../../mine-farms-wanda-50"),
        ("mine/", ".", "mine-farms-wanda-50"),
        ("mine/.", ".", "mine-farms-wanda-50"),
        ("~", ".", "mine-farms-wanda-50"),
    ],
)
def test_the_output_is_named_after_the_folder_and_lies_outside_of_it(given, where, expected, tmp_path, monkeypatch):
    shutil.copytree(demo_model(), tmp_path / "mine")
    (tmp_path / "mine" / "sub").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path / where)
    done = runner.invoke(app, ["prune", given, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f"output: {expected} (new)" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that takes nothing")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["env", "--json"], ""), (["card", "out"], "1")]
)
def test_a_stdout_that_takes_nothing_is_one_sentence(arguments, unbuffered, work):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:  # a redirect: nothing is made or replaced there
        done = subprocess.run(
            [sys.executable, "-m", "hf_farms_cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert done.returncode == 1
    assert done.stderr.count("Error: stdout must be writable, got an error: No space left on device.") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [["-o", "new/r.json"], ["--figures", "new"]])
def test_a_file_that_does_not_fit_on_the_disk_leaves_nothing(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hf_farms_cli", "analyze", "demo", "-q", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert "Error: 'new' could not be written: File too large." in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".png", ".partial", ".tmp")]
