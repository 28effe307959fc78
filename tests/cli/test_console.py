import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from hf_farms_cli import console, progress
from hf_farms_cli.console import (
    check_format,
    guarded,
    if_interrupted,
    print_done,
    print_hint,
    print_notes,
    stages,
)
from hf_farms_cli.interrupts import interrupts
from hf_farms_cli.progress import Lines, reported
from hf_farms_cli.streams import out, say
from hf_farms_cli.tables import print_table
from rich.console import Console
from typer.testing import CliRunner

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.progress import one_stage

runner = CliRunner()
AGENTS = {"standardEnvVars": ["AI_AGENT"], "harnesses": {"helper": {"envVars": {"HELPER": "*"}}}}


@pytest.fixture(autouse=True)
def _formats_are_set_back(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # set by formats for programs, and removed at the end
    yield
    check_format("human", False)


def terminal(width, **options):
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, **options)


def test_formats_by_name_and_by_short_option():
    assert [check_format(name, False) for name in ("human", "agent", "json", "quiet")] == [
        *("human", "agent", "json", "quiet"),
    ]
    assert check_format("auto", True) == "quiet"
    assert check_format("auto", False, True) == "json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("xml", False), "format must be one of auto, human, agent, json, quiet, got 'xml'"),
        (("json", True), "format must be given once, got --format json and -q. Leave one out"),
        (("auto", True, True), "format must be given once, got --json and -q"),
    ],
)
def test_a_wrong_format_is_a_usage_error(arguments, message):
    with pytest.raises(typer.BadParameter, match=message):
        check_format(*arguments)


