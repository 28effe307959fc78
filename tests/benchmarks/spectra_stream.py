"""The command `stream` of spectra.py: memory of `analyze` on a checkpoint of any size."""

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import spectra_common as common
import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "dtype": "bfloat16",
}


def write_checkpoint(folder, gigabytes):
    """Mixtral as it lies on disk, in blocks of 2.8 GB and shards of one block each; random bfloat16 weights.

    Returns the bytes written.
    """
    hidden, inner, experts = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_local_experts"]
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "block_sparse_moe.gate": (experts, hidden),
        **{
            f"block_sparse_moe.experts.{e}.{name}": (hidden, inner) if name == "w2" else (inner, hidden)
            for e in range(experts)
            for name in ("w1", "w2", "w3")
        },
    }
    blocks = max(1, round(gigabytes * 1e9 / (2 * sum(m * n for m, n in block.values()))))
    weight_map, written = {}, 0
    for number in range(blocks + 1):
        prefix = f"model.layers.{number}."
        shapes = {f"{prefix}{name}.weight": shape for name, shape in block.items()}
        if number == blocks:
            shapes = {f"{name}.weight": (CONFIG["vocab_size"], hidden) for name in ("model.embed_tokens", "lm_head")}
        norms = ["input_layernorm", "post_attention_layernorm"]
        names = ["model.norm"] if number == blocks else [f"{prefix}{name}" for name in norms]
        source = common.generator(number)
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=source)
            for name, shape in shapes.items()
        }
        tensors |= {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in names}
        file = f"model-{number + 1:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        written += (folder / file).stat().st_size
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": blocks}))
    return written


class MemoryWatch:
    """Largest RssAnon of this process while open, in bytes, sampled every 10 ms (Linux)."""

    def __enter__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def anonymous_memory():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def stream(options):
    """Write checkpoints, one of each size; measure each, and print its peak of anonymous memory."""
    from hf_farms.spectra.analysis import analyze

    rows = []
    with common.watch_solver() as seen:
        for size in options.gigabytes:
            folder = Path(tempfile.mkdtemp(dir=options.folder))
            try:
                written = write_checkpoint(folder, size)
                before, start = anonymous_memory(), time.perf_counter()
                with MemoryWatch() as memory:
                    report = analyze(folder)
                seconds = time.perf_counter() - start
            finally:
                shutil.rmtree(folder)
            layers = sum(len(block.layers) for block in report.blocks)
            rows.append((f"{written / 1e9:.1f}", layers, before / 2**20, memory.peak / 2**20, seconds))
            print("\r", end="")
    common.table(("checkpoint, GB", "layers", "RssAnon before, MiB", "at its peak, MiB", "seconds"), rows)
    print(f"\nMixtral blocks in bfloat16 on disk, expert by expert; windows of {report.window_rows} rows.")
    common.footer(seen, "mid")
