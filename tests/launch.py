"""Several processes on this machine, as torchrun starts them."""

import os
import subprocess
import sys


def launch(*arguments, processes=2):
    """Run a script, or `-m module`, in so many processes with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
