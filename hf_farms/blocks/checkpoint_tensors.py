"""Parameters of a checkpoint on disk by their names in memory, read one at a time.

transformers says, with its conversion mapping, which tensors of the files a parameter is made of: most often one of
the same name; for experts one for each (Mixtral: `block_sparse_moe.experts.N.w1`), merged on loading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast
from zipfile import is_zipfile

import torch
from torch import Tensor

from hf_farms.blocks.origins import Origin, find_origins
from hf_farms.errors import ModelError

__all__ = ["StoredTensors", "TensorFiles"]


class _File(Protocol):
    """An open file: names of its tensors, and each of them."""

    def keys(self) -> Sequence[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> Any: ...


class _PickledFile:
    """The interface of `safe_open` for a pickled file; memory-mapped too, unless it is from before torch 1.6.

    Raises:
        UnpicklingError: it holds something else than tensors by their names.
    """

    def __init__(self, path: Path) -> None:
        # Files of torch's first format are no zip archives, and only those can be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise UnpicklingError
        self._tensors: dict[str, Tensor] = found

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

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor of numbers with a fraction, which is what transformers goes by; float32 without any."""
        dtypes = (self.read(name).dtype for name in self.names)
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def blank(self, name: str) -> Tensor:
        """The shape of a tensor, as one on the meta device."""
        shape = self._files[name].file.get_slice(name)
        return torch.empty(tuple(shape.get_shape() if hasattr(shape, "get_shape") else shape.shape), device="meta")

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
        made = find_origins(files.names, model, self._meta)
        self._origins = {name: origin for origin in made for name in self._targets(origin)}
        self._tied = _tied(self._meta)
        # Of a tensor that is split, what is to be read next is most often another part of it.
        self._parts: tuple[str, dict[str, Tensor]] = "", {}

    def has(self, parameter: str) -> bool:
        """Whether the files hold this parameter, or one that it is tied to."""
        return self._origin(parameter) is not None

    def read(self, parameter: str) -> Tensor:
        """A whole parameter."""
        name, origin = self._known(parameter)
        if origin.converter is None:
            return self._files.read(origin.only)
        target, parts = self._parts
        if target != origin.target or name not in parts:
            parts = self._convert(origin, _tensors(origin, self._files.read))
        # Each part is handed out once: who has it may change it.
        tensor = parts.pop(name)
        self._parts = origin.target, parts
        return tensor

    def read_expert(self, parameter: str, expert: int) -> Tensor:
        """One expert of a 3-D parameter `(e, ...)`; the others are not read where the conversion allows."""
        name, origin = self._known(parameter)
        if origin.converter is None:
            return self._files.read_index(origin.only, expert)
        if not origin.is_by_expert:
            return self.read(parameter)[expert]
        tensors = {pattern: [self._files.read(names[expert])] for pattern, names in origin.sources.items()}
        return self._convert(origin, tensors)[name][0]

    def check_conversions(self) -> None:
        """Convert every weight that transformers converts on loading.

        Raises:
            ModelError: one of them cannot be; it is named.
        """
        converted = {origin.target: origin for origin in self._origins.values() if origin.converter is not None}
        for origin in converted.values():
            self._convert(origin, _tensors(origin, self._files.read))

    def _origin(self, parameter: str) -> tuple[str, Origin] | None:
        names = [parameter, *self._tied.get(parameter, ())]
        return next(((name, self._origins[name]) for name in names if name in self._origins), None)

    def _known(self, parameter: str) -> tuple[str, Origin]:
        found = self._origin(parameter)
        if found is None:
            raise ModelError(
                f"checkpoint must hold every weight, got none for {parameter}.",
                hint="Check that all shards are there and that config.json is of this model.",
            )
        return found

    def _targets(self, origin: Origin) -> list[str]:
        """The parameters that are made of some tensors."""
        patterns = origin.converter.target_patterns if origin.converter is not None else []
        if len(patterns) < 2 and not any("*" in pattern for pattern in patterns):
            return [origin.target]
        try:
            # Only the operations themselves know what they split a tensor into.
            return list(self._convert(origin, _tensors(origin, self._files.blank)))
        except ModelError:
            return [origin.target.replace(patterns[0], other) for other in patterns]

    def _convert(self, origin: Origin, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """The operations of transformers on these tensors: parameters by their names."""
        converter = deepcopy(origin.converter)
        for pattern, found in tensors.items():
            for tensor in found:
                converter.add_tensor(origin.target, origin.target, pattern, tensor)
        try:
            converted = converter.convert(origin.target, model=self._model, config=self._model.config)
        except Exception as error:  # whatever an operation of transformers stumbles over
            stored = [name for names in origin.sources.values() for name in names]
            raise ModelError(
                f"stored weights must fit together as transformers converts them, got {error} in {origin.target}, "
                f"which is made of {len(stored)} tensors, first {stored[0]}."
            ) from error
        return {name: cast(Tensor, t[0] if isinstance(t, list) else t) for name, t in converted.items()}


def _tensors(origin: Origin, read: Callable[[str], Tensor]) -> dict[str, list[Tensor]]:
    return {pattern: [read(name) for name in names] for pattern, names in origin.sources.items()}


def _tied(meta: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Parameter -> the other names of the same tensor."""
    same: dict[int, list[str]] = defaultdict(list)
    for name, tensor in meta.items():
        same[id(tensor)].append(name)
    return {name: [other for other in names if other != name] for names in same.values() for name in names}
