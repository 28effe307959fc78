"""What only looks like a model: adapters, git-lfs pointers, code of its own. Told before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_farms.errors import ModelError
from hf_farms.files.paths import special_kind

__all__ = ["ADAPTER", "adapter_error", "custom_code_error", "refuse_pointers", "refuse_special_files"]

ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
# A pointer has three short lines.
POINTER_BYTES = 1024
# What is read of a model; a picture in its card may well be a pointer.
READ = ("*.safetensors", "*.bin", "*.pth", "*.json", "*.model", "*.txt", "*.jinja", "additional_chat_templates/*.jinja")


def refuse_special_files(folder: Path) -> None:
    """Refuse pipes, sockets and devices in the place of files, also by links: who reads them would wait for ever.

    Raises:
        ModelError: a file that a model is read from is one.
    """
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        if (kind := special_kind(path)) is not None:
            raise ModelError(
                f"files of a model must be regular, got the {kind} {str(path)!r}.", hint="Put the file itself there."
            )


def refuse_pointers(folder: Path) -> None:
    """Refuse a clone of a repository that was made without git-lfs: small texts stand in the place of its files.

    Raises:
        ModelError: a file that a model is read from is such a text.
    """
    pointers = sorted({path.name for pattern in READ for path in folder.glob(pattern) if _is_pointer(path)})
    if pointers:
        more = f" and {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise ModelError(
            f"model folder must have its files, got git-lfs pointers in their place ({pointers[0]}{more}) in "
            f"{str(folder)!r}.",
            hint="Run `git lfs pull` in that folder, or download the model with `hf download`.",
        )


def _is_pointer(path: Path) -> bool:
    try:
        if path.stat().st_size > POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:  # not a file, or not ours: said by who reads it
        return False


def adapter_error(name: str, config: Path) -> ModelError:
    """A PEFT adapter in the place of a model, or beside one.

    Args:
        name: as the user gave it.
        config: the adapter's.
    """
    try:
        found: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    kind = found.get("peft_type") if isinstance(found, dict) else None
    of = f" of {base!r}" if isinstance(base, str) and base else ""
    return ModelError(
        f"model must be a whole one, got a PEFT adapter ({kind or ADAPTER}{of}) in {name!r}.",
        hint="Merge it into its base model and save that: AutoPeftModelForCausalLM.from_pretrained(ADAPTER)"
        ".merge_and_unload().save_pretrained(FOLDER), then name FOLDER.",
    )


def custom_code_error(name: str, what: str) -> ModelError:
    """Code in a repository, which is never run.

    Args:
        name: of the model.
        what: needs it.
    """
    return ModelError(
        f"{what} must be one that transformers has itself, got one with Python code of its own (auto_map) in {name!r}; "
        "such code is not run.",
        hint="Name a model of an architecture that transformers has; a newer transformers may have this one too.",
    )
