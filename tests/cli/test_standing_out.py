import json
import re

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

from hf_farms.config import FarmsConfig
from hf_farms.reports import BlockSpectrum, SpectralReport
from hf_farms.reports.standing_out import find_standing_out

pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner()
HEALTHY = [1.79, 1.68, 1.66, 1.67, 1.65, 1.64, 1.63, 1.60]


def saved(path, alphas, **options):
    blocks = tuple(
        BlockSpectrum(index=i, name=f"model.layers.{i}", alpha=alpha, alpha_stderr=0.01, layers=())
        for i, alpha in enumerate(alphas)
    )
    config = FarmsConfig(**options)
    standing_out = find_standing_out(blocks, config)
    SpectralReport(
        model="m", model_type="llama", config=config, window_rows=12, blocks=blocks, standing_out=standing_out
    ).save(path)
    return path, standing_out.sentence


@pytest.fixture
def late(tmp_path):
    """A saved report in which blocks 3 and 5 stand out, and its sentence."""
    return saved(tmp_path / "late.json", [*HEALTHY[:3], 2.1, 1.65, 2.1, *HEALTHY[6:]])


def printed(*arguments):
    done = runner.invoke(app, ["analyze", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


def marked(table):
    return re.findall(r"^(\S+)\s.*\*$", table, re.MULTILINE)


def test_people_see_marked_rows_and_the_sentence(late):
    path, sentence = late
    done = printed(path, "--format", "human")
    assert marked(done.stdout) == ["model.layers.3", "model.layers.5"]
    assert sentence.startswith("Blocks 3 and 5 stand out")
    assert done.stdout.splitlines()[-1] == sentence


def test_a_healthy_model_has_no_marks(tmp_path):
    path, sentence = saved(tmp_path / "healthy.json", HEALTHY)
    done = printed(path, "--format", "human")
    assert marked(done.stdout) == []
    assert sentence.startswith("No block stands out")
    assert sentence in done.stdout


def test_agents_read_a_column_and_the_sentence_on_stderr(late):
    path, sentence = late
    done = printed(path, "--format", "agent")
    heading, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading == ["block", "alpha", "stderr", "windows", "stands out"]
    assert [row[0] for row in rows if row[-1] == "*"] == ["model.layers.3", "model.layers.5"]
    assert sentence in done.stderr.splitlines()


def test_json_has_the_sentence_as_a_field(late):
    path, sentence = late
    assert json.loads(printed(path, "--json").stdout)["standing_out"]["sentence"] == sentence


def test_quiet_prints_alphas_only(late):
    done = printed(late[0], "-q")
    assert len(done.stdout.splitlines()) == 8
    assert done.stderr == ""


def test_with_layers_the_sentence_remains(late):
    path, sentence = late
    assert sentence in printed(path, "--layers", "--format", "human").stdout


@pytest.mark.parametrize(
    ("alphas", "options", "reason"),
    [
        (HEALTHY[:3], {}, "the model has 3 blocks"),
        ([1.7] * 8, {}, "all alphas are equal"),
        (HEALTHY, {"window_rows": None}, "alphas of whole matrices have no standard errors"),
    ],
)
def test_where_nothing_can_be_said_that_is_said(alphas, options, reason, tmp_path):
    path, _ = saved(tmp_path / "r.json", alphas, **options)
    done = printed(path, "--format", "human")
    assert f"Nothing can be said about blocks that stand out: {reason}" in done.stdout
    assert marked(done.stdout) == []
