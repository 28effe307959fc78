"""The sequences that activations are measured on."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.config import CalibrationConfig
from hf_farms.data.texts import Tokenizer, read_text, tokenize
from hf_farms.errors import DataError, ModelError

__all__ = ["calibration_sequences", "context_limit", "require_writer"]

# What configs call the context length; the first that is there counts.
LIMITS = ("max_position_embeddings", "max_target_positions", "max_seq_len")
# Sequences that are sampled, or run through a block, side by side.
TOKENS_AT_ONCE = 8192


def context_limit(model: nn.Module) -> int | None:
    """The longest sequence the model was made for, where its config or its table of positions says so."""
    config: Any = getattr(model, "config", None)
    # Of the language model inside, where there is one.
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    # XLNet says -1, for any length.
    named = (getattr(config, name, None) for name in LIMITS)
    limits = [int(limit) for limit in named if isinstance(limit, int) and limit > 0][:1]
    for name, module in model.named_modules():
        padding, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name.rpartition(".")[2] and isinstance(padding, int) and isinstance(weight, Tensor):
            # As in RoBERTa and its relatives: positions count from behind the padding index.
            # ProphetNet looks up the position of the next token too.
            limits.append(weight.shape[0] - padding - (2 if getattr(config, "ngram", None) else 1))
    return min(limits, default=None)


def calibration_sequences(
    config: CalibrationConfig, *, model: nn.Module, tokenizer: Tokenizer | None
) -> tuple[list[Tensor], list[str]]:
    """Get the calibration sequences: passages of a text, or text that the model writes itself.

    Args:
        config: source, number, length and seed.
        model: says its context length, and writes the sequences of source "self".
        tokenizer: of the model; not needed for "self" where the model's config names a first token.

    Returns:
        Batches of `(b, length)` token ids, and notes on what differs from what was asked for.

    Raises:
        DataError: no text, too short a text, no tokenizer, or a model that cannot write.
    """
    notes = []
    limit = context_limit(model)
    length = min(config.sequence_length, limit or config.sequence_length)
    if length < config.sequence_length:
        notes.append(f"Calibration sequences have {length} tokens, the context length of the model.")
    if config.source == "self":
        sequences = _sample(model, tokenizer, config.num_sequences, length, config.seed)
    else:
        sequences = _passages(config, tokenizer, length)
        if len(sequences) < config.num_sequences:
            notes.append(
                f"The calibration text has {len(sequences)} sequences of {length} tokens, "
                f"{config.num_sequences} were asked for."
            )
    return list(sequences.split(max(1, TOKENS_AT_ONCE // length))), notes


def _passages(config: CalibrationConfig, tokenizer: Tokenizer | None, length: int) -> Tensor:
    """Random passages that do not overlap, `(n, length)`."""
    if tokenizer is None:
        raise DataError("calibration on text must have a tokenizer, got a model without one. Use --calibration self.")
    text = read_text(config.source, column=config.column, subset=config.subset, split=config.split)
    ids = tokenize(tokenizer, text)
    available = len(ids) // length
    if available == 0:
        raise DataError(
            f"calibration text must have at least {length} tokens, got {len(ids)} in {config.source!r}.",
            hint="Give a longer text or a smaller --calibration-length.",
        )
    chosen = sorted(random.Random(config.seed).sample(range(available), min(available, config.num_sequences)))
    return torch.tensor([ids[i * length : (i + 1) * length] for i in chosen])


def _first_token(model: nn.Module, tokenizer: Tokenizer | None) -> int:
    """The token that a text of this model starts with: its BOS, else its EOS, which ends the text before."""
    config = getattr(model, "config", None)
    for owner in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id"):
            token: Any = getattr(owner, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise DataError("self-calibration must start from a BOS or EOS token, got a model without. Give a text instead.")


def require_writer(model: nn.Module, tokenizer: Tokenizer | None) -> int:
    """The token that self-calibration starts from.

    Raises:
        DataError: the model does not write text, or says nowhere how a text starts.
    """
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if both or not (hasattr(model, "generate") and getattr(model, "can_generate", lambda: False)()):
        raise DataError(
            f"self-calibration must have a model that writes text, got {type(model).__name__}. Give a text instead."
        )
    return _first_token(model, tokenizer)


def _sample(model: nn.Module, tokenizer: Tokenizer | None, number: int, length: int, seed: int) -> Tensor:
    """Sequences from the model's own distribution (temperature 1, nothing cut off), `(n, length)`.

    The caller's random state is left as it was.
    """
    from transformers import GenerationConfig

    first = require_writer(model, tokenizer)
    device = next(model.parameters()).device
    # Without an end token every sequence reaches its full length.
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length - 1,
        min_new_tokens=length - 1,
        bos_token_id=first,
        eos_token_id=None,
        pad_token_id=first,
    )
    at_once = max(1, TOKENS_AT_ONCE * 4 // length)
    writer: Any = model
    was_training, saved = model.training, writer.generation_config
    model.eval()
    parts = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            # generate() fills what a config leaves open from the model's own, such as an end token.
            writer.generation_config = settings
            for start in range(0, number, at_once):
                prompt = torch.full((min(at_once, number - start), 1), first, device=device)
                parts.append(
                    writer.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
                )
        except RuntimeError as error:
            if "inf" not in str(error):
                raise
            raise ModelError(
                "the model must predict finite probabilities, got NaN or infinity while it wrote."
            ) from error
        finally:
            writer.generation_config = saved
            model.train(was_training)
    return torch.cat(parts).cpu()
