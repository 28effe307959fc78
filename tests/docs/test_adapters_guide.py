"""The guide of adapters: its code runs in order, and prints what the guide shows."""

import re
import shlex
from pathlib import Path

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

GUIDE = Path(__file__).parents[2] / "docs" / "adapters.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d{2}\b")

# Warnings of a command are lines that it prints.
pytestmark = [
    pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def blocks():
    """Code with the output that the guide shows below it, or None."""
    found = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    for (language, code), (next_language, text) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "text":
            yield language, code, text if next_language == "text" else None


def check_printed(printed, shown):
    """Compare lines; "..." stands for any lines, and measured losses may differ by rounding of another machine."""
    lines = "".join(
        "(?:.*\n)*" if line.strip() == "..." else NUMBER.sub(r"(\\d+\\.\\d{2})", re.sub(r"[^\w\s.,]", r"\\\g<0>", line))
        for line in shown.splitlines(keepends=True)
    )
    match = re.fullmatch(lines, printed)
    assert match, f"printed:\n{printed}\nthe guide shows:\n{shown}"
    assert [float(number) for number in match.groups()] == pytest.approx(
        [float(number) for number in NUMBER.findall(shown)], abs=0.5
    )


def run_commands(code):
    for line in code.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "hf-farms"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output


def test_the_code_of_the_guide_runs_and_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    languages = []
    for language, code, shown in blocks():
        languages.append(language)
        if language == "sh":  # needs vLLM and a GPU
            continue
        if language == "bash":
            run_commands(code)
            continue
        assert language == "python"
        exec(compile(code, GUIDE.name, "exec"), namespace)
        printed = capsys.readouterr().out
        if shown is not None:
            check_printed(printed, shown)
    assert languages.count("python") > 5
    assert "bash" in languages


@pytest.mark.parametrize(
    ("printed", "shown", "equal"),
    [
        ("a: True\n", "a: True\n", True),
        ("a: False\n", "a: True\n", False),
        ("loss  1.60\n", "loss  1.55\n", True),
        ("loss  6.60\n", "loss  1.55\n", False),
        ("first\nsecond\nthird\n", "first\n...\n", True),
        ("first\nsecond\n", "first\n", False),
    ],
)
def test_printed_lines_are_compared(printed, shown, equal):
    if equal:
        check_printed(printed, shown)
    else:
        with pytest.raises(AssertionError):
            check_printed(printed, shown)
