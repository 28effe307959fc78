"""Text that the model writes itself: whole sequences, and continuations of passages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.config import CalibrationConfig
from hf_farms.data.texts import Tokenizer
from hf_farms.errors import DataError, ModelError

__all__ = ["can_write", "first_token", "generate", "require_writer", "rows_at_once"]

# Tokens of a batch of sequences that are written together, and bytes of their keys and values. Free memory does not
# count: the sampled tokens depend on the batches.
TOKENS_PER_BATCH, CACHE_BYTES = 32768, 2 * 2**30


def first_token(model: nn.Module, tokenizer: Tokenizer | None) -> int:
    """Return the token that starts a text: the BOS token, else the EOS token, which ends the text before."""
    config = getattr(model, "config", None)
    for owner in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id"):
            token: Any = getattr(owner, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise DataError(
        "self-calibration must start from a BOS or EOS token, got a model without one. Give a text instead."
    )


def can_write(model: nn.Module, length: int) -> bool:
    """Return whether a model can write sequences of this length, prompt included: a decoder that generates text."""
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    generates = hasattr(model, "generate") and getattr(model, "can_generate", lambda: False)()
    return bool(generates) and not encoder_decoder and length >= 2


def require_writer(model: nn.Module, config: CalibrationConfig, *, length: int) -> None:
    """Refuse a model that cannot write calibration text.

    Args:
        model: to write calibration text.
        config: asks for it.
        length: tokens of a sequence.

    Raises:
        DataError: the model does not generate text, or its context is one token.
    """
    option = "self-calibration" if config.source == "self" else "`num_continuations`"
    hint = "Give a text instead." if config.source == "self" else "Set it to 0, and give more text."
    if not can_write(model, length=2):
        raise DataError(f"{option} must have a model that generates text, got {type(model).__name__}.", hint=hint)
    if length < 2:
        raise DataError(f"{option} must have a model with a context of at least 2 tokens, got {length}.", hint=hint)


def generate(
    model: nn.Module,
    prompts: Tensor,
    length: int,
    *,
    seed: int,
    padding: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Continue prompts by samples of the model (temperature 1, no top-k or top-p).

    The caller's random state is not changed.

    Args:
        model: as of `require_writer`.
        prompts: token ids `(count, n)`, n < length.
        length: tokens of each sequence, its prompt included.
        seed: of the samples.
        padding: any token; nothing is padded.
        progress: called with written tokens of all sequences, and all.

    Returns:
        `(count, length)` token ids on the CPU.

    Raises:
        ModelError: the model predicts NaN or infinity.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    # Without an EOS token every sequence reaches the full length.
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length - prompts.shape[1],
        min_new_tokens=length - prompts.shape[1],
        bos_token_id=padding,
        eos_token_id=None,
        pad_token_id=padding,
    )
    generator: Any = model
    was_training, saved_config = model.training, generator.generation_config
    model.eval()
    parts: list[Tensor] = []
    report = progress or (lambda done, total: None)

    def tick(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Stop nowhere."""
        before = sum(len(part) for part in parts)
        new = ids.shape[1] - prompts.shape[1]
        report(before * (length - prompts.shape[1]) + len(ids) * new, len(prompts) * (length - prompts.shape[1]))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            # generate() takes unset values, such as the EOS token, from the model's own config.
            generator.generation_config = settings
            for some in prompts.split(rows_at_once(model, length)):
                prompt = some.to(device)
                parts.append(
                    generator.generate(
                        prompt,
                        attention_mask=torch.ones_like(prompt),
                        generation_config=settings,
                        stopping_criteria=[tick],
                    )
                )
        except RuntimeError as error:
            if "inf" not in str(error):
                raise
            raise ModelError(
                "the model must predict finite probabilities, got NaN or infinity during generation."
            ) from error
        finally:
            generator.generation_config = saved_config
            model.train(was_training)
    return torch.cat(parts).cpu()


def rows_at_once(model: nn.Module, length: int) -> int:
    """Return how many sequences are written together; configs without these numbers have no limit but the tokens."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, width, heads, shared, size = (
        _number(config, name)
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    # Channels of keys: as many as of queries, where heads do not share them.
    channels = (shared or heads or 1) * (size or (width or 0) / (heads or 1))
    cache = 2 * (layers or 0) * channels * next(model.parameters()).element_size()
    tokens = min(TOKENS_PER_BATCH, CACHE_BYTES // max(1, int(cache)))
    return max(1, tokens // length)


def _number(config: Any, name: str) -> int | None:
    """Return a number of a config; None where it has none, or another one for each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        # AmbiguousGlobalPerLayerAttributeError of transformers, for instance in Gemma 4.
        return None
