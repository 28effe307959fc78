"""What the configs of a model say of code that is not beside them: left out, as it is never run here.

A model whose architecture transformers knows is loaded as that, whatever `auto_map` of its config names. The class that
is saved is the one of transformers, and a reference to code that nobody copied would only be an error later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["drop_code_references"]

# References of the form `module.Class`, or lists and mappings of them.
REFERENCES = ("auto_map", "custom_pipelines", "custom_generate")
# Names of classes, which must be of transformers.
CLASSES = (
    "tokenizer_class",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "video_processor_type",
)
SLOW_AND_FAST = ("", "Fast")


def drop_code_references(folder: Path) -> tuple[str, ...]:
    """Take references to code that is not in the folder out of its configs.

    Args:
        folder: that `save_pretrained` wrote.

    Returns:
        Names of the files that were changed.
    """
    changed = []
    for path in sorted(folder.glob("*config.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        clean = _without(found, folder)
        if clean != found:
            path.write_text(json.dumps(clean, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
            changed.append(path.name)
    return tuple(changed)


def _without(value: Any, folder: Path) -> Any:
    """The config, and the configs inside it."""
    if isinstance(value, list):
        return [_without(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key in REFERENCES:
            item = _shipped(item, folder)
            if not item:
                continue
        elif key in CLASSES and isinstance(item, str) and not _is_known(item):
            continue
        found[key] = _without(item, folder)
    return found


def _shipped(reference: Any, folder: Path) -> Any:
    """What of a reference leads to a file in the folder; something empty where nothing does."""
    if isinstance(reference, str):
        module = reference.partition(".")[0]
        ok = "--" not in reference and (folder / f"{module}.py").is_file()
        return reference if ok else None
    if isinstance(reference, dict):
        if "impl" in reference:  # of a pipeline, whose other entries are names of classes
            return reference if _shipped(reference["impl"], folder) else None
        kept = {key: _shipped(item, folder) for key, item in reference.items()}
        return {key: item for key, item in kept.items() if item}
    if isinstance(reference, list):
        kept_items = [_shipped(item, folder) for item in reference]
        return kept_items if any(kept_items) else None
    return None


def _is_known(name: str) -> bool:
    import transformers

    return any(hasattr(transformers, f"{name}{end}") for end in SLOW_AND_FAST)
