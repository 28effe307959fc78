"""What a training step costs: full fine-tuning, LoRA (peft) and S2FT on one model, in turn.

    python tests/benchmarks/s2ft_training.py MODEL [--settings 4x256] [--budget 0.01645]
    python tests/benchmarks/s2ft_training.py --shapes tiny --settings 2x16   # a small try

MODEL is a folder or hub id of a causal language model; --shapes draws a random one instead (bfloat16). The same steps
on a GPU are sections of gpu.py.
A setting is batch x tokens. LoRA adapts all linear layers, without dropout: with rank 16, and with the rank whose
number of parameters comes nearest to S2FT's. Every arm makes its steps (forward, backward, fused AdamW) on the same
weights; arms take turns, --rounds times. Memory: the most that was allocated on the GPU, or the largest resident set
of a process that does nothing else; saved: bytes that the forward pass keeps for the backward pass, parameters left
out, with activation checkpointing as it is at the end of the forward pass.
"""

import argparse
import gc
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from hf_farms import S2FTConfig, apply_s2ft, restore

SHAPES = {
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4},
}
RANK = 16


def load(options):
    if options.shapes is None:
        return transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).to(options.device)
    config = transformers.LlamaConfig(**SHAPES[options.shapes], attn_implementation="sdpa")
    torch.manual_seed(0)
    with torch.device(options.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=options.dtype)
    return model


@contextmanager
def full(model, options):
    model.requires_grad_(True)
    yield model


@contextmanager
def lora(model, options, rank):
    wrapped = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear"),
        autocast_adapter_dtype=False,
    )
    try:
        yield wrapped
    finally:
        wrapped.unload()


@contextmanager
def s2ft(model, options, **changes):
    apply_s2ft(model, S2FTConfig(budget=options.budget, **changes))
    try:
        yield model
    finally:
        restore(model)


def matching_rank(model, options):
    """The rank of LoRA with about as many parameters as S2FT."""
    with s2ft(model, options):
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with lora(model, options, 1) as wrapped:
        one = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    return max(1, round(trained / one))


def arms_of(model, options):
    """Label and context manager of each arm by its name."""
    rank = matching_rank(model, options)
    return {
        "full": ("full", full),
        "lora16": (f"LoRA r={RANK}", lambda m, o: lora(m, o, RANK)),
        "lora=": (f"LoRA r={rank}", lambda m, o: lora(m, o, rank)),
        "indexed": ("S2FT", s2ft),
        "permuted": ("S2FT permuted", lambda m, o: s2ft(m, o, layout="permuted")),
        "two": ("S2FT two products", lambda m, o: s2ft(m, o, write_back=False)),
    }


def peak_alone(name, setting, options):
    """Largest resident set of a process that makes two steps of one arm: memory freed here is not always given back."""
    command = [sys.executable, __file__, *sys.argv[1:], "--settings", setting, "--arms", name, "--steps", "1"]
    done = subprocess.run([*command, "--rounds", "1", "--child"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def saved_bytes(model, batch):
    """Bytes of the different storages that the backward pass will read, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Kept, its address is not given to another one; detached, since an output would hold the graph that holds it.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    total = sum(kept.values())
    del loss
    return total


def now(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(arm, model, batch, options):
    """Seconds of each step, peak memory, saved bytes, trained parameters."""
    model.train()
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with arm(model, options) as trained:
        if options.checkpointing:
            trained.enable_input_require_grads()
        parameters = [p for p in trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        seconds = []
        for _ in range(options.warmup + options.steps):
            begin = now(options.device)
            trained(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(now(options.device) - begin)
        peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
        saved = 0 if options.child else saved_bytes(trained, batch)
        count = sum(p.numel() for p in parameters)
        if options.checkpointing:
            trained.disable_input_require_grads()
        del optimizer, parameters
    return seconds[options.warmup :], peak, saved, count


def compare(model, setting, arms, options):
    batch_size, length = map(int, setting.split("x"))
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (batch_size, length), generator=source).to(options.device)
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    found = {}
    for _ in range(options.rounds):
        for name, (_, arm) in arms.items():
            try:
                seconds, *rest = measure(arm, model, batch, options)
            except torch.OutOfMemoryError:
                model.zero_grad()
                continue
            found.setdefault(name, ([], rest))[0].extend(seconds)
    if options.child:
        # Not of getrusage, which begins with what the parent had.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)
        return
    if options.device == "cpu":
        for name, (_, rest) in found.items():
            rest[0] = peak_alone(name, setting, options)
    rows = {arms[name][0]: (statistics.median(seconds), *rest, seconds) for name, (seconds, rest) in found.items()}
    for name, row in rows.items():
        cells = [setting, name, f"{row[3]:,}", f"{row[0]:.3g} ({min(row[4]):.3g} to {max(row[4]):.3g})"]
        for number in range(3):
            if number:
                cells.append(f"{row[number] / 2**20:,.0f}")
            for base in ("full", f"LoRA r={RANK}"):
                cells.append(f"{row[number] / rows[base][number]:.2f}" if base in rows else "")
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--shapes", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--budget", type=float, default=S2FTConfig().budget)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--arms", nargs="+", help="some of: full lora16 lora= indexed permuted two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if options.shapes else "float32"))
    model = load(options)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    arms = arms_of(model, options)
    chosen = {name: arms[name] for name in options.arms or arms}
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    kept = " with activation checkpointing" if options.checkpointing else ""
    print(f"{options.model or options.shapes}, {str(options.dtype)[6:]}{kept}, budget {options.budget}, {device}\n")
    print(
        "| batch x tokens | arm | trained | s a step | of full | of LoRA | peak MiB | of full | of LoRA "
        "| saved MiB | of full | of LoRA |"
    )
    print("|" + "---|" * 12)
    for setting in options.settings or ["4x256"]:
        compare(model, setting, chosen, options)


if __name__ == "__main__":
    main()
