"""Read single tensors from safetensors and pickled files, memory-mapped or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast
from zipfile import is_zipfile

import torch
from torch import Tensor

from hf_farms.errors import ModelError

__all__ = ["TensorFiles"]


class _File(Protocol):
    """Interface of an open file of named tensors, that of `safe_open`."""

    def keys(self) -> Sequence[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> Any: ...


class _PickledFile:
    """Pickled file with the interface of `safe_open`. Memory-mapped, except for files from before torch 1.6.

    Raises:
        UnpicklingError: the file is not a dictionary of tensors.
    """

    def __init__(self, path: Path) -> None:
        # Only zip archives can be memory-mapped; torch's first file format is not one.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UnpicklingError
        self._tensors: dict[str, Tensor] = tensors

    def keys(self) -> Sequence[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def get_slice(self, name: str) -> Tensor:
        return self._tensors[name]


class TensorFiles:
    """Tensors of one or several files, by their names on disk.

    Args:
        paths: safetensors files, or pickled ones (`.bin`, `.pth`, `.pt`), which are read with `weights_only=True`.
        mapped: memory-map the files, so that tensors are not copied and the system can drop pages that were read.
            Otherwise every tensor is read into its own memory.

    Raises:
        ModelError: a file is missing, truncated or corrupted.
    """

    def __init__(self, paths: Sequence[Path], *, mapped: bool = True) -> None:
        self._files: dict[str, _OpenFile] = {}
        self.paths = tuple(paths)
        for path in paths:
            opened = _OpenFile(path, mapped)
            self._files |= dict.fromkeys(opened.file.keys(), opened)
        self.names = tuple(self._files)

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: the file was removed or changed since it was opened.
        """
        return self._files[name].read(lambda file: file.get_tensor(name))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating-point tensor, the rule of transformers; float32 if there is none."""
        dtypes = (self.read(name).dtype for name in self.names)
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def blank(self, name: str) -> Tensor:
        """Return an empty tensor of the same shape on the meta device."""
        view = self._files[name].file.get_slice(name)
        return torch.empty(tuple(view.get_shape() if hasattr(view, "get_shape") else view.shape), device="meta")

    def read_index(self, name: str, index: int) -> Tensor:
        """Read one entry along the first dimension without reading the others.

        Raises:
            ModelError: as for `read`.
        """
        return self._files[name].read(lambda file: cast(Tensor, file.get_slice(name)[index]))


class _OpenFile:
    """Open file that is checked for changes before each read: reading a truncated mapped file kills the process."""

    def __init__(self, path: Path, mapped: bool) -> None:
        self._path = path
        self.file = _open(path, mapped)
        self._stamp = self._stamp_now()

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def read(self, get: Callable[[_File], Tensor]) -> Tensor:
        from safetensors import SafetensorError

        now = self._stamp_now()
        if now != self._stamp:
            raise ModelError(
                f"weight files must not change while they are read, got {self._path.name} "
                f"{'removed from' if now is None else 'truncated or changed in'} {str(self._path.parent)!r}.",
                hint="Put the file back, and run the same command again.",
            )
        try:
            return get(self.file)
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
            f"pickled weights must contain only tensors, got other objects or damaged data in {path.name}.",
            hint="Use a checkpoint with safetensors.",
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"weights must be readable, got a truncated or corrupted {path.name} ({error}).",
            hint="Download the model again.",
        ) from error
