"""Whether it learns: full fine-tuning, LoRA (peft) and S2FT on the same questions, in an unmodified Trainer.

    python tests/benchmarks/s2ft_learning.py MODEL QUESTIONS [--steps 200] [--budget 0.01645]

MODEL is a folder or hub id of a causal language model, QUESTIONS a JSON list of {"instruction": ..., "output": ...}.
The loss is that of the answers alone. Of the questions, drawn once, --held-out are for choosing each method's learning
rate and as many others for the figures; the rest is trained on. Each method tries as many learning rates.
"""

import argparse
import json
import random
import statistics
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from hf_farms import S2FTCallback, S2FTConfig

# As many for each, wide enough that the best one was not at an end for the demo model.
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2), "S2FT": (1e-3, 3e-3, 1e-2, 3e-2)}


def encode(tokenizer, rows, length):
    found = []
    for row in rows:
        question = tokenizer(f"Question: {row['instruction'].strip()}\nAnswer: ")["input_ids"]
        answer = tokenizer(row["output"].strip())["input_ids"] + [tokenizer.eos_token_id]
        ids = (question + answer)[:length]
        if len(question) < len(ids):
            found.append({"input_ids": ids, "labels": [-100] * len(question) + ids[len(question) :]})
    return found


def losses(model, rows, collate):
    """Mean loss of the answer of each row."""
    model.eval()
    with torch.no_grad():
        return [model(**collate([row])).loss.item() for row in rows]


def train(options, method, rate, data, collate):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    callbacks = []
    if method == "LoRA":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"))
    elif method == "S2FT":
        callbacks = [S2FTCallback(S2FTConfig(budget=options.budget))]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        run = Trainer(model=model, args=args, train_dataset=data, data_collator=collate, callbacks=callbacks)
        seconds = run.train().metrics["train_runtime"]
    return model, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--budget", type=float, default=S2FTConfig().budget)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    collate = DataCollatorForSeq2Seq(tokenizer)
    with open(options.questions, encoding="utf-8") as file:
        rows = json.load(file)
    random.Random(0).shuffle(rows)
    encoded = encode(tokenizer, rows, options.length)
    select, test, data = (encoded[slice(*ends)] for ends in _thirds(options.held_out))
    before = losses(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32), test, collate)
    print(f"{options.model}, {options.steps} steps of {options.batch} answers")
    print(f"Loss before: {statistics.fmean(before):.3f}\n")
    print("| method | trained | learning rate (loss on the selection questions) | loss | minus before | seconds |")
    print("|---|---|---|---|---|---|")
    for method, rates in RATES.items():
        tried = {}
        for rate in rates:
            model, seconds = train(options, method, rate, data, collate)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            chosen_by = statistics.fmean(losses(model, select, collate))
            tried[rate] = chosen_by, losses(model, test, collate), seconds, count
        best = min(tried, key=lambda rate: tried[rate][0])
        _, after, seconds, count = tried[best]
        gains = [b - a for a, b in zip(before, after, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        seen = ", ".join(f"{rate:g} ({loss:.3f})" for rate, (loss, *_) in tried.items())
        print(
            f"| {method} | {count:,} | **{best:g}** of {seen} | {statistics.fmean(after):.3f} "
            f"| {statistics.fmean(gains):+.3f} ± {error:.3f} | {seconds:.0f} |",
            flush=True,
        )


def _thirds(held_out):
    return (0, held_out), (held_out, 2 * held_out), (2 * held_out, None)


if __name__ == "__main__":
    main()
