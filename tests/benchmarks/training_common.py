"""Shared by train_images.py, train_text.py and train_burgers.py: arms, placebos, arguments, the table.

Arms: `none` is the Trainer alone, `farms` has FarmsLRCallback, `frozen` keeps the factors of its first measurement. The
placebos have the factors of every measurement on other blocks: `shuffled` (one random order for the whole run),
`sorted` (ascending with depth), `reversed` (reverse order). `decay` is layer-wise learning rate decay, which
looks at no weights. Embeddings, stem and head have factor 1 in all of them.
"""

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.config import LR_UNITS
from hf_farms.reports.lr_history import read_history

PLACEBOS = ("shuffled", "sorted", "reversed", "decay")
ARMS = ("none", "farms", *PLACEBOS, "frozen")
# From one block to the one below it.
DECAY = 0.9


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how it is scored. `score` reads what `Trainer.evaluate` returns."""

    model: Callable[[], torch.nn.Module]
    train: Any
    validation: Any
    test: Any
    arguments: dict[str, Any]
    score: Callable[[dict[str, float]], float]
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Scores after the last step, seconds of training, those of all cores together, and the share of measurements.

    `factors` has one dict for each measurement, from layer name to factor.
    """

    validation: float
    test: float
    seconds: float
    core_seconds: float
    share: float
    factors: list[dict[str, float]]

    @property
    def range(self):
        found = [value for factors in self.factors for value in factors.values()]
        return (min(found), max(found)) if found else (1.0, 1.0)


def placebo_factors(kind, factors, report, *, unit="block", seed=0):
    """The same factors on other blocks (or layers); for `decay` others, whose mean over the blocks is 1."""
    blocks = [[layer.name for layer in block.layers] for block in report.blocks if block.layers]
    if kind == "decay":
        values = [DECAY ** (len(blocks) - 1 - depth) for depth in range(len(blocks))]
        return factors | _spread_out(blocks, [value / statistics.fmean(values) for value in values])
    units = blocks if unit == "block" else [[name] for names in blocks for name in names]
    values = [factors[names[0]] for names in units]
    if kind == "shuffled":
        random.Random(seed).shuffle(values)
    elif kind == "sorted":
        values.sort()
    elif kind == "reversed":
        values.reverse()
    else:
        raise ValueError(f"kind must be one of {', '.join(PLACEBOS)}, got {kind!r}.")
    return factors | _spread_out(units, values)


def _spread_out(units, values):
    return {name: value for names, value in zip(units, values, strict=True) for name in names}


class PlaceboCallback(FarmsLRCallback):
    """Measures as ever, and gives the factors to other blocks than those that they were measured on."""

    def __init__(self, kind, config, seed):
        super().__init__(config)
        self._kind, self._seed = kind, seed

    def _store(self, report, state):
        super()._store(report, state)
        self.memory["factors"] = placebo_factors(
            self._kind, self.memory["factors"], report, unit=self.config.unit, seed=self._seed
        )


def callback_of(arm, seed, **options):
    if arm == "none":
        return None
    # The interval that the examples were measured with, at the cost of more than 1%.
    again = {"frozen": True} if arm == "frozen" else {"interval": 0.1}
    config = FarmsLRConfig(**again, **options)
    return PlaceboCallback(arm, config, seed) if arm in PLACEBOS else FarmsLRCallback(config)


def run_arm(task, arm, seed, **options):
    """Train once. Arms of the same seed start from the same weights and see the same batches."""
    set_seed(seed)
    model = task.model()
    callback = callback_of(arm, seed, **options)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            **task.arguments,
        )
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=task.train,
            callbacks=[callback] if callback else [],
            **task.trainer,
        )
        trainer.remove_callback(PrinterCallback)
        begin, busy = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, core_seconds = time.perf_counter() - begin, time.process_time() - busy
        measured = read_history(Path(folder) / "farms_lr.jsonl") if callback else []
    shares = [
        entry["farms_lr/share_of_time"] for entry in trainer.state.log_history if "farms_lr/share_of_time" in entry
    ]
    return Result(
        validation=task.score(trainer.evaluate(task.validation)),
        test=task.score(trainer.evaluate(task.test)),
        seconds=seconds,
        core_seconds=core_seconds,
        share=shares[0] if shares else 0.0,
        factors=[{layer.name: layer.factor for layer in entry.layers} for entry in measured],
    )


def parser(description, *, epochs, lr):
    """The arguments of all three scripts."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--arms", nargs="+", choices=ARMS, default=["none", "farms"])
    found.add_argument("--seeds", nargs="+", type=int, default=[0])
    found.add_argument("--epochs", type=float, default=epochs)
    found.add_argument("--steps", type=int, default=-1, help="instead of epochs")
    found.add_argument("--lr", type=float, default=lr, help="base learning rate of all arms (default %(default)s)")
    found.add_argument("--unit", choices=LR_UNITS, default=FarmsLRConfig().unit, help="what gets one factor")
    found.add_argument(
        "--no-shrink", dest="shrink", action="store_false", help="factors as published, even if chance made them"
    )
    return found


def length_of(options):
    """The arguments of the Trainer that all three scripts take from the command line."""
    return {"num_train_epochs": options.epochs, "max_steps": options.steps, "learning_rate": options.lr}


def run(task, options, *, metric, baselines):
    """Train every arm with every seed and print a row for each as it ends; returns the results by arm."""
    # Models of no known architecture are said to be so; here that is on purpose.
    warnings.filterwarnings("ignore", message="No layout is known")
    print(", ".join(f"{name} {value:.4g}" for name, value in baselines.items()))
    print(f"| arm | seed | {metric}, validation | {metric}, test | s | core s | measuring | factors |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    results = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            r = run_arm(task, arm, seed, unit=options.unit, shrink=options.shrink)
            results[arm].append(r)
            low, high = r.range
            print(
                f"| {arm} | {seed} | {r.validation:.4g} | {r.test:.4g} | {r.seconds:.0f} | {r.core_seconds:.0f} "
                f"| {r.share:.2%} | {low:.2f} to {high:.2f} |",
                flush=True,
            )
    if len(options.seeds) > 1:
        for arm, found in results.items():
            print(f"{arm}: validation {_deviation(found, 'validation')}, test {_deviation(found, 'test')}")
    print(f"{torch.get_num_threads()} threads, lr {options.lr:g}, unit {options.unit}, shrink {options.shrink}")
    return results


def _deviation(results, name):
    values = [getattr(result, name) for result in results]
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"
