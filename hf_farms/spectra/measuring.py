"""Measure the planned layers of a model, a few at a time: whole weights, or weights that are sharded over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from hf_farms.blocks import BlockReader, LayerMetadata, LayerView, ModelBlockSource
from hf_farms.blocks.layers import check_finite
from hf_farms.blocks.partitioned import gathered
from hf_farms.config import FarmsConfig
from hf_farms.errors import ModelError
from hf_farms.processes import Ranks, assign_to_ranks
from hf_farms.reports import LayerRecord
from hf_farms.spectra.spectrum import LayerSpectrum, layer_spectra
from hf_farms.spectra.windows import WindowPlan

__all__ = ["Task", "measure", "measure_shards"]

# Bytes of weights that are read and measured together, so that batches of small matrices (experts) use the full device;
# on a GPU a whole block of a model of 7B.
BATCH_BYTES = 128 * 2**20
GPU_BATCH_BYTES = 2**30


@dataclass(frozen=True)
class Task:
    """Layer to measure, and its windows."""

    block: int  # index of its block; len(source) for embeddings and head
    position: int  # index among the layers of the block
    layer: LayerMetadata
    plan: WindowPlan

    @property
    def cost(self) -> float:
        """Approximate multiply-adds of the Gram matrices and the eigenvalue solver."""
        short, long = sorted((self.plan.rows, self.plan.cols))
        return self.plan.num_windows * short * short * (long + 4.0 * short)


# (block, position) -> record.
Records = dict[tuple[int, int], LayerRecord]


def measure(
    source: BlockReader,
    tasks: Sequence[Task],
    config: FarmsConfig,
    device: str | torch.device | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Records, list[str]]:
    """Measure layers; return the records, and the adapters that were not applied, each with the reason."""
    records: Records = {}
    left_out: dict[str, None] = {}
    if progress is not None and tasks:
        progress(0, len(tasks))
    for batch in _batches(tasks, _batch_bytes(source, device)):
        views = _views(source, batch[0].block)
        weights = [views[task.position].read(check=False) for task in batch]
        records |= _measure_batch(batch, weights, config, device)
        left_out |= dict.fromkeys(reason for task in batch for reason in views[task.position].left_out)
        if progress is not None:
            progress(len(records), len(tasks))
    return records, list(left_out)


def measure_shards(
    source: ModelBlockSource,
    tasks: Sequence[Task],
    config: FarmsConfig,
    device: str | torch.device | None,
    progress: Callable[[int, int], None] | None,
    ranks: Ranks,
) -> tuple[Records, list[str]]:
    """Measure the share of this process as `measure`; all processes gather every weight together, in the same order.

    Each keeps the weights of its share of a round, and measures them while the others measure theirs.
    """
    records: Records = {}
    left_out: dict[str, None] = {}
    failure: Exception | None = None
    limit = ranks.count * _batch_bytes(source, device)
    for batch in _batches(tasks, limit, within_block=False):
        own = set(assign_to_ranks([task.cost for task in batch], ranks.count)[ranks.index])
        weights: dict[int, Tensor] = {}
        for parameter, members in groupby(enumerate(batch), lambda pair: pair[1].layer.parameter):
            # Layers in one parameter (experts) are gathered once.
            with gathered([source.model.get_parameter(parameter)]):
                for number, task in members:
                    view = _views(source, task.block)[task.position]
                    weight = view.read(check=False)
                    left_out |= dict.fromkeys(view.left_out)
                    if number in own:
                        weights[number] = weight
        try:
            mine = [batch[number] for number in sorted(weights)] if failure is None else []
            records |= _measure_batch(mine, [weights[number] for number in sorted(weights)], config, device)
        except Exception as error:  # the others wait for this process at the next weight
            failure = error
        if progress is not None:
            progress(len(records), len(tasks))
    if failure is not None:
        raise failure
    return records, list(left_out)


def _views(source: BlockReader, block: int) -> Sequence[LayerView]:
    return source.open(block).layers if block < len(source) else source.outside


def _batch_bytes(source: BlockReader, device: str | torch.device | None) -> int:
    place: str | torch.device = device if device is not None else getattr(source, "device", "cpu")
    return GPU_BATCH_BYTES if torch.device(place).type == "cuda" else BATCH_BYTES


def _batches(tasks: Sequence[Task], limit: int, *, within_block: bool = True) -> Iterator[list[Task]]:
    """Group consecutive layers, by default those of one block, up to a number of bytes."""
    batch: list[Task] = []
    size = 0
    for task in tasks:
        # The dtype is only known once the weight is read: assume float32.
        weight = 4 * torch.Size(task.layer.shape).numel()
        if batch and ((within_block and task.block != batch[0].block) or size + weight > limit):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += weight
    if batch:
        yield batch


def _measure_batch(
    tasks: Sequence[Task], weights: list[Tensor], config: FarmsConfig, device: str | torch.device | None
) -> Records:
    """Measure some weights together."""
    if not tasks:
        return {}
    if device is not None:
        weights = [weight.to(device) for weight in weights]
    try:
        spectra = layer_spectra(weights, config, plans=[task.plan for task in tasks])
    except ValueError as error:
        for task, weight in zip(tasks, weights, strict=True):
            check_finite(task.layer.name, weight)
        raise ModelError(f"{tasks[0].layer.name}: {error}") from error
    return {
        (task.block, task.position): _layer_record(task.layer, spectrum)
        for task, spectrum in zip(tasks, spectra, strict=True)
    }


def _layer_record(layer: LayerMetadata, spectrum: LayerSpectrum) -> LayerRecord:
    excluded = ("eigenvalues", "rows_lowered", "window_alphas")
    numbers = {name: value for name, value in vars(spectrum).items() if name not in excluded}
    record = LayerRecord(name=layer.name, role=layer.role, shape=layer.shape, **numbers)
    # For a comparison in the same run, and not for files: no field of the record.
    object.__setattr__(record, "window_alphas", spectrum.window_alphas)
    return record
