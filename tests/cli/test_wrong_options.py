"""A wrong value of any option is refused in the words of the command line: its option, no name or value of Python."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from cli_commands import COMMANDS
from hf_farms_cli.app import app
from hf_farms_cli.messages import options_by_name, with_option
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner(env={"COLUMNS": "200"})

# Arguments that each command needs beside the option that is wrong.
NEEDED = {
    "analyze": ["demo"],
    "prune": ["demo", "--dry-run"],
    "eval": ["demo"],
    "adapter fuse": ["./a", "./b", "-o", "c"],
    "adapter export": ["./a", "-o", "c"],
    "adapter merge": ["demo", "./a", "-o", "c"],
    "adapter unmerge": ["./m", "./a", "-o", "c"],
    "adapter diff": ["demo", "./m", "-o", "c"],
    "env": [],
}
# Options that another one makes effective.
WITH = {"--density": ["--combination", "ties"]}
# Any finite number is a weight.
NO_RANGE = {"--weight"}


def options_of(name, fits):
    hints = get_type_hints(COMMANDS[name].callback)
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and fits(parameter, kinds(hints.get(parameter.name))):
            yield name, max(parameter.opts, key=len)


def kinds(hint):
    inner = set(get_args(hint)) - {type(None)} or {hint}
    return set().union(*(kinds(kind) if get_args(kind) else {kind} for kind in inner))


NUMBERS = [
    case for name in COMMANDS for case in options_of(name, lambda _, types: types & {int, float} and bool not in types)
]
# Completion offers the choices.
CHOICES = [
    case
    for name in COMMANDS
    for case in options_of(name, lambda p, types: types == {str} and getattr(p, "_custom_shell_complete", None))
]
TEXTS = [("analyze", "--window-rows"), ("analyze", "--windows-per-dim"), ("eval", "--batch-size")]


def refused(name, option, value, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = runner.invoke(app, [*name.split(), *NEEDED.get(name, ["demo"]), *WITH.get(option, []), f"{option}={value}"])
    assert done.exit_code == 2, done.output
    line = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert not list(Path(folder).iterdir())
    return line.removeprefix("Error: ").removeprefix("Invalid value: ")


def is_plain(line):
    return not re.search(r"\bNone\b|`|\w_\w|Input should", line.partition(", got ")[0])


def test_the_tables_see_the_options():
    assert {("prune", "--sparsity"), ("prune", "--minutes"), ("eval", "--windows"), ("adapter fuse", "--weight")} <= {
        *NUMBERS
    }
    assert {("prune", "--method"), ("analyze", "--fit"), ("analyze", "--format")} <= {*CHOICES}
    assert {name for name, _ in NUMBERS} <= {*NEEDED}


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_a_word_in_place_of_a_number_is_refused_with_option_and_value(name, option, tmp_path, monkeypatch):
    line = refused(name, option, "half", tmp_path, monkeypatch)
    assert re.match(rf"{option} must be a (whole )?number, got 'half'\.$", line)


@pytest.mark.parametrize(("name", "option"), [case for case in NUMBERS if case[1] not in NO_RANGE])
def test_a_number_out_of_range_is_refused_with_the_option(name, option, tmp_path, monkeypatch):
    line = refused(name, option, "-1", tmp_path, monkeypatch)
    assert re.match(rf"{option} must be .*, got -1(\.0)?\.", line)
    assert is_plain(line)


@pytest.mark.parametrize(("name", "option"), [*CHOICES, *TEXTS])
def test_an_unknown_choice_is_refused_with_the_option(name, option, tmp_path, monkeypatch):
    line = refused(name, option, "best", tmp_path, monkeypatch)
    assert re.match(rf"{option} must be .*, got 'best'", line)
    assert is_plain(line.replace("goodness_of_fit", "").replace("_prune", "").replace("dare_", ""))


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--window-rows", "--window-rows must be a number, auto or none, got 'abc'."),
        ("--windows-per-dim", "--windows-per-dim must be a number or auto, got 'abc'."),
    ],
)
def test_all_that_an_option_takes_is_named(option, line, tmp_path, monkeypatch):
    assert refused("analyze", option, "abc", tmp_path, monkeypatch) == line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_windows must be None or a positive integer, got -1.", "--windows must be 0 (all) or a positive integer"),
        ("spread must be None, or at least 0 and below 1, got 1.", "--spread must be at least 0 and below 1, got 1."),
        (
            "evaluation source must be a file, a dataset id or None, got 3.",
            "--text must be a file, a dataset id or",
        ),
        ("device must be None or a device, got None.", "--device must be a device, got none."),
        ("output must not be in use, got 'None or x'.", "--output must not be in use, got 'None or x'."),
        ("layers must be None or 3.", "layers must be None or 3."),
        ("the device must be None or 3.", "the device must be None or 3."),
    ],
)
def test_what_an_error_becomes(message, shown):
    names = ("windows", "spread", "text", "device", "output")
    assert with_option(message, options_by_name({name: f"--{name}" for name in names})).startswith(shown)


def test_a_field_of_several_texts_has_no_option_of_its_own():
    options = options_by_name({name: f"--{name.replace('_', '-')}" for name in ("calibration_length", "select_length")})
    assert "sequence_length" not in options


@pytest.mark.parametrize(
    ("given", "offered"),
    [("--lyers", "(Possible options: --layers)"), ("--sparsty", None), ("--figurs", "(Possible options: --figures)")],
)
def test_a_mistyped_option_is_answered_with_similar_ones_only(given, offered):
    done = runner.invoke(app, ["analyze", "demo", given, "3"])
    assert done.exit_code == 2
    line = done.stderr.splitlines()[-1]
    assert line == f"Error: No such option: {given}" + (f" {offered}" if offered else "")
