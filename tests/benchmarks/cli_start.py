"""What starting `hf-farms` costs against starting `hf`, measured in one run.

    python tests/benchmarks/cli_start.py [--repeat 7]

Every command is a new process. They take turns, so that all of them see the same load of the machine; medians are
printed, and how often each goes into the `hf` command beside it. The Hub is switched off: no answer of a server counts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(sysconfig.get_path("scripts"))
TORCH, LOAD = "python: import torch", "python: load demo"
# (ours, what it is compared with): commands that need no model against the like of `hf`, the others against what they
# cannot do without.
PAIRS = [
    ("hf-farms --help", "hf --help"),
    ("hf-farms --version", "hf version"),
    ("hf-farms analyze --help", "hf download --help"),
    ("hf-farms prune", "hf download --no-such-option"),
    ("hf-farms card PRUNED", "hf env"),
    ("hf-farms push PRUNED --dry-run", "hf env"),
    ("hf-farms env", "hf env"),
    ("hf-farms env", TORCH),
    ("hf-farms prune demo --dry-run", "hf version"),
    ("hf-farms analyze demo", LOAD),
]


def seconds(command, folder, environment):
    name, *arguments = command.split(" ")
    if command == TORCH:
        words = [sys.executable, "-c", "import torch"]
    elif command == LOAD:
        code = "from transformers import AutoModelForCausalLM as A; from hf_farms.demo import demo_model as d; "
        words = [sys.executable, "-c", code + "A.from_pretrained(d())"]
    else:
        words = [SCRIPTS / name, *(str(folder / "demo-farms-wanda-50") if a == "PRUNED" else a for a in arguments)]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if "Traceback" in done.stderr:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "HF_HOME": name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        prune = [SCRIPTS / "hf-farms", "prune", "demo", "--no-baseline", "-q"]
        subprocess.run(prune, cwd=folder, env=environment, check=True, capture_output=True)
        commands = list(dict.fromkeys(command for pair in PAIRS for command in pair))
        times = {command: [] for command in commands}
        for round_ in range(repeat + 1):
            for command in commands:
                taken = seconds(command, folder, environment)
                if round_:  # the first warms the caches of files
                    times[command].append(taken)
    medians = {command: statistics.median(taken) for command, taken in times.items()}
    print("| Command | seconds | against | seconds | ratio |\n|---|---|---|---|---|")
    for ours, theirs in PAIRS:
        a, b = medians[ours], medians[theirs]
        print(f"| `{ours}` | {a:.2f} | `{theirs}` | {b:.2f} | {a / b:.2f} |")


if __name__ == "__main__":
    main()
