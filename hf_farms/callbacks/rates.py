"""Effective learning rates and weight decays of blocks, layers and patterns, for trackers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import nn

from hf_farms.blocks import BlockReader
from hf_farms.blocks.partitioned import whole_numel
from hf_farms.callbacks.groups import Key, Rates
from hf_farms.config import LRQuantity, LRUnit

__all__ = ["MOST_LOGGED", "Rows", "block_rows", "effective_rates", "pattern_rows"]

# Most layers or patterns that trackers get numbers of: a model of thousands of experts would fill them.
MOST_LOGGED = 2000

# Name in the log -> the parameters whose mean is logged.
Rows = dict[str, list[nn.Parameter]]


def block_rows(source: BlockReader, keys: Mapping[nn.Parameter, Key], unit: LRUnit) -> Rows:
    """Return the parameters of each block; with unit "layer" those of each layer too, unless there are too many."""
    layers: dict[str, list[tuple[int, nn.Parameter]]] = {}
    for parameter, key in keys.items():
        for name in key:
            layers.setdefault(name, []).append((len(key), parameter))
    rows: Rows = {}
    for index in range(len(source)):
        block = source.metadata(index)
        inside = {id(p): p for layer in block.layers for _, p in layers.get(layer.name, ())}
        rows[block.name] = list(inside.values())
    if unit == "layer" and len(layers) <= MOST_LOGGED:
        for name, found in layers.items():
            # Norms follow several layers; the weight itself follows the fewest.
            fewest = min(count for count, _ in found)
            rows[name] = [parameter for count, parameter in found if count == fewest]
    return rows


def pattern_rows(keys: Mapping[nn.Parameter, Key]) -> Rows:
    """Return the parameters of each pattern, unless there are too many."""
    rows: Rows = {}
    for parameter, (pattern,) in keys.items():
        rows.setdefault(pattern, []).append(parameter)
    return rows if len(rows) <= MOST_LOGGED else {}


def effective_rates(rows: Rows, rates: Mapping[nn.Parameter, Rates], quantity: LRQuantity) -> dict[str, float]:
    """Return the mean learning rate of each row, and its mean weight decay if that is scaled.

    Args:
        rows: parameters by name in the log; those that the optimizer does not hold are left out.
        rates: of the optimizer's parameters.
        quantity: that is scaled.

    Returns:
        Numbers by `NAME/learning_rate` and `NAME/weight_decay`: means over the elements of the parameters; those of
        norms and biases, which do not decay, do not count for the decay.
    """
    logs: dict[str, float] = {}
    for name, parameters in rows.items():
        held = [(whole_numel(parameter), rates[parameter]) for parameter in parameters if parameter in rates]
        if not held:
            continue
        logs[f"{name}/learning_rate"] = _mean((size, rate.lr) for size, rate in held)
        if quantity != "lr":
            decays = [(size, rate.weight_decay) for size, rate in held if rate.weight_decay]
            logs[f"{name}/weight_decay"] = _mean(decays) if decays else 0.0
    return logs


def _mean(weighted: Iterable[tuple[int, float]]) -> float:
    """Return the mean, exactly the common value if there is one."""
    pairs = [(size, float(value)) for size, value in weighted]
    values = {value for _, value in pairs}
    if len(values) == 1:
        return values.pop()
    return math.fsum(size * value for size, value in pairs) / sum(size for size, _ in pairs)
