"""Options that cannot apply are refused or warned of, also where they have the value of their default."""

import pytest
from cli_commands import COMMANDS
from hf_farms_cli.app import app
from hf_farms_cli.effects import RULES as OWN_RULES
from hf_farms_cli.messages import FIELDS
from models import tiny
from typer.testing import CliRunner

from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig
from hf_farms.config.effect_rules import RULES
from hf_farms.output.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner(env={"COLUMNS": "200"})


# Options that have an effect wherever they are accepted.
OUTPUT = {"--format", "--json", "--quiet", "--debug"}
ALWAYS = {
    "analyze": OUTPUT | {"--compare", "--window-rows", "--fit", "--block-score", "--output", "--figures"},
    "prune": OUTPUT
    | {"--dtype", "--stream", "--sparsity", "--method", "--pattern", "--allocation", "--output", "--overwrite"}
    | {"--push", "--token", "--dry-run", "--refine", "--recover"},
    "push": OUTPUT
    | {"--repo-id", "--private", "--create-pr", "--push-revision", "--revision", "--commit-message", "--yes"}
    | {"--token", "--dry-run"},
    "eval": OUTPUT | {"--metrics", "--tasks", "--output", "--dtype", "--stream"},
    "card": OUTPUT | {"--repo-id", "--output", "--token"},
    "env": OUTPUT,
    "adapter info": OUTPUT | {"--layers"},
    "adapter merge": OUTPUT | {"--output", "--revision"},
    "adapter unmerge": OUTPUT | {"--output", "--revision"},
    "adapter fuse": OUTPUT | {"--output", "--weight", "--combination", "--density", "--seed", "--include-base"},
    "adapter export": OUTPUT | {"--output", "--base", "--dtype"},
    "adapter diff": OUTPUT | {"--output", "--revision", "--tuned-revision", "--include-base"},
    "adapter push": OUTPUT
    | {"--repo-id", "--private", "--create-pr", "--push-revision", "--commit-message", "--yes"}
    | {"--token", "--dry-run"},
}
# Options that are refused where they have no effect.
REFUSED = {
    "analyze": {"--esd"},
    "prune": {"--repo-id", "--private", "--create-pr", "--push-revision", "--commit-message", "--yes"},
}


def run(*arguments):
    result = runner.invoke(app, [str(argument) for argument in arguments])
    return result, " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(path)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_rule_or_always_an_effect(name):
    options = {
        max(parameter.opts, key=len) for parameter in COMMANDS[name].params if parameter.param_type_name == "option"
    }
    refused = REFUSED.get(name, set())
    unclassified = options - set(FIELDS.values()) - ALWAYS[name] - refused
    assert unclassified == set(), "add a rule to effects.py, or the option to the table above"
    assert ALWAYS[name] | refused <= options | OUTPUT


def test_every_field_in_the_table_has_a_rule():
    ruled = {field.rpartition(".")[2] for rule in (*RULES, *OWN_RULES) for field in rule.fields}
    assert {field.rpartition(".")[2] for field in FIELDS} <= ruled


@pytest.mark.parametrize(
    ("command", "warned"),
    [
        ("analyze demo --released-peak-bound --revision x", ("--released-peak-bound", "--revision")),
        ("analyze FOLDER --revision x --allow-pickle", ("--revision",)),
        ("analyze demo --allow-pickle --layers -q", ("--allow-pickle", "--layers")),
        ("analyze demo-healthy --allow-pickle", ("--allow-pickle",)),
        ("analyze demo --fit peak --tail-divisor 2", ("--tail-divisor",)),
        ("analyze FOLDER --window-rows none --windows-per-dim auto", ("--windows-per-dim",)),
        ("analyze FOLDER --layers --tail-divisor 2 --windows-per-dim 4 --outside", ()),
        ("eval demo --metrics sparsity --windows 1 --text speeches", ("--windows", "--text")),
        ("eval demo --windows 1 --column text --subset x", ("--column", "--subset")),
        ("eval demo --metrics sparsity --limit 5 --batch-size 8", ("--limit", "--batch-size")),
        ("eval demo --metrics sparsity --num-fewshot 0 --include-path FOLDER", ("--num-fewshot", "--include-path")),
        ("prune demo --dry-run --calibration-column text", ("--calibration-column",)),
        ("prune demo --dry-run --calibration-subset x --revision x", ("--calibration-subset", "--revision")),
        ("prune demo --dry-run --method magnitude --seed 0", ("--seed",)),
        ("prune demo --dry-run --evaluation none --context-length 64", ("--context-length",)),
        ("prune demo --dry-run --allocation uniform --spread 0.1 --baseline", ("--spread", "--baseline")),
        ("prune demo --dry-run --allocation uniform --ends measured", ("--ends",)),
        ("prune demo --dry-run --allocation ramp --granularity layer --ends apart", ("--granularity", "--ends")),
        ("prune demo --dry-run --allocation ramp+owl --granularity layer --ends apart --spread 0.2", ()),
        ("prune demo --dry-run --recover-passes 2 --recover-rate 0.1", ("--recover-passes", "--recover-rate")),
        ("prune demo --dry-run --recover submodule --recover-passes 2 --method magnitude --seed 0", ()),
        ("prune demo --dry-run --ends lowest --seed 0 --spread 0.1 --context-length 64 --baseline", ()),
    ],
)
def test_an_option_without_an_effect_is_warned_of_once(command, warned, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, stderr = run(*(str(folder) if word == "FOLDER" else word for word in command.split()))
    assert result.exit_code == 0, stderr
    for option in warned:
        assert stderr.count(f"Warning: {option} has no effect: it applies to ") == 1, stderr
    assert stderr.count("has no effect") == len(warned), stderr


def test_options_of_tasks_are_refused_without_tasks_too(tmp_path):
    for options, sentence in (
        (("--num-fewshot", "-1"), "--num-fewshot must be at least 0, got -1."),
        (("--limit", "0"), "limit must be at least 1, got 0."),
        (("--include-path", tmp_path / "no"), "--include-path must be a folder with YAML files of tasks"),
        (("--tasks", ""), "tasks must be names with commas between, got ''. Name one, or leave --tasks out."),
    ):
        result, stderr = run("eval", "demo", "--metrics", "sparsity", *options)
        assert result.exit_code == 2
        assert sentence in stderr


def test_settings_of_a_recipe_without_an_effect_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=PruneConfig(allocation="uniform", shrink=False),
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(),
    ).save(tmp_path / "recipe.yaml")
    result, stderr = run("prune", "recipe.yaml", "--dry-run", "--no-baseline")
    assert result.exit_code == 0, stderr
    assert stderr.count("shrink` has no effect: it applies to allocation 'farms', 'alpha' or 'auto'.") == 1, stderr
    assert stderr.count("has no effect") == 1


def test_a_card_that_is_printed_asks_nothing(tmp_path):
    _, stderr = run("card", tmp_path, "-o", "-", "--yes")
    assert "Warning: --yes has no effect: it applies to a card that is written into a file." in stderr
