import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from hf_farms_cli.app import app
from models import tiny_bert
from processes import Process, wait_for
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_farms.config import PruneConfig
from hf_farms.reports import PruneReport, SpectralReport

pytestmark = pytest.mark.filterwarnings("default")  # what users of the command see is decided by the command
runner = CliRunner()
RUN = [sys.executable, "-m", "hf_farms_cli"]


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def pruned_demo(tmp_path_factory):
    """The bare command, as a user runs it."""
    folder = tmp_path_factory.mktemp("work")
    done = subprocess.run([*RUN, "prune", "demo"], cwd=folder, capture_output=True, text=True)
    return folder, done


def test_the_bare_command(pruned_demo):
    folder, done = pruned_demo
    assert done.returncode == 0, done.stderr
    assert [p.name for p in folder.iterdir()] == ["demo-farms-wanda-50"]
    assert "model.layers.7" in done.stdout
    assert "Sparsity: 50.0000% of the pruned layers" in done.stdout
    size = sum(path.stat().st_size for path in (folder / "demo-farms-wanda-50").rglob("*") if path.is_file())
    assert done.stdout.splitlines()[-4:] == [
        f"✓ demo-farms-wanda-50, {size / 1e6:.3g} MB",
        "  Load it: transformers.AutoModelForCausalLM.from_pretrained('demo-farms-wanda-50')",
        "  Evaluate it on a task (needs hf-farms[eval]): hf-farms eval demo-farms-wanda-50 --tasks hellaswag",
        "  Publish it: hf-farms push demo-farms-wanda-50",
    ]
    assert "Traceback" not in done.stderr


def test_artifacts(pruned_demo):
    out = pruned_demo[0] / "demo-farms-wanda-50"
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "hf_farms_report.json",
        "recipe.yaml",
        "figures/blocks.png",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
    } <= files
    report = PruneReport.load(out / "hf_farms_report.json")
    assert report.sparsity == 0.5
    assert report.perplexity.dense < report.perplexity.pruned
    assert report.command.endswith("prune demo")
    assert any("of one kind (speeches" in note for note in report.notes)
    assert [b.alpha is not None and b.alpha_stderr is not None for b in report.before.blocks] == [True] * 8
    assert report.after.blocks[0].alpha != report.before.blocks[0].alpha
    model = AutoModelForCausalLM.from_pretrained(out)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros / model.num_parameters() == report.parameter_sparsity
    assert "sparsity_config" not in (out / "config.json").read_text()


def test_the_recipe_gives_the_same_bytes_and_a_finished_folder_is_kept(pruned_demo, tmp_path):
    out = pruned_demo[0] / "demo-farms-wanda-50"
    done = run("prune", out / "recipe.yaml", "-o", tmp_path / "again", "-q")
    assert done.exit_code == 0, done.output
    for shard in out.glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()
    stamp = (out / "README.md").stat().st_mtime_ns
    done = run("prune", "demo", "-o", out, "-q")
    assert done.stdout.strip() == str(out)
    assert "is finished already: nothing was pruned" in done.stderr
    assert (out / "README.md").stat().st_mtime_ns == stamp
    damaged = shutil.copytree(out, tmp_path / "damaged")
    next(damaged.glob("*.safetensors")).unlink()
    done = run("prune", "demo", "-o", damaged)
    assert done.exit_code == 1
    assert "Hint: Write it again with --overwrite" in " ".join(done.stderr.split())
    done = run("prune", "demo", "-o", out, "--sparsity", "0.4")
    assert done.exit_code == 1
    assert "with other settings (prune.sparsity: 0.4, previously 0.5)" in " ".join(done.stderr.split())


def test_json_goes_to_stdout_alone(tmp_path):
    done = run(
        "prune", "demo", "--method", "magnitude", "--evaluation", "none", "--format", "json", "-o", tmp_path / "o"
    )
    assert done.exit_code == 0, done.output
    report = PruneReport.from_json(done.stdout)
    assert report.perplexity is None
    assert report.calibration is None


