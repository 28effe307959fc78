"""The KL divergence of predictions to those of the dense model, from hidden states behind the last block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.metrics.nll import require_causal

__all__ = ["LOGIT_BYTES", "Batches", "check_predicts", "count_tokens", "divergences"]

K = TypeVar("K")

Batches = Sequence[Mapping[str, Tensor]]

# Bytes of float32 logits held at once.
LOGIT_BYTES = 64 * 2**20


def check_predicts(source: ModelBlockSource) -> None:
    """Raise unless the KL of the predictions can be measured.

    Raises:
        ModelError: the model is not a causal language model.
    """
    require_causal(source.model, what="the KL to the dense model", hint="Choose `allocation='farms'`.")


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
        mask = part.get("attention_mask")
        log_p = _log_probabilities(source, part, dense[:, tokens])
        if not bool(torch.isfinite(log_p).all()):
            raise ModelError("predictions must be finite, got NaN or infinity. Load the model in bfloat16 or float32.")
        p = log_p.exp()
        for key, hidden in others.items():
            log_q = _log_probabilities(source, part, hidden[:, tokens])
            divergence = torch.sub(log_p, log_q, out=log_q).mul_(p).sum(dim=-1).double()
            if mask is not None and mask.shape == divergence.shape:
                divergence = divergence[mask.to(divergence.device).bool()]
            total = float(divergence.sum())
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


def _log_probabilities(source: ModelBlockSource, batch: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    logits: Tensor = source.output(batch, hidden).logits
    return logits.float().log_softmax(dim=-1)


def count_tokens(batch: Mapping[str, Tensor], hidden: Tensor) -> int:
    """Return the number of tokens of a batch that are not masked out."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None and mask.ndim == 2 else hidden.shape[:-1].numel()
