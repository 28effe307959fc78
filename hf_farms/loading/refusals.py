"""Refuse inputs that are no plain model, before loading: adapters, git-lfs pointers, custom code, special files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_farms.errors import ModelError
from hf_farms.files.documents import DocumentError, load_json, read_text
from hf_farms.files.paths import special_kind
from hf_farms.registries import CHECKPOINT_FORMATS

__all__ = ["ADAPTER", "adapter_error", "custom_code_error", "refuse_pointers", "refuse_special_files"]

ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
# A pointer has three short lines.
POINTER_BYTES = 1024
# Files that are read in addition to those of the formats. Others, such as pictures of the card, may be pointers.
READ_FILES = (
    "*.pth",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)


def _read_files() -> set[str]:
    return {*READ_FILES, *(pattern for entry in CHECKPOINT_FORMATS.values() for pattern in entry.files)}


def refuse_special_files(folder: Path) -> None:
    """Refuse a model folder with pipes, sockets or devices, also behind links: reading them could block for ever.

    Raises:
        ModelError: a model file is a special file.
    """
    for path in sorted({path for pattern in _read_files() for path in folder.glob(pattern)}):
        if (kind := special_kind(path)) is not None:
            raise ModelError(
                f"files of a model must be regular, got the {kind} {str(path)!r}.",
                hint="Replace it with a regular file.",
            )


def refuse_pointers(folder: Path) -> None:
    """Refuse a repository that was cloned without git-lfs, which leaves pointer files in place of the weights.

    Raises:
        ModelError: a model file is a git-lfs pointer.
    """
    pointers = sorted({path.name for pattern in _read_files() for path in folder.glob(pattern) if _is_pointer(path)})
    if pointers:
        more = f" and {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise ModelError(
            f"model folder must have its files, got git-lfs pointers instead ({pointers[0]}{more}) in {str(folder)!r}.",
            hint="Run `git lfs pull` in that folder, or download the model with `hf download`.",
        )


def _is_pointer(path: Path) -> bool:
    try:
        if path.stat().st_size > POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:  # not a file, or not readable, which is reported when it is read
        return False


def adapter_error(name: str, config: Path) -> ModelError:
    """Return the error for a PEFT adapter, alone or in the folder of a model.

    Args:
        name: of the model, as given by the user.
        config: path of the adapter's config.
    """
    try:
        content: Any = load_json(read_text(config)).data
    except (OSError, DocumentError):
        content = {}
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    kind = content.get("peft_type") if isinstance(content, dict) else None
    of = f" of {base!r}" if isinstance(base, str) and base else ""
    return ModelError(
        f"model must be a complete one, got a PEFT adapter ({kind or ADAPTER}{of}) in {name!r}.",
        hint="Merge it into its base model and save that: AutoPeftModelForCausalLM.from_pretrained(ADAPTER)"
        ".merge_and_unload().save_pretrained(FOLDER), then name FOLDER.",
    )


def custom_code_error(name: str, what: str) -> ModelError:
    """Return the error for a repository with custom code, which is never run.

    Args:
        name: of the model.
        what: the part that needs the code: "model", "tokenizer" or the architecture.
    """
    return ModelError(
        f"{what} must be one that transformers implements, got one with custom Python code (auto_map) in {name!r}; "
        "such code is never run.",
        hint="Name a model whose architecture transformers implements; a newer version may implement this one.",
    )
