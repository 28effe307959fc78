"""Code of README and docs: it runs in order in an empty folder, and prints what the page shows."""

import re
from collections import Counter

import pytest
from page_setups import SETUPS
from snippets import PYTHON, ROOT, check_command, check_printed, commands, name_of, pages, run_command, snippets

from hf_farms.registries import ALLOCATIONS, STRATEGIES

# Warnings of a command are lines that it prints.
pytestmark = [
    pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

# Page -> reasons of the blocks that are not run, with their number. A new one is added here by hand.
NOT_RUN = {
    "README.md": {"installs packages": 1, "needs the Hub": 1, "runs the tests": 1},
    "docs/adapters.md": {"needs a GPU": 3},
    "docs/command-line.md": {"needs the Hub": 1},
    "docs/examples.md": {"is run as a script": 1},
    # Run by test_engines_guide.py and test_processes_guide.py.
    "docs/engines.md": {"needs several processes": 4},
    "docs/learning-rates.md": {"needs several processes": 1},
    "docs/processes.md": {"needs several processes": 1},
    "docs/evaluation.md": {"needs the Hub": 1},
    "docs/first-steps.md": {"installs packages": 2, "runs the tests": 1},
    "docs/publishing.md": {"needs the Hub": 2},
}
# Page -> a package that its code imports and hf-farms does not need.
PACKAGES = {"docs/adapters.md": "peft"}


@pytest.fixture(autouse=True)
def registries():
    """Take out what the guides add."""
    before = {registry.option: dict(registry) for registry in (ALLOCATIONS, STRATEGIES)}
    yield
    for registry in (ALLOCATIONS, STRATEGIES):
        registry.clear()
        registry.update(before[registry.option])


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_code_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch, capsys):
    if package := PACKAGES.get(name_of(page)):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {}
    for snippet in snippets(page):
        place = f"{name_of(page)}:{snippet.line}"
        if snippet.language in PYTHON:
            compiled = compile(snippet.code, place, "exec")
            if snippet.reason:
                continue
            if snippet.file:
                (tmp_path / snippet.file).write_text(snippet.code, encoding="utf-8")
                continue
            if page_setup := SETUPS.get(name_of(page)):
                namespace |= page_setup(tmp_path)
            exec(compiled, namespace)
            printed = capsys.readouterr().out
        elif snippet.reason:
            for arguments in commands(snippet.code):
                check_command(arguments)
            continue
        else:
            printed = "".join(run_command(arguments) for arguments in commands(snippet.code))
        if snippet.shown is not None:
            check_printed(printed, snippet.shown)


def test_blocks_that_are_not_run_are_counted():
    found = {name_of(page): Counter(s.reason for s in snippets(page) if s.reason) for page in pages()}
    assert {page: dict(reasons) for page, reasons in found.items() if reasons} == NOT_RUN


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_mark_stands_above_a_block(page):
    marks = re.findall(r"<!-- not run", page.read_text(encoding="utf-8"))
    assert len(marks) == len([snippet for snippet in snippets(page) if snippet.reason])


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_code_fits_into_the_column_of_the_site(page):
    wide = [line for snippet in snippets(page) for line in snippet.code.splitlines() if len(line) > 96]
    assert wide == []


@pytest.mark.parametrize(
    ("printed", "shown", "equal"),
    [
        ("a: True\n", "a: True\n", True),
        ("a: False\n", "a: True\n", False),
        ("loss  1.60\n", "loss  1.55\n", True),
        ("loss  6.60\n", "loss  1.55\n", False),
        ("alpha  1.752\n", "alpha  1.750\n", True),
        ("alpha  1.78\n", "alpha  1.750\n", False),
        ("first\nsecond\nthird\n", "first\n...\n", True),
        ("first\nsecond\n", "first\n", False),
        ("first: and more\n", "first: ...\n", True),
        ("second: and more\n", "first: ...\n", False),
    ],
)
def test_printed_lines_are_compared(printed, shown, equal):
    if equal:
        check_printed(printed, shown)
    else:
        with pytest.raises(AssertionError, match=r"^printed:"):
            check_printed(printed, shown)


@pytest.mark.parametrize(
    "command",
    ["hf-farms prune demo --no-such-option", "hf-farms no-such-command", "make no-such-target", "python no/such.py"],
)
def test_commands_that_are_not_run_are_checked(command):
    (arguments,) = commands(command)
    with pytest.raises(Exception, match=r"[Nn]o.such"):
        check_command(arguments)
