"""Layer names and fused projections of each architecture.

To add an architecture, add its `model_type` to `KNOWN`; if it fuses weights, also a line to `FUSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hf_farms.blocks.layers import Part

__all__ = ["BLOCK_PATHS", "KNOWN", "expert_parts", "fused_parts", "is_experts", "role_of"]

# `model_type` of the (text) models whose module tree has been checked. Others are supported with a warning.
KNOWN = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox", "falcon"),
        *("bert", "roberta", "distilbert", "vit", "t5", "resnet"),
        *("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3"),
        *("qwen3_vl_text", "qwen3_next", "jamba", "mamba"),
    }
)

# Name patterns of module lists with blocks, for architectures where the largest list is not the right one.
BLOCK_PATHS = {"resnet": ("*encoder.stages.*.layers",)}

# End of a module's path inside its block -> role; the longest match wins.
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
    # routers of experts
    **{"router": "router", "mlp.gate": "router", "block_sparse_moe.gate": "router"},
}
CROSS_ATTENTION = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")
SHARED_EXPERTS = ("shared_expert", "shared_experts")


def role_of(path: str) -> str:
    """Return the role of the layer at `path` inside its block; the path itself if no role is known."""
    matches = [end for end in ROLES if path == end or path.endswith(end if end[0] == "A" else f".{end}")]
    if not matches:
        return path
    role = ROLES[max(matches, key=len)]
    parts = path.split(".")
    if any(part in CROSS_ATTENTION for part in parts):
        return f"cross_{role}"
    return f"shared_{role}" if any(part in SHARED_EXPERTS for part in parts) else role


# Role -> part of a fused weight.
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
    """Split rows ordered as all heads of q, then of k, then of v."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = rows // (heads + 2 * kv_heads)
    return _consecutive(q=heads * size, k=kv_heads * size, v=kv_heads * size)


def _per_head(rows: int, config: Any) -> Parts:
    """Split rows ordered as q, k, v of head 0, then of head 1, and so on."""
    return _interleaved(rows, config.num_attention_heads, 1)


def _interleaved(rows: int, groups: int, queries: int) -> Parts:
    """Split rows ordered by group of heads: its queries, then its k, then its v."""
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


# model_type -> module path inside the block -> function that splits the rows.
FUSED: dict[str, dict[str, Callable[[int, Any], Parts]]] = {
    "phi3": {"self_attn.qkv_proj": _grouped, "mlp.gate_up_proj": _halves},
    "gpt2": {"attn.c_attn": _thirds},
    "gpt_neox": {"attention.query_key_value": _per_head},
    "falcon": {"self_attention.query_key_value": _falcon},
}


def fused_parts(path: str, rows: int, config: Any) -> Parts | None:
    """Return the layers inside a fused weight, or None if the weight is a single layer.

    Args:
        path: module path inside the block.
        rows: output features of the weight.
        config: config of the (text) model.
    """
    split = FUSED.get(getattr(config, "model_type", ""), {}).get(path)
    return None if split is None else split(rows, config)


def is_experts(module: nn.Module) -> bool:
    """Return whether the 3-D parameters of a module are weights of experts."""
    return "Experts" in type(module).__name__


def expert_parts(module: nn.Module, path: str, attribute: str, shape: tuple[int, ...]) -> Parts:
    """Return the layers of one expert inside a 3-D parameter `(e, out, in)` or `(e, in, out)`.

    Attributes of the transformers module tell whether the matrices are transposed, and whether gate and up are
    concatenated or interleaved (gpt_oss). Llama 4 lacks these attributes; it multiplies `x @ W`.
    """
    name = type(module).__name__
    transposed = getattr(module, "is_transposed", False) or name in ("Llama4TextExperts", "GptOssExperts")
    interleaved = not getattr(module, "is_concatenated", name != "GptOssExperts")
    rows = shape[2] if transposed else shape[1]
    if attribute in ("gate_up_proj", "gate_up_projs"):
        if interleaved:
            halves = {"gate": Part(groups=rows // 2, stop=1), "up": Part(groups=rows // 2, start=1, stop=2)}
        else:
            halves = _halves(rows, None)
        return {role: Part(None, transposed, p.groups, p.start, p.stop) for role, p in halves.items()}
    return {ROLES.get(attribute, f"{path}.{attribute}"): Part(transposed=transposed)}
