"""The section `callbacks` of gpu.py: what both callbacks cost in a Trainer, in bfloat16, with and without compiling.

A part of LLaMA-2-7B, all of whose weights fit with AdamW in float32.
"""

import statistics
import tempfile

import torch
from gpu_pruning import new_model
from lr_callback import Clock, Tokens
from transformers import Trainer, TrainingArguments

from hf_farms import FarmsLRCallback, FarmsLRConfig, S2FTCallback, S2FTConfig
from hf_farms.callbacks.schedule import MOST_MEASUREMENTS

STEPS = 8
# Measurements are at the first step and at this one.
HALF = STEPS // 2
RUN = 1000


def callbacks(options, *, blocks):
    """Seconds of a step without a callback and with each, of a measurement, and its share of a run of 1,000 steps."""
    budget = 0.1 if options.small else S2FTConfig().budget
    arms = {
        "none": lambda: [],
        "FarmsLRCallback": lambda: [FarmsLRCallback(FarmsLRConfig(start=0, interval=HALF))],
        "S2FTCallback": lambda: [S2FTCallback(S2FTConfig(budget=budget))],
    }
    for compiled in (False, True):
        plain = None
        for name, make in arms.items():
            row = {"callback": name, "compiled": compiled, "failed": None}
            try:
                steps, measured, loss = train(options, blocks, make(), compiled=compiled)
            except Exception as error:
                yield {**row, "failed": f"{type(error).__name__}: {error}"[:300]}
                continue
            quiet = [seconds for number, seconds in enumerate(steps) if number not in (0, HALF)]
            step = statistics.median(quiet)
            plain = step if name == "none" else plain
            yield {
                **row,
                "step_s": step,
                "first_step_s": steps[0],
                "ratio": step / plain if plain else None,
                "measuring_s": measured[-1] if measured else None,
                "share": MOST_MEASUREMENTS * measured[-1] / (RUN * plain) if measured and plain else None,
                "loss": loss,
                "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else None,
            }


@torch.enable_grad()
def train(options, blocks, callbacks, *, compiled):
    """Seconds of each step, seconds of each measurement, and the loss of the last step."""
    clock, cuda = Clock(), options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model = new_model(options, blocks).float().train()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-5,
            bf16=True,
            torch_compile=compiled,
            # A CPU may have no compiler.
            torch_compile_backend="inductor" if cuda else "eager",
            use_cpu=not cuda,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        data = Tokens(STEPS * options.batch, min(512, options.length), model.config.vocab_size)
        run = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock, *callbacks])
        run.train()
    history = run.state.log_history
    measured = [entry["farms_lr/seconds"] for entry in history if "farms_lr/seconds" in entry]
    return clock.steps(), measured, [entry["loss"] for entry in history if "loss" in entry][-1]
