"""Codes of weights: the masks of all levels of a layer in one byte per weight.

Methods that only set weights to zero (Wanda, magnitude) remove more weights at a higher level, and never others: the
masks are nested. So the first level at which a weight is removed tells all masks. A model of 7 billion weights takes
6.5 GB, where five copies of it would take 65 GB.

Symbols: layer (out, in); codes (out, in) uint8, level k removes where codes <= k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_farms.blocks import BlockSource, LayerView
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.block_loop import WITHOUT_INPUTS
from hf_farms.pruning.calibration_pass import CalibrationPass
from hf_farms.pruning.hidden_states import HiddenStates, reserve
from hf_farms.pruning.measuring import LayerStatistic, measure, measurement_passes
from hf_farms.pruning.methods import PruningMethod, pruning_method
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.registries import METHODS
from hf_farms.search.grid import Grid

__all__ = ["NEVER", "PROXY", "LevelCodes", "build_codes", "code_method", "level_codes", "size_text"]

# Code of a weight that no level removes.
NEVER = 255
# Stands in for a method that also changes the weights that it keeps: its masks are not nested.
PROXY = "wanda"


def code_method(method: str) -> str:
    """Return the method whose masks are used in the search: the method itself, or `PROXY`."""
    return PROXY if METHODS[method].adjusts else method


def size_text(grid: Grid, folder: Path | None) -> str:
    """Return the space of all codes, such as "6.5 GB on disk"."""
    size, where = sum(grid.sizes), "in memory" if folder is None else "on disk"
    return f"{size / 1e9:.1f} GB {where}" if size >= 1e9 else f"{size / 1e6:.1f} MB {where}"


class LevelCodes:
    """Codes of all layers, one list of tensors per block, in memory or in mapped files.

    Args:
        folder: folder for one file per block; None to keep them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._blocks: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Return the codes of the layers of one block, in the order of `prunable_layers`."""
        return self._blocks[index]

    def append(self, codes: Sequence[Tensor]) -> None:
        """Add the codes of the next block."""
        if self._folder is None or not codes:
            self._blocks.append(list(codes))
            return
        path, size = self._folder / f"{len(self)}.codes", sum(part.numel() for part in codes)
        reserve(path, size, argument="codes")
        mapped = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        parts = mapped.split([part.numel() for part in codes])
        self._blocks.append([view.view(part.shape).copy_(part) for view, part in zip(parts, codes, strict=True)])


def build_codes(
    source: BlockSource,
    grid: Grid,
    *,
    method: str,
    batches: Sequence[Mapping[str, Tensor]],
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> LevelCodes:
    """Rank the weights of all layers of the dense model, in one pass over the blocks.

    Args:
        source: the dense model.
        grid: the levels.
        method: a method that only sets weights to zero.
        batches: calibration data, for a method that needs activations.
        folder: for codes and hidden states; None keeps both in memory.
        progress: called with ("levels (SIZE)", blocks done, blocks in all).
    """
    functions, codes = pruning_method(method), LevelCodes(folder)
    with source.evaluation(), torch.no_grad():
        data = CalibrationPass(source, batches if functions.statistic else [], HiddenStates(folder), progress)
        for index in range(len(source)):
            block = source.open(index)
            layers = prunable_layers(block.layers)
            by_name: dict[str, Tensor] = {}
            for part in measurement_passes(layers, functions.statistic) if functions.statistic else [layers]:
                runs = data.runs(block, index)
                measured = measure(part, functions.statistic, runs) if functions.statistic else {}
                by_name |= {x.name: _layer_codes(x, grid, functions, measured.pop(x.name, None)) for x in part}
            codes.append([by_name[layer.name] for layer in layers])
            if functions.statistic and index < len(source) - 1:
                data.advance(block, index)
            progress(f"levels ({size_text(grid, folder)})", index + 1, len(source))
    return codes


def _layer_codes(layer: LayerView, grid: Grid, method: PruningMethod, measured: LayerStatistic | None) -> Tensor:
    prepared = None
    if measured is not None and measured.num_tokens == 0:
        method = pruning_method(WITHOUT_INPUTS)
    elif measured is not None:
        prepared = measured.prepared()
    return level_codes(layer.read(), method.prune, prepared, grid)


def level_codes(weight: Tensor, prune: Callable[[Tensor, Any, Removal], Tensor], prepared: Any, grid: Grid) -> Tensor:
    """Return the first level at which `prune` removes each weight.

    Args:
        weight: `(out, in)`.
        prune: function of a method that only sets weights to zero.
        prepared: prepared statistic that the method needs.
        grid: the levels.

    Returns:
        `(out, in)` uint8 on the CPU; `NEVER` where no level removes the weight.
    """
    recorder = _Recorder(0)
    prune(weight, prepared, recorder)
    if recorder.scores:
        ranked = _group_codes(recorder.scores[0], grid) if grid.grouped else _row_codes(recorder.scores[0], grid)
        return ranked.cpu()
    # A method that chooses without `Removal.mask` is called at every level.
    codes = torch.full(weight.shape, NEVER, dtype=torch.uint8, device=weight.device)
    for level in range(grid.top, 0, -1):
        codes[prune(weight, prepared, level_removal(weight.numel(), level, grid)) == 0] = level
    return codes.cpu()


def level_removal(weights: int, level: int, grid: Grid) -> Removal:
    """Return what a level removes from a layer with so many weights."""
    if grid.grouped:
        return Removal(weights * level // grid.steps, (level, grid.steps))
    return Removal(round(weights * level / grid.steps))


@dataclass(frozen=True)
class _Recorder(Removal):
    """Record the scores that a method passes to `Removal.mask`, and remove nothing."""

    @property
    def scores(self) -> list[Tensor]:
        recorded: list[Tensor] = self.__dict__.setdefault("_scores", [])
        return recorded

    def mask(self, scores: Tensor) -> Tensor:
        self.scores.append(scores)
        return torch.zeros_like(scores, dtype=torch.bool)


def _row_codes(scores: Tensor, grid: Grid) -> Tensor:
    """Return the codes for the masks of `lowest_per_row`, with one sort per row."""
    rows, columns = scores.shape
    ordered, order = scores.sort(dim=1, stable=True)
    codes = torch.full((rows, columns), NEVER, dtype=torch.uint8, device=scores.device)
    for level in range(grid.top, 0, -1):
        per_row, extra = divmod(level_removal(rows * columns, level, grid).count, rows)
        codes[:, :per_row] = level
        if extra:
            # Rows whose next lowest score is lowest lose one weight more.
            chosen = ordered[:, per_row].sort(stable=True).indices[:extra]
            codes[chosen, per_row] = level
    return torch.empty_like(codes).scatter_(1, order, codes)


def _group_codes(scores: Tensor, grid: Grid) -> Tensor:
    """Return the codes for the masks of `lowest_of_groups`: one more than the rank inside the group."""
    groups = scores.reshape(-1, grid.steps)
    ranks = torch.empty_like(groups, dtype=torch.uint8)
    places = torch.arange(1, grid.steps + 1, dtype=torch.uint8, device=scores.device).expand(len(groups), -1)
    ranks.scatter_(1, groups.sort(dim=1, stable=True).indices, places)
    return ranks.masked_fill_(ranks > grid.top, NEVER).reshape(scores.shape)
