"""Measure the KL divergence of several pruned models to the dense one, in one pass over the blocks.

Plans that begin with the same levels share hidden states: of plans that prune one block alone, the dense part in front
of it runs once. Only sums over batches are returned, so that batches can be measured anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_farms.blocks import Block, BlockCall, BlockCalls, ModelBlockSource
from hf_farms.blocks.arguments import Key
from hf_farms.metrics.divergence import Batches, check_predicts, count_tokens, divergences
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.search.grid import Plan
from hf_farms.search.levels import LevelCodes

__all__ = [
    "HIDDEN_BYTES",
    "LossSums",
    "loss_sums",
    "mean_losses",
    "plan_losses",
]

# Bytes of hidden states of all plans held at once: more batches are measured in another pass.
HIDDEN_BYTES = 2**30


class LossSums(NamedTuple):
    """Sums over tokens; those of several groups of batches add up.

    Attributes:
        divergence: KL(dense || pruned) of each plan, in nats.
        num_tokens: tokens that are not masked out.
    """

    divergence: list[float]
    num_tokens: int


@dataclass(frozen=True)
class _State:
    """Hidden states of one batch behind the blocks of a prefix.

    Attributes:
        hidden: the hidden states.
        forwarded: arguments that its blocks passed to later calls.
    """

    hidden: Tensor
    forwarded: tuple[tuple[BlockCall, Key, Any], ...] = ()


# Levels of the first blocks of a plan.
Prefix = tuple[int, ...]


def plan_losses(
    source: ModelBlockSource,
    codes: LevelCodes,
    plans: Sequence[Plan],
    batches: Batches,
    *,
    progress: Progress = no_progress,
) -> list[float]:
    """Return KL(dense || pruned) in nats per token of each plan, at the end of the model.

    Each block is opened once per gibibyte of hidden states, and its weights are the same bits afterwards. Infinite for
    a plan under which the model predicts NaN or infinity.

    Args:
        source: the dense model.
        codes: of `build_codes`.
        plans: level of each block; 0 is dense.
        batches: model inputs by name.
        progress: called with ("losses", blocks done, blocks in all).

    Raises:
        ModelError: the model is not a causal language model, or the dense model predicts NaN or infinity.
    """
    return mean_losses(loss_sums(source, codes, plans, batches, progress=progress))


def mean_losses(sums: LossSums) -> list[float]:
    """Return the mean per token."""
    return [total / max(1, sums.num_tokens) for total in sums.divergence]


def loss_sums(
    source: ModelBlockSource,
    codes: LevelCodes,
    plans: Sequence[Plan],
    batches: Batches,
    *,
    progress: Progress = no_progress,
) -> LossSums:
    """Return the sums of `plan_losses` before they are divided by the number of tokens."""
    check_predicts(source)
    dense: Plan = (0,) * len(source)
    distinct = list(dict.fromkeys([dense, *plans]))
    totals, num_tokens = dict.fromkeys(distinct, 0.0), 0
    with source.evaluation(), torch.no_grad():
        for done, of, group in _groups(source, batches, len(distinct)):
            calls = [source.capture(batch, repeats=True) for batch in group]

            def tick(index: int, start: int = done, groups: int = of) -> None:
                progress("losses", start * len(source) + index + 1, groups * len(source))

            states = _run_blocks(source, codes, distinct, calls, tick)
            for number, batch in enumerate(group):
                hidden = {plan: states[plan][number].hidden for plan in distinct[1:]}
                reference = states[dense][number].hidden
                for plan, divergence in divergences(source, batch, reference, hidden).items():
                    totals[plan] += divergence
                num_tokens += count_tokens(batch, reference)
    return LossSums([totals[plan] for plan in plans], num_tokens)


def _groups(source: ModelBlockSource, batches: Batches, plans: int) -> Iterator[tuple[int, int, Batches]]:
    """Yield groups of batches whose hidden states of all plans fit into `HIDDEN_BYTES`, with number and count."""
    width = int(getattr(source.config, "hidden_size", 0) or 4096)
    largest = max(max(value.numel() for value in batch.values()) for batch in batches) * width * 4
    count = max(1, HIDDEN_BYTES // (largest * plans))
    starts = range(0, len(batches), count)
    for number, start in enumerate(starts):
        yield number, len(starts), batches[start : start + count]


def _run_blocks(
    source: ModelBlockSource, codes: LevelCodes, plans: Sequence[Plan], calls: Sequence[BlockCalls], tick: Any
) -> dict[Prefix, list[_State]]:
    """Return the states behind the last block, by plan."""
    states: dict[Prefix, list[_State]] = {(): [_State(call.hidden) for call in calls]}
    for index in range(len(source)):
        needed = dict.fromkeys(plan[: index + 1] for plan in plans)
        waiting = Counter(prefix[:-1] for prefix in needed)
        after: dict[Prefix, list[_State]] = {}
        block = source.open(index)
        with _levels(block, codes[index]) as prune_to:
            # All prefixes of one level run on the same weights.
            for prefix in sorted(needed, key=lambda prefix: prefix[-1]):
                prune_to(prefix[-1])
                before = states[prefix[:-1]]
                after[prefix] = [
                    _step(block, state, call.arguments[index]) for state, call in zip(before, calls, strict=True)
                ]
                waiting[prefix[:-1]] -= 1
                if not waiting[prefix[:-1]]:
                    del states[prefix[:-1]]
        states = after
        tick(index)
    return states


def _step(block: Block, state: _State, calls: tuple[BlockCall, ...]) -> _State:
    """Run a block on a state, with the arguments that earlier blocks passed on for this state."""
    for call, key, value in state.forwarded:
        if isinstance(key, int):
            call.args[key] = value
        else:
            call.kwargs[key] = value
    hidden = block(state.hidden, calls)
    new = [
        (later, key, later.args[key] if isinstance(key, int) else later.kwargs[key])
        for call in calls
        for later, key, _ in call.forwarded
    ]
    return _State(hidden, (*state.forwarded, *new))


@contextmanager
def _levels(block: Block, codes: Sequence[Tensor]) -> Iterator[Any]:
    """Yield a function that prunes the block to a level; the weights are restored at the end."""
    layers = prunable_layers(block.layers)
    dense = [layer.read(check=False).clone() for layer in layers]
    current = 0

    def prune_to(level: int) -> None:
        nonlocal current
        if level == current:
            return
        # Set before the weights change, so that an exception in between restores them.
        current = level
        for layer, weight, code in zip(layers, dense, codes, strict=True):
            layer.write_(weight.masked_fill(code.to(weight.device) <= level, 0) if level else weight)

    try:
        yield prune_to
    finally:
        prune_to(0)
