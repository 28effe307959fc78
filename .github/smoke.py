"""Prune, evaluate, train and adapt a small model with the commands and callbacks of a user: `make smoke MODEL=demo`.

python .github/smoke.py MODEL FOLDER
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from read_card import read_card
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

from hf_farms import FarmsLRCallback, S2FTCallback, S2FTConfig
from hf_farms.demo import DEMO_FOLDERS, demo_text

STEPS = 20
TOKENS = 64


def hf_farms(*arguments: str | Path) -> None:
    """Run a command and show it."""
    words = [str(argument) for argument in arguments]
    print("$ hf-farms", shlex.join(words), flush=True)
    program = shutil.which("hf-farms", path=Path(sys.executable).parent)
    assert program, "hf-farms is not installed beside this Python"
    subprocess.run([program, *words], check=True)


def prune(model: str, folder: Path) -> None:
    """Prune a model, evaluate it again, and rewrite its card."""
    hf_farms("prune", model, "--output", folder)
    hf_farms("eval", folder)
    hf_farms("card", folder)
    read_card(folder)


def train(model: str, folder: Path) -> None:
    """Train a model with both callbacks, and check the losses and the card."""
    source = DEMO_FOLDERS.get(model, model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = demo_text("calibration").read_text(encoding="utf-8")[:50_000]
    ids = torch.tensor(tokenizer(text)["input_ids"]).unfold(0, TOKENS, TOKENS)
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(source),
        TrainingArguments(str(folder), max_steps=STEPS, learning_rate=1e-3, logging_steps=5, report_to="none", seed=0),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[FarmsLRCallback(), S2FTCallback(S2FTConfig(budget=0.1))],
    )
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS // 5, losses
    assert all(math.isfinite(loss) for loss in losses), losses
    hf_farms("card", folder)
    card = ModelCard.load(folder / "README.md")
    assert {"farms", "s2ft"} <= set(card.data.tags), card.data.tags


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Load the weights of a folder in the dtype they are stored in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def adapt(model: str, trained: Path, folder: Path) -> None:
    """Merge the adapter of a training and take it out again, and export it as a LoRA."""
    hf_farms("adapter", "info", trained)
    hf_farms("adapter", "merge", model, trained, "--output", folder / "merged")
    hf_farms("adapter", "unmerge", folder / "merged", trained, "--output", folder / "unmerged")
    hf_farms("adapter", "export", trained, "--base", model, "--output", folder / "lora")
    expected = {"merged": weights(trained), "unmerged": weights(DEMO_FOLDERS.get(model, model))}
    for name, tensors in expected.items():
        measured = weights(folder / name)
        different = [key for key in tensors if not torch.equal(tensors[key], measured[key])]
        assert not different, f"{name}: {different} differ"


def main(model: str, folder: Path) -> None:
    """Run all steps in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    prune(model, folder / "pruned")
    train(model, folder / "trained")
    adapt(model, folder / "trained", folder)
    print(f"{model}: pruned, trained and adapted in {folder}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
