"""Remove references to custom code (`auto_map`) from the configs of a saved model.

hf-farms never runs custom code: a model is loaded with the class of transformers, whatever its `auto_map` names, and
saved as that class. A reference to a file that was not copied would only raise an error later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_farms.files.documents import dump_json

__all__ = ["drop_code_references"]

# References of the form `module.Class`, or lists and mappings of them.
REFERENCES = ("auto_map", "custom_pipelines", "custom_generate")
# Values that name a class, which transformers must have.
CLASSES = (
    "tokenizer_class",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "video_processor_type",
)
SLOW_AND_FAST = ("", "Fast")


def drop_code_references(folder: Path) -> tuple[str, ...]:
    """Remove references to code that is not in the folder from its configs.

    Args:
        folder: written by `save_pretrained`.

    Returns:
        Names of the changed files.
    """
    changed = []
    for path in sorted(folder.glob("*config.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            clean = _clean(config, folder)
        except (ValueError, RecursionError):  # copied from elsewhere; no program reads a reference in it either
            continue
        if clean != config:
            path.write_text(dump_json(clean, sort_keys=True), encoding="utf-8")
            changed.append(path.name)
    return tuple(changed)


def _clean(value: Any, folder: Path) -> Any:
    """Remove the references from a config and the configs nested in it."""
    if isinstance(value, list):
        return [_clean(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    entries = {}
    for key, item in value.items():
        if key in REFERENCES:
            item = _available(item, folder)
            if not item:
                continue
        elif key in CLASSES and isinstance(item, str) and not _is_transformers_class(item):
            continue
        entries[key] = _clean(item, folder)
    return entries


def _available(reference: Any, folder: Path) -> Any:
    """Return the part of a reference whose files are in the folder; something empty if there is none."""
    if isinstance(reference, str):
        module = reference.partition(".")[0]
        available = "--" not in reference and (folder / f"{module}.py").is_file()
        return reference if available else None
    if isinstance(reference, dict):
        if "impl" in reference:  # a pipeline, whose other entries are class names
            return reference if _available(reference["impl"], folder) else None
        entries = {key: _available(item, folder) for key, item in reference.items()}
        return {key: item for key, item in entries.items() if item}
    if isinstance(reference, list):
        items = [_available(item, folder) for item in reference]
        return items if any(items) else None
    return None


def _is_transformers_class(name: str) -> bool:
    import transformers

    return any(hasattr(transformers, f"{name}{end}") for end in SLOW_AND_FAST)
