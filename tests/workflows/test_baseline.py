"""The perplexity of uniform sparsity, which `prune` measures beside its own."""

import json
import math
import shutil

import pytest
import torch
from hf_farms_cli.app import app
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_farms.demo import demo_model
from hf_farms.reports import PruneReport

pytestmark = pytest.mark.filterwarnings("default")
FEW = ("--calibration-samples", "4", "--evaluation-windows", "4")


def perplexity(folder, *arguments, model="demo"):
    done = CliRunner().invoke(app, ["prune", str(model), "-o", str(folder), *FEW, *arguments])
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
    # The blocks of random weights differ by no more than chance, which leaves no spread.
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo_model()))
    random.save_pretrained(tmp_path / "random")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "random")
    got = perplexity(tmp_path / "a", model=tmp_path / "random")
    assert got.uniform == got.pruned
    assert got.uniform_nll_difference == 0


def test_it_is_left_out_on_request(tmp_path):
    assert perplexity(tmp_path / "a", "--allocation", "alpha", "--no-baseline").uniform is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp8 stays fp8 where there is a GPU")
def test_a_model_that_it_cannot_be_measured_on_is_pruned_all_the_same(tmp_path):
    # Without a GPU transformers loads these as plain weights, but they are not read block by block.
    shutil.copytree(demo_model(), tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    command = ["prune", str(tmp_path / "dense"), "-o", str(tmp_path / "a"), *FEW, "--allocation", "alpha"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "Uniform sparsity was not measured: weights must be plain to be read block by block, got fp8" in done.stderr
    assert PruneReport.load(tmp_path / "a" / "hf_farms_report.json").perplexity.uniform is None