def test_sparsegpt_with_a_pattern_in_a_folder_that_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(
        *("prune", "demo", "--method", "sparsegpt", "--pattern", "2:4", "--allocation", "uniform"),
        *("--refine", "swaps", "--damping", "0.02"),
        *("--calibration-samples", "8", "--evaluation", "none", "-q"),
    )
    assert done.exit_code == 0, done.output
    folder = tmp_path / "demo-uniform-sparsegpt-swaps-50-2of4"
    assert done.stdout.strip() == folder.name
    report = PruneReport.load(folder / "hf_farms_report.json")
    assert (report.config.method, report.config.pattern, report.sparsity) == ("sparsegpt", "2:4", 0.5)
    assert report.calibration.num_tokens > 0
    weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[2].mlp.down_proj.weight
    assert ((weight == 0).view(-1, 4).sum(1) == 2).all()
    card = (folder / "README.md").read_text()
    assert "Method `sparsegpt`, pattern `2:4`, refinement `swaps`, allocation `uniform`" in card
    assert "in the median layer by " in card
    assert (report.config.refine, report.config.damping) == ("swaps", 0.02)
    assert {layer.damping for block in report.blocks for layer in block.layers} == {0.02}
    assert "2301.00774" in card


def test_analyze_table_json_quiet_and_file(tmp_path):
    table = run("analyze", "demo")
    assert table.exit_code == 0, table.output
    assert "model.layers.7" in table.stdout
    assert "windows of 32 rows, fit mid" in table.stdout
    layers = run("analyze", "demo", "--layers")
    assert "self_attn.k_proj" in layers.stdout
    done = run(
        "analyze", "demo", "--format", "json", "--fit", "peak", "--window-rows", "none", "-o", tmp_path / "r.json"
    )
    report = SpectralReport.from_json(done.stdout)
    assert (report.config.fit, report.config.window_rows) == ("peak", None)
    assert SpectralReport.load(tmp_path / "r.json") == report
    quiet = run("analyze", "demo", "-q")
    assert len(quiet.stdout.split()) == 8


def test_dry_run_shows_the_plan_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("prune", "demo", "--dry-run")
    assert done.exit_code == 0, done.output
    assert all(line.startswith("[dry-run]") for line in done.stdout.splitlines())
    assert "[dry-run] output: demo-farms-wanda-50 (new)" in done.stdout
    assert "[dry-run] size: about 2.03 MB, " in done.stdout
    assert "[dry-run] sparsity: 50.00% of the weights of the pruned layers" in done.stdout
    assert "[dry-run] push: no" in done.stdout
    assert "[dry-run] prune.sparsity: 0.5" in done.stdout
    assert f"[dry-run] prune.ends: {PruneConfig().ends}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_for_programs_has_keys_and_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("prune", "demo", "--dry-run", "--method", "magnitude", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert (plan["model"], plan["prune"]["method"], plan["evaluation"]["split"]) == ("demo", "magnitude", "test")
    assert "calibration" not in plan  # has no effect
    assert (plan["output"], plan["state"], plan["push"]) == ("demo-farms-magnitude-50", "new", None)
    assert plan["size_bytes"] == 2026304 < plan["free_bytes"]
    assert {"README.md", "recipe.yaml"} <= set(plan["files"])


def test_dry_run_that_is_quiet_prints_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("prune", "demo", "--dry-run", "-q").stdout == "demo-farms-wanda-50\n"


