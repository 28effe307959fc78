"""Convert the weights of a Llama in Meta's layout (params.json, consolidated.NN.pth) to a transformers checkpoint.

A model-parallel checkpoint has one file per process, each with a part of every matrix. The split dimension follows from
the shapes: it is the one in which the lengths of the parts add up to the length of the matrix.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import ModelError
from hf_farms.files.documents import DocumentError, load_json, read_text, short_repr
from hf_farms.files.names import WEIGHTS_INDEX
from hf_farms.output.folder import writing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

__all__ = ["convert_weights"]

# Module name in transformers -> in Meta's layout.
NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAME = re.compile("|".join(map(re.escape, NAMES)))
IGNORED = "rope.freqs"  # in some checkpoints; computed from rope_theta
NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")
# Keys of params.json that the conversion supports, with the bounds of their values: whole numbers where both are.
# Larger values would ask for more memory than any model has before the weights show that they are wrong.
KNOWN: dict[str, tuple[float, float]] = {
    "dim": (1, 2**20),
    "n_layers": (1, 2**14),
    "n_heads": (1, 2**14),
    "n_kv_heads": (1, 2**14),
    "vocab_size": (-1, 2**24),
    "multiple_of": (1, 2**20),
    "max_seq_len": (1, 2**30),
    "max_batch_size": (1, 2**30),
    "norm_eps": (0.0, 1.0),
    "ffn_dim_multiplier": (0.01, 100.0),
    "rope_theta": (1.0, 1e12),
    "use_scaled_rope": (0, 1),
}
# Values that params.json lacks, by the rope_theta of Llama 2, Llama 3 and Code Llama: the context length, BOS token and
# EOS token.
DEFAULTS = {10_000: (4096, 1, 2), 500_000: (8192, 128_000, 128_001), 1_000_000: (16_384, 1, 2)}


def convert_weights(folder: Path, shards: Sequence[str], target: Path) -> None:
    """Convert config and weights of a checkpoint in Meta's layout, block by block.

    Memory use is one block, or the embeddings. Only tensors are read from the pickled files, and no code in them runs.

    Args:
        folder: with params.json and the shards.
        shards: names of the weight files, in numerical order.
        target: an existing, empty folder.

    Raises:
        ModelError: the checkpoint is damaged, incomplete or not a Llama, or a pickled file contains other objects.
        OutputError: the target cannot be written.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    parts = [_read_shard(folder / shard) for shard in shards]
    config = _llama_config(_read_params(folder / "params.json"), parts)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    _check_tensor_names(shapes, parts)
    # One file per block, and one for the tensors outside the blocks.
    files: dict[str, list[str]] = {}
    for name in shapes:
        block = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(block[1] if block else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    with writing(target):
        config.save_pretrained(target)
        for index, names in enumerate(files.values()):
            file = f"model-{index + 1:05d}-of-{len(files):05d}.safetensors"
            state = {name: _merge_parts(name, tuple(shapes[name]), parts, config) for name in names}
            save_file(state, target / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        total = sum(shape.numel() for shape in shapes.values()) * state[names[0]].itemsize
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (target / WEIGHTS_INDEX).write_text(index_text + "\n", encoding="utf-8")


def _read_shard(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one shard, memory-mapped if the file format allows it."""
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"pickled weights must hold tensors and nothing else, got {path.name!r} with other objects or code.",
            hint="Nothing in it was run. Get the file from the publisher of the model.",
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"weights must be readable, got a damaged {path.name!r}.", hint="Download the file again."
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ModelError(f"weights must be tensors by name, got something else in {path.name!r}.")
    return dict(tensors)


def _read_params(path: Path) -> dict[str, Any]:
    try:
        params = load_json(read_text(path)).data
    except (OSError, DocumentError) as error:
        raise ModelError("params.json must be JSON, got a damaged one.", hint="Download the file again.") from error
    missing = [key for key in NEEDED if not isinstance(params, dict) or not isinstance(params.get(key), int | float)]
    if missing:
        raise ModelError(f"params.json must have the numbers {', '.join(NEEDED)}, got one without {missing[0]}.")
    unsupported = sorted(set(params) - set(KNOWN)) + ["use_scaled_rope"] * bool(params.get("use_scaled_rope"))
    if unsupported:
        raise ModelError(
            f"params.json must be that of Llama, Llama 2 or Llama 3, got one with {', '.join(unsupported)}.",
            hint="Name a repository of this model that has a config.json.",
        )
    for key, value in params.items():
        lowest, highest = KNOWN[key]
        number = int | float if isinstance(lowest, float) else int
        if value is not None and not (isinstance(value, number) and lowest <= value <= highest):
            kind = "a number" if isinstance(lowest, float) else "a whole number"
            raise ModelError(
                f"{key} of params.json must be {kind} from {lowest:,} to {highest:,}, got {short_repr(value)}.",
                hint="Download the file again.",
            )
    return dict(params)


def _llama_config(params: dict[str, Any], parts: Sequence[Mapping[str, Tensor]]) -> LlamaConfig:
    from transformers import LlamaConfig

    dim, heads = int(params["dim"]), int(params["n_heads"])
    embeddings = parts[0].get("tok_embeddings.weight")
    if embeddings is None or heads < 1 or dim % heads:
        raise ModelError(
            "weights and params.json must be of a Llama, got no tok_embeddings, or dim not a multiple of n_heads."
        )
    # Llama 2 splits the width of the embeddings, Llama 3 the vocabulary.
    rows, columns = embeddings.shape
    theta = float(params.get("rope_theta") or 10_000)
    length, bos, eos = DEFAULTS.get(int(theta), DEFAULTS[10_000])
    config = LlamaConfig(
        vocab_size=rows * len(parts) if columns == dim else rows,
        hidden_size=dim,
        intermediate_size=_intermediate_size(params),
        num_hidden_layers=int(params["n_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(params.get("n_kv_heads") or heads),
        head_dim=dim // heads,
        rms_norm_eps=params["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=int(params.get("max_seq_len") or length),
        bos_token_id=bos,
        eos_token_id=eos,
        tie_word_embeddings=False,
        dtype=embeddings.dtype,
        architectures=["LlamaForCausalLM"],
    )
    declared = params.get("vocab_size", -1)
    if declared not in (-1, config.vocab_size):
        raise ModelError(
            f"shards must hold the whole vocabulary, got {config.vocab_size} tokens where params.json says {declared}.",
            hint="A shard (consolidated.NN.pth) is missing, or is of another model.",
        )
    return config


def _intermediate_size(params: Mapping[str, Any]) -> int:
    """Return the feed-forward width: 2/3 of 4 times the model's width, scaled, then rounded up to `multiple_of`."""
    width = int(8 * int(params["dim"]) / 3)
    width = int((params.get("ffn_dim_multiplier") or 1) * width)
    step = int(params.get("multiple_of") or 256)
    return -(-width // step) * step


def _check_tensor_names(shapes: Mapping[str, object], parts: Sequence[Mapping[str, Tensor]]) -> None:
    expected = {_meta_name(name) for name in shapes}
    for number, part in enumerate(parts):
        names = set(part) - {IGNORED}
        if names != expected:
            name = min(names ^ expected)
            difference = "without" if name in expected else "also with"
            raise ModelError(
                f"shard {number} must hold the tensors of a Llama, got one {difference} {name!r}.",
                hint="Download the files again, or name a repository of this model that has a config.json.",
            )


def _meta_name(name: str) -> str:
    return NAME.sub(lambda match: NAMES[match[0]], name)


def _merge_parts(
    name: str, shape: tuple[int, ...], parts: Sequence[Mapping[str, Tensor]], config: LlamaConfig
) -> Tensor:
    """Concatenate the parts of one tensor, and reorder the rows of q and k for transformers."""
    import torch

    tensors = [part[_meta_name(name)] for part in parts]
    sizes = {tuple(tensor.shape) for tensor in tensors}
    if sizes == {shape}:  # replicated on each process
        merged = tensors[0].clone()
    else:
        split = [
            dim for dim in range(len(shape)) if len(sizes) == 1 and _scale_dim(min(sizes), dim, len(parts)) == shape
        ]
        if not split:
            part_shapes = ", ".join(map(str, sorted(sizes)))
            raise ModelError(
                f"shards must add up to {name!r} of shape {shape}, got {len(parts)} of {part_shapes}.",
                hint="A shard (consolidated.NN.pth) is missing, or params.json is of another model.",
            )
        merged = torch.cat(tensors, dim=split[0])
    if ".q_proj." in name or ".k_proj." in name:
        merged = _halves_from_pairs(merged, int(config.head_dim or 0))
    return merged.contiguous()


def _scale_dim(shape: tuple[int, ...], dim: int, times: int) -> tuple[int, ...]:
    return (*shape[:dim], shape[dim] * times, *shape[dim + 1 :])


def _halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head for rotary embeddings.

    Meta rotates the pairs (2i, 2i + 1), transformers the pairs (i, i + head_dim / 2).
    """
    rows = weight.shape[0]
    return weight.reshape(rows // head_dim, head_dim // 2, 2, -1).transpose(1, 2).reshape(rows, -1)