@pytest.mark.parametrize(("variable", "expected"), [(None, "human"), ("AI_AGENT", "agent"), ("HELPER", "agent")])
def test_auto_is_what_hf_says(variable, expected, tmp_path):
    """In a process of its own, because huggingface_hub reads its settings once; agents are those of its own list."""
    (tmp_path / "agent_harnesses.json").write_text(json.dumps(AGENTS))
    code = (
        "import sys; from huggingface_hub import constants; constants.AGENT_HARNESSES_PATH = sys.argv[1];"
        "from hf_farms_cli.console import check_format, err; from huggingface_hub.cli._output import out;"
        "print(check_format('auto', False), out.mode.value)"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment |= {variable: "yes"} if variable else {}
    command = [sys.executable, "-c", code, str(tmp_path / "agent_harnesses.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, expected]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("human", "✓ Pushed [a]\n  url: https://x/y\n  files: 3\n"),
        ("agent", "url=https://x/y files=3\n"),
        ("json", '{"url": "https://x/y", "files": "3"}\n'),
        ("quiet", "https://x/y\n"),
    ],
)
def test_what_was_done_in_each_format(shown, expected, capsys):
    print_done("Pushed [a]", check_format(shown, False), url="https://x/y", pull_request=None, files=3)
    assert capsys.readouterr().out == expected


def test_hints_are_left_out_if_quiet(capsys):
    print_hint("x[y]", "quiet")
    assert capsys.readouterr().err == ""
    print_hint("x[y]", "json")
    assert capsys.readouterr() == ("", "Hint: x[y]\n")


def test_colors_are_for_people_at_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes anything for a terminal then
    monkeypatch.setenv("TERM", "xterm")
    for shown, styled in (("human", True), ("agent", False), ("json", False)):
        check_format("agent", False)
        check_format(shown, False)
        with console.err.console.capture() as capture:
            console.err.print("[red]Error:[/red] x")
        assert ("\x1b[" in capture.get()) == styled, shown
        assert console.err.is_terminal == styled


ROWS = [("model.layers.10.self_attn.k_proj", "1.5", "–"), ("m", "10.25", "0.125")]


def test_a_table_for_agents_has_tabs_and_gaps(capsys):
    print_table("title", ("layer", "alpha", "± stderr"), ROWS, "agent")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [["layer", "alpha", "stderr"], [ROWS[0][0], "1.5", ""], ["m", "10.25", "0.125"]]


def test_a_table_in_a_pipe_is_aligned_and_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long = [(name * 4, *numbers) for name, *numbers in ROWS]
    print_table("title", ("layer", "alpha", "± stderr"), long, "human")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "title"
    assert [line.split() for line in lines] == [["layer", "alpha", "±", "stderr"], *map(list, long)]
    assert len({len(line) for line in lines}) == 1


def test_a_table_on_a_narrow_terminal_keeps_every_character(monkeypatch):
    screen = terminal(width=40, color_system=None)
    monkeypatch.setattr(console.out, "_console", screen)
    print_table("[title]", ("layer", "alpha", "± stderr"), ROWS, "human")
    title, *lines = screen.file.getvalue().splitlines()
    assert title.strip() == "[title]"
    assert max(map(len, lines)) <= 40
    first = next(n for n, line in enumerate(lines) if "1.5" in line)
    assert lines[first].split()[0] + lines[first + 1].strip() == ROWS[0][0]
    assert lines[first + 2].split() == list(ROWS[1])


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_of_a_long_stage_say_how_long_it_takes():
    clock, shown = Clock(), []
    tell = reported(Lines(shown.append, clock=clock))
    for done in range(1, 101):
        clock.now += 60
        tell("prune", done, 100)
    assert shown[0] == "Pruning blocks: 1 of 100"
    assert shown[1] == "Pruning blocks: 11 of 100, 0:10:00 so far, 1:29:00 left"
    assert shown[-1] == "Pruning blocks: 100 of 100 in 1:39:00"
    assert len(shown) == 11


def test_lines_of_a_resumed_stage_count_only_this_run():
    clock, shown = Clock(), []
    tell = one_stage(Lines(shown.append, clock=clock), "Measuring")
    tell(80, 100)
    clock.now = 100
    tell(90, 100)
    assert shown == ["Measuring: 80 of 100", "Measuring: 90 of 100, 0:01:40 so far, 0:01:40 left"]


def test_a_short_stage_is_its_first_and_its_last_step_and_a_slow_one_is_not_silent():
    clock, shown = Clock(), []
    tell = Lines(shown.append, clock=clock)
    for done in range(1, 101):
        clock.now += 0.01
        tell("short", done, 100)
    assert shown == ["short: 1 of 100", "short: 100 of 100 in 0:00:01"]
    clock.now += 5
    tell("at once", 3, 3)
    assert shown.pop() == "at once: 3 of 3 in 0:00:05"
    for done in range(1, 5):
        clock.now += 700
        tell("slow", done, 1000)
    assert shown[2] == "slow: 1 of 1000"
    assert shown[3] == "slow: 2 of 1000, 0:11:40 so far, 8 days, 2:03:20 left"
    assert len(shown) == 6


def test_a_stage_that_begins_again_is_a_stage_of_its_own():
    clock, shown = Clock(), []
    tell = Lines(shown.append, clock=clock)
    for done in (1, 2, 1, 2):
        clock.now += 20
        tell("text", done, 2)
    assert shown == ["text: 1 of 2", "text: 2 of 2 in 0:00:20"] * 2


def test_a_stage_with_other_steps_has_a_clock_of_its_own():
    clock, shown = Clock(), []
    tell = Lines(shown.append, clock=clock)
    for done, total in ((1, 1), (1, 3), (3, 3)):
        tell("text", done, total)
        clock.now += 20
    assert shown == ["text: 1 of 1 in 0:00:00", "text: 1 of 3", "text: 3 of 3 in 0:00:20"]


def test_a_stage_that_ends_early_shows_its_last_step():
    clock, shown = Clock(), []
    tell = Lines(shown.append, clock=clock)
    for stage, done, total in (("search", 0, 20), ("search", 1, 20), ("search: best x", 2, 20), ("prune", 0, 9)):
        tell(stage, done, total)
        clock.now += 2
    assert shown == ["search: 0 of 20", "search: best x: 2 of 20 in 0:00:04", "prune: 0 of 9"]
    tell("prune", 8, 9)
    # The end of the command, also by an error.
    tell.close()
    tell.close()
    assert shown[3:] == ["prune: 8 of 9 in 0:00:02"]


def test_stages_side_by_side_print_no_more_lines():
    clock, shown = Clock(), []
    tell = Lines(shown.append, clock=clock)
    for done in range(5):
        for stage in ("prune", "recover"):
            tell(stage, done, 4)
        clock.now += 1
    ends = ["prune: 4 of 4 in 0:00:04", "recover: 4 of 4 in 0:00:04"]
    assert shown == ["prune: 0 of 4", "recover: 0 of 4", *ends]


def test_the_last_step_before_an_error_is_shown(capsys):
    with pytest.raises(KeyError, match="lost"), stages(check_format("human", False)) as tell:  # noqa: PT012
        tell("prune", 0, 4)
        tell("prune", 3, 4)
        raise KeyError("lost")
    assert capsys.readouterr().err.splitlines() == ["Pruning blocks: 0 of 4", "Pruning blocks: 3 of 4 in 0:00:00"]


def test_bars_show_the_time_left_of_slow_steps(monkeypatch):
    clock, screen = Clock(), terminal(width=100, color_system=None)
    screen.get_time = clock
    with progress.bars(screen) as shown_bars:
        shown_bars._progress.live.auto_refresh = False
        tell = reported(shown_bars)
        for done in (10, 11, 12):
            tell("prune (uniform)", done, 20)
            clock.now += 120
        shown_bars._progress.refresh()
        shown = screen.file.getvalue()
    assert "Pruning blocks (uniform)" in shown
    # Two steps took 2 minutes each, and 8 are left.
    assert "12/20 0:06:00 so far, 0:16:00 left" in shown


@pytest.mark.parametrize(("shown", "expected"), [("human", "s: 1 of 2\n"), ("json", "s: 1 of 2\n"), ("quiet", "")])
def test_progress_off_a_terminal(shown, expected, capsys):
    with stages(check_format(shown, False)) as tell:
        tell("s", 1, 2)
    assert capsys.readouterr() == ("", expected)


def run(action, *options):
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @guarded
    def command(debug: bool = False) -> None:
        action()

    return runner.invoke(app, list(options))


def fail(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModelError("a\nb [c]", hint="do [d]"), "Error: a b [c]\nHint: do [d]\n"),
        (ValueError("x must be y, got z."), "Error: x must be y, got z.\n"),
        (FileNotFoundError(2, "No such file", "f"), "Error: [Errno 2] No such file: 'f'\n"),
    ],
)
def test_expected_errors_are_one_line_and_a_hint(error, expected):
    done = run(fail(error))
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", expected)
    assert run(fail(error), "--debug").exception is error


