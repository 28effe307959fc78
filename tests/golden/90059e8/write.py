"""Write the files of this folder with revision 90059e8: see README.md."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from earlier import PRUNE_OPTIONS, numbers, small_llama, small_tokenizer, training

import hf_farms
from hf_farms import FarmsLRCallback, FarmsLRConfig, S2FTCallback, S2FTConfig

HERE = Path(__file__).parent
FARMS_LR, S2FT = FarmsLRConfig(start=0, interval=3, min_eigenvalues=4), S2FTConfig(budget=0.1)
WRITTEN = ("demo", "prune", "farms_lr", "s2ft")


def command(*arguments, **environment):
    done = subprocess.run([sys.executable, "-m", "hf_farms_cli", *arguments], env={**os.environ, **environment})
    assert done.returncode == (-signal.SIGKILL if environment else 0), arguments


def write_demo():
    """The recipe and the reports of commands with the demo."""
    few = ("--calibration-samples", "4", "--calibration-length", "64", "--evaluation-windows", "4")
    command("prune", "demo", "-o", "pruned", *few)
    command("analyze", "demo", "-o", "analyze.json")
    command("eval", "pruned", "--windows", "4", "-o", "eval.json")
    (HERE / "demo").mkdir()
    for source in ("pruned/recipe.yaml", "pruned/hf_farms_report.json", "analyze.json", "eval.json"):
        shutil.copy(source, HERE / "demo")


def write_prune():
    """A small model, the beginning of its pruning, and the hashes of the whole."""
    os.mkdir("prune")
    os.chdir("prune")
    small_llama().save_pretrained("model")
    small_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(numbers())
    command("prune", "model", *PRUNE_OPTIONS, "-o", "peace")
    moment = f'{{"signal": {int(signal.SIGKILL)}, "made": "*/model-00002-of-*.safetensors", "number": 2}}'
    command("prune", "model", *PRUNE_OPTIONS, "-o", "out", HF_FARMS_TEST_MOMENT=moment)
    os.chdir("..")
    shutil.copytree("prune", HERE / "prune", ignore=shutil.ignore_patterns("figures", "README.md"))
    (HERE / "prune" / "out.partial").rename(HERE / "prune" / "interrupted")  # git ignores *.partial here


def write_training(name, callback):
    training(name, callback).train()
    # The arguments are a pickle that no resume reads. Of the end only the weights are compared.
    left_out = ("training_args.bin", "figures")
    shutil.copytree(name, HERE / name, ignore=shutil.ignore_patterns(*left_out, "checkpoint-8"))
    (HERE / name / "checkpoint-8").mkdir()
    shutil.copy(f"{name}/checkpoint-8/model.safetensors", HERE / name / "checkpoint-8")


if __name__ == "__main__":
    assert not Path(hf_farms.__file__).is_relative_to(HERE.parents[2]), "needs hf_farms of revision 90059e8"
    for folder in WRITTEN:
        shutil.rmtree(HERE / folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        write_demo()
        write_prune()
        write_training("farms_lr", FarmsLRCallback(FARMS_LR))
        write_training("s2ft", S2FTCallback(S2FT))
        os.chdir("/")
