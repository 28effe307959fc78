"""Several processes on this machine, as torchrun starts them."""

import os
import sys
from pathlib import Path

import torch
from processes import LIMIT, finished

# For the environment of a process that is to import what tests import.
IMPORTS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])}


def launch(*arguments, processes=2):
    """Run a script, or `-m module`, in so many processes with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    # On a busy machine they may be slow to answer each other.
    command += ["--rdzv_conf", f"read_timeout={LIMIT},timeout={LIMIT},keep_alive_max_attempt={LIMIT}"]
    return finished([*command, *arguments], env={**os.environ, **IMPORTS, "OMP_NUM_THREADS": "1"})


def run_script(text, folder, *arguments, processes=2):
    """Run a script that can import what tests import; it gets `folder` and the arguments, and must end with `leave()`.

    Its results are what it writes into the folder, and what it prints; a process that fails fails the test.
    """
    script = folder / "script.py"
    script.write_text(f"from launch import leave\n{text}\nleave()\n")
    done = launch(script, folder, *arguments, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def results_of(text, folder, *arguments):
    """Run a script in two processes, each of which stores its results in `FOLDER/RANK.pt`, and return them by rank."""
    run_script(text, folder, *arguments)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def leave():
    """End this process at once.

    A thread of gloo keeps the tensors of the last collective, and asks for the interpreter's lock to give them back.
    Where the interpreter is shutting down by then, that ends the thread inside a destructor, and the process with
    "terminate called without an active exception", after all work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
