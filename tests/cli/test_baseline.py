"""The perplexity of uniform sparsity, which `prune` measures beside its own."""

import math

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

from hf_farms.reports import PruneReport

pytestmark = pytest.mark.filterwarnings("default")
FEW = ("--calibration-samples", "4", "--evaluation-windows", "4")


def perplexity(folder, *arguments):
    done = CliRunner().invoke(app, ["prune", "demo", "-o", str(folder), *FEW, *arguments])
    assert done.exit_code == 0, done.output
    return PruneReport.load(folder / "hf_farms_report.json").perplexity


def test_it_is_that_of_a_uniform_run(tmp_path):
    mixed = perplexity(tmp_path / "a", "--allocation", "alpha")
    uniform = perplexity(tmp_path / "b", "--allocation", "uniform")
    assert mixed.pruned != uniform.pruned
    assert mixed.uniform == uniform.pruned
    assert mixed.uniform_nll_difference == pytest.approx(math.log(mixed.pruned / mixed.uniform), abs=1e-9)
    assert mixed.uniform_nll_difference_stderr > 0
    assert uniform.uniform is None
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert not any("uniform" in path.name for path in (tmp_path / "a").rglob("*"))


def test_an_allocation_that_comes_to_the_same_is_its_own_baseline(tmp_path):
    # The blocks of the demo differ by no more than chance, which leaves no spread.
    got = perplexity(tmp_path / "a")
    assert got.uniform == got.pruned
    assert got.uniform_nll_difference == 0


def test_it_is_left_out_on_request(tmp_path):
    assert perplexity(tmp_path / "a", "--allocation", "alpha", "--no-baseline").uniform is None
