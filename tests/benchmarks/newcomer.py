"""What a newcomer runs, timed: an empty environment, then README and the guides word by word.

    python tests/benchmarks/newcomer.py dist/*.whl [--uv] [--torch TORCH] [--also peft] [--pages README.md ...]

In an empty folder with an empty home, one step after another: the environment, the installations, then every command
and every Python block of each page, in order. A block that names a model or data of the user is left out, as are those
that need the Hub or a GPU; `--marked` runs those that need several processes and the scripts of the examples too.
Prints wall and CPU seconds of each page and of each of its blocks, and stops where a step fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from snippets import PYTHON, name_of, pages, snippets  # noqa: E402

# Runs the blocks of a page in one process, as a notebook would; commands are programs of their own.
PAGE = """
import json, resource, subprocess, sys, time

def used():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in usage)

names, left_out = {"__name__": "page"}, 0
for kind, code, file in json.loads(sys.argv[1]):
    before = used()
    if file:
        open(file, "w").write(code)
    elif kind == "shell":
        subprocess.run(["bash", "-ec", code], check=True)
    else:
        sys.path[:1] = [""]
        try:
            exec(compile(code, "page", "exec"), names)
        except NameError as error:
            print("left out:", error)
            left_out += 1
            continue
    others = ("#", "import ", "from ", " ", ")")
    lines = [line for line in code.splitlines() if line and not line.startswith(others)]
    seconds = [after - start for after, start in zip(used(), before)]
    print("\\nBLOCK", json.dumps([file or lines[0].removeprefix("$ "), code.count("\\n"), *seconds]), flush=True)
print("LEFT OUT", left_out)
"""
# Reasons of marked blocks that --marked runs.
RUNS_HERE = ("needs several processes", "is run as a script")


def timed(arguments: list[str], folder: Path, variables: dict[str, str]) -> tuple[float, float, str]:
    """Run a program to its end; return wall and CPU seconds, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        arguments, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{arguments[:3]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def blocks(page: Path, marked: bool) -> list[tuple[str, str, str | None]]:
    """What is run of a page: "python" or "shell", the code, and a file that it is written to instead."""
    found = [s for s in snippets(page) if not s.reason or (marked and s.reason in RUNS_HERE)]
    return [("python" if s.language in PYTHON else "shell", s.code.replace("\n$ ", "\n"), s.file) for s in found]


def installations(options: argparse.Namespace, folder: Path) -> list[tuple[str, list[str]]]:
    """The steps up to an environment with the wheel."""
    packages = [str(options.wheel.resolve()), *options.also]
    python = str(folder / "env" / "bin" / "python")
    if options.uv:
        install = ["uv", "pip", "install", "-q", "--python", python]
        return [
            ("`uv venv`", ["uv", "venv", "-q", "--python", sys.executable, str(folder / "env")]),
            ("`uv pip install` torch for the CPU", [*install, options.torch]),
            ("`uv pip install` the wheel", [*install, *packages]),
        ]
    install = [python, "-m", "pip", "install", "-q"]
    return [
        ("`python -m venv`", [sys.executable, "-m", "venv", str(folder / "env")]),
        ("`pip install` torch for the CPU", [*install, options.torch]),
        ("`pip install` the wheel", [*install, *packages]),
    ]


def main() -> None:
    """Print a table of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--uv", action="store_true", help="instead of venv and pip")
    parser.add_argument("--torch", default="torch", help="what is installed as torch, or a wheel of it")
    parser.add_argument("--also", nargs="*", default=[], help="packages that pages ask for, such as peft")
    parser.add_argument("--pages", nargs="+", help="default: README.md and all guides with code")
    parser.add_argument("--marked", action="store_true", help="also blocks that need several processes, and scripts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = os.environ | {"HOME": f"{folder}/home", "PATH": f"{folder}/env/bin:{os.environ['PATH']}"}
        variables = {key: value for key, value in variables.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
        print("| step | wall s | CPU s |\n|---|---|---|", flush=True)
        for step, arguments in installations(options, folder):
            wall, cpu, _ = timed(arguments, folder, variables)
            print(f"| {step} | {wall:.0f} | {cpu:.0f} |", flush=True)
        for page in pages():
            if not (code := blocks(page, options.marked)) or (options.pages and name_of(page) not in options.pages):
                continue
            work = folder / name_of(page).replace("/", "-")
            shutil.copytree(ROOT / "docs" / "examples", work / "docs" / "examples")
            wall, cpu, said = timed(["python", "-c", PAGE, json.dumps(code)], work, variables)
            left_out = int(said.rpartition("LEFT OUT ")[2])
            text = f"{name_of(page)}, {len(code) - left_out} of {len(code)} blocks"
            print(f"| **{text}** | {wall:.0f} | {cpu:.0f} |")
            for line in said.splitlines():
                if line.startswith("BLOCK "):
                    first, lines, wall, cpu = json.loads(line.removeprefix("BLOCK "))
                    more = f", {lines} lines" if lines > 1 else ""
                    print(f"| `{first}`{more} | {wall:.0f} | {cpu:.0f} |", flush=True)


if __name__ == "__main__":
    main()
