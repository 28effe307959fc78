"""Find the weight files of a model, its architecture and its quantization method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_farms.errors import ModelError
from hf_farms.files import names
from hf_farms.files.shards import ENDINGS, shard_names
from hf_farms.hub.client import with_retries
from hf_farms.loading.refusals import custom_code_error
from hf_farms.registries import CHECKPOINT_FORMATS

__all__ = ["architecture_of", "find_pickled", "find_safetensors", "quantization_of", "weight_files"]

SAFETENSORS, PICKLED, INDEX = names.WEIGHTS, "pytorch_model.bin", ".index.json"
CONVERT = "Convert them with transformers (save_pretrained), or allow them: `allow_pickle=True`."


def weight_files(
    name: str, path: str, revision: str | None, *, allow_pickle: bool, remedy: str = CONVERT
) -> list[Path]:
    """Return the local paths of the weight files, and download them if needed.

    Args:
        name: of the model, for messages.
        path: a folder or a Hub id.
        revision: a branch, tag or commit of the Hub id.
        allow_pickle: accept `pytorch_model.bin`, whose loading may be unsafe.
        remedy: hint where weights are pickled.

    Raises:
        ModelError: there are no weights, only pickled ones, or a shard is missing.
    """
    from transformers.utils.hub import cached_file

    def find(file: str) -> Path | None:
        def fetch() -> Any:
            return cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False)

        local = fetch() if Path(path).is_dir() else with_retries(fetch, what=f"Downloading {file}", reads=True)
        return Path(local) if local else None

    _check_indices(Path(path))
    for entry in CHECKPOINT_FORMATS.values():
        file = None if entry.converted else entry.load()(find)
        if file is None:
            continue
        if entry.pickled and not allow_pickle:
            raise ModelError(
                f"weights must be safetensors, got pickled ones in {name!r}.",
                hint=remedy,
            )
        if not file.name.endswith(INDEX):
            return [file]
        return [_require_shard(find(shard), shard, file) for shard in shard_names(file)]
    _require_absent(path, revision)
    raise ModelError(f"model must have weights ({SAFETENSORS}, or shards with an index), got {name!r} without them.")


def find_safetensors(find: Callable[[str], Path | None]) -> Path | None:
    """Find safetensors, or the index of their shards. As in transformers, a single file takes precedence."""
    return find(SAFETENSORS) or find(SAFETENSORS + INDEX)


def find_pickled(find: Callable[[str], Path | None]) -> Path | None:
    """Find pickled weights, or the index of their shards."""
    return find(PICKLED) or find(PICKLED + INDEX)


def _require_absent(path: str, revision: str | None) -> None:
    """Raise an error of the Hub that transformers mistook for missing weights."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    for file in (SAFETENSORS, f"{SAFETENSORS}.index.json"):
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(path, file, revision=revision)


def _check_indices(folder: Path) -> None:
    """Refuse any index with names outside the folder, even if it is not used: other tools may read it."""
    for index in sorted(folder.glob("*.index.json")) if folder.is_dir() else ():
        if index.is_file() and index.name.endswith(tuple(ENDINGS)):
            try:
                shard_names(index)
            except ModelError as error:
                if error.__cause__ is None:  # else it is damaged, which is reported if the index is needed
                    raise


def _require_shard(shard: Path | None, name: str, index: Path) -> Path:
    if shard is None:
        raise ModelError(
            f"checkpoint must be complete, got {index.parent} without {name}.", hint="Download the model again."
        )
    return shard


def quantization_of(config: Any) -> str | None:
    """Return the quantization method of the weights, such as "fp8"; None: they are not quantized."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def architecture_of(config: Any) -> Any:
    """Return the transformers class to load: `AutoModelForCausalLM`, or the class that config.json names.

    Raises:
        ModelError: transformers does not have the class.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = (getattr(config, "architectures", None) or [None])[0]
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is not None and name in (None, causal):
        return transformers.AutoModelForCausalLM
    architecture = getattr(transformers, name or "", None)
    if architecture is None and getattr(config, "auto_map", None):
        raise custom_code_error(config.name_or_path, f"architecture ({name})")
    if architecture is None:
        raise ModelError(
            f"model must have an architecture that transformers knows, got {name!r} ({config.model_type})."
        )
    return architecture
