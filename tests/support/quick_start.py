"""The quick start of a card, and what it prints."""

import contextlib
import io
import re
import warnings


def quick_start(card):
    return re.search(r"## Quick start\n\n```python\n(.*?)\n```", card.read_text(encoding="utf-8"), re.DOTALL)[1]


def run(code, folder, monkeypatch):
    """What the code prints, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    shown = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(shown):
        warnings.simplefilter("ignore")
        exec(compile(code, "quick start", "exec"), {})
    return shown.getvalue().strip()
