"""The files of a model: weights, and what its config says of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hf_farms.errors import ModelError
from hf_farms.files.shards import ENDINGS, shard_names
from hf_farms.hub.client import with_retries
from hf_farms.loading.refusals import custom_code_error

__all__ = ["architecture_of", "quantisation_of", "weight_files"]

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


def weight_files(name: str, path: str, revision: str | None, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights, on this machine."""
    from transformers.utils.hub import cached_file

    def found(file: str) -> Path | None:
        def fetch() -> Any:
            return cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False)

        where = fetch() if Path(path).is_dir() else with_retries(fetch, what=f"Downloading {file}", reads=True)
        return Path(where) if where else None

    _check_indices(Path(path))
    for single in (SAFE, PICKLED):
        # In the order of transformers: a whole file comes before shards.
        whole = found(single)
        index = None if whole else found(f"{single}.index.json")
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
        return [_shard(found(shard), shard, index) for shard in shard_names(index)]
    _require_absent(path, revision)
    raise ModelError(f"model must have weights ({SAFE}, or shards with an index), got {name!r} without.")


def _require_absent(path: str, revision: str | None) -> None:
    """Raise what kept the Hub from saying whether there are weights: transformers takes it for a no."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    for file in (SAFE, f"{SAFE}.index.json"):
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(path, file, revision=revision)


def _check_indices(folder: Path) -> None:
    """Refuse an index that leads out of the folder, though it is not the one that is read: others may read it."""
    for index in sorted(folder.glob("*.index.json")) if folder.is_dir() else ():
        if index.is_file() and index.name.endswith(tuple(ENDINGS)):
            try:
                shard_names(index)
            except ModelError as error:
                if error.__cause__ is None:  # else it is damaged, which is said where it is needed
                    raise


def _shard(found: Path | None, name: str, index: Path) -> Path:
    if found is None:
        raise ModelError(
            f"checkpoint must be complete, got {index.parent} without {name}.", hint="Download the model again."
        )
    return found


def quantisation_of(config: Any) -> str | None:
    """The method that the weights are quantised by; None: they are plain."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def architecture_of(config: Any) -> Any:
    """The causal language model of this config; where the checkpoint names another head, that."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = (getattr(config, "architectures", None) or [None])[0]
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is not None and named in (None, causal):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, named or "", None)
    if found is None and getattr(config, "auto_map", None):
        raise custom_code_error(config.name_or_path, f"architecture ({named})")
    if found is None:
        raise ModelError(
            f"model must have an architecture that transformers knows, got {named!r} ({config.model_type})."
        )
    return found
