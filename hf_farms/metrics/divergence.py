"""Measure the KL divergence of predictions to those of the dense model, from hidden states behind the last block.

Embeddings, final norm and head are those of both models, so that hidden states stand for predictions. Logits are made
for a part of the tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.metrics.nll import require_causal

__all__ = [
    "LOGIT_BYTES",
    "Batches",
    "check_predicts",
    "count_tokens",
    "divergence_loss",
    "divergences",
    "final_hidden",
]

K = TypeVar("K")

Batches = Sequence[Mapping[str, Tensor]]

# Bytes of float32 logits held at once.
LOGIT_BYTES = 64 * 2**20


def check_predicts(source: ModelBlockSource, *, hint: str = "Choose `allocation='farms'`.") -> None:
    """Raise unless the KL of the predictions can be measured.

    Args:
        source: the model.
        hint: how to do without.

    Raises:
        ModelError: the model is not a causal language model.
    """
    require_causal(source.model, what="the KL to the dense model", hint=hint)


def final_hidden(source: ModelBlockSource, batch: Mapping[str, Tensor]) -> Tensor:
    """Run all blocks on a batch, and return the hidden states behind the last one."""
    calls = source.capture(batch, repeats=True)
    hidden = calls.hidden
    for index in range(len(source)):
        hidden = source.open(index)(hidden, calls.arguments[index])
    return hidden


def divergence_loss(source: ModelBlockSource, batch: Mapping[str, Tensor], dense: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean KL(dense || other) over the tokens of a batch, with the gradient of the hidden states.

    The gradient is computed at once, part by part, so that no logits are kept for the backward pass.

    Args:
        source: the model, for its head, whose weights get no gradient.
        batch: model inputs by name.
        dense: hidden states of the dense model behind its last block.
        hidden: those of the other model.
    """
    loss: Tensor = _DivergenceLoss.apply(hidden, source, batch, dense)  # type: ignore[no-untyped-call]
    return loss


class _DivergenceLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, source: ModelBlockSource, batch: Mapping[str, Tensor], dense: Tensor
    ) -> Tensor:
        gradient, total = torch.zeros_like(hidden), hidden.new_zeros((), dtype=torch.float64)
        count = max(1, count_tokens(batch, hidden))
        for part, tokens in _token_parts(source, batch):
            log_p = _log_probabilities(source, part, dense[:, tokens])
            with torch.enable_grad():
                inputs = hidden[:, tokens].detach().requires_grad_()
                log_q = _log_probabilities(source, part, inputs, gradients=True)
                sums = _unmasked((log_p.exp() * (log_p - log_q)).sum(dim=-1).double(), part)
                loss = sums.sum() / count
            gradient[:, tokens] = torch.autograd.grad(loss, inputs)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None


def _unmasked(divergence: Tensor, part: Mapping[str, Tensor]) -> Tensor:
    """Return the numbers of the tokens that are not masked out."""
    mask = part.get("attention_mask")
    if mask is None or mask.shape != divergence.shape:
        return divergence
    return divergence[mask.to(divergence.device).bool()]


def divergences(
    source: ModelBlockSource, batch: Mapping[str, Tensor], dense: Tensor, others: Mapping[K, Tensor]
) -> dict[K, float]:
    """Return the sum of KL(dense || other) over the tokens of a batch; infinite where it is not finite.

    Args:
        source: the model, for its head.
        batch: model inputs by name.
        dense: hidden states of the dense model behind its last block.
        others: hidden states of pruned models.

    Raises:
        ModelError: the dense model predicts NaN or infinity.
    """
    sums = dict.fromkeys(others, 0.0)
    for part, tokens in _token_parts(source, batch):
        log_p = _log_probabilities(source, part, dense[:, tokens])
        if not bool(torch.isfinite(log_p).all()):
            raise ModelError("predictions must be finite, got NaN or infinity. Load the model in bfloat16 or float32.")
        p = log_p.exp()
        for key, hidden in others.items():
            log_q = _log_probabilities(source, part, hidden[:, tokens])
            divergence = torch.sub(log_p, log_q, out=log_q).mul_(p).sum(dim=-1).double()
            total = float(_unmasked(divergence, part).sum())
            sums[key] += total if math.isfinite(total) else math.inf
    return sums


def _token_parts(source: ModelBlockSource, batch: Mapping[str, Tensor]) -> Iterator[tuple[Mapping[str, Tensor], slice]]:
    """Split a batch along its tokens, so that the logits of a part fit into `LOGIT_BYTES`."""
    shape = next(iter(batch.values())).shape
    if any(value.shape != shape for value in batch.values()) or len(shape) != 2:
        yield batch, slice(None)
        return
    vocabulary = source.vocabulary or 2**16
    width = max(1, LOGIT_BYTES // (4 * vocabulary * shape[0]))
    for start in range(0, shape[1], width):
        tokens = slice(start, start + width)
        yield {name: value[:, tokens] for name, value in batch.items()}, tokens


def _log_probabilities(
    source: ModelBlockSource, batch: Mapping[str, Tensor], hidden: Tensor, *, gradients: bool = False
) -> Tensor:
    logits: Tensor = source.output(batch, hidden, gradients=gradients).logits
    return logits.float().log_softmax(dim=-1)


def count_tokens(batch: Mapping[str, Tensor], hidden: Tensor) -> int:
    """Return the number of tokens of a batch that are not masked out."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None and mask.ndim == 2 else hidden.shape[:-1].numel()
