import shutil

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

import hf_farms
from hf_farms.config import EvaluationConfig, LoadOptions
from hf_farms.errors import ArgumentError, ModelError
from hf_farms.reports import EvaluationReport, PruneReport
from hf_farms.workflows.evaluate import evaluate_checkpoint

REPORT = "hf_farms_report.json"
SMALL = {"context_length": 32, "max_windows": 2}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "pruned"
    options = ["--method", "magnitude", "--evaluation", "none", "--no-baseline", "-q"]
    done = CliRunner().invoke(app, ["prune", "demo", "-o", str(folder), *options])
    assert done.exit_code == 0, done.output
    return folder


def test_the_function_writes_and_returns_the_same_as_the_command(pruned, tmp_path, monkeypatch):
    for name in ("function", "command"):
        shutil.copytree(pruned, tmp_path / name / "model")
    monkeypatch.chdir(tmp_path / "command")
    options = ["--context-length", "32", "--windows", "2", "-o", "deep/results.json", "--json"]
    done = CliRunner().invoke(app, ["eval", "model", *options])
    assert done.exit_code == 0, done.stderr
    monkeypatch.chdir(tmp_path / "function")
    files, steps = [], []
    result = evaluate_checkpoint(
        "model",
        text=SMALL,
        output="deep/results.json",
        progress=lambda *step: steps.append(step),
        on_stored=files.append,
    )
    assert EvaluationReport.from_json(done.stdout) == result
    assert result.perplexity.dense is not None
    for name in ("deep/results.json", f"model/{REPORT}", "model/README.md"):
        text = (tmp_path / "function" / name).read_text()
        assert text == (tmp_path / "command" / name).read_text(), name
    assert PruneReport.load(f"model/{REPORT}").perplexity.pruned == result.perplexity.value
    expected = ["deep/results.json", f"model/{REPORT}", "model/README.md"]
    assert files == expected
    assert f"Wrote the results into {expected[0]}, {expected[1]} and {expected[2]}." in " ".join(done.stderr.split())
    assert ("Perplexity of model", 2, 2) in steps
    assert ("Perplexity of demo", 2, 2) in steps
    # A second time the report has it all.
    assert evaluate_checkpoint("model", output="deep/results.json", on_stored=files.append) == result
    assert files == [*expected, "deep/results.json"]


def test_a_text_of_ones_own_is_not_that_of_the_report(pruned):
    config = EvaluationConfig(**SMALL)
    result = evaluate_checkpoint(pruned, metrics=["perplexity"], text=config, base=False)
    assert result.perplexity.config == config
    assert result.sparsity is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "sparsity"}, r"metrics must be a sequence of names, got 'sparsity'"),
        ({"metrics": ["accuracy"]}, "metrics must be of perplexity, sparsity, or none, got 'accuracy'"),
        ({"metrics": []}, "metrics must not be none without tasks"),
        ({"tasks": "hellaswag"}, r"tasks must be a sequence of names, got 'hellaswag'. Write \['hellaswag'\]"),
        ({"batch_size": 0}, "batch_size must be a positive number or auto, got 0"),
        ({"text": {"windows": 3}}, "text must have fields of source, .*, got 'windows'"),
        ({"text": {"context_length": 1}}, "context_length must be an integer of at least 2, got 1"),
        ({"text": EvaluationConfig(source=None)}, "text must be one to measure on, got 'none'"),
        ({"load": LoadOptions(device="nowhere")}, "device must exist on this machine, .*, got 'nowhere'"),
    ],
)
def test_arguments_are_checked_before_the_model_is_looked_for(options, message):
    with pytest.raises(ArgumentError, match=message):
        hf_farms.evaluate_checkpoint("no/such/model", **options)


def test_without_a_report_there_is_nothing_to_compare_with():
    with pytest.raises(ModelError, match=r"base must be known from hf_farms_report\.json, which 'demo' does not have"):
        hf_farms.evaluate_checkpoint("demo", base=True)
