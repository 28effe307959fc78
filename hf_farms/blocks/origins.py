"""Map the parameters of a model to tensors on disk, with the name conversion that transformers applies on loading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Origin", "find_origins"]


@dataclass
class Origin:
    """Tensors on disk that form a parameter.

    Attributes:
        target: name of the parameter; the first one if the tensors are split into several.
        converter: WeightConverter of transformers; None if the parameter is a single tensor, unchanged.
        sources: names on disk, by the pattern that they match.
    """

    target: str
    converter: Any = None
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def only(self) -> str:
        """Name of the single tensor on disk, for an origin without converter."""
        # transformers takes the first of several names that map to the same parameter.
        return next(iter(self.sources.values()))[0]

    @property
    def is_by_expert(self) -> bool:
        """Whether expert e needs only the e-th tensor of each pattern."""
        if self.converter is None:
            return False
        first, *rest = self.converter.operations
        merges = type(first).__name__ == "MergeModulelist" and first.dim == 0
        return merges and all(getattr(operation, "dim", None) not in (None, 0) for operation in rest)


def find_origins(names: Sequence[str], model: Any, meta: dict[str, Tensor]) -> list[Origin]:
    """Find the origin of every parameter. Tensors that the model does not use are skipped.

    Args:
        names: names of the tensors on disk.
        model: transformers model on the meta device.
        meta: its parameters and buffers by name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, origins = model.base_model_prefix, dict[str, Origin]()
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, meta)
        if target not in meta and name in meta:
            target, pattern = rename_source_key(name, [], [], prefix, meta)
        if target in meta:
            converter = by_pattern[pattern] if pattern is not None else None
            # For a weight that is split into several targets, this is the first.
            origin = origins.setdefault(target, Origin(target, converter))
            origin.sources[pattern or name].append(name)
    return list(origins.values())
