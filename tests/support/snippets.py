"""Code of README and docs: found in Markdown, run in order, and compared with the output that the page shows.

A comment above a block, `<!-- not run: REASON -->`, leaves it out: commands are only parsed, Python is only compiled.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from hf_farms_cli.app import app
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([\w.]+)"')
MARK = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
NUMBER = re.compile(r"\d+\.\d{2,4}(?!\d)")
PYTHON, SHELL, OUTPUT = ("python",), ("bash", "sh", "console"), "text"


@dataclass(frozen=True)
class Snippet:
    """Attributes:
    language: of the fence.
    code: without the fence.
    shown: the output below it, or None.
    reason: why it is not run, or None.
    line: of the fence, for messages.
    file: name that the code is written to instead of being run, from `title="..."`; or None.
    """

    language: str
    code: str
    shown: str | None
    reason: str | None
    line: int
    file: str | None


def pages() -> list[Path]:
    """README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    made = []
    for number, match in enumerate(found):
        if match[2] not in PYTHON + SHELL:
            continue
        below = found[number + 1] if number + 1 < len(found) else None
        shown = below[4] if below and below[2] == OUTPUT and not text[match.end() : below.start()].strip() else None
        mark = MARK.search(text[: match.start()])
        indent = match[1]
        code = "".join(line.removeprefix(indent) for line in match[4].splitlines(keepends=True))
        line, title = text.count("\n", 0, match.start()) + 1, TITLE.search(match[3])
        made.append(Snippet(match[2], code, shown, mark and mark[1], line, title and title[1]))
    return made


def commands(code: str) -> list[list[str]]:
    """Arguments of every command, without comments; lines that end with a backslash go on."""
    lines = code.replace("\\\n", " ").splitlines()
    return [parts for line in lines if (parts := shlex.split(line.removeprefix("$ "), comments=True))]


def run_command(arguments: list[str]) -> str:
    """Run a command of hf-farms; return what it printed on stdout."""
    assert arguments[0] == "hf-farms", f"only hf-farms is run, mark the block: {arguments}"
    done = CliRunner().invoke(app, arguments[1:])
    assert done.exit_code == 0, done.output
    return done.stdout


def check_command(arguments: list[str]) -> None:
    """Check a command that is not run: that its options, files and targets exist."""
    while "=" in arguments[0] and not arguments[0].startswith("-"):
        arguments = arguments[1:]
    match arguments:
        case ["hf-farms", *rest]:
            command: Any = typer.main.get_command(app)
            context = command.context_class(command, info_name="hf-farms")
            while hasattr(command, "resolve_command") and rest:
                _, found, rest = command.resolve_command(context, rest)
                assert found is not None
                command = found
            if "--help" not in rest:
                command.make_context(command.name, list(rest), parent=context)
        case ["make", target, *_]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file(), script


def _pattern(line: str) -> str:
    """The lines that a line stands for; numbers are groups."""
    if line.strip() == "...":
        return "(?:.*\n)*"
    literal = NUMBER.sub("(0.0)", line.removesuffix("...\n"))
    pattern = re.escape(literal).replace(re.escape("(0.0)"), r"(\d+\.\d+)")
    return pattern + (".*\n" if line.endswith("...\n") else "")


def check_printed(printed: str, shown: str) -> None:
    """Compare lines; "..." stands for any lines or the rest of one; numbers may differ by rounding of another machine.

    Numbers with two decimals (losses, perplexities, percentages) by half a unit, those with three (alphas) by 0.005,
    those with more (standard errors) by 0.001.
    """
    match = re.fullmatch("".join(_pattern(line) for line in shown.splitlines(keepends=True)), printed)
    assert match, f"printed:\n{printed}\nthe page shows:\n{shown}"
    for number, expected in zip(match.groups(), NUMBER.findall(shown), strict=True):
        tolerance = {2: 0.5, 3: 0.005}.get(len(expected.partition(".")[2]), 0.001)
        assert float(number) == pytest.approx(float(expected), abs=tolerance), f"printed:\n{printed}"
