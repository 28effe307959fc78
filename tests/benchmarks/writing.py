"""What the calibration text costs that a dense model writes, against `generate` with the attention it was loaded with.

    python tests/benchmarks/writing.py MODEL [--sequences 16] [--length 256] [--dtype bfloat16]

Both sides sample the same number of tokens from the same prompts of 16, in turn; medians and their ratio are printed.
"""

import argparse
import contextlib
import statistics
import time
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

from hf_farms.data import generation


def clock(model, prompts, length):
    start = time.perf_counter()
    generation.generate(model, prompts, length, seed=0, padding=0)
    return time.perf_counter() - start


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    prompts = torch.randint(
        model.config.vocab_size, (options.sequences, 16), generator=torch.Generator().manual_seed(0)
    )
    clock(model, prompts, 24)
    pairs = []
    for _ in range(options.repeat):
        ours = clock(model, prompts, options.length)
        with patch.object(generation, "_fast_attention", lambda *_: contextlib.nullcontext()):
            pairs.append((ours, clock(model, prompts, options.length)))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{options.model}, {options.dtype}, {torch.get_num_threads()} threads, median of {options.repeat}")
    print(f"{options.sequences} sequences of {options.length} tokens: {ours:.1f} s; ", end="")
    print(f"attention as loaded ({model.config._attn_implementation}): {theirs:.1f} s; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
