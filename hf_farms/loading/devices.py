"""Devices, their free memory, and dtypes by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_farms.errors import ModelError

__all__ = ["find_device", "free_memory", "parse_dtype", "require_computing"]

# What torch can multiply matrices in on every device.
COMPUTING = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(name: str) -> Any:
    """The dtype of this name; "auto" as it is.

    Raises:
        ValueError: no float dtype, or one for storage alone, such as float8_e4m3fn.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in COMPUTING:
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {name!r}.")
    return dtype


def require_computing(stored: Any, name: str) -> None:
    """Refuse weights that would be loaded in a dtype that is for storage alone.

    Args:
        stored: the checkpoint's own dtype.
        name: of the model.

    Raises:
        ModelError: such as float8_e4m3fn.
    """
    found = str(stored).removeprefix("torch.")
    if found not in COMPUTING:
        raise ModelError(
            f"weights must have a dtype that can be computed with, got {found} in {name!r}.",
            hint="Load them as another: --dtype bfloat16.",
        )


def find_device(wanted: str | None) -> str:
    """The device asked for; without a wish a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be one that is there, such as cpu or cuda:0, got {wanted!r}. Leave --device out."
        ) from error
    return wanted


def free_memory(device: str) -> int:
    """Bytes that this process may still take on a device; a limit of its control group counts."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    from accelerate.utils import get_max_memory

    return min([int(get_max_memory()["cpu"]), *_rooms(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _rooms(mount: Path, membership: Path) -> Iterator[int]:
    """Bytes that are left in the control group of this process and in those around it, of version 1 and 2.

    Only memory that cannot be given back counts as taken: the page cache does not.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, limit, taken = mount, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, limit, taken = mount / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # In a container the name may be that on the host, and only the root is there.
        inner = [Path(*own.split("/")[1:end]) for end in range(1, len(own.split("/")) + 1)]
        for group in (root / name for name in inner if ".." not in name.parts):
            try:
                stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
                yield int((group / limit).read_text()) - int(stat[taken])
            except (OSError, ValueError, KeyError):  # not there, or "max"
                continue
