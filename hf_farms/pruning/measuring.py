"""Measure statistics of the layer inputs of one block on the calibration data.

Layers with the same input tensor (q, k and v; gate and up) share one statistic, and the method processes it once.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

from hf_farms.blocks import LayerView, TokenMask
from hf_farms.errors import ModelError
from hf_farms.processes import ONE_PROCESS, WorkingRanks
from hf_farms.pruning.methods import Statistic

__all__ = ["LayerStatistic", "Run", "measure", "measurement_passes"]

# Limit on the statistics of experts held at once, in bytes: 128 Hessians can be larger than a block.
BYTES_AT_ONCE = 2**32

# Parameter and expert: layers of one key always have the same input.
Key = tuple[str, int | None]
# Function that runs the block on one batch, and the mask of its tokens.
Run = tuple[Callable[[], object], TokenMask | None]


class LayerStatistic:
    """Statistic of the inputs of one layer, or of several layers with the same input.

    Args:
        statistic: statistic of the inputs.
        name: name of the first layer, for warnings.
        options: arguments of the statistic's `prepared`.
    """

    def __init__(self, statistic: Statistic, name: str, options: Mapping[str, Any]) -> None:
        self.num_tokens, self._name, self._options = statistic.num_tokens, name, options
        self._statistic: Statistic | None = statistic
        self._prepared: Any = None

    def prepared(self) -> Any:
        """Return the prepared statistic that the method needs. Computed once; the raw statistic is then freed."""
        if self._statistic is not None:
            self._prepared, self._statistic = self._statistic.prepared(self._name, **self._options), None
        return self._prepared


def measurement_passes(layers: Sequence[LayerView], statistic: type[Statistic]) -> Iterator[list[LayerView]]:
    """Group layers into passes over the calibration data whose statistics fit into `BYTES_AT_ONCE`.

    Usually a single pass. Large sets of experts are split into groups, with the other layers last. Experts do not
    depend on each other, so one group can be pruned before the next is measured.
    """
    by_expert: defaultdict[int, dict[Key, LayerView]] = defaultdict(dict)
    for layer in layers:
        if (expert := layer.metadata.part.expert) is not None:
            by_expert[expert][_key(layer)] = layer
    sizes = {e: sum(statistic.nbytes(v.metadata.shape[1]) for v in views.values()) for e, views in by_expert.items()}
    if sum(sizes.values()) <= BYTES_AT_ONCE:
        yield list(layers)
        return
    portion: set[int] = set()
    for expert, size in sizes.items():
        if portion and sum(sizes[e] for e in portion) + size > BYTES_AT_ONCE:
            yield [layer for layer in layers if layer.metadata.part.expert in portion]
            portion = set()
        portion.add(expert)
    yield [layer for layer in layers if layer.metadata.part.expert in portion]
    yield [layer for layer in layers if layer.metadata.part.expert is None]


def measure(
    layers: Sequence[LayerView],
    statistic: type[Statistic],
    runs: Iterable[Run],
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    ranks: WorkingRanks = ONE_PROCESS,
) -> dict[str, LayerStatistic]:
    """Run a block on the calibration data and measure the inputs of its layers.

    The first run detects layers with a common input.

    Args:
        layers: layers of one block.
        statistic: type of the statistic.
        runs: one per batch.
        options: arguments of the statistic's `prepared`.
        ranks: with several processes, each has runs of its own, or none; all return the statistics of all runs.

    Returns:
        Statistics by layer name. `num_tokens` is 0 for experts without tokens, and for layers whose weight is used
        without calling their module (the step size of Mamba).

    Raises:
        ModelError: no layer is used, inputs of experts are not visible, or inputs contain NaN or infinity.
    """
    first: dict[Key, LayerView] = {}
    for layer in layers:
        first.setdefault(_key(layer), layer)
    statistics: dict[Key, Statistic] = {}
    for run, token_mask in runs:
        if not statistics:
            statistics = _first_run(first, statistic, run, token_mask)
        else:
            # One layer records for all layers that share its statistic.
            recorders = {id(s): key for key, s in reversed(statistics.items())}
            _record_inputs({key: statistics[key].add for key in recorders.values()}, first, run, token_mask)
    if ranks.count > 1:
        statistics = _of_all_ranks(statistics, first, statistic, ranks)
    _require_usable(list(first.values()), statistics)
    shared: dict[int, LayerStatistic] = {}
    for key, view in first.items():
        shared.setdefault(id(statistics[key]), LayerStatistic(statistics[key], view.name, options))
    return {layer.name: shared[id(statistics[_key(layer)])] for layer in layers}


def _key(layer: LayerView) -> Key:
    return layer.metadata.parameter, layer.metadata.part.expert


def _record_inputs(
    calls: Mapping[Key, Callable[[Tensor], None]],
    views: Mapping[Key, LayerView],
    run: Callable[[], object],
    token_mask: TokenMask | None,
) -> None:
    with ExitStack() as stack:
        for key, call in calls.items():
            stack.enter_context(views[key].inputs(call, token_mask=token_mask))
        run()


def _first_run(
    views: dict[Key, LayerView], statistic: type[Statistic], run: Callable[[], object], token_mask: TokenMask | None
) -> dict[Key, Statistic]:
    """Run once; return statistics by key, with one common object for keys that received the same tensors."""
    received: dict[Key, list[Statistic]] = {key: [] for key in views}
    seen: list[tuple[ReferenceType[Tensor], Statistic]] = []

    def new(key: Key) -> Statistic:
        return statistic(views[key].metadata.shape[1], views[key].device)

    def record(key: Key, inputs: Tensor) -> None:
        # A weak reference, because the memory of a freed tensor may be reused.
        known = next((s for reference, s in seen if reference() is inputs), None)
        if known is None:
            known = new(key)
            known.add(inputs)
            seen.append((ref(inputs), known))
        received[key].append(known)

    experts = {key: new(key) for key in views if key[1] is not None}
    calls = {key: experts[key].add if key in experts else partial(record, key) for key in views}
    _record_inputs(calls, views, run, token_mask)
    result: dict[Key, Statistic] = {}
    merged: dict[tuple[int, ...], Statistic] = {}
    for key, parts in received.items():
        if key in experts or not parts:
            result[key] = experts[key] if key in experts else new(key)
        else:
            signature = tuple(map(id, parts))
            if signature not in merged:
                merged[signature] = parts[0] if len(parts) == 1 else new(key)
                for other in parts if len(parts) > 1 else ():
                    merged[signature].merge(other)
            result[key] = merged[signature]
    return result


def _of_all_ranks(
    own: Mapping[Key, Statistic], views: Mapping[Key, LayerView], statistic: type[Statistic], ranks: WorkingRanks
) -> dict[Key, Statistic]:
    """Return the sums of the statistics of all ranks; keys share one where they do so on every rank.

    A rank without runs has no statistics, and adds nothing.
    """
    keys = list(views)
    objects = [id(own[key]) for key in keys] if own else None
    groupings = [g for g in ranks.gather([objects.index(i) for i in objects] if objects else None) if g is not None]
    parts: dict[tuple[int, ...], Statistic] = {}
    result: dict[Key, Statistic] = {}
    for position, key in enumerate(keys):
        group = tuple(grouping[position] for grouping in groupings)
        if group not in parts:
            part = own[key] if own else statistic(views[key].metadata.shape[1], views[key].device)
            # Before anything is added: a statistic that is shared here only stands for several groups.
            parts[group] = copy.deepcopy(part) if any(part is other for other in parts.values()) else part
        result[key] = parts[group]
    for part in parts.values():
        part.sum_over(ranks)
    return result


def _require_usable(layers: Sequence[LayerView], statistics: Mapping[Key, Statistic]) -> None:
    linear = [layer for layer in layers if layer.metadata.kind == "linear"]
    if linear and not any(statistics[_key(layer)].num_tokens for layer in linear):
        raise ModelError(f"layers must be used on the calibration data, got no input in {linear[0].name} or any other.")
    for layer in layers:
        if not statistics[_key(layer)].is_finite():
            raise ModelError(
                f"calibration activations must be finite, got NaN or infinity at the input of {layer.name}.",
                hint="Load the model in bfloat16 or float32.",
            )
