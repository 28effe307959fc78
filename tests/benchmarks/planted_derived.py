"""Models made from trained ones without training: random singular vectors, rank cut, rescaling. Used by planted.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from planted_conditions import draw_positions
from torch import Tensor, nn
from transformers import LlamaForCausalLM

# Standard deviation of the logarithm of the factors that change no output.
RESCALING = 0.7


def random_vectors(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return a matrix with the singular values of `weight` and random singular vectors."""
    values = torch.linalg.svdvals(weight)
    left, right = (_orthogonal(size, len(values), generator) for size in weight.shape)
    return left * values @ right.T


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator))
    # Without the signs of R the columns are not uniform on the sphere.
    return q * r.diagonal().sign()


def rank_cut(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Keep the largest quarter of the singular values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = len(values) // 4
    return left[:, :kept] * values[:kept] @ right[:kept]


# Condition -> weight of the bad block.
DERIVED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "random-vectors": random_vectors,
    "rank-cut": rank_cut,
}


@torch.no_grad()
def spoil(model: LlamaForCausalLM, condition: str, family: int) -> int:
    """Change every matrix of one block, in place; return its position, drawn by the seed of the family."""
    number = list(DERIVED).index(condition)
    (position,) = draw_positions(family, -1 - number, len(model.model.layers), 1)
    generator = torch.Generator().manual_seed(family + number)
    for weight in model.model.layers[position].parameters():
        if weight.ndim == 2:
            weight.copy_(DERIVED[condition](weight, generator))
    return position


@torch.no_grad()
def rescale(model: LlamaForCausalLM, family: int) -> None:
    """Multiply v against o, up against down, and norm gains against the matrices that read them, in place.

    The outputs stay the same up to rounding.
    """
    generator = torch.Generator().manual_seed(family)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        pairs: list[tuple[nn.Module, list[nn.Module]]] = [
            (attention.v_proj, [attention.o_proj]),
            (mlp.up_proj, [mlp.down_proj]),
            (block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
        ]
        for first, readers in pairs:
            factor = (RESCALING * torch.randn((), generator=generator)).exp()
            first.weight.mul_(factor)
            for reader in readers:
                reader.weight.div_(factor)
