"""Functional truth of planted models: the loss drop when only one block trains on. Used by planted.py.

About 5 s for a block on one thread (50 steps and 64 windows of loss), and some 240 blocks: the planted blocks of
defects, the blocks of the healthy twins at their positions, and all blocks of two families' twins and of one model with
defects of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from planted_conditions import DEFECTS, Plan
from planted_jobs import append, load, plan_of, rows_of, trained_rows
from planted_measures import FAMILIES_WITH_DEFECTS
from planted_models import loss, sample

STEPS = 50
# Of the peak rate, as at the end of the schedule.
RATE = 0.1
# Families of which all blocks of two models are measured.
ALL_BLOCKS = (200, 201)


def loss_drop(folder: Path, plan: Plan, block: int, before: float) -> float:
    """Train one block of a finished model; return by how much the loss on the select speeches falls."""
    model = load(folder, plan).requires_grad_(False)
    parameters = list(model.model.layers[block].requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE * plan.setting.rate, betas=(0.9, 0.95), weight_decay=plan.setting.decay, fused=True
    )
    order = torch.Generator().manual_seed(plan.family + 3)
    for _ in range(STEPS):
        batch = sample(order, plan.setting.batch)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return before - loss(model, "select")


def blocks_to_train(plans: Iterable[Plan]) -> dict[str, list[int]]:
    """Blocks of each model that are trained alone, by name; twins of models only if they are finished."""
    plans = [plan for plan in plans if plan.group in FAMILIES_WITH_DEFECTS]
    twins = {plan.family: plan for plan in plans if not plan.planted}
    chosen: dict[str, set[int]] = {}
    whole: set[int] = set()
    for plan in plans:
        defects = {index for index, name in plan.planted.items() if name in DEFECTS}
        twin = twins.get(plan.family)
        if not defects or twin is None:
            continue
        if plan.family in ALL_BLOCKS and plan.family not in whole:
            whole.add(plan.family)
            defects = set(range(plan.setting.layers))
        chosen.setdefault(plan.name, set()).update(defects)
        chosen.setdefault(twin.name, set()).update(defects)
    return {name: sorted(blocks) for name, blocks in chosen.items()}


def train_blocks(folder: Path, output: Path, part: int = 1, parts: int = 1) -> None:
    """Append the loss drops that are missing to truth.jsonl, one line for each block."""
    output.mkdir(parents=True, exist_ok=True)
    trained = trained_rows(folder)
    finished = rows_of(output / "truth.jsonl")
    numbers = {name: number for number, name in enumerate(trained)}
    start, count = time.perf_counter(), 0
    for name, blocks in blocks_to_train(map(plan_of, trained.values())).items():
        if numbers[name] % parts != part - 1:
            continue
        plan = plan_of(trained[name])
        missing = [block for block in blocks if f"{name}-block-{block}" not in finished]
        before = loss(load(folder, plan), "select") if missing else 0.0
        for block in missing:
            row: dict[str, Any] = {"name": f"{name}-block-{block}", "model": name, "block": block}
            append(output / "truth.jsonl", row | {"drop": round(loss_drop(folder, plan, block, before), 6)})
            count += 1
    print(f"{count} blocks trained in {time.perf_counter() - start:.0f} s")


def truth_of(output: Path) -> dict[tuple[str, int], float]:
    """Loss drops by model and block."""
    return {(row["model"], row["block"]): row["drop"] for row in rows_of(output / "truth.jsonl").values()}
