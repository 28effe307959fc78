"""What architectures call their layers, and how they fuse several into one parameter.

A new architecture is usually only a name in `KNOWN`; where it fuses weights, also a line in `FUSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hf_farms.blocks.layers import Part

__all__ = ["BLOCK_PATHS", "KNOWN", "expert_parts", "fused_parts", "is_experts", "role_of"]

# `model_type` of the (text) model whose module tree has been checked. Others are walked too, with a warning.
KNOWN = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox", "falcon"),
        *("bert", "roberta", "distilbert", "vit", "t5", "resnet"),
        *("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3"),
        *("qwen3_vl_text", "qwen3_next", "jamba", "mamba"),
    }
)

# Where the blocks are not the largest module list: patterns of their names.
BLOCK_PATHS = {"resnet": ("*encoder.stages.*.layers",)}

# End of a module's path inside its block -> role; the longest match counts.
ROLES = {
    **{"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "self_attn.out_proj": "o"},
    **{"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "fc1": "up", "fc2": "down"},
    # bert, roberta
    **{"self.query": "q", "self.key": "k", "self.value": "v", "attention.output.dense": "o"},
    **{"intermediate.dense": "up", "output.dense": "down"},
    # distilbert
    **{"q_lin": "q", "k_lin": "k", "v_lin": "v", "out_lin": "o", "lin1": "up", "lin2": "down"},
    # gpt2, gpt_neox, falcon
    **{"attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
    **{"attention.dense": "o", "self_attention.dense": "o", "dense_h_to_4h": "up", "dense_4h_to_h": "down"},
    # t5
    **{"Attention.q": "q", "Attention.k": "k", "Attention.v": "v", "Attention.o": "o"},
    **{"DenseReluDense.wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"},
    # multi-head latent attention
    **{"q_a_proj": "q_a", "q_b_proj": "q_b", "kv_a_proj_with_mqa": "kv_a", "kv_b_proj": "kv_b"},
    # which expert gets a token
    **{"router": "router", "mlp.gate": "router", "block_sparse_moe.gate": "router"},
}
CROSS_ATTENTION = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")
SHARED_EXPERTS = ("shared_expert", "shared_experts")


def role_of(path: str) -> str:
    """The standard term for the layer at `path` inside its block; the path itself where there is none."""
    matches = [end for end in ROLES if path == end or path.endswith(end if end[0] == "A" else f".{end}")]
    if not matches:
        return path
    role = ROLES[max(matches, key=len)]
    parts = path.split(".")
    if any(part in CROSS_ATTENTION for part in parts):
        return f"cross_{role}"
    return f"shared_{role}" if any(part in SHARED_EXPERTS for part in parts) else role


# Roles of the layers in a fused weight, each with its part.
Parts = dict[str, Part]


def _consecutive(**sizes: int) -> Parts:
    parts, start = {}, 0
    for role, size in sizes.items():
        parts[role] = Part(start=start, stop=start + size)
        start += size
    return parts


def _thirds(rows: int, config: Any) -> Parts:
    return _consecutive(q=rows // 3, k=rows // 3, v=rows // 3)


def _halves(rows: int, config: Any) -> Parts:
    return _consecutive(gate=rows // 2, up=rows // 2)


def _grouped(rows: int, config: Any) -> Parts:
    """All heads of q, then those of k, then those of v."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = rows // (heads + 2 * kv_heads)
    return _consecutive(q=heads * size, k=kv_heads * size, v=kv_heads * size)


def _per_head(rows: int, config: Any) -> Parts:
    """For every head its rows of q, k and v."""
    return _interleaved(rows, config.num_attention_heads, 1)


def _interleaved(rows: int, groups: int, queries: int) -> Parts:
    """For every group of heads the rows of its queries, then those of its k and its v."""
    size = rows // (groups * (queries + 2))
    bounds = {"q": (0, queries), "k": (queries, queries + 1), "v": (queries + 1, queries + 2)}
    return {role: Part(groups=groups, start=a * size, stop=b * size) for role, (a, b) in bounds.items()}


def _falcon(rows: int, config: Any) -> Parts:
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return _interleaved(rows, config.num_kv_heads, heads // config.num_kv_heads)
    if config.multi_query:
        size = rows // (heads + 2)
        return _consecutive(q=heads * size, k=size, v=size)
    return _per_head(rows, config)


# model_type -> end of the module's path -> how its rows are shared out.
FUSED: dict[str, dict[str, Callable[[int, Any], Parts]]] = {
    "phi3": {"self_attn.qkv_proj": _grouped, "mlp.gate_up_proj": _halves},
    "gpt2": {"attn.c_attn": _thirds},
    "gpt_neox": {"attention.query_key_value": _per_head},
    "falcon": {"self_attention.query_key_value": _falcon},
}


def fused_parts(path: str, rows: int, config: Any) -> Parts | None:
    """The layers inside the weight at `path`, or None where it is one layer.

    Args:
        path: of the module inside its block.
        rows: output features of the weight.
        config: of the (text) model.
    """
    split = FUSED.get(getattr(config, "model_type", ""), {}).get(path)
    return None if split is None else split(rows, config)


def is_experts(module: nn.Module) -> bool:
    """Whether the 3-D parameters of this module are the weights of experts."""
    return "Experts" in type(module).__name__


def expert_parts(module: nn.Module, path: str, attribute: str, shape: tuple[int, ...]) -> Parts:
    """Roles of one expert's layers inside a 3-D parameter `(e, out, in)`, or `(e, in, out)`.

    transformers says on the module whether the matrices are transposed, and whether gate and up lie one after the
    other or alternate (gpt_oss). Llama 4 does not say, its products are `x @ W`.
    """
    name = type(module).__name__
    transposed = getattr(module, "is_transposed", False) or name in ("Llama4TextExperts", "GptOssExperts")
    alternating = not getattr(module, "is_concatenated", name != "GptOssExperts")
    rows = shape[2] if transposed else shape[1]
    if attribute in ("gate_up_proj", "gate_up_projs"):
        if alternating:
            halves = {"gate": Part(groups=rows // 2, stop=1), "up": Part(groups=rows // 2, start=1, stop=2)}
        else:
            halves = _halves(rows, None)
        return {role: Part(None, transposed, p.groups, p.start, p.stop) for role, p in halves.items()}
    return {ROLES.get(attribute, f"{path}.{attribute}"): Part(transposed=transposed)}