@pytest.mark.parametrize(("option", "value"), [("--device", "gpu"), ("--dtype", "int3")])
def test_dry_run_refuses_what_the_run_would_refuse(option, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("prune", "demo", "--dry-run", option, value)
    assert done.exit_code == 2
    assert f"{option} must " in done.stderr
    assert f"got {value!r}" in done.stderr


def prepare_bert(folder):
    tiny_bert().save_pretrained(folder)
    from transformers import AutoTokenizer

    from hf_farms.demo import demo_model

    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "demo", "--calibration", "none.txt"], "calibration text must be an existing file, got 'none.txt'"),
        (
            ["prune", "demo", "--method", "magnitude", "--calibration", "none.txt"],
            "calibration text must be an existing file, got 'none.txt'",
        ),
        (["prune", "demo", "--evaluation", "none.txt"], "evaluation text must be an existing file, got 'none.txt'"),
        (
            ["prune", "demo", "--recover", "submodule", "--select-on", "none.txt"],
            "selection text must be an existing file, got 'none.txt'",
        ),
        (["prune", "./nowhere"], "model must be a hub id or an existing folder, got './nowhere'"),
        (["analyze", "EMPTY"], "model folder must have a config.json"),
        (["prune", "SHORT"], "model must be a folder or a hub id, got the file 'SHORT'"),
        (["prune", "demo", "--evaluation", "SHORT"], "evaluation text must have at least 256 tokens, got 3 in 'SHORT'"),
        (["prune", "none.yaml"], "recipe must be a readable file, got 'none.yaml'"),
        (["prune", "demo", "-o", "THEIRS"], "which is a folder that hf-farms did not write"),
        (["analyze", "no/such-model"], "'no/such-model'"),
        (["prune", "BERT"], "perplexity must be measured on a causal language model, got BertForMaskedLM"),
        (
            ["prune", "BERT", "--evaluation", "none", "--calibration", "self"],
            "self-calibration must have a model that generates text",
        ),
        (
            ["prune", "BERT", "--evaluation", "none", "--calibration-continuations", "3"],
            "--calibration-continuations must have a model that generates text, got BertForMaskedLM",
        ),
        (["prune", "NOTOKENIZER"], "model must have a tokenizer"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, llama):
    (tmp_path / "THEIRS").mkdir()
    (tmp_path / "THEIRS" / "file").touch()
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "SHORT").write_text("the people")
    if "BERT" in arguments:
        prepare_bert(tmp_path / "BERT")
    if "NOTOKENIZER" in arguments:
        llama.save_pretrained(tmp_path / "NOTOKENIZER")
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments = [str(tmp_path / a) if a in ("EMPTY", "BERT", "NOTOKENIZER") else a for a in arguments]
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    shown = " ".join(done.stderr.split())
    assert message in shown
    assert shown.startswith(("Error: ", "Warning: "))
    assert "Traceback" not in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_model_that_writes_its_own_calibration_text_needs_no_tokenizer(stream, tmp_path, llama):
    llama.save_pretrained(tmp_path / "m")
    small = ["--calibration", "self", "--calibration-samples", "2", "--calibration-length", "16"]
    done = run("prune", tmp_path / "m", *small, "--evaluation", "none", stream, "-o", tmp_path / "o", "-q")
    assert done.exit_code == 0, done.output
    assert PruneReport.load(tmp_path / "o" / "hf_farms_report.json").calibration.num_tokens == 32
    assert not list((tmp_path / "o").glob("tokenizer*"))
    done = run("prune", tmp_path / "m", *small, "-o", tmp_path / "p")
    assert "model must have a tokenizer" in " ".join(done.stderr.split())


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_model_continues_its_calibration_text(stream, tmp_path):
    small = ["--calibration-samples", "2", "--calibration-length", "32", "--calibration-continuations", "6"]
    arguments = ["demo", *small, "--recover", "submodule", "--recover-passes", "1", "--evaluation", "none", stream]
    done = run("prune", *arguments, "-o", tmp_path / "o", "--format", "human")
    assert done.exit_code == 0, done.output
    reads_for_every_token = "writes calibration text while its blocks are on disk" in " ".join(done.stderr.split())
    assert reads_for_every_token == (stream == "--stream")
    assert "Writing calibration text" in done.stderr
    report = PruneReport.load(tmp_path / "o" / "hf_farms_report.json")
    assert report.calibration.num_sequences == 8
    assert report.calibration.config.num_continuations == 6
    card = (tmp_path / "o" / "README.md").read_text(encoding="utf-8")
    text = (
        "Calibration: 8 sequences, 256 tokens of `speeches`, seed 0; 6 of them are continuations that the dense model"
    )
    assert text in card


