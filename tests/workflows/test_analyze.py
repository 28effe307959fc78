import pytest
from hf_farms_cli.app import app
from models import tiny
from typer.testing import CliRunner

import hf_farms
from hf_farms.config import FarmsConfig
from hf_farms.errors import ArgumentError, OutputError
from hf_farms.reports import SpectralReport
from hf_farms.reports.comparison import SpectralComparison


def command(*arguments):
    done = CliRunner().invoke(app, ["analyze", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        tiny("llama", seed=seed).save_pretrained(root / str(seed))
    return root / "0", root / "1"


@pytest.mark.filterwarnings("ignore::hf_farms.errors.HfFarmsWarning")
def test_the_functions_write_and_return_the_same_as_the_command(folders, tmp_path):
    first, second = folders
    places = {name: (tmp_path / name / "report.json", tmp_path / name / "f") for name in ("function", "command")}
    output, figures = places["function"]
    steps = []
    report = hf_farms.analyze_checkpoint(
        first,
        FarmsConfig(fit="peak"),
        outside=True,
        output=output,
        figures=figures,
        esd=["*layers.1.mlp.up*"],
        progress=lambda *step: steps.append(step),
    )
    expected, drawn = places["command"]
    options = ["--fit", "peak", "--outside", "--esd", "*layers.1.mlp.up*", "-o", expected, "--figures", drawn]
    assert SpectralReport.from_json(command(first, *options)) == report
    assert output.read_text() == expected.read_text()
    assert {path.name for path in figures.iterdir()} == {"alpha_by_depth.png", "alpha_by_role.png", "esd.png"}
    for path in figures.iterdir():
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name
    assert steps[-1][0] == f"Measuring spectra of {first.name}"
    assert steps[-1][1] == steps[-1][2]
    # A saved report is the model, measured already.
    assert hf_farms.analyze_checkpoint(output, FarmsConfig(fit="peak")) == report
    comparison = hf_farms.compare_checkpoints(first, second, FarmsConfig(fit="peak"), figures=figures)
    assert SpectralComparison.from_json(command(first, "--compare", second, "--fit", "peak")) == comparison
    assert (figures / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"esd": ["*"]}, ArgumentError, "esd must come with a folder for the figure, got none"),
        ({"device": "nowhere"}, ArgumentError, "device must exist on this machine, .*, got 'nowhere'"),
        ({"output": "."}, OutputError, "output must be a file, got the folder '.'"),
        ({"output": "f/esd.png", "figures": "f"}, OutputError, "output must be another place than the figures"),
    ],
)
def test_arguments_are_checked_before_the_model_is_looked_for(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        hf_farms.analyze_checkpoint("no/such/model", **options)
    assert not list(tmp_path.iterdir())
