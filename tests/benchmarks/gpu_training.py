"""The sections of gpu.py that train: steps of full fine-tuning, LoRA and S2FT on LLaMA-2-7B shapes in bfloat16."""

import statistics
from argparse import Namespace

import torch
from s2ft_training import arms_of, load, measure

from hf_farms import S2FTConfig


def training(options, *, settings, arms, checkpointing=False):
    """Seconds, peak memory and saved bytes of a step, for each batch x tokens and arm."""
    budget = 0.1 if options.small else S2FTConfig().budget
    changes = {"dtype": torch.bfloat16, "budget": budget, "checkpointing": checkpointing, "warmup": 1, "child": False}
    options = Namespace(**vars(options), **changes)
    model = load(options)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    names = arms_of(model, options)
    for setting in [settings[0]] if options.small else settings:
        batch_size, length = map(int, ("2x16" if options.small else setting).split("x"))
        ids = torch.randint(0, model.config.vocab_size, (batch_size, length)).to(options.device)
        batch = {"input_ids": ids, "labels": ids, "use_cache": False}
        for name in arms:
            label, arm = names[name]
            row = {"batch x tokens": f"{batch_size}x{length}", "arm": label}
            try:
                seconds, peak, saved, count = measure(arm, model, batch, options)
            except torch.OutOfMemoryError:
                model.zero_grad()
                yield {**row, "trained": "out of memory"}
                continue
            yield {
                **row,
                "trained": count,
                "step_s": statistics.median(seconds),
                "fastest_s": min(seconds),
                "slowest_s": max(seconds),
                "peak_mib": peak / 2**20 if options.device == "cuda" else None,
                "saved_mib": saved / 2**20,
            }
