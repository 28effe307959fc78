# %% [markdown]
# # Watch a training
#
# `FarmsLRConfig(monitor=True)` measures alpha during a training and changes nothing: the training is bit by bit the
# one without the callback. This script goes on training the demo model, in which blocks 3 and 5 were inserted late,
# and prints whether their alphas come closer to those of the others. It needs no download and no GPU; put your own
# model and data in the place of these.

# %%
import os

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.demo import demo_model, demo_text

STEPS = int(os.environ.get("STEPS", "100"))

# %% [markdown]
# A model, and text in windows of 128 tokens:

# %%
tokenizer = AutoTokenizer.from_pretrained(demo_model())
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype="float32")

tokens = tokenizer(demo_text("calibration").read_text(encoding="utf-8"))["input_ids"]
windows = [tokens[start : start + 128] for start in range(0, len(tokens) - 128, 128)]
data = Dataset.from_dict({"input_ids": windows})

# %% [markdown]
# An unmodified Trainer with the callback. Five measurements; by default there are ten, or fewer if they would take
# more than 1% of the time.

# %%
args = TrainingArguments(
    "monitor",
    max_steps=STEPS,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    logging_steps=max(1, STEPS // 5),
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(
    model,
    args,
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    callbacks=[FarmsLRCallback(FarmsLRConfig(monitor=True, start=0, interval=max(1, STEPS // 5)))],
)
trainer.train()

# %% [markdown]
# Alphas are in the log history, in the trackers of the Trainer, and with a figure in the output folder:

# %%
for entry in trainer.state.log_history:
    alphas = {int(key.split(".")[2].split("/")[0]): value for key, value in entry.items() if key.endswith("/alpha")}
    if alphas:
        others = [alpha for block, alpha in alphas.items() if block not in (3, 5)]
        mean = sum(others) / len(others)
        print(
            f"step {entry['step']:4}: block 3 {alphas[3]:.3f}, block 5 {alphas[5]:.3f}, mean of the others {mean:.3f}"
        )
print(sorted(os.listdir("monitor")))