def test_unexpected_errors_keep_their_traceback_and_say_how_to_report():
    done = run(fail(KeyError("x")))
    assert done.exit_code == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith(
        "Error: 'x'\nHint: This should not happen. Report it with the output of `hf-farms env`.\n"
    )


def test_a_full_device_is_one_line():
    import torch

    done = run(fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")))
    assert done.stderr.startswith("Error: CUDA out of memory. Tried to allocate 2 GiB.\nHint: Free memory")
    assert "Traceback" not in done.stderr


def test_an_interrupt_names_the_unfinished_work(tmp_path):
    def action(there):
        def interrupted():
            with if_interrupted("The same command goes on.", unfinished=there):
                raise KeyboardInterrupt

        return interrupted

    assert run(action(None)).stderr == "Interrupted. The same command goes on.\n"
    assert run(action(tmp_path)).stderr == "Interrupted. The same command goes on.\n"
    done = run(action(tmp_path / "nothing"))
    assert (done.exit_code, done.stderr) == (130, "Interrupted.\n")


def test_an_interrupt_that_a_library_turned_into_another_error(monkeypatch, tmp_path):
    monkeypatch.setattr(interrupts, "reported", False)

    def action():
        with if_interrupted("The same command goes on.", unfinished=tmp_path):
            monkeypatch.setattr(interrupts, "received", True)
            raise ImportError("could not import x")

    done = run(action)
    assert (done.exit_code, done.stderr) == (130, "Interrupted. The same command goes on.\n")


def test_an_interrupt_that_a_library_dropped_comes_with_the_next_step(monkeypatch):
    monkeypatch.setattr(interrupts, "reported", False)
    with stages("quiet") as tell:
        tell("s", 1, 3)
        monkeypatch.setattr(interrupts, "received", True)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            tell("s", 2, 3)


def test_usage_errors_inside_commands_have_status_2():
    done = run(lambda: check_format("xml", False))
    assert done.exit_code == 2
    assert "Error: Invalid value: --format must be one of" in done.stderr


@pytest.mark.filterwarnings("default")
def test_our_warnings_are_lines_others_are_for_debugging_and_notes_do_not_repeat():
    def action():
        warnings.warn("ours [x]", HfFarmsWarning, stacklevel=1)
        warnings.warn("theirs", UserWarning, stacklevel=1)
        print_notes(["ours [x]", "a note"])

    assert run(action).stderr == "Warning: ours [x]\nNote: a note\n"
    assert "UserWarning: theirs" in run(action, "--debug").stderr


def test_a_tick_that_the_terminal_cannot_show():
    code = "from hf_farms_cli.console import print_done; print_done('x', 'human')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[OK] x\n"


def test_what_a_library_prints_goes_to_stderr(capsys):
    @guarded
    def command():
        sys.stdout.write("of a library\n")
        say("data")
        out.print("more data")

    command()
    sys.stdout.write("later\n")
    captured = capsys.readouterr()
    assert captured.out == "data\nmore data\nlater\n"
    assert captured.err == "of a library\n"
