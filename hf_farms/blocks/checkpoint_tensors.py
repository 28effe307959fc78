"""Read single parameters of a checkpoint on disk by their names in memory.

The conversion mapping of transformers defines the tensors on disk that form a parameter: usually one of the same name;
for experts one tensor per expert (Mixtral: `block_sparse_moe.experts.N.w1`), merged on loading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, cast

from torch import Tensor

from hf_farms.blocks.origins import Origin, find_origins
from hf_farms.blocks.tensor_files import TensorFiles
from hf_farms.errors import ModelError

__all__ = ["StoredTensors"]


class StoredTensors:
    """Parameters of a checkpoint, converted from the tensors on disk when read.

    Args:
        files: the tensors on disk.
        model: transformers model on the meta device.
    """

    def __init__(self, files: TensorFiles, model: Any) -> None:
        self._files, self._model = files, model
        # `keep_vars`: tied parameters are the same object.
        self._meta: dict[str, Tensor] = model.state_dict(keep_vars=True)
        origins = find_origins(files.names, model, self._meta)
        self._origins = {name: origin for origin in origins for name in self._targets(origin)}
        self._tied = _tied_names(self._meta)
        # Cache for a tensor that is split into parameters: they are usually read one after another.
        self._parts: tuple[str, dict[str, Tensor]] = "", {}

    def has(self, parameter: str) -> bool:
        """Return whether the files hold this parameter, or one that it is tied to."""
        return self._origin(parameter) is not None

    def read(self, parameter: str) -> Tensor:
        """Read a whole parameter.

        Raises:
            ModelError: the files do not hold it, or it cannot be converted.
        """
        name, origin = self._require_origin(parameter)
        if origin.converter is None:
            return self._files.read(origin.only)
        target, parts = self._parts
        if target != origin.target or name not in parts:
            parts = self._convert(origin, _read_sources(origin, self._files.read))
        # Return each part once: the caller may modify it.
        tensor = parts.pop(name)
        self._parts = origin.target, parts
        return tensor

    def read_expert(self, parameter: str, expert: int) -> Tensor:
        """Read one expert of a 3-D parameter `(e, ...)`, without the others where the conversion allows it."""
        name, origin = self._require_origin(parameter)
        if origin.converter is None:
            return self._files.read_index(origin.only, expert)
        if not origin.is_by_expert:
            return self.read(parameter)[expert]
        tensors = {pattern: [self._files.read(names[expert])] for pattern, names in origin.sources.items()}
        return self._convert(origin, tensors)[name][0]

    def check_conversions(self) -> None:
        """Convert every weight that transformers converts on loading; costs one read of each.

        Raises:
            ModelError: a weight cannot be converted; the message names it.
        """
        converted = {origin.target: origin for origin in self._origins.values() if origin.converter is not None}
        for origin in converted.values():
            self._convert(origin, _read_sources(origin, self._files.read))

    def _origin(self, parameter: str) -> tuple[str, Origin] | None:
        names = [parameter, *self._tied.get(parameter, ())]
        return next(((name, self._origins[name]) for name in names if name in self._origins), None)

    def _require_origin(self, parameter: str) -> tuple[str, Origin]:
        match = self._origin(parameter)
        if match is None:
            raise ModelError(
                f"checkpoint must hold every weight, got none for {parameter}.",
                hint="Check that all shards are present and that config.json belongs to this model.",
            )
        return match

    def _targets(self, origin: Origin) -> list[str]:
        """Return the names of the parameters that a converter produces."""
        patterns = origin.converter.target_patterns if origin.converter is not None else []
        if len(patterns) < 2 and not any("*" in pattern for pattern in patterns):
            return [origin.target]
        try:
            # The names are only known after running the conversion; meta tensors make that cheap.
            return list(self._convert(origin, _read_sources(origin, self._files.blank)))
        except ModelError:
            return [origin.target.replace(patterns[0], other) for other in patterns]

    def _convert(self, origin: Origin, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Run the conversion of transformers; return parameters by name."""
        converter = deepcopy(origin.converter)
        for pattern, matching in tensors.items():
            for tensor in matching:
                converter.add_tensor(origin.target, origin.target, pattern, tensor)
        try:
            converted = converter.convert(origin.target, model=self._model, config=self._model.config)
        except Exception as error:  # conversions of transformers raise many types
            stored = [name for names in origin.sources.values() for name in names]
            raise ModelError(
                f"stored weights must be convertible by transformers, got {error} in {origin.target}, "
                f"which is made of {len(stored)} tensors, first {stored[0]}."
            ) from error
        return {name: cast(Tensor, t[0] if isinstance(t, list) else t) for name, t in converted.items()}


def _read_sources(origin: Origin, read: Callable[[str], Tensor]) -> dict[str, list[Tensor]]:
    return {pattern: [read(name) for name in names] for pattern, names in origin.sources.items()}


def _tied_names(meta: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Map each parameter to the other names of the same tensor."""
    same: dict[int, list[str]] = defaultdict(list)
    for name, tensor in meta.items():
        same[id(tensor)].append(name)
    return {name: [other for other in names if other != name] for names in same.values() for name in names}
