"""Write the notebooks of the scripts with cells (`# %%`), without outputs.

python docs/examples/make_notebooks.py
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = ("monitor.py", "prune_recover_push.py")
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells(script: str) -> list[dict[str, object]]:
    """Return the cells of a script in the percent format, as a notebook has them."""
    parts = CELL.split(script)
    assert not parts[0].strip(), "a script must begin with a cell"
    made: list[dict[str, object]] = []
    for number, (mark, text) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        lines = text.strip("\n").splitlines(keepends=True)
        common = {"id": f"cell-{number}", "metadata": {}}
        if mark:
            prose = [re.sub(r"^# ?", "", line) for line in lines]
            made.append({"cell_type": "markdown", **common, "source": prose})
        else:
            made.append({"cell_type": "code", **common, "execution_count": None, "outputs": [], "source": lines})
    return made


def notebook(script: str) -> str:
    """Return the notebook of a script as JSON (nbformat 4.5)."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells(script),
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the notebooks beside the scripts."""
    for name in SCRIPTS:
        path = FOLDER / name
        text = notebook(path.read_text(encoding="utf-8"))
        path.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(path.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main()
