"""Calibration sequences, on which activations are measured: random passages of a text, or written by the model."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.config import CalibrationConfig
from hf_farms.data.generation import first_token, generate, require_writer
from hf_farms.data.texts import Tokenizer, named_text, read_text, tokenize
from hf_farms.errors import DataError

__all__ = ["calibration_sequences", "context_limit", "continued", "passages"]

# Names of the context length in configs; the first one present counts.
CONTEXT_NAMES = ("max_position_embeddings", "max_target_positions", "max_seq_len")
# Tokens of a batch of sequences that runs through a block.
TOKENS_PER_BATCH = 8192
# Tokens of a passage that a continuation starts from: enough for its subject, and few enough to be soon left behind.
PROMPT_TOKENS = 16


def context_limit(model: nn.Module) -> int | None:
    """Return the context length of a model in tokens, from its config or position embeddings; None: unknown."""
    config: Any = getattr(model, "config", None)
    # The config of the language model in a multimodal one.
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    # XLNet has -1 for any length.
    values = (getattr(config, name, None) for name in CONTEXT_NAMES)
    limits = [int(limit) for limit in values if isinstance(limit, int) and limit > 0][:1]
    for name, module in model.named_modules():
        padding, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name.rpartition(".")[2] and isinstance(padding, int) and isinstance(weight, Tensor):
            # As in RoBERTa and its relatives: positions start after the padding index.
            # ProphetNet also looks up the position of the next token.
            limits.append(weight.shape[0] - padding - (2 if getattr(config, "ngram", None) else 1))
    return min(limits, default=None)


def calibration_sequences(
    config: CalibrationConfig,
    *,
    model: nn.Module,
    tokenizer: Tokenizer | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Tensor], list[str]]:
    """Return the calibration sequences: passages of a text, sequences that the model writes, or both.

    Args:
        config: source, numbers, length and seed.
        model: limits the length to its context length, and writes continuations and the sequences of source "self".
        tokenizer: of the model; not needed for "self" if the model's config has a BOS or EOS token.
        progress: called with the tokens that the model wrote, and all that it writes.

    Returns:
        Batches of `(b, length)` int64 token ids on the CPU, passages first, and notes on differences from the config.

    Raises:
        DataError: the text is missing or too short, there is no tokenizer, or the model cannot generate text.
        ModelError: the model predicts NaN or infinity while it generates.
    """
    if config.source != "self":
        return continued(passages(config, model=model, tokenizer=tokenizer), config, model=model, progress=progress)
    length, notes = _sequence_length(config, model)
    require_writer(model, config, length=length)
    first = first_token(model, tokenizer)
    prompts = torch.full((config.num_sequences, 1), first)
    written = generate(model, prompts, length, seed=config.seed, padding=first, progress=progress)
    return _batches(written), notes


def passages(
    config: CalibrationConfig, *, model: nn.Module, tokenizer: Tokenizer | None
) -> tuple[list[Tensor], list[str]]:
    """Return the passages of the text alone, as `calibration_sequences` does without continuations."""
    length, notes = _sequence_length(config, model)
    sequences = _passages(config, tokenizer, length)
    if len(sequences) < config.num_sequences:
        notes.append(
            f"The calibration text has {len(sequences)} sequences of {length} tokens, "
            f"{config.num_sequences} were requested."
        )
    return _batches(sequences), notes


def continued(
    read: tuple[list[Tensor], list[str]],
    config: CalibrationConfig,
    *,
    model: nn.Module,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Tensor], list[str]]:
    """Add continuations to passages, in turn, each from tokens at a random place of its passage on.

    Time: `num_continuations` times `sequence_length` tokens are generated.

    Args:
        read: of `passages`.
        config: number and seed.
        model: dense.
        progress: as of `calibration_sequences`.

    Raises:
        DataError: the model cannot generate text.
        ModelError: it predicts NaN or infinity.
    """
    batches, notes = read
    count = config.total_sequences - config.num_sequences
    if not count:
        return read
    texts = torch.cat(batches)
    length = texts.shape[1]
    require_writer(model, config, length=length)
    size = max(1, min(PROMPT_TOKENS, length // 2))
    choose = random.Random(config.seed)
    places = [(i % len(texts), choose.randrange(length - size + 1)) for i in range(count)]
    prompts = torch.stack([texts[row, start : start + size] for row, start in places])
    first = int(prompts[0, 0])
    written = generate(model, prompts, length, seed=config.seed, padding=first, progress=progress)
    return [*batches, *_batches(written)], notes


def _sequence_length(config: CalibrationConfig, model: nn.Module) -> tuple[int, list[str]]:
    """Return the length of the sequences, and a note if it differs from the config."""
    limit = context_limit(model)
    if limit is None or limit >= config.sequence_length:
        return config.sequence_length, []
    return limit, [f"Calibration sequences have {limit} tokens, the context length of the model."]


def _batches(sequences: Tensor) -> list[Tensor]:
    return list(sequences.split(max(1, TOKENS_PER_BATCH // sequences.shape[1])))


def _passages(config: CalibrationConfig, tokenizer: Tokenizer | None, length: int) -> Tensor:
    """Return random passages that do not overlap, `(n, length)`."""
    if tokenizer is None:
        raise DataError(
            "calibration on text must have a tokenizer, got a model without one. Use "
            "`CalibrationConfig(source='self')`."
        )
    with named_text("calibration"):
        text = read_text(config.source, column=config.column, subset=config.subset, split=config.split)
    ids = tokenize(tokenizer, text)
    available = len(ids) // length
    if available == 0:
        raise DataError(
            f"calibration text must have at least {length} tokens, got {len(ids)} in {config.source!r}.",
            hint="Give a longer text or a smaller `sequence_length`.",
        )
    indices = sorted(random.Random(config.seed).sample(range(available), min(available, config.num_sequences)))
    return torch.tensor([ids[i * length : (i + 1) * length] for i in indices])
