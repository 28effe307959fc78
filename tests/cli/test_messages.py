"""The library names Python, the command line names options: no flag there, none missing here."""

import ast
import re
from pathlib import Path

import pytest
from cli_commands import COMMANDS
from hf_farms_cli.messages import EXPRESSIONS, FIELDS, OPTIONS, SPAN, in_options

import hf_farms

PACKAGE = Path(hf_farms.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def strings(path, *, docstrings):
    """Text of each string; what an f-string fills in is X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    standalone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped = inside if docstrings else inside | standalone
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


# Command lines are masked there, and read.
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "privacy" not in path.parts]
# Has those of vLLM and SGLang.
OTHER_PROGRAMS = ("lora_servers.py", "vllm.py")
MESSAGES = [text for path in SOURCES for text in strings(path, docstrings=False)]


ALL = [parameter for command in COMMANDS.values() for parameter in command.params]
PARAMETERS = {parameter.name: parameter for parameter in ALL}
FLAGS = {flag for parameter in ALL for flag in (*parameter.opts, *parameter.secondary_opts)}


# A command line that a report records, and no message.
RECORDED = [("prune.py", " --no-baseline")]


def test_no_string_of_the_library_names_a_flag():
    own = [path for path in SOURCES if path.name not in OTHER_PROGRAMS]
    named = [(path.name, text) for path in own for text in strings(path, docstrings=True) if FLAG.search(text)]
    assert named == RECORDED


def test_no_message_of_the_library_names_a_command_of_the_shell():
    assert [text for text in MESSAGES if "`hf-farms " in text] == []


def messages_with(fits):
    return [text for text in MESSAGES if any(fits(span) for span in SPAN.findall(text))]


@pytest.mark.parametrize("argument", OPTIONS)
def test_each_argument_of_a_message_becomes_its_option(argument):
    messages = messages_with(lambda span: span.partition("=")[0] == argument)
    if argument in ("output", "figures"):  # `another` puts them in
        messages.append(f"Choose another `{argument}`.")
    assert messages, "no message names it"
    for message in messages:
        shown = in_options(message)
        flags = FLAG.findall(shown)
        assert OPTIONS[argument] in flags or f"--no-{OPTIONS[argument][2:]}" in flags
        assert set(flags) <= FLAGS
        assert f"`{argument}" not in shown


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_each_expression_of_a_message_becomes_an_option_or_a_command(pattern):
    messages = messages_with(lambda span: re.fullmatch(pattern, span))
    assert messages, "no message has it"
    for message in messages:
        shown = in_options(message)
        assert not any(re.fullmatch(pattern, span) for span in SPAN.findall(shown))
        assert EXPRESSIONS[pattern].replace(r"\1", "X") in shown
        assert set(FLAG.findall(shown)) <= FLAGS


def test_every_argument_that_the_command_line_has_is_in_the_table():
    # `demo` is a model, and no option.
    spans = {span.partition("=")[0] for text in MESSAGES for span in SPAN.findall(text)}
    assert spans & (set(PARAMETERS) - {"model", "folder"}) <= set(OPTIONS | FIELDS)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Choose another `output`.", "Choose another --output."),
        ("Say `private=False`.", "Say --no-private."),
        ("Say `private=True`.", "Say --private."),
        ("Add `overwrite=True`, or `push(overwrite=True)`.", "Add --overwrite, or --yes."),
        ("Say `pattern='N:8'`.", "Say --pattern N:8."),
        ("Leave it out: `metrics=['sparsity', 'perplexity']`.", "Leave it out: --metrics sparsity,perplexity."),
        ("Use `device=None`.", "Use --device none."),
        ("Name `output='/a b/NAME'`.", "Name --output /a b/NAME."),
        ("`write_card(report, 'a/b')` replaces it.", "`hf-farms card a/b --yes` replaces it."),
        ("Run `hf auth login` or name `demo`.", "Run `hf auth login` or name `demo`."),
        ("Use `optim='adamw_torch'`.", "Use `optim='adamw_torch'`."),
        ("got '``' and '`output", "got '``' and '`output"),
    ],
)
def test_what_a_message_becomes(message, shown):
    assert in_options(message) == shown
