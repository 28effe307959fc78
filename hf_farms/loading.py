"""A model's name -> the model in memory, or its checkpoint on disk opened for reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_farms.blocks import (
    BlockReader,
    ModelBlockSource,
    StoredBlockReader,
    StreamedBlockSource,
    TensorFiles,
    align_weights,
)
from hf_farms.errors import ModelError
from hf_farms.resolving import (
    architecture_of,
    explained,
    find_device,
    find_model,
    free_memory,
    parse_dtype,
    quantisation_of,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Loaded", "find_device", "load_model", "open_model"]

# A model that takes more than this share of the free memory is read from disk block by block: calibration data, scores
# and everything else need some too.
MEMORY_SHARE = 0.5
# `quant_method` -> the config class of transformers that dequantises while loading; None: weights that their library
# dequantises one by one.
DEQUANTISED: dict[str, str | None] = {
    "mxfp4": "Mxfp4Config",
    "fp8": "FineGrainedFP8Config",
    "compressed-tensors": "CompressedTensorsConfig",
    "bitsandbytes": None,
    "torchao": None,
}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, if it has one.

    Attributes:
        model: of a streamed one, what is outside the blocks; `source.whole()` lends it the rest.
        tokenizer: of the model.
        source: its blocks.
        weights: the files that hold its weights.
        notes: what a reader of a result must know of where the weights came from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: ModelBlockSource
    weights: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    tokenizer: bool | None = True,
    stream: bool | None = False,
    allow_pickle: bool = False,
) -> Loaded:
    """Load a model and its tokenizer.

    Args:
        name: `demo`, a folder, or a hub id, looked for in this order.
        dtype: "auto" is the dtype of the checkpoint.
        device: None is a GPU if there is one, else the CPU.
        revision: of a hub id.
        tokenizer: whether a tokenizer must be there; one that is missing is an error then. None: if there is one.
        stream: leave the blocks on disk and read each when it is needed; None: where the model would take more than
            half of the free memory. What a block computes is the same to the bit.
        allow_pickle: convert pickled weights in Meta's own layout (`consolidated.NN.pth`); no code in them is run.

    Raises:
        ModelError: not found, no weights, no architecture that transformers knows, no tokenizer, or quantised and to
            be streamed.
    """
    from transformers import AutoConfig

    weights_dtype, where = parse_dtype(dtype), find_device(device)
    with explained(name):
        place = find_model(name, revision=revision, allow_pickle=allow_pickle, tokenizer=bool(tokenizer))
        path, revision = place.path, place.revision
        config = AutoConfig.from_pretrained(path, revision=revision)
        weights = weight_files(name, path, revision, allow_pickle=True)
        if stream and (method := quantisation_of(config)) is not None:
            raise ModelError(f"weights must be plain to be read block by block, got {method} in {name!r}.")
        streamed = stream if stream is not None else _is_large(weights, dtype, where)
        options = {"device_map": {"": "meta"}} if streamed else {}
        model = architecture_of(config).from_pretrained(path, dtype=weights_dtype, revision=revision, **options)
        model.config._name_or_path = name
        if streamed:
            source: ModelBlockSource = StreamedBlockSource(model, TensorFiles(weights, mapped=False), device=where)
        else:
            model = model.to(where)
            align_weights(model)
            source = ModelBlockSource(model)
    words = None
    if tokenizer is not False:
        try:
            words = _load_tokenizer(name, path, revision)
        except ModelError:
            if tokenizer:
                raise
    return Loaded(model, words, source, tuple(weights), place.notes)


def _is_large(weights: list[Path], dtype: str, device: str) -> bool:
    size = sum(path.stat().st_size for path in weights if path.exists())
    # Half precision on disk, perhaps.
    return size * (2 if dtype == "float32" else 1) > MEMORY_SHARE * free_memory(device)


def open_model(
    name: str | Path, *, device: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> BlockReader:
    """Open a model's checkpoint for reading, without building the model.

    A quantised checkpoint is loaded instead, dequantised by its library: that takes the memory of the whole model.

    Args:
        name: `demo`, a folder, or a hub id, looked for in this order; of a hub id only configs and weights are fetched.
        device: where a quantised checkpoint is loaded; None is a GPU if there is one, else the CPU.
        revision: of a hub id.
        allow_pickle: read pickled weights (`pytorch_model.bin`) where there are no safetensors, and convert those in
            Meta's own layout (`consolidated.NN.pth`); no code in them is run.

    Raises:
        ModelError: not found, incomplete, pickled, no architecture that transformers knows, or quantised by a method
            that cannot be undone here.
    """
    from transformers import AutoConfig

    name = str(name)
    with explained(name):
        place = find_model(name, revision=revision, allow_pickle=allow_pickle, tokenizer=False)
        path, revision = place.path, place.revision
        config = AutoConfig.from_pretrained(path, revision=revision)
        if (method := quantisation_of(config)) is not None:
            return ModelBlockSource(_load_dequantised(name, path, config, method, device, revision))
        files = TensorFiles(weight_files(name, path, revision, allow_pickle=allow_pickle))
        architecture = architecture_of(config)
        with torch.device("meta"):
            build = getattr(architecture, "from_config", architecture)
            model = build(config)
    return StoredBlockReader(name, model, files)


def _load_dequantised(
    name: str, path: str, config: Any, method: str, device: str | None, revision: str | None
) -> PreTrainedModel:
    import transformers

    if method not in DEQUANTISED:
        raise ModelError(
            f"weights must be plain or quantised by one of {', '.join(sorted(DEQUANTISED))}, got {method} in {name!r}.",
            hint="Name the unquantised model.",
        )
    options = {}
    if (dequantising := DEQUANTISED[method]) is not None:
        options["quantization_config"] = getattr(transformers, dequantising)(dequantize=True)
    model: PreTrainedModel = architecture_of(config).from_pretrained(path, revision=revision, dtype="auto", **options)
    model.config._name_or_path = name
    # bitsandbytes and torchao weights stay on the device that they were made on.
    if options:
        model.to(find_device(device))  # type: ignore[arg-type]
    return model


def _load_tokenizer(name: str, path: str, revision: str | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # a missing tokenizer is an OSError, a ValueError or one of the tokenizers library
        raise ModelError(
            f"model must have a tokenizer, got {name!r} without one that can be loaded.",
            hint="Save one beside it, or do without text (prune: --method magnitude --evaluation none; eval: --metrics "
            "sparsity).",
        ) from error
