"""A model's name -> the model in memory, or its checkpoint on disk opened for reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_farms.blocks import BlockReader, ModelBlockSource, StoredBlockReader, TensorFiles
from hf_farms.demo import demo_model
from hf_farms.errors import HfFarmsError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Loaded", "find_device", "load_model", "open_model"]

DEMO = "demo"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
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
    """A model with its tokenizer, if it has one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def load_model(
    name: str, *, dtype: str = "auto", device: str | None = None, revision: str | None = None, tokenizer: bool = True
) -> Loaded:
    """Load a model and its tokenizer.

    Args:
        name: `demo`, a folder, or a hub id, looked for in this order.
        dtype: "auto" is the dtype of the checkpoint.
        device: None is a GPU if there is one, else the CPU.
        revision: of a hub id.
        tokenizer: whether a tokenizer must be there; one that is missing is an error then.

    Raises:
        ModelError: not found, no weights, no architecture that transformers knows, no tokenizer.
    """
    from transformers import AutoConfig

    path, weights_dtype, where = _resolve(name), _dtype(dtype), find_device(device)
    with _explained(name):
        config = AutoConfig.from_pretrained(path, revision=revision)
        model = _architecture(config).from_pretrained(path, dtype=weights_dtype, revision=revision)
    model.config._name_or_path = name
    loaded_tokenizer = _load_tokenizer(name, path, revision) if tokenizer else None
    return Loaded(model.to(where), loaded_tokenizer)


def open_model(
    name: str | Path, *, device: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> BlockReader:
    """Open a model's checkpoint for reading, without building the model.

    A quantised checkpoint is loaded instead, dequantised by its library: that takes the memory of the whole model.

    Args:
        name: `demo`, a folder, or a hub id, looked for in this order; of a hub id only configs and weights are fetched.
        device: where a quantised checkpoint is loaded; None is a GPU if there is one, else the CPU.
        revision: of a hub id.
        allow_pickle: read pickled weights (`pytorch_model.bin`) where there are no safetensors; no code in them is run.

    Raises:
        ModelError: not found, incomplete, pickled, no architecture that transformers knows, or quantised by a method
            that cannot be undone here.
    """
    from transformers import AutoConfig

    name = str(name)
    path = _resolve(name)
    with _explained(name):
        config = AutoConfig.from_pretrained(path, revision=revision)
        if (method := _quantisation(config)) is not None:
            return ModelBlockSource(_load_dequantised(name, path, config, method, device, revision))
        files = TensorFiles(_weight_files(name, path, revision, allow_pickle=allow_pickle))
        architecture = _architecture(config)
        with torch.device("meta"):
            build = getattr(architecture, "from_config", architecture)
            model = build(config)
    return StoredBlockReader(name, model, files)


def _weight_files(name: str, path: str, revision: str | None, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights, on this machine."""
    from transformers.utils.hub import cached_file

    def found(file: str) -> Path | None:
        where = cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        return Path(where) if where else None

    for single in (SAFE, PICKLED):
        index = found(f"{single}.index.json")
        whole = None if index else found(single)
        if not index and not whole:
            continue
        if single == PICKLED and not allow_pickle:
            raise ModelError(
                f"weights must be safetensors, got pickled ones in {name!r}.",
                hint="Convert them with transformers (save_pretrained), or allow them: --allow-pickle.",
            )
        if whole:
            return [whole]
        assert index is not None
        # A shard that is missing in a folder is named when it is opened.
        return [found(shard) or index.parent / shard for shard in _shards(index)]
    raise ModelError(f"model must have weights ({SAFE}, or shards with an index), got {name!r} without.")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"index of the shards must be JSON with a weight_map, got a damaged {index.name}.",
            hint="Download the model again.",
        ) from error


def _quantisation(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


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
    model: PreTrainedModel = _architecture(config).from_pretrained(path, revision=revision, dtype="auto", **options)
    model.config._name_or_path = name
    # bitsandbytes and torchao weights stay on the device that they were made on.
    if options:
        model.to(find_device(device))  # type: ignore[arg-type]
    return model


def find_device(wanted: str | None) -> str:
    """The device asked for; without a wish a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be one that is there, such as cpu or cuda:0, got {wanted!r}. Leave --device out."
        ) from error
    return wanted


def _load_tokenizer(name: str, path: str, revision: str | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # a missing tokenizer is an OSError, a ValueError or one of the tokenizers library
        raise ModelError(
            f"model must have a tokenizer, got {name!r} without one that can be loaded.",
            hint="Save one beside it, or do without text: --method magnitude --evaluation none.",
        ) from error


def _resolve(name: str) -> str:
    if name == DEMO:
        return str(demo_model())
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model folder must have a config.json, got {name!r} without.",
                hint="Name a folder that save_pretrained wrote.",
            )
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise ModelError(f"model folder must have weights (*.safetensors), got {name!r} without.")
        return name
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model must be a hub id or an existing folder, got {name!r}. Check the path.")
    return name


def _dtype(name: str) -> Any:
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {name!r}.")
    return dtype


def _architecture(config: Any) -> Any:
    """The causal language model of this config; where the checkpoint names another head, that."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = (getattr(config, "architectures", None) or [None])[0]
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is not None and named in (None, causal):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, named or "", None)
    if found is None:
        raise ModelError(
            f"model must have an architecture that transformers knows, got {named!r} ({config.model_type})."
        )
    return found


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers and the Hub client raise while loading into one sentence."""
    try:
        yield
    except HfFarmsError:
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and the Hub client each have their own
        from hf_farms.explain import explain

        raise explain(error, what=name) from error
