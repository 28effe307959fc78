"""The metrics as modules of `evaluate`, without a network."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import evaluate
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_farms
from hf_farms.demo import demo_model, demo_text
from hf_farms.metrics import METRICS, path
from hf_farms.metrics.nll import text_nll
from hf_farms.metrics.sparsity_count import count_model_zeros

# evaluate and datasets warn about themselves (deprecated calls of each other).
pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo():
    """The arguments that both metrics take."""
    return {
        "model": AutoModelForCausalLM.from_pretrained(demo_model(), dtype="float32"),
        "tokenizer": AutoTokenizer.from_pretrained(demo_model()),
        "predictions": demo_text("test").read_text().split("\n\n")[:60],
        "context_length": 128,
        "max_windows": 5,
    }


@pytest.fixture(scope="module")
def direct(demo):
    ids = demo["tokenizer"]("\n\n".join(demo["predictions"]), verbose=False)["input_ids"]
    return text_nll(demo["model"], ids, context_length=128, max_windows=5)


def test_perplexity_loads_from_its_path(demo, direct):
    for metric in (hf_farms.Perplexity(), evaluate.load(path("perplexity"))):
        got = metric.compute(**demo)
        assert got["perplexity"] == direct.perplexity
        assert got["window_nll"] == list(direct.windows)
        assert (got["num_tokens"], got["num_windows"], got["context_length"]) == (5 * 127, 5, 128)


def test_sparsity_needs_no_predictions(demo):
    found = count_model_zeros(demo["model"])
    got = evaluate.load(path("sparsity")).compute(model=demo["model"])
    assert (got["sparsity"], got["parameter_sparsity"]) == (found.sparsity, found.parameter_sparsity)
    assert got["num_parameters"] == demo["model"].num_parameters()
    assert len(got["block_sparsity"]) == 8


def test_combine_and_save(demo, direct, tmp_path):
    both = evaluate.combine([path("perplexity"), path("sparsity")])
    got = both.compute(**demo)
    assert got["perplexity"] == direct.perplexity
    assert got["sparsity"] == 0
    saved = evaluate.save(tmp_path / "results.json", model="demo", **got)
    assert json.loads(Path(saved).read_text())["perplexity"] == direct.perplexity


@pytest.mark.parametrize("name", METRICS)
def test_a_module_describes_itself(name):
    metric = evaluate.load(path(name))
    assert metric.name == name
    assert "2306.11695" in metric.citation
    assert "Returns:" in metric.inputs_description
    assert f'path("{name}")' in metric.inputs_description
    assert "Args:" in type(metric).compute.__doc__ or "Args:" in metric.compute.__doc__


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="name must be one of perplexity, sparsity, got 'accuracy'"):
        path("accuracy")


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree")
def test_metrics_load_from_the_wheel(tmp_path):
    import build  # noqa: F401
    import hatchling  # noqa: F401

    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = (
        "import evaluate, hf_farms\n"
        "from hf_farms.metrics import path\n"
        "print(hf_farms.__file__)\n"
        "print([evaluate.load(path(name)).name for name in ('perplexity', 'sparsity')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    where, names = done.stdout.strip().splitlines()
    assert where.startswith(str(tmp_path))
    assert names == "['perplexity', 'sparsity']"
