# %% [markdown]
# # Prune, recover, publish
#
# Half of the weights of a model become zero, the others are fitted to make up for it, and the result is a plain
# checkpoint with a model card. The demo model inside the package needs no download; set MODEL to any model of the
# Hub. With REPO set, the result is uploaded.

# %%
import os

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms import CalibrationConfig, EvaluationConfig, PruneConfig, evaluate_checkpoint, prune_checkpoint, push

MODEL = os.environ.get("MODEL", "demo")
FOLDER = os.environ.get("FOLDER", "pruned")
REPO = os.environ.get("REPO", "")
SAMPLES = int(os.environ.get("SAMPLES", "32"))

# %% [markdown]
# Prune: Wanda scores, and a recovery of each attention and MLP. Give your own text where you have some:
# `CalibrationConfig(source="notes.txt")`. If the run is killed, the same call continues it.

# %%
report = prune_checkpoint(
    MODEL,
    FOLDER,
    config=PruneConfig(sparsity=0.5, recover="submodule"),
    calibration=CalibrationConfig(num_sequences=SAMPLES, sequence_length=256),
    evaluation=EvaluationConfig(max_windows=SAMPLES, context_length=256),
)
print(f"zeros in the pruned layers: {report.sparsity:.1%}")
scores = report.perplexity
print(f"perplexity: {scores.dense:.2f} dense, {scores.pruned:.2f} pruned")
for block in report.blocks:
    for part in block.recovery:
        print(f"{part.name}: error {part.error_before:.3f} before the recovery, {part.error:.3f} after")

# %% [markdown]
# Evaluate: the numbers are added to the report and to the card in the folder. `tasks=["hellaswag"]` runs tasks of
# lm-eval (`pip install "hf-farms[eval]"`).

# %%
results = evaluate_checkpoint(FOLDER, metrics=["sparsity"])

# %% [markdown]
# The folder loads with transformers and nothing else:

# %%
model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
inputs = tokenizer("My fellow citizens", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))

# %% [markdown]
# Publish: an interrupted upload is resumed by the same call. `hf auth login` comes first.

# %%
if REPO:
    print(push(FOLDER, REPO))
else:
    print(f"set REPO=<you>/<name> to upload {FOLDER}")
