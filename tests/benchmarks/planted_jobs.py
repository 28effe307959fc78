"""The models of planted.py, and where their weights and figures are kept."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from planted_conditions import CONDITIONS, Plan, Setting, draw_positions
from planted_models import loss, new_model
from planted_training import train
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

DEVELOPMENT = range(100, 103)
TEST = range(200, 209)
HEALTHY = range(300, 348)
OTHER = range(400, 460)
WIDTHS = range(500, 508)
ACTING = range(600, 610)
# The first is the demo, which is no part of any statistic.
LONG = (0, 700, 701)
LONG_SETTING = Setting(steps=2500, batch=4)

FEED_FORWARD = (64, 128, 128, 256, 256, 384, 512, 768)
# Depth, rate and decay of the models that confirm the false alarms.
OTHER_SETTINGS = [
    Setting(layers=layers, rate=rate, decay=decay) for layers, rate, decay in product((6, 10), (4e-3, 8e-3), (0.0, 0.3))
]


def healthy(family: int, group: str, setting: Setting | None = None) -> Plan:
    return Plan(f"{group}-{family}-healthy", family, group, setting or Setting())


def family_with_defects(family: int, group: str) -> Iterator[Plan]:
    """A healthy twin, then all conditions, two in a model."""
    yield healthy(family, group)
    names = sorted(CONDITIONS)
    random.Random(family).shuffle(names)
    for number, start in enumerate(range(0, len(names), 2)):
        pair = names[start : start + 2]
        positions = draw_positions(family, number, Setting().layers, len(pair))
        yield Plan(f"{group}-{family}-{number}", family, group, planted=dict(zip(positions, pair, strict=True)))


def family_of_widths(family: int) -> Iterator[Plan]:
    widths = list(FEED_FORWARD)
    random.Random(family).shuffle(widths)
    setting = Setting(widths=tuple(widths))
    yield healthy(family, "widths", setting)
    first, second = draw_positions(family, 0, setting.layers, 2)
    planted = {first: "rate-0.3", second: "freeze-30"}
    yield Plan(f"widths-{family}-0", family, "widths", setting, planted)


def two_late(family: int, group: str = "acting", setting: Setting | None = None) -> Plan:
    """Two blocks inserted late, at random positions other than the first and last."""
    inner = sorted(position + 1 for position in draw_positions(family, 0, Setting().layers - 2, 2))
    return Plan(f"{group}-{family}-late", family, group, setting or Setting(), dict.fromkeys(inner, "insert"))


def long_plans() -> list[Plan]:
    """Longer trained pairs: two blocks inserted late, and the healthy twin."""
    return [
        plan
        for family in LONG
        for plan in (two_late(family, "long", LONG_SETTING), healthy(family, "long", LONG_SETTING))
    ]


def all_plans() -> list[Plan]:
    """Every model, ordered so that whatever is finished can be read."""
    defects = [list(family_with_defects(f, "development")) for f in DEVELOPMENT]
    defects += [list(family_with_defects(f, "test")) for f in TEST]
    singles = [
        [healthy(f, "healthy") for f in HEALTHY],
        [healthy(f, "other", OTHER_SETTINGS[f % len(OTHER_SETTINGS)]) for f in OTHER],
    ]
    extra = [[two_late(f) for f in ACTING], [plan for f in WIDTHS for plan in family_of_widths(f)]]
    plans = [*long_plans()[:2], *extra[0], *defects[0]]
    rest = [[plan for family in defects[1:] for plan in family], *singles, extra[1]]
    # Side by side, in proportion to their length.
    order = [
        ((i + 0.5) / len(group), number, plan) for number, group in enumerate(rest) for i, plan in enumerate(group)
    ]
    return [*plans, *(plan for *_, plan in sorted(order, key=lambda entry: entry[:2])), *long_plans()[2:]]


def weights_file(folder: Path, name: str) -> Path:
    return folder / "models" / f"{name}.safetensors"


def trained_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished models by name."""
    return rows_of(folder / "trained.jsonl")


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a file by name, one JSON object in each line; also where only the compressed file is there."""
    return {row["name"]: row for row in json_lines(path)}


def json_lines(path: Path) -> list[dict[str, Any]]:
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists():
        text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else ""
    else:
        text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def train_missing(folder: Path, part: int, parts: int) -> None:
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for plan in all_plans()[part - 1 :: parts]:
        if plan.name in trained_rows(folder):
            continue
        start = time.perf_counter()
        result = train(plan)
        seconds = time.perf_counter() - start
        state = {
            name: value.contiguous() for name, value in result.model.state_dict().items() if name != "lm_head.weight"
        }
        save_file(state, weights_file(folder, plan.name))
        row = plan.as_json() | {
            "seconds": round(seconds, 1),
            "select": round(loss(result.model, "select"), 4),
            "distance": [round(value, 4) for value in result.distance],
            "update": [round(value, 4) for value in result.update],
        }
        append(folder / "trained.jsonl", row)
        print(plan.name, f"{seconds:.0f} s, loss {row['select']}", flush=True)


def plan_of(row: dict[str, Any]) -> Plan:
    setting = row["setting"] | {"widths": tuple(row["setting"]["widths"])}
    planted = {int(index): name for index, name in row["planted"].items()}
    return Plan(row["name"], row["family"], row["group"], Setting(**setting), planted)


def load(folder: Path, plan: Plan) -> LlamaForCausalLM:
    """The trained model of a plan."""
    model = new_model(plan.setting, plan.family)
    model.load_state_dict(load_file(weights_file(folder, plan.name)), strict=False)
    model.tie_weights()
    return model.eval()
