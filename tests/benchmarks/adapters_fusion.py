"""Adapters of two tasks fused into one: disjoint selections, the same selection for both, and LoRA.

    python tests/benchmarks/adapters_fusion.py ROWS.jsonl --model M --arithmetic FILE ... --commonsense FILE ...
    python tests/benchmarks/adapters_fusion.py ROWS.jsonl                           # tables of what is finished

The files are JSON lists of {"instruction", "output"}. Those of a task are drawn once: --held-out questions for
choosing, --test for the figures, the rest for training. The loss is that of the answers alone.

Arms, all with as many trained parameters: `score` (disjoint; the second task takes what the score of its activations
ranks next), `random` (disjoint at random: the placebo of the score), `overlapping` (both tasks train the same random
channels), `lora` (on the same layers). Trainings of all arms end at the same gain on the questions for choosing: an
adapter that learned less interferes less. The gain is 80% of the smaller one that `random` and `lora` reached in their
trials, with as many learning rates each, in --steps steps; all arms of S2FT train with the rate of `random`.

Then, for each seed (of selection, order and initialization), both adapters are added with one weight
(`fuse(combination="cat")`, in PEFT `add_weighted_adapter(combination_type="cat")`). It is chosen of WEIGHTS for each
arm and seed by the mean share of the gain that is left on the questions for choosing. 0.5 is the mean of both changes.

Predictions, written before the first run:

1. With the weight 1, disjoint selections keep a larger share of the gain than the same selection for both.
2. `score` is no better than `random`: the difference in loss is within two standard errors.
3. LoRA keeps a smaller share than `random`.
4. With the weight chosen, `random` keeps at least 80% of the gain in both tasks.
"""

import argparse
import json
import random
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from adapters_fusion_report import report
from peft import LoraConfig, get_peft_model
from s2ft_learning import encode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_farms import S2FTAdapter, S2FTCallback, S2FTConfig, fuse
from hf_farms.s2ft.selection import select_channels

TASKS = ("arithmetic", "commonsense")
RATED = ("random", "lora")
WEIGHTS = (0.5, 0.75, 1.0, 1.25)
CALIBRATION = 32
TARGET_SHARE = 0.8


class Data:
    """Questions for training, choosing and the figures of each task."""

    def __init__(self, options):
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.collate = DataCollatorForSeq2Seq(self.tokenizer)
        self.select, self.test, self.train = {}, {}, {}
        for task in TASKS:
            files = [json.loads(Path(file).read_text(encoding="utf-8")) for file in getattr(options, task)]
            rows = [row for file in files for row in file]
            random.Random(0).shuffle(rows)
            encoded = [row for row in encode(self.tokenizer, rows, 2 * options.length) if _fits(row, options.length)]
            chosen, rest = encoded[: options.held_out], encoded[options.held_out :]
            self.select[task], self.test[task], self.train[task] = chosen, rest[: options.test], rest[options.test :]


def _fits(row, length):
    return len(row["input_ids"]) <= length


@torch.no_grad()
def losses(model, rows, collate, batch=16):
    """Mean loss of the answer of each row, in bfloat16 as in the training."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found = [0.0] * len(rows)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        inputs = collate([dict(rows[i]) for i in places])
        labels = inputs.pop("labels")[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        means = each.sum(1) / (labels != -100).sum(1)
        for place, value in zip(places, means.tolist(), strict=True):
            found[place] = value
    model.train(was_training)
    return found


class StopAtGain(TrainerCallback):
    """End the training at a gain, or note the largest one; measured every few steps."""

    def __init__(self, model, before, rows, collate, target, every=10):
        self.model, self.before, self.rows, self.collate = model, before, rows, collate
        self.target, self.every, self.gain, self.best, self.steps = target, every, 0.0, 0.0, 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.gain = self.before - statistics.fmean(losses(self.model, self.rows, self.collate))
            self.best, self.steps = max(self.best, self.gain), state.global_step
            if self.target is not None and self.gain >= self.target:
                control.should_training_stop = True


def train(options, data, task, arm, rate, seed, before, *, target=None, exclude=()):
    """Train one adapter, and return it with its selection and its gain. LoRA is returned as the folder's model."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    callbacks, selection = [], None
    if arm == "lora":
        names = ["o_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names))
    else:
        config = S2FTConfig(budget=options.budget, strategy="activation" if arm == "score" else "random", seed=seed)
        drawn = random.Random(seed).sample(data.train[task], CALIBRATION)
        calibration = [data.collate([dict(row)]) for row in drawn] if config.needs_data else None
        selection = select_channels(model, config, calibration=calibration, exclude=exclude)
        callbacks = [S2FTCallback(config, calibration=calibration, exclude=exclude)]
    stop = StopAtGain(model, before, data.select[task], data.collate, target)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        run = Trainer(
            model=model, args=args, train_dataset=data.train[task], data_collator=data.collate, callbacks=callbacks
        )
        run.add_callback(stop)
        run.train()
    return model, selection, stop


class Rows:
    """JSON lines, one for each finished part; what is there is not computed again."""

    def __init__(self, path):
        self.path = Path(path)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **keys):
        found = [row for row in self.rows if all(row.get(key) == value for key, value in keys.items())]
        return found[0] if found else None

    def add(self, **row):
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


