"""Translation of library messages to the command line.

The library names Python arguments: errors, hints, warnings and notes contain `name`, `name=value` or the name of a
function, in backticks. Each of them is replaced by the equivalent option or command. The error of a wrong argument
starts with its name, which becomes the option of the command that runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

__all__ = [
    "EXPRESSIONS",
    "FIELDS",
    "OPTIONS",
    "fields_of",
    "in_options",
    "names_here",
    "options_by_name",
    "with_option",
]

# Argument -> option. A value is appended; `name=False` is `--no-name`, None is `none`.
OPTIONS = {
    "allocation": "--allocation",
    "allow_pickle": "--allow-pickle",
    "base": "--base",
    "batch_size": "--batch-size",
    "calibration": "--calibration",
    "combination": "--combination",
    "context_length": "--context-length",
    "density": "--density",
    "device": "--device",
    "dtype": "--dtype",
    "ends": "--ends",
    "figures": "--figures",
    "granularity": "--granularity",
    "include_base": "--include-base",
    "include_path": "--include-path",
    "method": "--method",
    "metrics": "--metrics",
    "minutes": "--minutes",
    "num_continuations": "--calibration-continuations",
    "output": "--output",
    "overwrite": "--overwrite",
    "pattern": "--pattern",
    "private": "--private",
    "recover": "--recover",
    "recover_budget": "--recover-budget",
    "repo_id": "--repo-id",
    "revision": "--revision",
    "selection": "--select-on",
    "sequence_length": "--calibration-length",
    "stream": "--stream",
    "tasks": "--tasks",
    "token": "--token",
    "tuned_revision": "--tuned-revision",
}

# Field of a config or argument -> option, for messages that a setting has no effect, and to tell the library which of
# them stand on the command line.
FIELDS = {
    **{f"calibration.{name}": f"--calibration-{name}" for name in ("column", "subset", "split")},
    "calibration.source": "--calibration",
    "calibration.num_sequences": "--calibration-samples",
    "calibration.num_continuations": "--calibration-continuations",
    "calibration.sequence_length": "--calibration-length",
    "calibration.seed": "--seed",
    **{f"evaluation.{name}": f"--evaluation-{name}" for name in ("column", "subset", "split")},
    **{f"selection.{name}": f"--select-{name}" for name in ("column", "subset", "split")},
    "selection.source": "--select-on",
    "selection.sequence_length": "--select-length",
    "evaluation.source": "--evaluation",
    "evaluation.context_length": "--context-length",
    "evaluation.max_windows": "--evaluation-windows",
    **{f"text.{name}": f"--{name}" for name in ("column", "subset", "split")},
    "text.source": "--text",
    "text.context_length": "--context-length",
    "text.max_windows": "--windows",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("aspect_ratio", "windows_per_dim", "tail_divisor", "released_peak_bound", "outside", "spread", "ends"),
            *("minutes",),
            *("damping", "block_size", "baseline", "num_fewshot", "limit", "layers", "yes"),
            *("granularity", "base", "batch_size", "include_path", "device", "revision", "allow_pickle"),
            *("recover_passes", "recover_rate", "recover_budget"),
        )
    },
}

# Regular expression for an argument at the start of a message, outside of backticks -> option.
FIRST = {
    r"weights(?= must be (a list of|finite and|positive for))": "--weight",
    r"folder(?= must be (new, or hold an earlier export|a folder or not exist))": "--output",
    r"(combination|density|seed)(?= (must be|has no effect))": r"--\1",
    r"base(?= must be given)": "--base",
}

# Regular expression -> equivalent option or command.
EXPRESSIONS = {
    r"CalibrationConfig\(source='self'\)": "--calibration self",
    r"EvaluationConfig\(source=None\)": "--evaluation none",
    r"SelectionConfig\(sequence_length=\.\.\.\)": "--select-length",
    r"(push|write_folder_card)\(overwrite=True\)": "--yes",
    r"push\(revision=\.\.\.\)": "--push-revision",
    r"write_card\(report, '(.+)'\)": r"`hf-farms card \1 --yes`",
    r"error\.__cause__": "--debug",
    r"prune_checkpoint": "`hf-farms prune`",
    r"evaluate_checkpoint": "`hf-farms eval`",
    r"analyze_checkpoint": "`hf-farms analyze`",
    r"overlaps\(adapters\)": "the output",
}

# Option -> how it writes None; where an option is missing, None is written by leaving it out.
NONE = {
    **dict.fromkeys(("--window-rows", "--evaluation", "--text"), "'none'"),
    **dict.fromkeys(("--windows", "--evaluation-windows"), "0 (all)"),
}

# Name of an argument or field at the start of an error -> option of the command that runs.
names_here: ContextVar[Mapping[str, str]] = ContextVar("names_here", default=MappingProxyType({}))

WRONG = re.compile(r"(?:(?:calibration|evaluation|selection) )?(\w+)(?= must )")
SPAN = re.compile(r"`([^`\n]+)`")
ARGUMENT = re.compile(r"([\w.]+)(?:=(.+))?")


def in_options(message: str) -> str:
    """Return a message of the library with options and commands in place of arguments and functions."""
    for pattern, option in FIRST.items():
        message = re.sub(f"^{pattern}", option, message)
    return SPAN.sub(_replacement, message)


def fields_of(config: str) -> dict[str, str]:
    """Return the options of the fields of a config, such as "calibration", by the name of the field."""
    return {name.removeprefix(f"{config}."): option for name, option in FIELDS.items() if name.startswith(f"{config}.")}


def options_by_name(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a command by the names that errors start with.

    Args:
        parameters: the options by the name of their parameter.
    """
    options: dict[str, set[str]] = {}
    for name, option in (*FIELDS.items(), *OPTIONS.items()):
        if option in parameters.values():
            options.setdefault(name.rpartition(".")[2], set()).add(option)
    # Fields of several texts have the same name.
    return {name: only for name, (only, *others) in options.items() if not others} | dict(parameters)


def with_option(message: str, options: Mapping[str, str]) -> str:
    """Return the error of a wrong argument with its option in place of its name, and values as they are typed."""
    start = WRONG.match(message)
    option = options.get(start[1]) if start is not None else None
    if start is None or option is None:
        return message
    constraint, got, rest = message[start.end() :].partition(", got ")
    if option in NONE:
        constraint = re.sub(r"\bNone\b", NONE[option], constraint)
    else:
        constraint = re.sub(r"\bNone,? or |, None(?= or )| or None\b", "", constraint)
    return option + constraint + got + re.sub(r"^None\b", "none", rest)


def _replacement(span: re.Match[str]) -> str:
    for pattern, replacement in EXPRESSIONS.items():
        if (match := re.fullmatch(pattern, span[1])) is not None:
            return match.expand(replacement)
    argument = ARGUMENT.fullmatch(span[1])
    names = FIELDS | OPTIONS
    if argument is None or argument[1] not in names:
        return span[0]
    option, value = names[argument[1]], argument[2]
    if value in (None, "True"):
        return option
    return f"--no-{option[2:]}" if value == "False" else f"{option} {_argument(value)}"


def _argument(value: str) -> str:
    """Return a Python literal as it is written on a command line: "none" for None, commas between names."""
    try:
        literal = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value
    if literal is None:
        return "none"
    return ",".join(literal) if isinstance(literal, list) else str(literal)
