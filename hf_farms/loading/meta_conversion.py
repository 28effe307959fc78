"""Meta's own layout of a Llama (params.json, consolidated.NN.pth, tokenizer.model) -> that of transformers.

A model-parallel checkpoint has one file per process, each with its part of every matrix. Which dimension is split is
read from the shapes: it is the one in which the parts together are as long as the whole.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import ModelError
from hf_farms.output.folder import writing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

__all__ = ["TOKENIZER_FILES", "convert_tokenizer", "convert_weights"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
# transformers -> Meta.
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
COMPUTED = "rope.freqs"  # in some checkpoints; follows from rope_theta
NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")
# What else a params.json may hold without being another architecture.
KNOWN = {
    *NEEDED,
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "rope_theta",
    "use_scaled_rope",
    "max_seq_len",
    "max_batch_size",
}
# What params.json does not say, by rope_theta of Llama 2, Llama 3 and Code Llama: the length of the sequences of the
# training, and the tokens of begin and end.
TRAINED = {10_000: (4096, 1, 2), 500_000: (8192, 128_000, 128_001), 1_000_000: (16_384, 1, 2)}


def convert_weights(folder: Path, shards: Sequence[str], target: Path) -> None:
    """Write config and weights of a checkpoint in Meta's layout as transformers has them, block by block.

    Memory grows with one block, or the embeddings. Nothing but tensors is read from the pickled files, and no code in
    them is run.

    Args:
        folder: holds params.json and the shards.
        shards: names of the weight files, in the order of their numbers.
        target: an existing, empty folder.

    Raises:
        ModelError: damaged or incomplete, not a Llama, or pickled files with more than tensors in them.
        OutputError: the target cannot be written.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    parts = [_read(folder / shard) for shard in shards]
    config = _config(_params(folder / "params.json"), parts)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    _check_names(shapes, parts)
    # One file per block, and one for what is outside of them.
    files: dict[str, list[str]] = {}
    for name in shapes:
        block = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(block[1] if block else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    with writing(target):
        config.save_pretrained(target)
        for index, names in enumerate(files.values()):
            file = f"model-{index + 1:05d}-of-{len(files):05d}.safetensors"
            state = {name: _whole(name, tuple(shapes[name]), parts, config) for name in names}
            save_file(state, target / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        total = sum(shape.numel() for shape in shapes.values()) * state[names[0]].itemsize
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (target / "model.safetensors.index.json").write_text(index_text + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one shard, mapped where the file can be."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"pickled weights must hold tensors and nothing else, got {path.name!r} with other objects or code.",
            hint="Nothing in it was run. Get the file from the publisher of the model.",
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"weights must be readable, got a damaged {path.name!r}.", hint="Download the file again."
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"weights must be tensors by name, got something else in {path.name!r}.")
    return dict(found)


def _params(path: Path) -> dict[str, Any]:
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("params.json must be JSON, got a damaged one.", hint="Download the file again.") from error
    missing = [key for key in NEEDED if not isinstance(params, dict) or not isinstance(params.get(key), int | float)]
    if missing:
        raise ModelError(f"params.json must have the numbers {', '.join(NEEDED)}, got one without {missing[0]}.")
    strange = sorted(set(params) - KNOWN) + ["use_scaled_rope"] * bool(params.get("use_scaled_rope"))
    if strange:
        raise ModelError(
            f"params.json must be that of Llama, Llama 2 or Llama 3, got one with {', '.join(strange)}.",
            hint="Name a repository of this model that has a config.json.",
        )
    return dict(params)


def _config(params: dict[str, Any], parts: Sequence[Mapping[str, Tensor]]) -> LlamaConfig:
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
    length, begin, end = TRAINED.get(int(theta), TRAINED[10_000])
    config = LlamaConfig(
        vocab_size=rows * len(parts) if columns == dim else rows,
        hidden_size=dim,
        intermediate_size=_intermediate(params),
        num_hidden_layers=int(params["n_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(params.get("n_kv_heads") or heads),
        head_dim=dim // heads,
        rms_norm_eps=params["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=int(params.get("max_seq_len") or length),
        bos_token_id=begin,
        eos_token_id=end,
        tie_word_embeddings=False,
        dtype=embeddings.dtype,
        architectures=["LlamaForCausalLM"],
    )
    named = params.get("vocab_size", -1)
    if named not in (-1, config.vocab_size):
        raise ModelError(
            f"shards must hold the whole vocabulary, got {config.vocab_size} tokens where params.json says {named}.",
            hint="A shard (consolidated.NN.pth) is missing, or is of another model.",
        )
    return config


def _intermediate(params: Mapping[str, Any]) -> int:
    """Width of the feed-forward layers: two thirds of four times the model's, scaled, then rounded up."""
    width = int(8 * int(params["dim"]) / 3)
    width = int((params.get("ffn_dim_multiplier") or 1) * width)
    step = int(params.get("multiple_of") or 256)
    return -(-width // step) * step


def _check_names(shapes: Mapping[str, object], parts: Sequence[Mapping[str, Tensor]]) -> None:
    wanted = {_original_name(name) for name in shapes}
    for number, part in enumerate(parts):
        found = set(part) - {COMPUTED}
        if found != wanted:
            name = min(found ^ wanted)
            what = "without" if name in wanted else "also with"
            raise ModelError(
                f"shard {number} must hold the tensors of a Llama, got one {what} {name!r}.",
                hint="Download the files again, or name a repository of this model that has a config.json.",
            )


def _original_name(name: str) -> str:
    return NAME.sub(lambda found: NAMES[found[0]], name)


def _whole(name: str, shape: tuple[int, ...], parts: Sequence[Mapping[str, Tensor]], config: LlamaConfig) -> Tensor:
    """One tensor from its parts, as transformers has it."""
    import torch

    tensors = [part[_original_name(name)] for part in parts]
    sizes = {tuple(tensor.shape) for tensor in tensors}
    if sizes == {shape}:  # each process has all of it
        whole = tensors[0].clone()
    else:
        split = [dim for dim in range(len(shape)) if len(sizes) == 1 and _grown(min(sizes), dim, len(parts)) == shape]
        if not split:
            found = ", ".join(map(str, sorted(sizes)))
            raise ModelError(
                f"shards must make up {name!r} of shape {shape}, got {len(parts)} of {found}.",
                hint="A shard (consolidated.NN.pth) is missing, or params.json is of another model.",
            )
        whole = torch.cat(tensors, dim=split[0])
    if ".q_proj." in name or ".k_proj." in name:
        whole = _halves_from_pairs(whole, int(config.head_dim or 0))
    return whole.contiguous()


def _grown(shape: tuple[int, ...], dim: int, times: int) -> tuple[int, ...]:
    return (*shape[:dim], shape[dim] * times, *shape[dim + 1 :])


def _halves_from_pairs(weight: Tensor, head: int) -> Tensor:
    """Order of the rows within a head: Meta rotates neighbours (2i, 2i + 1), transformers i and i + half a head."""
    rows = weight.shape[0]
    return weight.reshape(rows // head, head // 2, 2, -1).transpose(1, 2).reshape(rows, -1)


def convert_tokenizer(source: Path, target: Path) -> bool:
    """Write the tokenizer of a checkpoint in Meta's layout as transformers has it.

    Meta's download script leaves `tokenizer.model` in the folder above the weights, so it is looked for there too.

    Args:
        source: folder of the checkpoint.
        target: an existing folder.

    Returns:
        Whether there was one.

    Raises:
        ModelError: of a kind that cannot be converted here, or its library is not installed.
    """
    from transformers import LlamaTokenizer

    folder = next(
        (place for place in (source, source.absolute().parent) if (place / "tokenizer.model").is_file()), None
    )
    with writing(target):
        if (source / "tokenizer.json").is_file():
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, target / name)
            return True
        if folder is None:
            return False
        _check_tokenizer(folder / "tokenizer.model")
        shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
        # Meta prepends the begin of a sequence; a sentencepiece file does not say so.
        LlamaTokenizer.from_pretrained(target, add_bos_token=True).save_pretrained(target)
    return True


def _check_tokenizer(path: Path) -> None:
    """Only what sentencepiece wrote: Llama 3 has a tokenizer of tiktoken, whose special tokens are in no file."""
    from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

    with path.open("rb") as file:
        start = file.read(1)
    if start != b"\n":
        raise ModelError(
            "tokenizer.model must be one of sentencepiece, got another format, as Llama 3 has it.",
            hint="Put the tokenizer.json and tokenizer_config.json of the model's Hub repository beside it.",
        )
    if not is_sentencepiece_available() or not is_protobuf_available():
        raise ModelError(
            "tokenizer.model must be read by sentencepiece, which is not installed.",
            hint="pip install sentencepiece protobuf",
        )
