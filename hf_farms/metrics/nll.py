"""Measure the negative log-likelihood (NLL) of a text per window: the basis of perplexity and its paired errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn

from hf_farms.blocks import BlockCalls, ModelBlockSource
from hf_farms.errors import DataError, ModelError
from hf_farms.processes import ONE_PROCESS, WorkingRanks

__all__ = ["TextNll", "require_causal", "text_nll", "window_losses"]

# Bytes of float32 logits held at once.
LOGIT_BYTES = 512 * 2**20
# Bytes of hidden states per pass over the files of a streamed model.
HIDDEN_BYTES = 2**30


@dataclass(frozen=True)
class TextNll:
    """NLL of a text under a model.

    Attributes:
        windows: mean NLL of each window, in nats per predicted token.
        context_length: tokens per window.
        num_tokens: total number of predicted tokens.
    """

    windows: tuple[float, ...]
    context_length: int
    num_tokens: int

    @property
    def nll(self) -> float:
        """Mean NLL in nats per predicted token."""
        return math.fsum(self.windows) / len(self.windows)

    @property
    def perplexity(self) -> float:
        """Exp of the mean NLL; infinite on overflow."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    def difference(self, other: TextNll) -> tuple[float, float | None]:
        """Return mean NLL minus that of `other` on the same windows, and its paired standard error.

        The standard error is None with a single window.
        """
        deltas = [a - b for a, b in zip(self.windows, other.windows, strict=True)]
        mean = math.fsum(deltas) / len(deltas)
        if len(deltas) < 2:
            return mean, None
        variance = math.fsum((d - mean) ** 2 for d in deltas) / (len(deltas) - 1)
        return mean, math.sqrt(variance / len(deltas))


def is_causal(model: nn.Module) -> bool:
    """Return whether a model is a causal language model: not an encoder-decoder, and it generates text."""
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not both and bool(getattr(model, "can_generate", lambda: False)())


def require_causal(
    model: nn.Module, *, what: str = "perplexity", hint: str | None = "Use `EvaluationConfig(source=None)`."
) -> None:
    """Raise unless a model is a causal language model.

    Args:
        model: a transformers model.
        what: metric to be measured, for the message.
        hint: what to do instead.

    Raises:
        ModelError: the model is an encoder-decoder, or does not generate text.
    """
    if not is_causal(model):
        raise ModelError(f"{what} must be measured on a causal language model, got {type(model).__name__}.", hint=hint)


def text_nll(
    model: nn.Module | ModelBlockSource,
    ids: Sequence[int] | Tensor,
    *,
    context_length: int,
    max_windows: int | None = None,
    ranks: WorkingRanks = ONE_PROCESS,
    progress: Callable[[int, int], None] | None = None,
) -> TextNll:
    """Measure the NLL of a tokenized text, as the pruning papers do on WikiText-2.

    The text is cut into windows of `context_length` tokens without overlap; an incomplete last window is dropped. In
    each window every token but the first is predicted. Costs one forward pass; logits in float32.

    Args:
        model: a causal language model of transformers; not modified. The blocks of a block source are opened once per
            gibibyte of hidden states, so they can be streamed from disk.
        ids: `(n,)` token ids of the whole text.
        context_length: tokens per window, at least 2.
        max_windows: use only the first windows; None for all.
        ranks: with several processes, each measures a share of the windows; all return all of them.
        progress: called with the number of finished windows and of all windows; for a block source, of blocks.

    Raises:
        ModelError: the model is not a causal language model, or predicts NaN.
        DataError: the text is shorter than one window.
    """
    whole = model if isinstance(model, nn.Module) else model.model
    require_causal(whole)
    tokens = torch.as_tensor(ids).flatten()
    count = len(tokens) // context_length
    if count == 0:
        raise DataError(
            f"evaluation text must have at least {context_length} tokens, got {len(tokens)}. "
            "Give a longer text or a smaller context length."
        )
    count = min(count, max_windows or count)
    windows = tokens[: count * context_length].view(count, context_length)
    vocabulary = int(getattr(whole.config, "vocab_size", 0) or 2**16)
    at_once = min(LOGIT_BYTES // (4 * context_length * vocabulary), -(-count // ranks.count))
    parts = windows.split(max(1, at_once))
    own = parts[ranks.index :: ranks.count]
    tick = progress or (lambda done, total: None)
    training = whole.training
    whole.eval()
    with torch.no_grad():
        if isinstance(model, nn.Module):
            measured = _forward(model, own, next(model.parameters()).device, tick)
        else:
            measured = _block_by_block(model, list(own), tick)
    whole.train(training)
    gathered = ranks.gather(measured)
    losses = [x for step in zip_longest(*gathered, fillvalue=()) for part in step for x in part]
    if not all(map(math.isfinite, losses)):
        raise ModelError("predictions must be finite, got NaN or infinity. Load the model in bfloat16 or float32.")
    return TextNll(tuple(losses), context_length, count * (context_length - 1))


def _forward(
    model: nn.Module, parts: Sequence[Tensor], device: torch.device, tick: Callable[[int, int], None]
) -> list[list[float]]:
    """Return the losses of the windows of each batch."""
    losses: list[list[float]] = []
    tick(0, sum(map(len, parts)))
    for part in parts:
        part = part.to(device)
        losses.append(window_losses(model(input_ids=part, use_cache=False).logits, part))
        tick(sum(map(len, losses)), sum(map(len, parts)))
    return losses


def _block_by_block(
    source: ModelBlockSource, parts: list[Tensor], tick: Callable[[int, int], None]
) -> list[list[float]]:
    """Compute the same losses as `_forward`, opening each block once per group of batches."""
    if not parts:
        return []
    try:
        source.check_chain({"input_ids": parts[0]})
    except ModelError:
        # The blocks form no chain: every batch reads all blocks.
        with source.whole():
            return _forward(source.model, parts, source.device, tick)
    losses: list[list[float]] = []
    pending, opened = list(parts), 0
    while pending:
        calls: list[BlockCalls] = []
        group: list[Tensor] = []
        while pending and sum(call.hidden.nbytes for call in calls) < HIDDEN_BYTES:
            group.append(pending.pop(0))
            calls.append(source.capture({"input_ids": group[-1]}, repeats=True))
        passes = opened // len(source) + 1 + -(-len(pending) // len(group))
        hidden = [call.hidden for call in calls]
        if not opened:
            tick(0, passes * len(source))
        for index in range(len(source)):
            block = source.open(index)
            for i, call in enumerate(calls):
                hidden[i] = block(hidden[i], call.arguments[index])
            opened += 1
            tick(opened, passes * len(source))
        for part, states in zip(group, hidden, strict=True):
            part = part.to(source.device)
            losses.append(window_losses(source.output({"input_ids": part}, states).logits, part))
    return losses


def window_losses(logits: Tensor, part: Tensor) -> list[float]:
    """Return the mean NLL of each window `(b, n)` of a batch, of logits `(b, n, v)`."""
    losses = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), part[:, 1:], reduction="none")
    return [float(x) for x in losses.double().mean(dim=1)]
