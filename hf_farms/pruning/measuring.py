"""What the layers of one block are multiplied with, measured on the calibration data.

Layers that are multiplied with the very same tensor (q, k and v; gate and up) share one statistic, and what a method
makes of it is made once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

from hf_farms.blocks import LayerView, TokenMask
from hf_farms.errors import ModelError
from hf_farms.pruning.methods import Statistic

__all__ = ["LayerStatistic", "Run", "measure", "measurement_passes"]

# Statistics of experts that are kept at once, in bytes: 128 Hessians are more than a block.
BYTES_AT_ONCE = 2**32

# Parameter, and expert in it: its layers have one input whatever the data are.
Key = tuple[str, int | None]
# Runs the block on one batch, and which of its tokens count.
Run = tuple[Callable[[], object], TokenMask | None]


class LayerStatistic:
    """The statistic of one layer, perhaps of others too.

    Args:
        statistic: of the inputs.
        name: of the first layer that has it.
    """

    def __init__(self, statistic: Statistic, name: str) -> None:
        self.num_tokens, self._name = statistic.num_tokens, name
        self._statistic: Statistic | None = statistic
        self._prepared: Any = None

    def prepared(self) -> Any:
        """What the method needs of it; computed once, the statistic itself is dropped."""
        if self._statistic is not None:
            self._prepared, self._statistic = self._statistic.prepared(self._name), None
        return self._prepared


def measurement_passes(layers: Sequence[LayerView], statistic: type[Statistic]) -> Iterator[list[LayerView]]:
    """Layers that are measured in one pass: all, or experts in portions whose statistics fit, and the others last.

    Experts do not see each other, so that a portion may be pruned before the next is measured.
    """
    by_expert: defaultdict[int, dict[Key, LayerView]] = defaultdict(dict)
    for layer in layers:
        if (expert := layer.metadata.part.expert) is not None:
            by_expert[expert][_key(layer)] = layer
    sizes = {e: sum(statistic.nbytes(v.metadata.shape[1]) for v in found.values()) for e, found in by_expert.items()}
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


def measure(layers: Sequence[LayerView], statistic: type[Statistic], runs: Iterable[Run]) -> dict[str, LayerStatistic]:
    """Run the block on the calibration data and measure what its layers are multiplied with.

    Which layers share their input is seen in the first run.

    Args:
        layers: of one block.
        statistic: what is measured.
        runs: one for each batch.

    Returns:
        By layer name. An expert may have got no tokens, and of a layer whose weight is used without its module (the
        step size of Mamba) none are seen.

    Raises:
        ModelError: no layer is used, experts whose inputs are not seen, NaN or infinity in the inputs.
    """
    first: dict[Key, LayerView] = {}
    for layer in layers:
        first.setdefault(_key(layer), layer)
    found: dict[Key, Statistic] = {}
    for run, token_mask in runs:
        if not found:
            found = _first_run(first, statistic, run, token_mask)
        else:
            # One layer listens for all that share its statistic.
            listeners = {id(s): key for key, s in reversed(found.items())}
            _listen({key: found[key].add for key in listeners.values()}, first, run, token_mask)
    _check(list(first.values()), found)
    shared: dict[int, LayerStatistic] = {}
    for key, view in first.items():
        shared.setdefault(id(found[key]), LayerStatistic(found[key], view.name))
    return {layer.name: shared[id(found[_key(layer)])] for layer in layers}


def _key(layer: LayerView) -> Key:
    return layer.metadata.parameter, layer.metadata.part.expert


def _listen(
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
    """The statistics after one run; keys that heard the same tensors have the same."""
    heard: dict[Key, list[Statistic]] = {key: [] for key in views}
    seen: list[tuple[ReferenceType[Tensor], Statistic]] = []

    def new(key: Key) -> Statistic:
        return statistic(views[key].metadata.shape[1], views[key].device)

    def hear(key: Key, inputs: Tensor) -> None:
        # A weak reference: memory that was freed may hold another tensor by now.
        known = next((s for reference, s in seen if reference() is inputs), None)
        if known is None:
            known = new(key)
            known.add(inputs)
            seen.append((ref(inputs), known))
        heard[key].append(known)

    experts = {key: new(key) for key in views if key[1] is not None}
    calls = {key: experts[key].add if key in experts else partial(hear, key) for key in views}
    _listen(calls, views, run, token_mask)
    found: dict[Key, Statistic] = {}
    merged: dict[tuple[int, ...], Statistic] = {}
    for key, statistics in heard.items():
        if key in experts or not statistics:
            found[key] = experts[key] if key in experts else new(key)
        else:
            signature = tuple(map(id, statistics))
            if signature not in merged:
                merged[signature] = statistics[0] if len(statistics) == 1 else new(key)
                for other in statistics if len(statistics) > 1 else ():
                    merged[signature].merge(other)
            found[key] = merged[signature]
    return found


def _check(layers: Sequence[LayerView], found: Mapping[Key, Statistic]) -> None:
    linear = [layer for layer in layers if layer.metadata.kind == "linear"]
    if linear and not any(found[_key(layer)].num_tokens for layer in linear):
        raise ModelError(f"layers must be used on the calibration data, got no input in {linear[0].name} or another.")
    for layer in layers:
        if not found[_key(layer)].is_finite():
            raise ModelError(
                f"calibration activations must be finite, got NaN or infinity at the input of {layer.name}.",
                hint="Load the model in bfloat16 or float32.",
            )
