"""Supervised fine-tuning of a chat model with S²FT in the SFTTrainer of TRL.

    pip install trl
    python docs/examples/sft_s2ft.py

Trains 1% of the parameters of Qwen3-0.6B, whole heads and feed-forward channels, on conversations. MODEL, DATASET (a
dataset that TRL's SFTTrainer takes), STEPS, BUDGET and OUTPUT come from the environment.
"""

import os

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_farms import S2FTAdapter, S2FTCallback, S2FTConfig, restore

MODEL = os.environ.get("MODEL", "Qwen/Qwen3-0.6B")
DATASET = os.environ.get("DATASET", "trl-lib/Capybara")
STEPS = int(os.environ.get("STEPS", "500"))
BUDGET = float(os.environ.get("BUDGET", "0.01"))
OUTPUT = os.environ.get("OUTPUT", "sft-s2ft")

tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(MODEL)

args = SFTConfig(
    OUTPUT,
    max_steps=STEPS,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    # About ten times that of full fine-tuning, as for LoRA.
    learning_rate=2e-4,
    lr_scheduler_type="cosine",
    max_length=1024,
    bf16=torch.cuda.is_available(),
    logging_steps=10,
    save_strategy="no",
    report_to="none",
)
trainer = SFTTrainer(
    model,
    args,
    train_dataset=load_dataset(DATASET, split="train"),
    processing_class=tokenizer,
    callbacks=[S2FTCallback(S2FTConfig(budget=BUDGET))],
)
trainer.train()

# The adapter holds the new values of the trained channels; the plain model holds all weights.
trained = restore(trainer.model)
S2FTAdapter.from_model(trained).save_pretrained(f"{OUTPUT}/adapter")

# Merged into the base model, it gives the trained model bit for bit, and the base model when it is taken out again.
base = AutoModelForCausalLM.from_pretrained(MODEL)
adapter = S2FTAdapter.from_pretrained(f"{OUTPUT}/adapter")
with adapter.on(base):
    pairs = zip(base.state_dict().values(), trained.state_dict().values(), strict=True)
    print("merged = trained:", all(torch.equal(a, b.to(a.device)) for a, b in pairs))

# For servers: a LoRA with the same change.
print(adapter.export_lora(f"{OUTPUT}/lora", base=base))
