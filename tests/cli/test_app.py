"""The command line as a whole: help, completion, what a cold start imports, and Ctrl-C."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from forked import Commands
from hf_farms_cli.app import app
from processes import at, finished
from typer.testing import CliRunner

runner = CliRunner()
HEAVY = ("torch", "transformers", "huggingface_hub", "matplotlib", "numpy", "jinja2", "yaml", "rich", "hf_farms_cards")
RUN = [sys.executable, "-m", "hf_farms_cli"]
# Completion is asked by the name of the program, which `python -m` is not.
RUN_AS = [sys.executable, "-c", "import sys; sys.argv[0] = 'hf-farms'; from hf_farms_cli.app import main; main()"]


def commands():
    """`[]` for the program itself, `["prune"]`, `["adapter", "merge"]` and so on."""

    def below(command, path):
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from below(child, [*path, name])

    return list(below(typer.main.get_command(app), []))


@pytest.mark.parametrize("path", [[], ["adapter"]], ids=["hf-farms", "adapter"])
def test_list_of_commands_is_not_cut_off_in_80_columns(path):
    listed = runner.invoke(app, [*path, "--help"], terminal_width=80).stdout.partition("Commands:")[2]
    assert "push" in listed
    assert "..." not in listed


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_says_what_it_does_and_ends_with_examples(path):
    done = runner.invoke(app, [*path, "--help"])
    assert done.exit_code == 0
    text, _, examples = done.stdout.partition("Examples:\n")
    assert re.search("^(Options|Output):$", text, re.MULTILINE)
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines, f"no examples of {path}"
    for line in lines:
        assert line.startswith(" ".join(["$ hf-farms", *path]))
        assert _is_parsed(line[len("$ hf-farms ") :])
    assert runner.invoke(app, [*path, "-h"]).stdout == done.stdout


def _is_parsed(line):
    """Whether all options of an example are there."""
    command = typer.main.get_command(app)
    with command.make_context("hf-farms", shlex.split(line), resilient_parsing=True) as context:
        name, command, rest = command.resolve_command(context, context._protected_args + context.args)
    while getattr(command, "commands", None):
        name, *rest = rest
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return {word for word in rest if re.match("--?[a-z]", word)} <= known


@pytest.mark.parametrize("path", [path for path in commands() if path], ids=" ".join)
def test_every_command_has_the_formats_of_hf(path):
    shown = runner.invoke(app, [*path, "--help"]).stdout
    group = "Commands:" in shown
    for option in ("--format [auto|human|agent|json|quiet]", "--json", "-q, --quiet", "--debug"):
        assert (option in shown) is not group


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["-v"], 0),
        (["--help"], 0),
        (["prune", "--help"], 0),
        (["analyze", "--help"], 0),
        (["adapter", "--help"], 0),
        (["adapter", "fuse", "--help"], 0),
        ([], 2),
        (["prune"], 2),
        (["adapter"], 2),
        (["adapter", "merge", "demo"], 2),
        (["nothing"], 2),
        (["prune", "demo", "--no-such-option"], 2),
        (["analyze", "demo", "--format", "xml"], 2),
        (["analyze", "demo", "--json", "-q"], 2),
    ],
)
def test_help_versions_and_usage_errors_import_nothing_heavy(arguments, status):
    code = (
        "import sys, atexit; from hf_farms_cli.__main__ import main;"
        f"atexit.register(lambda: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules]));"
        f"sys.argv = ['hf-farms', *{arguments!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("LOADED []\n")
    assert "Traceback" not in done.stderr
    if "nothing" in arguments or "--no-such-option" in arguments:
        assert "Error: No such" in done.stderr


def test_a_wrong_command_or_option_is_answered_with_the_one_that_was_meant():
    assert "Did you mean 'analyze'?" in runner.invoke(app, ["analize"]).stderr
    assert "--sparsity" in runner.invoke(app, ["prune", "demo", "--sparsty", "1"]).stderr


@pytest.mark.parametrize(
    "arguments",
    [["analyze", "demo", "{}"], ["{}"], ["--{}"], ["push", "demo", "--{}"], ["analyze", "demo", "--format", "{}"]],
    ids=["argument", "command", "option", "option of a command", "value"],
)
def test_a_token_in_a_wrong_command_line_is_masked(arguments):
    token = "hf_" + "aB3" * 10
    done = runner.invoke(app, [argument.format(token) for argument in arguments])
    assert done.exit_code == 2
    assert "***" in done.stderr
    assert token not in done.output


@pytest.mark.parametrize("arguments", [["--version"], ["-v"]])
def test_version(arguments):
    assert runner.invoke(app, arguments).stdout.strip() == version("hf-farms")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ana", {"analyze"}),
        ("analyze --fo", {"--format"}),
        ("analyze --format ", {"auto", "human", "agent", "json", "quiet"}),
        ("analyze demo --format ag", {"agent"}),
        ("analyze --fit ", {"mid", "peak", "goodness_of_fit"}),
        ("analyze --block-score m", {"mean", "median"}),
        ("analyze de", {"demo", "demo-healthy"}),
        ("adapter un", {"unmerge"}),
        ("adapter merge de", {"demo", "demo-healthy"}),
        ("adapter fuse a b --combination dare", {"dare_linear", "dare_ties"}),
        ("analyze ./no", set()),  # left to the shell, which offers files
    ],
)
def test_bash_completes(typed, offered, tmp_path):
    """The script that `--show-completion` prints, in a real shell."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    (tmp_path / "hf-farms").write_text(f'#!/bin/sh\nexec {shlex.join(RUN_AS)} "$@"\n')
    (tmp_path / "hf-farms").chmod(0o755)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    script = subprocess.run(
        [tmp_path / "hf-farms", "--show-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = ["hf-farms", *typed.split(" ")]
    lines = [
        script,
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}",
        '_hf_farms_completion hf-farms; printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_completion_is_installed_into_the_shell_that_runs(tmp_path):
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    subprocess.run([*RUN_AS, "--install-completion", "bash"], env=environment, check=True, capture_output=True)
    installed = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_HF_FARMS_COMPLETE" in path.read_text() for path in installed)
    assert "hf-farms" in (tmp_path / ".bashrc").read_text()


def interrupted(done):
    """What a command said at Ctrl-C, after the last line of progress."""
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Interrupted.") == 1
    return done.stderr.splitlines()[-1]


def test_ctrl_c_inside_generated_code_keeps_the_status(tmp_path):
    lines = [
        "import hf_farms_cli.app",
        "from hf_farms_cli.__main__ import main",
        "hf_farms_cli.app.main = lambda: exec('raise KeyboardInterrupt')",
        "main()",
    ]
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize("module", ["hf_farms_cli.app", "typer", "torch", "torch.nn.functional", "transformers"])
def test_ctrl_c_before_there_is_work_is_one_line(module, tmp_path):
    variables = {**os.environ, **at(signal.SIGINT, imports=module)}
    assert interrupted(finished([*RUN, "prune", "demo", "-q"], cwd=tmp_path, env=variables)) == "Interrupted."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ctrl_c_names_the_unfinished_work_and_the_same_command_goes_on(tmp_path):
    command = (tmp_path, "prune", "demo", "--no-baseline", "-q")
    partial = tmp_path / "demo-farms-wanda-50.partial"
    with Commands() as commands:
        for stage in ("spectra.json", "dense_perplexity.json", "blocks/*"):
            commands.start(*command, signal=signal.SIGINT, made=f"*/.hf-farms-unfinished/{stage}")
            said = interrupted(commands.ended())
            assert said == f"Interrupted. Unfinished work is in {partial.name}. Run the same command again to resume."
            assert [path.name for path in tmp_path.iterdir()] == [partial.name]
        commands.start(*command)
        done = commands.ended()
    assert (done.returncode, done.stdout.strip()) == (0, "demo-farms-wanda-50")
    report = json.loads((Path(tmp_path) / "demo-farms-wanda-50" / "hf_farms_report.json").read_text())
    assert report["sparsity"] == 0.5
