import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from hf_farms_cli.app import app
from hub_client import environment
from lm_tasks import WORDS, write_tasks
from local_hub import LocalHub, Repo
from models import tiny, tiny_bert
from processes import finished
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_farms.data.texts import read_text, tokenize
from hf_farms.demo import demo_model
from hf_farms.loading.opening import load_model
from hf_farms.metrics import quiet
from hf_farms.metrics.nll import text_nll
from hf_farms.reports import EvaluationReport, PruneReport

# What users of the command see is decided by the command; lm-eval and what it imports warn about themselves.
pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner()
REPORT = "hf_farms_report.json"
NEEDS_LM_EVAL = 'needs lm-eval: pip install "hf-farms[eval]"'


def run(*arguments):
    return runner.invoke(app, ["eval", *map(str, arguments)])


def said(done):
    return " ".join(done.stderr.split())


def measured(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return EvaluationReport.from_json(done.stdout)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A pruned demo; tests that write to it take a copy."""
    folder = tmp_path_factory.mktemp("work") / "pruned"
    done = runner.invoke(
        app, ["prune", "demo", "-o", str(folder), "--method", "magnitude", "--evaluation-windows", "4", "--no-baseline"]
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(pruned, tmp_path):
    return shutil.copytree(pruned, tmp_path / "copy")


@pytest.fixture
def tasks(tmp_path):
    pytest.importorskip("lm_eval", reason=NEEDS_LM_EVAL)
    (tmp_path / "tasks").mkdir()
    return write_tasks(tmp_path / "tasks")


def test_a_model_of_any_origin_is_measured_in_every_format(tmp_path):
    result = measured("demo", "--windows", 3, "-o", tmp_path / "deep" / "results.json")
    assert EvaluationReport.load(tmp_path / "deep" / "results.json") == result
    loaded = load_model("demo")
    ids = tokenize(loaded.tokenizer, read_text("speeches", split="test"))
    assert result.perplexity.value == text_nll(loaded.model, ids, context_length=256, max_windows=3).perplexity
    assert (result.perplexity.num_tokens, result.perplexity.dense, result.base) == (3 * 255, None, None)
    assert (result.sparsity.value, result.sparsity.num_parameters) == (0, 1009248)
    table = run("demo", "--windows", 3, "--format", "human")
    assert f"{result.perplexity.value:.2f}" in table.stdout
    assert "Perplexity of speeches in windows of 256 tokens." in table.stdout
    assert "dense" not in table.stdout
    agent = run("demo", "--windows", 3, "--format", "agent")
    assert agent.stdout.splitlines()[1].split("\t")[:2] == ["perplexity", f"{result.perplexity.value:.2f}"]
    quiet_run = run("demo", "--metrics", "sparsity,perplexity", "--windows", 3, "-q")
    assert quiet_run.stdout.split() == [f"{result.perplexity.value:.2f}", "0.0000", "0.0000"]
    assert quiet_run.stderr == ""


def test_the_perplexity_of_a_prune_is_found_again(folder):
    before = (folder / REPORT).read_bytes()
    report = PruneReport.load(folder / REPORT)
    result = measured(folder)
    assert result.perplexity.value == report.perplexity.pruned
    assert result.perplexity.dense == report.perplexity.dense
    assert result.perplexity.config == report.perplexity.config
    assert result.perplexity.nll_difference_stderr == report.perplexity.nll_difference_stderr
    assert (result.sparsity.value, result.sparsity.of_parameters) == (report.sparsity, report.parameter_sparsity)
    assert result.base == "demo"
    assert (folder / REPORT).read_bytes() == before


def test_a_missing_perplexity_goes_into_report_and_card(folder, tmp_path):
    report = PruneReport.load(folder / REPORT)
    replace(report, perplexity=None).save(folder / REPORT)
    done = run(folder, "--windows", 4, "--format", "human")
    assert done.exit_code == 0, done.stderr
    assert f"Wrote the results into {folder / REPORT} and {folder / 'README.md'}." in " ".join(done.stdout.split())
    assert PruneReport.load(folder / REPORT) == report
    assert f"{report.perplexity.pruned:.2f}" in (folder / "README.md").read_text()
    again = run(folder, "--windows", 4, "--format", "human")
    assert "Its report has these results already: nothing was written." in " ".join(again.stdout.split())
    for _ in range(2):
        elsewhere = run(folder, "--windows", 4, "--format", "human", "-o", tmp_path / "r.json")
        shown = " ".join(elsewhere.stdout.split())
        assert f"Wrote the results into {tmp_path / 'r.json'}." in shown
        assert "Its report has these results already: it was not written again." in shown
    # First without the dense model, which is measured later.
    replace(report, perplexity=None).save(folder / REPORT)
    measured(folder, "--windows", 4, "--no-base")
    assert PruneReport.load(folder / REPORT).perplexity.dense is None
    measured(folder)
    assert PruneReport.load(folder / REPORT) == report


def test_another_text_is_not_stored(folder, tmp_path):
    (tmp_path / "text.txt").write_text("We the people of another text. " * 300)
    before = (folder / REPORT).read_bytes()
    done = run(folder, "--text", tmp_path / "text.txt", "--context-length", 64, "--windows", 2, "--json")
    result = EvaluationReport.from_json(done.stdout)
    assert (result.perplexity.context_length, result.perplexity.num_tokens) == (64, 126)
    assert result.perplexity.dense is not None
    assert "the report keeps its perplexity of speeches: this one was measured differently (text " in said(done)
    assert "; context length 64, in the report 256; windows 2, in the report 4) and is not stored." in said(done)
    assert said(done).count("is not stored") == 1
    assert (folder / REPORT).read_bytes() == before
    done = run(folder, "--windows", 2, "--no-base", "--json")
    assert "measured differently (windows 2, in the report 4) and is not stored." in said(done)
    assert (folder / REPORT).read_bytes() == before


def test_tasks_of_several_evaluations_meet_in_report_and_card(folder, tasks):
    first = measured(folder, "--metrics", "none", "--tasks", "farms_after", "--include-path", tasks)
    acc, acc_norm = first.tasks
    assert (first.base, first.perplexity, first.sparsity) == ("demo", None, None)
    assert acc.dense is not None
    assert acc.difference_stderr is not None
    second = measured(folder, "--metrics", "none", "--tasks", "farms_before", "--include-path", tasks, "--no-base")
    assert second.tasks[0].dense is None
    report = PruneReport.load(folder / REPORT)
    assert report.tasks == (acc, acc_norm, *second.tasks)
    assert report.versions["lm-eval"] == quiet.require_lm_eval()
    card = (folder / "README.md").read_text()
    for task in report.tasks:
        assert task.task in card
        assert f"{task.value:.4f}".rstrip("0") in card
    assert not list(folder.glob("*.tmp"))
    # A look at three questions takes nothing away.
    done = run(
        *(folder, "--metrics", "none", "--tasks", "farms_after", "--include-path", tasks, "--limit", 3),
        *("--no-base", "--format", "human"),
    )
    assert f"keeps its result on {len(WORDS)} questions; the new one is on 3" in said(done)
    assert f"farms_after: 3 of {len(WORDS)} questions." in said(done)
    assert PruneReport.load(folder / REPORT) == report
    AutoModelForCausalLM.from_pretrained(folder)


def test_dense_and_pruned_are_the_results_of_each_by_itself(folder, tasks):
    options = ("--metrics", "none", "--tasks", "farms_after", "--include-path", tasks)
    both = measured(folder, *options)
    (alone, _), (dense, _) = measured(folder, *options, "--no-base").tasks, measured("demo", *options).tasks
    acc = both.tasks[0]
    assert (acc.value, acc.stderr) == (alone.value, alone.stderr)
    assert (acc.dense, acc.dense_stderr) == (dense.value, dense.stderr)
    table = run(folder, *options, "--format", "human").stdout
    assert f"{acc.value - acc.dense:+.4f}" in table


def test_blocks_on_disk_give_the_same(tasks):
    options = ("demo", "--windows", 2, "--tasks", "farms_after", "--include-path", tasks, "--limit", 4, "--json")
    whole, streamed = run(*options, "--no-stream"), run(*options, "--stream")
    assert json.loads(streamed.stdout) == json.loads(whole.stdout)
    assert "all of them are read for every batch. Give as large a --batch-size as fits" in said(streamed)


def test_other_weights_than_the_report_describes_are_noticed(folder):
    shutil.copy(demo_model() / "model.safetensors", folder / "model.safetensors")
    for path in folder.glob("model*0*"):
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    done = run(folder, "--json")
    assert (
        "the weights are not those that hf_farms_report.json describes (sparsity 0.0000, in the report 0.5000"
        in said(done)
    )
    # What the report knows is of other weights: the dense model is measured again, and here it is the same.
    assert EvaluationReport.from_json(done.stdout).perplexity.nll_difference == 0


def test_a_folder_that_cannot_be_written_is_measured_all_the_same(folder, monkeypatch):
    before = (folder / REPORT).read_bytes()
    # Tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    replace(PruneReport.load(folder / REPORT), perplexity=None).save(folder / REPORT)
    before = (folder / REPORT).read_bytes()
    done = run(folder, "--windows", 2, "--json")
    assert "cannot be written to: the results are not stored" in said(done)
    assert (folder / REPORT).read_bytes() == before


def test_a_report_on_the_hub_names_the_dense_model(pruned, tmp_path):
    files = {p.relative_to(pruned).as_posix(): p.read_bytes() for p in pruned.rglob("*") if p.is_file()}
    with LocalHub() as hub:
        hub.repos["me/pruned"] = Repo(files=files)
        variables = environment(hub.endpoint, tmp_path / "home", token=None)
        command = [sys.executable, "-m", "hf_farms_cli", "eval", "me/pruned", "--base", "--windows", "4", "--json"]
        done = finished(command, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = EvaluationReport.from_json(done.stdout)
    known = PruneReport.load(pruned / REPORT).perplexity
    assert (result.base, result.perplexity.dense) == ("demo", known.dense)
    assert "up to date" not in done.stderr


def test_a_model_without_text_has_zeros_alone(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path)
    assert measured(tmp_path, "--metrics", "sparsity").sparsity.value < 0.01
    done = run(tmp_path)
    assert "perplexity must be measured on a causal language model" in said(done)
    assert "Hint: Measure its zeros alone: --metrics sparsity." in said(done)


def test_without_a_tokenizer_the_hint_is_one_for_eval(tmp_path):
    shutil.copytree(demo_model(), tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    done = run(tmp_path / "m")
    assert "without one that can be loaded. Hint: Save one in the folder, or use no text: --method magnitude" in said(
        done
    )
    assert "in `hf-farms prune`, --metrics sparsity in `hf-farms eval`." in said(done)
    assert measured(tmp_path / "m", "--metrics", "sparsity").perplexity is None


def test_tasks_without_lm_eval_are_explained_before_anything_is_loaded(monkeypatch):
    def version(name):
        raise quiet.PackageNotFoundError(name)

    monkeypatch.setattr(quiet, "version", version)
    done = run("no-such-model", "--tasks", "hellaswag")
    assert done.exit_code == 1
    assert said(done).endswith('which is not installed. Hint: pip install -U "hf-farms[eval]"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base"], "base must be known from hf_farms_report.json, which 'demo' does not have"),
        (["--text", "missing.txt"], "--text must be an existing file, got 'missing.txt'"),
        (["--output", "."], "output must be a file, got the folder '.'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    done = run("demo", *arguments)
    assert done.exit_code == 1
    assert message in said(done)
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_named(tasks):
    done = run("no/such/model", "--tasks", "farms_after", "--include-path", tasks)
    assert done.exit_code == 1
    assert "model must be a hub id or an existing folder, got 'no/such/model'" in said(done)


def test_a_damaged_report_is_named(folder):
    (folder / REPORT).write_text("{")
    done = run(folder)
    assert done.exit_code == 1
    assert "report must be a JSON object" in said(done)


def test_a_tokenizer_is_needed_for_text_alone(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    assert measured(tmp_path, "--metrics", "sparsity").sparsity.value == 0
    assert "model must have a tokenizer" in said(run(tmp_path))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = runner.invoke(app, ["eval", "demo"])
    assert result.exit_code == 1
    assert "processes must be one for this command, got 2." in result.stderr
    assert "unset WORLD_SIZE. Only prune and analyze share work." in result.stderr
