"""Options of the search on the command line."""

import pytest
from hf_farms_cli.app import app
from hf_farms_cli.messages import in_options
from hf_farms_cli.progress import Bars, Lines, reported
from typer.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("The time limit (`minutes`) ended", "The time limit (--minutes) ended"),
        ("another text with `selection`", "another text with --select-on"),
        ("`selection.column` has no effect", "--select-column has no effect"),
        ("a smaller `SelectionConfig(sequence_length=...)`", "a smaller --select-length"),
    ],
)
def test_messages_name_options(message, shown):
    assert in_options(message) == shown


def test_the_best_so_far_stands_on_one_line_per_stage():
    shown = []
    lines = Lines(shown.append, clock=lambda: 0)
    progress = reported(lines)
    progress("search: best so far uniform, KL 0.5", 1, 3)
    progress("search: best so far farms, KL 0.4", 3, 3)
    assert shown == [
        "Searching: best so far uniform, KL 0.5: 1 of 3",
        "Searching: best so far farms, KL 0.4: 3 of 3 in 0:00:00",
    ]


def test_a_stage_has_one_bar():
    class Recorded:
        def __init__(self):
            self.tasks, self.updates = [], []

        def add_task(self, description, total):
            self.tasks.append(description)
            return len(self.tasks)

        def update(self, task, **changes):
            self.updates.append((task, changes["description"]))

    recorded = Recorded()
    bars = Bars(recorded)
    bars("Searching: best so far uniform, KL 0.5", 1, 3)
    bars("Searching: best so far farms, KL 0.4", 2, 3)
    assert len(recorded.tasks) == 1
    assert recorded.updates[-1] == (1, "Searching: best so far farms, KL 0.4")
