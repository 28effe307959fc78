"""Small Llamas, new or with weights drawn anew, and the text that they are trained and measured on."""

from __future__ import annotations

import copy
from functools import cache

import torch
from demo_data import CONTEXT, VOCABULARY, tokens_of, train_tokenizer
from planted_conditions import HEALTHY, Condition, Setting
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

DEVIATION = 0.02


@cache
def tokens(split: str) -> Tensor:
    return tokens_of(split, train_tokenizer())


def windows(split: str, count: int | None = None) -> Tensor:
    """The first consecutive windows of a split."""
    text = tokens(split)
    return text[: len(text) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[:count]


def new_model(setting: Setting, family: int) -> LlamaForCausalLM:
    torch.manual_seed(family)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=setting.hidden,
        intermediate_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        use_cache=False,
        initializer_range=DEVIATION,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for block, width in zip(model.model.layers, setting.widths, strict=False):
        block.mlp = LlamaMLP(replace_width(config, width))
        initialize(block.mlp, torch.Generator().manual_seed(family + width))
    return model


def replace_width(config: LlamaConfig, width: int) -> LlamaConfig:
    own = copy.copy(config)
    own.intermediate_size = width
    return own


def matrices(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.ndim == 2]


@torch.no_grad()
def initialize(block: nn.Module, generator: torch.Generator, condition: Condition = HEALTHY) -> None:
    """Draw the matrices anew, normal or with heavy tails at the same norm."""
    for weight in matrices(block):
        normal = torch.randn(weight.shape, generator=generator)
        if condition.tail is not None:
            chi = torch.distributions.Chi2(condition.tail).sample(weight.shape)
            heavy = normal * (condition.tail / chi).sqrt()
            normal = heavy * normal.norm() / heavy.norm()
        weight.copy_(DEVIATION * condition.deviation * normal)


def sample(generator: torch.Generator, batch: int) -> Tensor:
    """Random windows of the train split."""
    text = tokens("train")
    starts = torch.randint(len(text) - CONTEXT, (batch,), generator=generator)
    return torch.stack([text[start : start + CONTEXT] for start in starts])


@torch.no_grad()
def loss(model: nn.Module, split: str, count: int | None = 64) -> float:
    """Mean loss for each token over the first windows of a split."""
    data = windows(split, count)
    parts = [float(model(input_ids=part, labels=part).loss) * len(part) for part in data.split(16)]
    return sum(parts) / len(data)