def choose_rates(options, data, rows, before):
    """Return the rate of each arm and task by the gain on the questions for choosing, and the gain to stop at."""
    gains = {}
    for arm in RATED:
        for task in TASKS:
            for rate in options.rates:
                row = rows.find(kind="rate", arm=arm, task=task, rate=rate)
                if row is None:
                    _, _, stop = train(options, data, task, arm, rate, 100, before[task]["select"])
                    row = rows.add(kind="rate", arm=arm, task=task, rate=rate, gain=stop.best)
                gains[arm, task, rate] = row["gain"]
    best = {(arm, task): max(options.rates, key=lambda rate: gains[arm, task, rate]) for arm in RATED for task in TASKS}
    best |= {("score", task): best["random", task] for task in TASKS}
    targets = {task: TARGET_SHARE * min(gains[arm, task, best[arm, task]] for arm in RATED) for task in TASKS}
    return best, targets


def s2ft_arms(options, data, seed, best, targets, before, base, rows):
    """Train and fuse the arms of S²FT of one seed."""
    for arm in ("score", "random"):
        if rows.find(kind="fused", arm="overlapping" if arm == "random" else arm, seed=seed):
            continue
        one, two = TASKS
        first = trained(options, data, one, arm, seed, best, targets, before, rows)
        second = trained(options, data, two, arm, seed, best, targets, before, rows, exclude=first[1])
        measure_fused(data, rows, arm, seed, before, base, [first[0], second[0]])
        if arm == "random":
            same = trained(options, data, two, arm, seed, best, targets, before, rows, noted="overlapping")
            measure_fused(data, rows, "overlapping", seed, before, base, [first[0], same[0]])


def trained(options, data, task, arm, seed, best, targets, before, rows, *, exclude=(), noted=None):
    """Train to the gain, note the losses on the test questions, and return the adapter and its selection."""
    rate, start = best[arm, task], before[task]["select"]
    model, selection, stop = train(
        options, data, task, arm, rate, seed, start, target=targets[task], exclude=exclude or ()
    )
    test = losses(model, data.test[task], data.collate)
    rows.add(kind="single", arm=noted or arm, task=task, seed=seed, gain=stop.gain, steps=stop.steps, test=test)
    return (model if arm == "lora" else S2FTAdapter.from_model(model)), selection


def measure_fused(data, rows, arm, seed, before, base, adapters):
    """Choose the weight, and note the losses with it and with 1."""

    def at(weight, part):
        with warnings.catch_warnings(action="ignore"):
            fused = fuse(adapters, weights=[weight, weight], combination="cat")
        with fused.on(base):
            return losses_of_both(base, data, part)

    note_fused(rows, arm, seed, before, at)


def losses_of_both(model, data, part):
    return {task: losses(model, getattr(data, part)[task], data.collate) for task in TASKS}


def note_fused(rows, arm, seed, before, at):
    """Choose the weight by the share of the gains that is left; `at(weight, part)` returns the losses of both tasks."""

    def share(weight):
        found, left = at(weight, "select"), []
        for task in TASKS:
            single = rows.find(kind="single", arm=arm, task=task, seed=seed)
            # The first task of `overlapping` is that of `random`.
            single = single or rows.find(kind="single", arm="random", task=task, seed=seed)
            left.append((before[task]["select"] - statistics.fmean(found[task])) / single["gain"])
        return statistics.fmean(left)

    shares = {weight: share(weight) for weight in WEIGHTS}
    chosen = max(shares, key=shares.get)
    test = {weight: at(weight, "test") for weight in {chosen, 1.0}}
    shown = {"shares": list(shares.values()), "test": test[chosen], "whole": test[1.0]}
    rows.add(kind="fused", arm=arm, seed=seed, weight=chosen, **shown)


def lora_arm(options, data, seed, best, targets, before, rows):
    """Train two LoRAs, and add them by PEFT."""
    if rows.find(kind="fused", arm="lora", seed=seed):
        return
    first, second = (trained(options, data, task, "lora", seed, best, targets, before, rows)[0] for task in TASKS)
    with tempfile.TemporaryDirectory() as folder:
        second.save_pretrained(folder)
        first.load_adapter(folder, adapter_name="second")
    for weight in WEIGHTS:
        first.add_weighted_adapter(["default", "second"], [weight, weight], named(weight), combination_type="cat")

    def at(weight, part):
        first.set_adapter(named(weight))
        return losses_of_both(first, data, part)

    note_fused(rows, "lora", seed, before, at)


def named(weight):
    """The name of a weighted adapter; PEFT allows no dot in it."""
    return f"both{weight}".replace(".", "_")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--model", help="folder or hub id of a causal language model")
    for task in TASKS:
        parser.add_argument(f"--{task}", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="longer questions with their answers are left out")
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="tried by each arm")
    parser.add_argument("--budget", type=float, default=0.02)
    parser.add_argument("--rank", type=int, default=27, help="of LoRA")
    options = parser.parse_args()
    rows = Rows(options.rows)
    if not options.model:
        report(rows.rows)
        return
    data = Data(options)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if rows.find(kind="before") is None:
        for task in TASKS:
            select, test = (losses(base, part[task], data.collate) for part in (data.select, data.test))
            rows.add(kind="before", task=task, select=statistics.fmean(select), test=test)
    before = {task: rows.find(kind="before", task=task) for task in TASKS}
    best, targets = choose_rates(options, data, rows, before)
    for seed in range(options.seeds):
        s2ft_arms(options, data, seed, best, targets, before, base, rows)
        lora_arm(options, data, seed, best, targets, before, rows)
    report(rows.rows)


if __name__ == "__main__":
    main()
