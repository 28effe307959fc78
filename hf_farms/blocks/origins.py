"""What the parameters of a model are made of in the files, as transformers itself resolves names on loading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Origin", "find_origins"]


@dataclass
class Origin:
    """Where a parameter comes from.

    Attributes:
        target: the first parameter that is made of the tensors; the only one unless they are split.
        converter: makes it; None: it is one tensor as it is.
        sources: names on disk, by the pattern that they match.
    """

    target: str
    converter: Any = None
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def only(self) -> str:
        """The tensor that it is, without a converter."""
        # transformers takes the first, where two names come to the same parameter.
        return next(iter(self.sources.values()))[0]

    @property
    def is_by_expert(self) -> bool:
        """Whether the e-th tensor of each kind is all that the e-th expert needs."""
        if self.converter is None:
            return False
        first, *rest = self.converter.operations
        merges = type(first).__name__ == "MergeModulelist" and first.dim == 0
        return merges and all(getattr(operation, "dim", None) not in (None, 0) for operation in rest)


def find_origins(names: Sequence[str], model: Any, meta: dict[str, Tensor]) -> list[Origin]:
    """What the parameters are made of; tensors without a place in the model are left out.

    Args:
        names: of the tensors on disk.
        model: of transformers, on the meta device.
        meta: its parameters and buffers.
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
            # Of several targets (a weight that is split) the name has the first.
            origin = origins.setdefault(target, Origin(target, converter))
            origin.sources[pattern or name].append(name)
    return list(origins.values())
