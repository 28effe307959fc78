"""The table of families in docs/models.md and README: what each one is tried with, on a tiny random model.

python tests/support/support_table.py   writes both
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
from families import FAMILIES, family_model

from hf_farms import FarmsLRCallback, FarmsLRConfig, PruneConfig, S2FTAdapter, S2FTConfig, analyze, apply_s2ft, prune
from hf_farms.errors import HfFarmsError

ROOT = Path(__file__).parents[2]
COLUMNS = ("analyze", "prune", "learning rates", "S²FT", "adapters")
YES, NO, PART, MAGNITUDE = "✓", "–", "attention", "magnitude"
# One row for the variants of a family.
SAME = {"falcon_multi_query": "falcon", "falcon_old": "falcon"}
# Model types as people know them.
NAMES = {"gemma3_text": "gemma3 (text)", "llama4_text": "llama4"}
REGION = re.compile(r"(<!-- support table.*? -->\n)(.*?)(<!-- end of it -->)", re.DOTALL)


def batch_of(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 99, (2, 12), generator=generator)
    if name in ("vit", "resnet"):
        size = 16 if name == "vit" else 32
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator), "labels": torch.tensor([0, 1])}
    return {"input_ids": ids, "labels": ids}


def logs(model: Any, batch: dict[str, torch.Tensor], callback: Any, folder: str) -> set[str]:
    """Names that a step of an unmodified Trainer logs."""
    args = transformers.TrainingArguments(
        folder, max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", report_to="none", learning_rate=1e-3
    )
    data = [{key: values[0] for key, values in batch.items()}] * 8
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[callback])
    trainer.train()
    return {key for entry in trainer.state.log_history for key in entry}


def cells(name: str, folder: str) -> tuple[str, ...]:
    """What of a family works, in the order of the columns; a refusal is a no, anything else an error."""
    batch, model = batch_of(name), family_model(name)
    assert all(block.alpha is not None for block in analyze(model).blocks)
    if name == "t5":
        model.config.decoder_start_token_id = 0
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1, shrink=False))
    assert any(key.startswith("farms_lr/") and key.endswith("/factor") for key in logs(model, batch, callback, folder))
    trained = first_allowed([(YES, ("o", "down")), (PART, ("o",))], lambda roles: merged(name, roles))
    return (
        YES,
        first_allowed([(YES, "wanda"), (MAGNITUDE, "magnitude")], lambda m: pruned(name, m)),
        YES,
        trained,
        trained,
    )


def first_allowed(choices: list[tuple[str, Any]], attempt: Callable[[Any], bool]) -> str:
    """The mark of the first choice that is not refused and has an effect."""
    for mark, choice in choices:
        with contextlib.suppress(HfFarmsError):
            if attempt(choice):
                return mark
    return NO


def pruned(name: str, method: str) -> bool:
    inputs = {key: values for key, values in batch_of(name).items() if key != "labels"}
    prune(family_model(name), PruneConfig(method=method, allocation="uniform"), calibration=[inputs])
    return True


def merged(name: str, roles: tuple[str, ...]) -> bool:
    """Whether S²FT selects anything; if so its adapter is merged into the base."""
    model = family_model(name)
    if selected := bool(apply_s2ft(model, S2FTConfig(budget=0.05, roles=roles)).channels):
        S2FTAdapter.from_model(model).merge(family_model(name))
    return selected


def rows() -> dict[str, tuple[str, ...]]:
    """Cells of every family, under its name in the table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {NAMES.get(name, name): cells(name, folder) for name in FAMILIES if name not in SAME}


def long_table(found: dict[str, tuple[str, ...]]) -> str:
    """A row for each family."""
    return _table([(f"`{name}`", *values) for name, values in found.items()])


def short_table(found: dict[str, tuple[str, ...]]) -> str:
    """A row for all families with the same cells, the largest first."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, values in found.items():
        alike.setdefault(values, []).append(name)
    ordered = sorted(alike.items(), key=lambda item: -len(item[1]))
    return _table([(", ".join(names), *values) for values, names in ordered])


def _table(lines: list[tuple[str, ...]]) -> str:
    head = [("family", *COLUMNS), ("---", *[":-:"] * len(COLUMNS))]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*head, *lines])


PAGES = {"README.md": short_table, "docs/models.md": long_table}


def shown(page: str) -> str:
    """The table of a page."""
    match = REGION.search((ROOT / page).read_text(encoding="utf-8"))
    assert match, page
    return match[2].strip() + "\n"


if __name__ == "__main__":
    results = rows()
    for page, table in PAGES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = REGION.sub(lambda match, table=table: f"{match[1]}\n{table(results)}\n{match[3]}", text)
        path.write_text(new, encoding="utf-8")
        print(f"{page}: {'unchanged' if new == text else 'written'}")