def test_debug_keeps_the_traceback():
    done = run("prune", "demo", "--sparsity", "2", "--debug")
    assert isinstance(done.exception, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "Missing argument"),
        (["prune", "demo", "--no-such-option"], "No such option"),
        (["prune", "demo", "--seed", "one"], "--seed must be a whole number, got 'one'"),
        (["prune", "demo", "--sparsity", "1"], "sparsity must be at least 0 and below 1, got 1.0"),
        (["prune", "demo", "--sparsity", "nan"], "sparsity must be at least 0 and below 1, got nan"),
        (["prune", "demo", "--allocation", "ramp+lamp"], "allocation must be a sum of different allocations such as"),
        (["prune", "demo", "--granularity", "role"], "granularity must be one of block, layer, got 'role'"),
        (["prune", "demo", "--spread", "inf"], "--spread must be at least 0 and below 1, got inf"),
        (["prune", "demo", "--method", "obd"], "method must be one of magnitude, wanda, ria, sparsegpt, got 'obd'"),
        (["prune", "demo", "--pattern", "2:4"], "allocation must be 'uniform' for pattern '2:4', got 'farms'"),
        (["prune", "demo", "--pattern", "4:2"], "pattern must be N:M with N below M, got '4:2'"),
        (["prune", "demo", "--pattern", "dense"], "pattern must be 'unstructured', 'N:M' with two numbers"),
        (
            ["prune", "demo", "--pattern", "1:4", "--allocation", "uniform"],
            "sparsity must be 0.75 for pattern '1:4', got 0.5",
        ),
        (
            ["prune", "demo", "--allocation", "lamp"],
            "allocation must be one of uniform, farms, alpha, ramp, owl, dlp, sensitivity, auto, got",
        ),
        (
            ["prune", "demo", "--calibration-length", "1"],
            "--calibration-length must be an integer of at least 2, got 1",
        ),
        (
            ["prune", "demo", "--evaluation-windows", "-1"],
            "--evaluation-windows must be 0 (all) or a positive integer, got -1",
        ),
        (["prune", "demo", "--dtype", "int3"], "dtype must be auto, float32, bfloat16 or float16, got 'int3'"),
        (
            ["prune", "demo", "--device", "tpu:9"],
            "device must exist on this machine, such as cpu or cuda:0, got 'tpu:9'",
        ),
        (["prune", "none.yaml", "-s", "0.3"], "--sparsity must be left out with a recipe, which sets it"),
        (["prune", "demo", "--no-private"], "--private must be used with --push, got it without"),
        (["prune", "demo", "--push", "--repo-id", "a b"], "--repo-id must be a valid repository name, got 'a b'"),
        (["push", "folder", "--repo-id", "a/b/c"], "--repo-id must be a valid repository name, got 'a/b/c'"),
        (["push", "folder", "--create-pr", "--revision", "v2"], "revision must be left out with --create-pr"),
        (["card", "folder", "--repo-id", "a b"], "--repo-id must be a valid repository name, got 'a b'"),
        (["analyze", "demo", "--window-rows", "many"], "--window-rows must be a number, auto or none, got 'many'"),
        (
            ["analyze", "demo", "--window-rows", "0"],
            "--window-rows must be 'auto', 'none' or a positive integer, got 0",
        ),
        (["analyze", "demo", "--windows-per-dim", "1.5"], "--windows-per-dim must be a number or auto, got '1.5'"),
        (["analyze", "demo", "--fit", "best"], "fit must be one of mid, peak, goodness_of_fit, got 'best'"),
        (["analyze", "demo", "--aspect-ratio", "nan"], "--aspect-ratio must be a positive number, got nan"),
        (["analyze", "demo", "--tail-divisor", "1"], "--tail-divisor must be a number above 1, got 1.0"),
        (
            ["analyze", "demo", "--block-score", "max"],
            "--block-score must be one of mean, median, trimmed, standardised",
        ),
        (["analyze", "demo", "--device", "meta"], "device must exist on this machine"),
        (["analyze", "demo", "--esd", "x"], "esd must come with a folder for the figure, got none"),
        (["analyze", "demo", "--format", "xml"], "format must be one of auto, human, agent, json, quiet, got 'xml'"),
        (["eval", "demo", "--metrics", "accuracy"], "metrics must be of perplexity, sparsity, or none, got 'accuracy'"),
        (["eval", "demo", "--metrics", "none"], "metrics must not be none without tasks"),
        (["eval", "demo", "--batch-size", "0"], "--batch-size must be a positive number or auto, got 0"),
        (["eval", "demo", "--context-length", "1"], "--context-length must be an integer of at least 2, got 1"),
        (["eval", "demo", "--text", "none"], "text must be one to measure on, got 'none'"),
        (["eval", "demo", "--dtype", "int3"], "dtype must be auto, float32, bfloat16 or float16, got 'int3'"),
        (["eval", "demo", "--device", "nowhere"], "device must exist on this machine"),
    ],
)
def test_usage_errors_have_status_2_and_leave_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_without_blocks_is_refused(tmp_path):
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=0, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "m")
    done = run("prune", tmp_path / "m", "--method", "magnitude", "--evaluation", "none", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "model must have blocks with linear layers" in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("out*"))


def test_nan_in_a_weight_is_named(llama, tmp_path):
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    llama.save_pretrained(tmp_path / "m")
    done = run("analyze", tmp_path / "m")
    assert done.exit_code == 1
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr.replace("\n", "")


