"""The rows of allocations.py: prune with one calibration seed, and measure every window of the test text."""

from __future__ import annotations

import argparse
import fcntl
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from allocations_choice import choice_file
from allocations_model import Subject, Windows, calibration, first_alone, placebo, selection, with_outlier_bound

from hf_farms import PruneConfig, prune

PLACEBOS = ("sorted", "reversed", "shuffled")
TUNED = ("tuned ramp", "tuned owl", "tuned dlp")
# "auto recovered" recovered its last plans, "auto half" one plan less; "auto quarter" is a quarter of `auto`.
SEARCHED = ("sensitivity", "auto", "auto recovered", "auto half", "auto quarter", "random")
# Given as sparsities of the blocks.
GIVEN = ("first", *SEARCHED)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pruning."""

    sparsity: float
    allocation: str
    method: str = "wanda"
    pattern: str = "unstructured"
    refine: str = "none"
    recover: str = "none"
    # Calibration sequences, as a multiple of the default.
    data: int = 1
    # Of the recovery by submodule; the first rows have this number, and no word of it in their names.
    passes: int = 3
    # Continuations that the dense model writes, as a multiple of the sequences.
    written: int = 0

    @property
    def name(self) -> str:
        """A name that tells cells apart."""
        values = [value for name, value in asdict(self).items() if name not in ("passes", "written")]
        text = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        passes = "" if self.passes == 3 else f" {self.passes}-passes"
        return f"{text}{passes}{f' {self.written}-written' if self.written else ''}"


def _cells(sparsity: float, allocations: tuple[str, ...], **options: Any) -> list[Cell]:
    return [Cell(sparsity=sparsity, allocation=allocation, **options) for allocation in allocations]


PLAIN = ("uniform", "farms", "ramp", "owl", "dlp", "alpha", "sorted")
CHOSEN = ("auto", "tuned ramp", "sensitivity", "random", "tuned owl", "tuned dlp")
AFTER = ("uniform", "auto", "tuned ramp")
# With a spread of 0.3: patterns round the default away.
WIDE = ("wide farms", "wide ramp")
# In the order in which they are run.
TIERS: dict[str, list[Cell]] = {
    "wanda-50": _cells(0.5, PLAIN),
    "chosen-50": _cells(0.5, CHOSEN),
    "sparsegpt-50": _cells(0.5, ("uniform", "farms", "auto", "tuned ramp"), method="sparsegpt"),
    "recovered-50": _cells(0.5, AFTER, refine="swaps", recover="submodule"),
    "distilled-50": _cells(0.5, ("uniform", "auto"), refine="swaps", recover="distill", data=4),
    "wanda-60": _cells(0.6, PLAIN),
    "chosen-60": _cells(0.6, CHOSEN),
    "sparsegpt-60": _cells(0.6, ("uniform", "farms", "auto", "tuned ramp"), method="sparsegpt"),
    "recovered-60": _cells(0.6, AFTER, refine="swaps", recover="submodule"),
    "swaps-50": _cells(0.5, ("uniform", "auto"), refine="swaps"),
    "wanda-30": _cells(0.3, ("uniform", "farms", "ramp", "owl", "dlp", "sorted")),
    "chosen-30": _cells(0.3, ("auto", "tuned ramp", "sensitivity")),
    "magnitude": _cells(0.5, ("uniform", "farms"), method="magnitude"),
    "2:4": [
        Cell(sparsity=0.5, allocation="uniform", pattern="2:4", method=method, refine=refine)
        for method, refine in (("wanda", "none"), ("sparsegpt", "none"), ("wanda", "swaps"))
    ],
    "N:8": _cells(0.5, ("uniform", *WIDE, "farms", "ramp", "auto"), pattern="N:8"),
    "placebos": [cell for sparsity in (0.5, 0.6) for cell in _cells(sparsity, ("first", "reversed", "shuffled"))],
    "placebos-30": _cells(0.3, ("reversed", "shuffled")),
    "plain-recovery": _cells(0.5, AFTER, recover="submodule"),
    "plain-recovery-60": _cells(0.6, ("uniform", "auto"), recover="submodule"),
    # As `auto` compares plans before a recovery.
    "pass-1": [
        *_cells(0.5, ("auto", "uniform", "auto quarter", "farms"), recover="submodule", passes=1),
        *_cells(0.6, ("auto", "auto half", "uniform", "auto quarter", "farms"), recover="submodule", passes=1),
    ],
    "passes-50": _cells(0.5, ("auto recovered", "auto", "uniform"), recover="submodule", passes=6),
    "passes-60": _cells(0.6, ("auto recovered", "auto", "auto half", "uniform"), recover="submodule", passes=6),
    "quarter-60": _cells(0.6, ("auto quarter", "farms"), recover="submodule", passes=6),
    # The default allocation without a recovery, before one.
    "farms-recovered": [Cell(sparsity=s, allocation="farms", recover="submodule", passes=6) for s in (0.5, 0.6)],
    "ramp-recovered": [Cell(sparsity=s, allocation="tuned ramp", recover="submodule", passes=6) for s in (0.5, 0.6)],
    "farms-written": [
        Cell(sparsity=s, allocation="farms", recover="submodule", passes=2, written=3) for s in (0.6, 0.5)
    ],
    "written-50": _cells(0.5, ("auto", "uniform"), recover="submodule", passes=2, written=3),
    # Four times the text, for as many steps.
    "text-50": _cells(0.5, ("auto", "uniform"), recover="submodule", passes=2, data=4),
    "written-60": _cells(0.6, ("auto", "uniform"), recover="submodule", passes=2, written=3),
    # With the plan that `auto` takes for a model that is recovered, and an earlier choice.
    "written-auto": [
        *_cells(0.6, ("auto recovered", "auto half"), recover="submodule", passes=2, written=3),
        *_cells(0.5, ("auto recovered",), recover="submodule", passes=2, written=3),
    ],
    # Blocks and whole model are fitted to the sequences and their continuations.
    "distilled-written": [
        Cell(sparsity=sparsity, allocation=allocation, recover="distill", written=3)
        for sparsity, allocation in ((0.5, "uniform"), (0.5, "auto"), (0.6, "uniform"), (0.6, "auto recovered"))
    ],
    # Eight times the tokens of the default without continuations; all text, or a quarter of it.
    "most-text-50": _cells(0.5, ("auto",), recover="submodule", passes=2, data=8),
    "most-written-50": _cells(0.5, ("auto",), recover="submodule", passes=2, data=2, written=3),
    "zero-shot": _cells(0.5, ("uniform",)) + _cells(0.5, ("uniform", "auto"), refine="swaps", recover="submodule"),
    "more-data-50": _cells(0.5, ("auto", "uniform"), refine="swaps", recover="submodule", data=4),
}


def measure(options: argparse.Namespace) -> None:
    """Measure all cells that are missing; cells that need a choice which is not made yet are left out."""
    subject = Subject.load(options)
    windows = Windows(subject, options.test, count=options.windows, context=options.context)
    rows = options.folder / "rows.jsonl"
    if not rows.exists():
        nll, _ = windows.losses(subject)
        _append(rows, {"name": "dense", "seed": 0, "nll": nll, "kl": [0.0] * len(nll)})
    while todo := list(_missing(options)):
        measured = 0
        for cell, seed in todo:
            with _claimed(options.folder, f"{cell.name} {seed}") as mine:
                if mine and (cell, seed) in set(_missing(options)):
                    _append(rows, _row(subject, windows, cell, seed, options))
                    measured += 1
                    break
        if not measured:
            return


def _missing(options: argparse.Namespace) -> Iterator[tuple[Cell, int]]:
    rows = [json.loads(line) for line in (options.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    done = {(row["name"], row["seed"]) for row in rows}
    for tier in options.tiers or TIERS:
        for seed in options.seeds:
            for cell in TIERS[tier]:
                if (cell.name, seed) not in done and all(path.exists() for path in _needed(cell, options.folder)):
                    yield cell, seed


def _needed(cell: Cell, folder: Path) -> list[Path]:
    """The choices that a cell needs."""
    name = {"sensitivity": "auto", "auto quarter": "auto"}.get(
        cell.allocation, cell.allocation.removeprefix("tuned ").replace(" ", "-")
    )
    if cell.allocation not in (*TUNED, *SEARCHED):
        return []
    return [choice_file(folder, name, cell.sparsity, cell.pattern)]


def _row(subject: Subject, windows: Windows, cell: Cell, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    sequences = options.sequences * cell.data
    batches = calibration(subject, options, seed=seed, sequences=sequences, continuations=cell.written * sequences)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = _pruned(subject, cell, batches, options)
    seconds = time.perf_counter() - start
    if options.save:
        subject.model.save_pretrained(options.save / cell.name.replace(" ", "_"))
        subject.tokenizer.save_pretrained(options.save / cell.name.replace(" ", "_"))
    nll, kl = windows.losses(subject)
    row = {"name": cell.name, "seed": seed, **asdict(cell), "seconds": round(seconds, 1), "total": report.sparsity}
    print(f"{cell.name}, seed {seed}: {sum(nll) / len(nll):.4f}, {seconds:.0f} s", flush=True)
    blocks = [round(block.sparsity, 4) for block in report.blocks]
    parts = [part for block in report.blocks for part in block.recovery]
    refused = sum(not part.accepted for part in parts)
    device = torch.cuda.get_device_name() if subject.model.device.type == "cuda" else "cpu"
    row |= {"device": device, "blocks": blocks, "refused": refused, "notes": report.notes}
    return row | {"nll": nll, "kl": kl}


def _pruned(subject: Subject, cell: Cell, batches: list[Any], options: argparse.Namespace) -> Any:
    name, bound = cell.allocation.removeprefix("wide "), None
    passes = cell.passes if cell.recover == "submodule" else None
    given: dict[str, Any] = {"selection": selection(subject, options)} if cell.recover != "none" else {}
    config = PruneConfig(
        sparsity=cell.sparsity,
        method=cell.method,
        pattern=cell.pattern,
        refine=cell.refine,
        recover=cell.recover,
        recover_passes=passes,
        allocation=name if name not in (*PLACEBOS, *TUNED, *GIVEN) else "farms" if name in PLACEBOS else "auto",
        spread=0.3 if cell.allocation in WIDE else None,
    )
    if name in ("farms", "alpha"):
        given["spectra"] = subject.spectra[name]
    elif name == "first":
        subject.restore()
        given["scores"] = first_alone(subject, replace(config, allocation="farms"))
    elif name in PLACEBOS:
        given["spectra"] = placebo(subject.spectra["farms"], name)
    elif name in SEARCHED or name in TUNED:
        chosen = json.loads(_needed(cell, options.folder)[0].read_text(encoding="utf-8"))
        if name in TUNED:
            bound = chosen.get("outlier")
            config = PruneConfig(
                sparsity=cell.sparsity,
                method=cell.method,
                pattern=cell.pattern,
                refine=cell.refine,
                recover=cell.recover,
                recover_passes=passes,
                allocation=name.removeprefix("tuned "),
                spread=chosen["spread"],
            )
        else:
            given["scores"] = chosen["sensitivity" if name == "sensitivity" else "sparsities"]
            if name == "auto quarter":
                given["scores"] = [cell.sparsity + (value - cell.sparsity) / 4 for value in given["scores"]]
    subject.restore()
    with with_outlier_bound(bound) if bound else nullcontext():
        return prune(subject.model, config, calibration=batches, **given).report


@contextmanager
def _claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether no other process works on this; a lock ends with its process."""
    path = folder / "claims" / name.replace(":", "")
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
