"""Files of a LoRA as PEFT saves them, written so that no killed process leaves parts of two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_farms.errors import OutputError
from hf_farms.files import names
from hf_farms.files.atomic_writes import replacing, write_text, writing
from hf_farms.files.path_checks import check_name, check_not_cached, check_parent, check_within
from hf_farms.files.paths import kind_of

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "check_lora_folder", "save_lora"]

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# In the metadata of the weights: tells an earlier export from other LoRAs. PEFT warns of unknown keys in its config.
MARK = {"made_by": "hf-farms S2FT"}


def check_lora_folder(folder: Path) -> None:
    """Reject a folder with another LoRA, or with a model, which transformers would load with the LoRA on it.

    Raises:
        OutputError: such files, or a path that cannot be written.
    """
    check_name(folder, argument="folder")
    if kind_of(folder) not in (None, "folder"):
        raise OutputError(
            f"folder must be a folder or not exist, got the {kind_of(folder)} {str(folder)!r}.",
            hint="Choose another folder.",
        )
    check_not_cached(folder, argument="folder")
    check_parent(folder, argument="folder")
    check_within(folder, (CONFIG_NAME, WEIGHTS_NAME))
    foreign = [names.MODEL_CONFIG, "adapter_model.bin"]
    foreign += [] if _is_own(folder) else [CONFIG_NAME, WEIGHTS_NAME]
    first = next((name for name in foreign if kind_of(folder / name) is not None), None)
    if first is not None:
        raise OutputError(
            f"folder must be new, or hold an earlier export, got {str(folder)!r} with another {first}.",
            hint="Choose another folder.",
        )


def _is_own(folder: Path) -> bool:
    """Return whether the weights in a folder are those of an export."""
    try:
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            return MARK.items() <= (file.metadata() or {}).items()
    except (OSError, SafetensorError):
        return False


def save_lora(folder: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write the weights, then the config, without which a folder is no LoRA; an old config is deleted before.

    Raises:
        OutputError: a full disk or a failed write.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS_NAME) as unfinished:
            save_file(tensors, unfinished, metadata={"format": "pt", **MARK})
            (folder / CONFIG_NAME).unlink(missing_ok=True)
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
