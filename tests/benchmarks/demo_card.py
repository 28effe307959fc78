"""Cards of the demo models: perplexities, alpha of each block, and the place among the models of planted.py."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import torch
from demo_data import CONTEXT, DEMO, VOCABULARY, tokens_of, unigram_perplexity
from planted_conditions import DEFECTS, Plan
from planted_jobs import json_lines
from planted_training import LATE
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms.spectra.analysis import analyze

COMMAND = "python tests/benchmarks/train_demo.py --output hf_farms/demo"
# Stands in the card until --results names the measures of the benchmark.
NO_RESULTS = f"**NOT COMPARED with the benchmark yet: `{COMMAND} --weights RUN --results RUN`.**"
NAMES = {"model": "demo", "model_healthy": "demo-healthy"}


def perplexity(model: torch.nn.Module, tokens: Tensor) -> tuple[float, int]:
    """Perplexity over whole windows, and the number of predicted tokens."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    with torch.no_grad():
        losses = [float(model(input_ids=w[None], labels=w[None]).loss) for w in windows]
    return math.exp(math.fsum(losses) / len(losses)), len(losses) * (CONTEXT - 1)


def separation(alphas: list[float], planted: dict[int, str]) -> float | None:
    """Mean alpha of the defective blocks, minus the median of the healthy blocks other than the first and last.

    Without any planted block, the highest alpha of those blocks minus their median. None: only traps are planted.
    """
    inner = [alpha for i, alpha in enumerate(alphas) if 0 < i < len(alphas) - 1 and i not in planted]
    if not planted:
        return max(inner) - median(inner)
    defective = [alphas[i] for i, condition in planted.items() if condition in DEFECTS]
    return sum(defective) / len(defective) - median(inner) if defective else None


def read_separations(results: Path, *, healthy: bool, but: str) -> list[float]:
    """The separations of all measured models with a defect, or without, in ascending order."""
    rows = json_lines(results / "measured.jsonl")
    values = [
        separation(row["measures"]["farms"], {int(index): name for index, name in row["planted"].items()})
        for row in rows
        # Derived models were made from others without training.
        if row["name"] != but and "derived" not in row and healthy == (not row["planted"])
    ]
    return sorted(value for value in values if value is not None)


def comparison(value: float, others: list[float], kind: str) -> str:
    """Place a separation among those of other models."""
    lower = sum(other < value for other in others)
    return (
        f"In the benchmark this difference is smaller in {lower} of {len(others)} other {kind} models "
        f"(median {median(others):.3f}, range {others[0]:.3f} to {others[-1]:.3f})."
    )


def separation_sentence(value: float, plan: Plan, results: Path | None) -> str:
    healthy = not plan.planted
    measured = (
        f"The highest alpha of the inner blocks is {value:.3f} above their median."
        if healthy
        else f"The mean alpha of the late blocks is {value:.3f} above the median of the other inner blocks."
    )
    if results is None:
        return f"{measured}\n{NO_RESULTS}"
    others = read_separations(results, healthy=healthy, but=plan.name)
    return f"{measured} {comparison(value, others, 'healthy' if healthy else 'defective')}"


def history(plan: Plan) -> str:
    """What was done to which block."""
    if not plan.planted:
        return (
            "All its blocks were trained from the first step to the last. Its twin `demo` has the same initial weights "
            "and the same data in the same order, but two of its blocks were inserted late."
        )
    blocks = " and ".join(map(str, sorted(plan.planted)))
    return (
        f"Blocks {blocks} (counted from 0) are under-trained on purpose: the model was trained without them for "
        f"{LATE:.0%} of the steps, then they were inserted with random weights and trained together with all others. "
        "Its twin `demo-healthy` has the same initial weights and the same data in the same order, and no such block."
    )


def alpha_table(blocks: Any, plan: Plan) -> str:
    lines = ["| block | alpha ± standard error | |", "|---|---|---|"]
    for block in blocks:
        mark = "inserted late" if block.index in plan.planted else ""
        lines.append(f"| {block.index} | {block.alpha:.3f} ± {block.alpha_stderr:.3f} | {mark} |")
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return "\n".join(fill(part, 120, break_on_hyphens=False) for part in text.split("\n"))


def write_card(folder: Path, plan: Plan, results: Path | None) -> None:
    """Measure what is shipped (bfloat16, read back from the folder) and describe it."""
    model = AutoModelForCausalLM.from_pretrained(folder)  # from_pretrained leaves it in evaluation mode
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {split: tokens_of(split, tokenizer) for split in ("train", "select", "test")}
    (on_test, count), (on_select, _) = perplexity(model, text["test"]), perplexity(model, text["select"])
    blocks = analyze(model).blocks
    alphas = [block.alpha for block in blocks if block.alpha is not None]
    torch.manual_seed(plan.family)
    random = [block.alpha for block in analyze(AutoModelForCausalLM.from_config(model.config)).blocks]
    value = separation(alphas, plan.planted)
    assert value is not None
    card = (DEMO / "card.md").read_text(encoding="utf-8")
    card = card.format(
        name=NAMES[folder.name],
        history=_wrapped(history(plan)),
        config=model.config,
        setting=plan.setting,
        plan=plan.name,
        test=on_test,
        select=on_select,
        unigram=unigram_perplexity(text["train"], text["test"]),
        tokens=count,
        command=COMMAND,
        context=CONTEXT,
        parameters=model.num_parameters(),
        vocabulary=VOCABULARY,
        train_tokens=len(text["train"]),
        trained_tokens=plan.setting.steps * plan.setting.batch * CONTEXT,
        alphas=alpha_table(blocks, plan),
        random=(min(random), max(random)),
        separation=_wrapped(separation_sentence(value, plan, results)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{NAMES[folder.name]}: test {on_test:.2f}, select {on_select:.2f}, separation {value:.3f}")
