"""Negative log-likelihood of a text, window by window: what perplexity and its paired errors are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_farms.errors import DataError, ModelError

__all__ = ["TextNll", "require_causal", "text_nll"]

# Bytes of float32 logits held at once.
LOGIT_BYTES = 512 * 2**20


@dataclass(frozen=True)
class TextNll:
    """NLL of a text.

    Attributes:
        windows: mean NLL in nats per predicted token, one per window.
        context_length: tokens in a window.
        num_tokens: predicted tokens in all.
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
        """Exp of the mean NLL; infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    def difference(self, other: TextNll) -> tuple[float, float | None]:
        """Mean NLL of this minus that of `other` on the same windows, and its paired standard error."""
        deltas = [a - b for a, b in zip(self.windows, other.windows, strict=True)]
        mean = math.fsum(deltas) / len(deltas)
        if len(deltas) < 2:
            return mean, None
        variance = math.fsum((d - mean) ** 2 for d in deltas) / (len(deltas) - 1)
        return mean, math.sqrt(variance / len(deltas))


def require_causal(model: nn.Module) -> None:
    """Refuse a model that predicts no next token.

    Raises:
        ModelError: it does not generate text.
    """
    if not getattr(model, "can_generate", lambda: False)():
        raise ModelError(
            f"perplexity must be measured on a causal language model, got {type(model).__name__}.",
            hint="Use --evaluation none.",
        )


def text_nll(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    *,
    context_length: int,
    max_windows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TextNll:
    """NLL of a tokenised text, as the pruning papers measure it on WikiText-2.

    The text is cut into windows of `context_length` tokens that do not overlap; the incomplete last one is dropped.
    In each, every token but the first is predicted. One forward pass, logits in float32.

    Args:
        model: a causal language model of transformers; not modified.
        ids: `(n,)` token ids of the whole text.
        context_length: tokens in a window, at least 2.
        max_windows: only so many windows from the start.
        progress: called with windows done and windows in all.

    Raises:
        ModelError: the model is no causal language model, or predicts NaN.
        DataError: the text is shorter than one window.
    """
    require_causal(model)
    tokens = torch.as_tensor(ids).flatten()
    count = len(tokens) // context_length
    if count == 0:
        raise DataError(
            f"evaluation text must have at least {context_length} tokens, got {len(tokens)}. "
            "Give a longer text or a smaller context length."
        )
    count = min(count, max_windows or count)
    windows = tokens[: count * context_length].view(count, context_length)
    at_once = max(1, LOGIT_BYTES // (4 * context_length * int(getattr(model.config, "vocab_size", 0) or 2**16)))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses: list[float] = []
    with torch.no_grad():
        for part in windows.split(at_once):
            losses += _window_losses(model, part.to(device))
            if progress is not None:
                progress(len(losses), count)
    model.train(training)
    if not all(map(math.isfinite, losses)):
        raise ModelError("predictions must be finite, got NaN or infinity. Load the model in bfloat16 or float32.")
    return TextNll(tuple(losses), context_length, count * (context_length - 1))


def _window_losses(model: nn.Module, part: Tensor) -> list[float]:
    logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
    return [float(x) for x in losses.double().mean(dim=1)]
