"""What FarmsLRCallback costs: seconds of a step with and without it, and of a measurement.

    python tests/benchmarks/lr_callback.py MODEL [--steps 8] [--batch 4] [--length 128]

MODEL is a folder or hub id of a causal language model. Both runs make the same steps in an unmodified Trainer; with the
callback a measurement is made at the first step and another halfway. The share of a run of 1,000 steps with ten
measurements follows from the seconds of one measurement and of one plain step. The last column is the time of a
multiply-add of a measurement over one of a step: `MEASURING_FACTOR` in `hf_farms/callbacks/step_cost.py`.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_farms import FarmsConfig, FarmsLRCallback, FarmsLRConfig
from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.schedule import MOST_MEASUREMENTS
from hf_farms.callbacks.step_cost import StepCost
from hf_farms.spectra.analysis import analysis_cost

RUN = 1000


class Tokens(Dataset):
    def __init__(self, count, length, vocabulary):
        self.ids = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Clock(TrainerCallback):
    """Seconds from the start of each step to the start of the next, measurements among them."""

    def __init__(self):
        self.marks = []

    def on_step_begin(self, *_, **__):
        self.marks.append(time.perf_counter())

    def on_train_end(self, *_, **__):
        self.marks.append(time.perf_counter())

    def steps(self):
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


def train(options, callback):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-5,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Tokens(options.steps * options.batch, options.length, model.config.vocab_size)
        run = Trainer(model=model, args=args, train_dataset=data, callbacks=[clock, *([callback] if callback else [])])
        run.train()
    measured = [entry["farms_lr/seconds"] for entry in run.state.log_history if "farms_lr/seconds" in entry]
    return clock.steps(), measured


def multiply_adds(options):
    """Multiply-adds of a measurement and of a step, as the callback estimates them."""
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    source = ModelBlockSource(model)
    cost = StepCost(source, recomputes=False)
    model(input_ids=torch.zeros(options.batch, options.length, dtype=torch.long))
    cost.remove()
    return analysis_cost(source, FarmsConfig()), cost.multiply_adds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    plain, _ = train(options, None)
    half = options.steps // 2
    steps, measured = train(options, FarmsLRCallback(FarmsLRConfig(start=0, interval=half)))
    # The first step warms up; those that measure are counted apart.
    quiet = [seconds for number, seconds in enumerate(steps) if number not in (0, half)]
    base, ours, one = statistics.median(plain[1:]), statistics.median(quiet), measured[-1]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    measuring, step = multiply_adds(options)
    factor = (one / measuring) / (base / step)
    print(f"{options.model}, {options.batch} x {options.length} tokens, float32, {device}")
    print(
        "| plain step, s | step between measurements, s | ratio | one measurement, s | share of 1,000 steps | factor |"
    )
    print("|---|---|---|---|---|---|")
    share = MOST_MEASUREMENTS * one / (RUN * base)
    print(f"| {base:.3f} | {ours:.3f} | {ours / base:.3f} | {one:.2f} | {share:.2%} | {factor:.1f} |")


if __name__ == "__main__":
    main()
