"""Batches that activations and gradients are measured on: refused in a sentence before the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from hf_farms.errors import DataError

__all__ = ["check_batch", "check_batches", "named_batches"]

TOKENIZE = "Tokenize the text first: tokenizer(text, return_tensors='pt')['input_ids']."


def named_batches(calibration: Iterable[Tensor | Mapping[str, Tensor]], *, vocabulary: int | None) -> list[Any]:
    """Return the batches as mappings of model inputs, each `(b, n)`.

    Args:
        calibration: token ids `(b, n)` or `(n,)`, or mappings of model inputs.
        vocabulary: how many tokens the model knows; None: not known.

    Raises:
        DataError: something else, token ids outside the vocabulary, a mask of another shape, or no token at all.
    """
    check_batches(calibration)
    batches: list[dict[str, Tensor]] = []
    for number, batch in enumerate(calibration):
        named = {"input_ids": batch} if isinstance(batch, Tensor) else batch
        check_batch(named, number, vocabulary=vocabulary, kinds="tensors of token ids or mappings")
        ids = named.get("input_ids")
        if ids is not None and ids.ndim == 1:
            named = {name: value[None] if isinstance(value, Tensor) else value for name, value in named.items()}
        batches.append(dict(named))
    if not any(isinstance(value, Tensor) and value.numel() for batch in batches for value in batch.values()):
        raise DataError("calibration must hold at least one token, got none.")
    return batches


def check_batches(calibration: object) -> None:
    """Refuse anything but an iterable of batches.

    Raises:
        DataError: a text, one batch, or nothing that can be walked.
    """
    if isinstance(calibration, str | bytes):
        raise DataError(f"calibration must be batches of token ids, got {calibration[:60]!r}. {TOKENIZE}")
    if isinstance(calibration, Mapping):
        raise DataError("calibration must be a list of batches, got a single mapping. Put it in a list.")
    if not isinstance(calibration, Iterable) and not hasattr(calibration, "__getitem__"):
        raise DataError(
            f"calibration must be batches of token ids, got {calibration!r}. Pass a list or a DataLoader of them."
        )


def check_batch(batch: object, number: int, *, vocabulary: int | None, kinds: str = "mappings") -> None:
    """Refuse a batch that the model cannot run on.

    Args:
        batch: a mapping of model inputs.
        number: of the batch, for errors.
        vocabulary: how many tokens the model knows; None: not known.
        kinds: of batches that the function takes, for the sentence.

    Raises:
        DataError: another type, token ids that are no whole numbers or outside the vocabulary, or a mask of another
            shape than the ids.
    """
    if not isinstance(batch, Mapping):
        remedy = TOKENIZE if isinstance(batch, str) else "Pass what a collator of the training returns."
        raise DataError(
            f"calibration batches must be {kinds}, as the model takes them, got {type(batch).__name__} in batch "
            f"{number}. {remedy}"
        )
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.ndim == 0:
        given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise DataError(
            f"calibration token ids must be a tensor of whole numbers, (b, n) or (n,), got {given} in batch {number}. "
            f"{TOKENIZE}"
        )
    if ids.numel() and int(ids.min()) < 0:
        raise DataError(
            f"calibration token ids must be at least 0, got {int(ids.min())} in batch {number}. Pad with the pad token "
            "of the tokenizer, and pass an attention_mask."
        )
    if ids.numel() and vocabulary and int(ids.max()) >= vocabulary:
        raise DataError(
            f"calibration token ids must be below {vocabulary}, got {int(ids.max())}. Use the tokenizer of this model."
        )
    if mask is not None and (not isinstance(mask, Tensor) or (mask.ndim <= 2 and mask.shape != ids.shape)):
        given = str(tuple(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
        raise DataError(
            f"calibration attention_mask must have the shape of input_ids, {tuple(ids.shape)}, got {given} in batch "
            f"{number}. Pass the mask that the tokenizer returns with the ids."
        )