def test_interrupt_leaves_only_the_partial_folder(tmp_path):
    """From outside, in the middle of what the later of six blocks compute for many seconds."""
    command = [*RUN, "prune", "demo", "--evaluation", "none", "--calibration-samples", "2000", "-o", tmp_path / "out"]
    process = Process(command)
    wait_for(lambda: list(tmp_path.glob("out.partial/*.safetensors")), process=process)
    process.send_signal(signal.SIGINT)
    done = process.ended()
    assert done.returncode == 130
    said = f"Interrupted. Unfinished work is in {tmp_path / 'out.partial'}. Run the same command again to resume."
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]


def test_other_text_formats_reach_the_command(tmp_path):
    rows = [{"body": "We the people of the United States " * 40} for _ in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = run(
        "prune",
        "demo",
        "--calibration",
        tmp_path / "rows.jsonl",
        "--calibration-column",
        "body",
        "--calibration-samples",
        4,
        "--evaluation",
        tmp_path / "rows.jsonl",
        "--evaluation-column",
        "body",
        "--evaluation-windows",
        3,
        "-o",
        tmp_path / "out",
    )
    assert done.exit_code == 0, done.output
    report = PruneReport.load(tmp_path / "out" / "hf_farms_report.json")
    assert report.calibration.num_sequences == 4
    assert any("use the same text" in note for note in report.notes)
    assert report.perplexity.num_tokens == 3 * 255
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["calibration"]["column"] == "body"


def test_dtype_is_kept_or_changed_as_asked(tmp_path):
    run(
        "prune",
        "demo",
        "--method",
        "magnitude",
        "--evaluation",
        "none",
        "--dtype",
        "float32",
        "-o",
        tmp_path / "o",
        "-q",
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "o").dtype == torch.float32


def test_license_files_of_a_local_model_are_carried(llama, tmp_path):
    llama.save_pretrained(tmp_path / "m")
    for name in ("LICENSE.txt", "USE_POLICY.md", "Notice"):
        (tmp_path / "m" / name).write_text(name)
    (tmp_path / "m" / "NOTES").write_text("not a license")
    done = run("prune", tmp_path / "m", "--method", "magnitude", "--evaluation", "none", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = {p.name: p.read_text() for p in (tmp_path / "out").iterdir() if p.name.lower()[:3] in ("lic", "use", "not")}
    assert found == {name: name for name in ("LICENSE.txt", "USE_POLICY.md", "Notice")}


def test_help_shows_the_defaults_of_the_configs():
    shown = " ".join(run("prune", "--help").stdout.split())
    for words in (
        "--push",
        "[default: 0.5]",
        "[default: wanda]",
        "[default: farms, or uniform with --recover]",
        "Examples:",
    ):
        assert words in shown


@pytest.mark.parametrize(
    "words",
    [
        "with `distill` of its training, before which blocks are fitted with the default of `submodule`",
        "dense outputs, about 30 times as long as a prune; `distill`: then train all of them to predict as the dense "
        "model does, about twice that, in the memory of full fine-tuning.",
        "while the output error falls, ten or more times as long as a prune.",
        "takes the best so far; without one it takes about 20 times as long as a prune.",
    ],
)
def test_help_says_what_an_option_applies_to_and_costs(words):
    assert words in " ".join(run("prune", "--help").stdout.split())


def test_help_has_a_section_for_each_kind_of_option():
    shown = run("prune", "--help").stdout
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    sections = ["Model", "Pruning", "Calibration", "Selection", "Evaluation", "Result", "Hub", "Output"]
    assert titles == ["Arguments", *sections, "Examples"] or titles == ["Arguments", *sections]
    parts = dict(zip(sections, re.split(r"^\w+:$", shown, flags=re.MULTILINE)[2:], strict=False))
    for title, option in {
        "Model": "--revision",
        "Pruning": "--spread",
        "Calibration": "--seed",
        "Evaluation": "--context-length",
        "Result": "--overwrite",
        "Hub": "--push-revision",
        "Output": "--help",
    }.items():
        assert f"{option} " in parts[title], parts[title]


@pytest.mark.parametrize("option", ["--push-revision", "--commit-message", "--repo-id"])
def test_options_of_a_push_need_one(option, tmp_path):
    done = run("prune", "demo", option, "x", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert f"{option} must be used with --push, got it without" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_version():
    assert run("--version").stdout.strip() == __import__("importlib.metadata").metadata.version("hf-farms")
