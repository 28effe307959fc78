"""Text classification with layer-wise learning rates: an unmodified Trainer, and one callback.

    python docs/examples/text_classification.py

Trains DistilBERT on six emotions in short texts. MODEL, DATASET (with the columns text and label, and the splits train
and validation), STEPS and CALLBACK=0 for the run without the callback come from the environment. Compare both runs,
with several seeds, before you keep the callback: its effect on accuracy has not been measured (see
docs/learning-rates.md).
"""

import os

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_farms import FarmsLRCallback

MODEL = os.environ.get("MODEL", "distilbert/distilbert-base-uncased")
DATASET = os.environ.get("DATASET", "dair-ai/emotion")
STEPS = int(os.environ.get("STEPS", "-1"))
CALLBACK = os.environ.get("CALLBACK", "1") == "1"
OUTPUT = os.environ.get("OUTPUT", "emotions")

data = load_dataset(DATASET)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
data = data.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
labels = sorted(set(data["train"]["label"]))

model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(labels))


def accuracy(prediction):
    """Return the share of correct labels."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


args = TrainingArguments(
    OUTPUT,
    num_train_epochs=2,
    max_steps=STEPS,
    per_device_train_batch_size=32,
    learning_rate=3e-5,
    warmup_steps=0.1,
    logging_steps=50,
    eval_strategy="epoch" if STEPS < 0 else "no",
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(
    model,
    args,
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=DataCollatorWithPadding(tokenizer),
    processing_class=tokenizer,
    compute_metrics=accuracy,
    callbacks=[FarmsLRCallback()] if CALLBACK else [],
)
trainer.train()
print(trainer.evaluate())

factors = {}
for entry in trainer.state.log_history:
    factors |= {key: value for key, value in entry.items() if key.endswith("/factor")}
for name, factor in factors.items():
    print(f"{name}: {factor:.2f}")

trainer.save_model()
trainer.create_model_card()  # farms_lr.md beside it is a section for the card, with a figure
