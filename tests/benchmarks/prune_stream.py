"""Memory of `hf-farms prune --stream` against the size of the checkpoint.

    python tests/benchmarks/prune_stream.py --gigabytes 0.5 1 2 --folder /tmp

Each size is a checkpoint of 16 LLaMA blocks of random weights, pruned by the command line in a process of its own,
whose anonymous memory (RssAnon) is sampled every 10 ms. With `--limit-gigabytes` the process runs in a control group of
that size, where one can be made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import spectra_common as common
import torch
from safetensors.torch import save_file

from hf_farms.demo import demo_model

BLOCKS, HEAD = 16, 64
RUN = [sys.executable, "-c", "from hf_farms_cli.app import main; main()"]


def write_checkpoint(folder, gigabytes):
    """16 blocks in bfloat16, a shard each, so wide that they take what was asked for; the demo's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    # A block has 4 h^2 weights of attention and 3 h (8/3 h) of the MLP.
    hidden = round((gigabytes * 1e9 / 2 / BLOCKS / 12) ** 0.5 / 2 / HEAD) * 2 * HEAD
    inner = hidden * 8 // 3 // HEAD * HEAD
    block = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    block |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    weight_map, written = {}, 0
    for number in range(BLOCKS + 1):
        if number == BLOCKS:
            shapes = {"model.embed_tokens": (len(tokenizer), hidden), "lm_head": (len(tokenizer), hidden)}
            norms = ["model.norm"]
        else:
            shapes = {f"model.layers.{number}.{name}": shape for name, shape in block.items()}
            norms = [f"model.layers.{number}.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
        source = common.generator(number)
        tensors = {
            f"{name}.weight": torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=source)
            for name, shape in shapes.items()
        }
        tensors |= {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
        file = f"model-{number + 1:05d}-of-{BLOCKS + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        written += (folder / file).stat().st_size
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": hidden // HEAD,
        "max_position_embeddings": 2048,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return written, 2 * sum(m * n for m, n in block.values())


def anonymous(pid):
    """RssAnon of a process in bytes; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.split("RssAnon:")[1].split()[0]) if "RssAnon:" in status else 0


def control_group(limit):
    """A new control group with this limit in bytes (of version 2, else 1), or None and why there is none."""
    root, file = Path("/sys/fs/cgroup"), "memory.max"
    if not (root / "cgroup.controllers").exists():
        root, file = root / "memory", "memory.limit_in_bytes"
    group = root / f"hf-farms-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
        if int((group / file).read_text()) > limit:
            return None, "the limit of a control group is not kept here"
    except (OSError, ValueError) as error:
        return None, f"no control group can be made here ({error})"
    return group, ""


def measure(command, group):
    """Seconds, and the largest RssAnon in bytes."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if group is not None:
            (group / "cgroup.procs").write_text(str(process.pid))
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.01)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read())
    return time.perf_counter() - start, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 1, 2])
    parser.add_argument("--folder", default=None, help="where there is space for the largest checkpoint three times")
    parser.add_argument("--limit-gigabytes", type=float, default=None)
    parser.add_argument("--whole", action="store_true", help="the model in memory too, for comparison")
    parser.add_argument("prune", nargs="*", help="further options of prune, after --")
    options = parser.parse_args()
    group, why = control_group(int(options.limit_gigabytes * 1e9)) if options.limit_gigabytes else (None, "")
    if why:
        print(f"Without the limit: {why}.")
    rows = []
    for size in options.gigabytes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            written, block = write_checkpoint(folder, size)
            row = [f"{written / 1e9:.2f}", block / 2**20]
            for form in ["--stream", *(["--no-stream"] if options.whole else [])]:
                out = folder / f"out{form}"
                seconds, peak = measure([*RUN, "prune", str(folder), form, "-o", str(out), *options.prune], group)
                row += [peak / 2**20, seconds]
                shutil.rmtree(out)
            rows.append(tuple(row))
            print(rows[-1], flush=True)
        finally:
            shutil.rmtree(folder)
    columns = ["checkpoint, GB", "a block, MiB", "peak RssAnon, MiB", "seconds"]
    common.table((*columns, *(["in memory: peak RssAnon, MiB", "seconds"] if options.whole else [])), rows)
    if group is not None:
        group.rmdir()


if __name__ == "__main__":
    main()
