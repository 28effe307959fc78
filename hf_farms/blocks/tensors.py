"""Parameters of a checkpoint on disk by their names in memory, read one at a time.

transformers says, with its conversion mapping, which tensors of the files a parameter is made of: most often one of
the same name; for experts one for each (Mixtral: `block_sparse_moe.experts.N.w1`), merged on loading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hf_farms.errors import ModelError

__all__ = ["StoredTensors", "TensorFiles"]


class _File(Protocol):
    """An open file: names of its tensors, and each of them."""

    def keys(self) -> Sequence[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> Any: ...


class _PickledFile:
    """The interface of `safe_open` for a pickled file; memory-mapped too."""

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def keys(self) -> Sequence[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def get_slice(self, name: str) -> Tensor:
        return self._tensors[name]


class TensorFiles:
    """The tensors in some files by their names on disk.

    Args:
        paths: safetensors files, or pickled ones (`.bin`, `.pth`, `.pt`), which are read without running code.
        mapped: map the files into memory, so that what is read can be dropped by the system and tensors that are only
            looked at are never copied; else every tensor is read into memory of its own.

    Raises:
        ModelError: a file is missing, truncated or corrupted.
    """

    def __init__(self, paths: Sequence[Path], *, mapped: bool = True) -> None:
        self._files: dict[str, _Opened] = {}
        self.paths = tuple(paths)
        for path in paths:
            opened = _Opened(path, mapped)
            self._files |= dict.fromkeys(opened.file.keys(), opened)
        self.names = tuple(self._files)

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ModelError: its file has vanished or changed since it was opened.
        """
        return self._files[name].read(lambda file: file.get_tensor(name))

    def read_index(self, name: str, index: int) -> Tensor:
        """One entry along the first dimension; no other is touched.

        Raises:
            ModelError: as `read`.
        """
        return self._files[name].read(lambda file: cast(Tensor, file.get_slice(name)[index]))


class _Opened:
    """An open file, which must stay as it was: a mapped one that is truncated ends the process when it is read."""

    def __init__(self, path: Path, mapped: bool) -> None:
        self._path = path
        self.file = _open(path, mapped)
        self._stamp = self._stamp_now()

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def read(self, what: Callable[[_File], Tensor]) -> Tensor:
        from safetensors import SafetensorError

        now = self._stamp_now()
        if now != self._stamp:
            raise ModelError(
                f"weights must stay as they are while they are read, got {self._path.name} "
                f"{'gone' if now is None else 'truncated or changed'} in {str(self._path.parent)!r}.",
                hint="Put the file back, and run the same command again.",
            )
        try:
            return what(self.file)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"weights must be readable, got a truncated or corrupted {self._path.name} ({error}).",
                hint="Put the file back, and run the same command again.",
            ) from error


def _open(path: Path, mapped: bool) -> _File:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(
            f"checkpoint must be complete, got {path.parent} without {path.name}.", hint="Download the model again."
        )
    try:
        if path.suffix == ".safetensors":
            return cast(_File, safe_open(path, framework="pt", backend="mmap" if mapped else "pread"))
        return _PickledFile(path)
    except UnpicklingError as error:
        raise ModelError(
            f"pickled weights must be tensors and nothing else, got other objects, or damage, in {path.name}.",
            hint="Use a checkpoint with safetensors.",
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"weights must be readable, got a truncated or corrupted {path.name} ({error}).",
            hint="Download the model again.",
        ) from error


@dataclass
class _Origin:
    """Where a parameter comes from: tensors on disk, by the pattern that they match; None: one tensor as it is."""

    converter: Any = None
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class StoredTensors:
    """The parameters of a model that lies in files.

    Args:
        files: the tensors on disk.
        model: of transformers, on the meta device.
    """

    def __init__(self, files: TensorFiles, model: Any) -> None:
        self._files, self._model = files, model
        # The parameters themselves, so that tied ones are one object.
        self._meta: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._origins = _origins(files.names, model, self._meta)
        self._tied = _tied(self._meta)

    def has(self, parameter: str) -> bool:
        """Whether the files hold this parameter, or one that it is tied to."""
        return self._origin(parameter) is not None

    def read(self, parameter: str) -> Tensor:
        """A whole parameter."""
        origin = self._known(parameter)
        if origin.converter is None:
            return self._files.read(_only(origin))
        tensors = {pattern: [self._files.read(n) for n in names] for pattern, names in origin.sources.items()}
        return self._convert(parameter, origin, tensors)

    def read_expert(self, parameter: str, expert: int) -> Tensor:
        """One expert of a 3-D parameter `(e, ...)`; the others are not read where the conversion allows."""
        origin = self._known(parameter)
        if origin.converter is None:
            return self._files.read_index(_only(origin), expert)
        if not _by_expert(origin.converter):
            return self.read(parameter)[expert]
        tensors = {pattern: [self._files.read(names[expert])] for pattern, names in origin.sources.items()}
        return self._convert(parameter, origin, tensors)[0]

    def _origin(self, parameter: str) -> _Origin | None:
        names = [parameter, *self._tied.get(parameter, ())]
        return next((self._origins[name] for name in names if name in self._origins), None)

    def _known(self, parameter: str) -> _Origin:
        origin = self._origin(parameter)
        if origin is None:
            raise ModelError(
                f"checkpoint must hold every weight, got none for {parameter}.",
                hint="Check that all shards are there and that config.json is of this model.",
            )
        return origin

    def _convert(self, parameter: str, origin: _Origin, tensors: dict[str, list[Tensor]]) -> Tensor:
        """The operations of transformers on these tensors."""
        converter = deepcopy(origin.converter)
        for pattern, found in tensors.items():
            for tensor in found:
                converter.add_tensor(parameter, parameter, pattern, tensor)
        try:
            converted = converter.convert(parameter, model=self._model, config=self._model.config)
        except Exception as error:  # whatever an operation of transformers stumbles over
            raise ModelError(f"weights must fit the conversion of transformers, got {error} in {parameter}.") from error
        tensor = converted[parameter]
        return cast(Tensor, tensor[0] if isinstance(tensor, list) else tensor)


def _only(origin: _Origin) -> str:
    (names,) = origin.sources.values()
    return names[-1]


def _by_expert(converter: Any) -> bool:
    """Whether the e-th tensor of each kind is all that the e-th expert needs."""
    first, *rest = converter.operations
    merges = type(first).__name__ == "MergeModulelist" and first.dim == 0
    return merges and all(getattr(operation, "dim", None) not in (None, 0) for operation in rest)


def _origins(names: Sequence[str], model: Any, meta: dict[str, Tensor]) -> dict[str, _Origin]:
    """Parameter -> where it comes from, as transformers itself resolves names on loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, origins = model.base_model_prefix, defaultdict[str, _Origin](_Origin)
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, meta)
        if target not in meta and name in meta:
            target, pattern = rename_source_key(name, [], [], prefix, meta)
        converter = by_pattern[pattern] if pattern is not None else None
        targets = [target]
        if converter is not None:
            # Of several targets (a weight that is split on loading) the name has the first.
            targets = [target.replace(converter.target_patterns[0], other) for other in converter.target_patterns]
        for parameter in targets:
            origins[parameter].converter = converter
            origins[parameter].sources[pattern or name].append(name)
    return dict(origins)


def _tied(meta: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Parameter -> the other names of the same tensor."""
    same: dict[int, list[str]] = defaultdict(list)
    for name, tensor in meta.items():
        same[id(tensor)].append(name)
    return {name: [other for other in names if other != name] for names in same.values() for name in names}
