"""Check devices and dtypes by name, and measure free memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_farms.errors import ModelError

__all__ = ["find_device", "free_memory", "parse_dtype", "require_computing"]

# Dtypes in which torch multiplies matrices on every device.
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(name: str) -> Any:
    """Return the torch dtype of a name; "auto" is returned unchanged.

    Raises:
        ValueError: the name is no float dtype, or a storage-only one such as float8_e4m3fn.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in COMPUTE_DTYPES:
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {name!r}.")
    return dtype


def require_computing(stored: Any, name: str) -> None:
    """Refuse weights in a storage-only dtype.

    Args:
        stored: the checkpoint's own dtype.
        name: of the model.

    Raises:
        ModelError: torch cannot compute in the dtype, such as float8_e4m3fn.
    """
    dtype = str(stored).removeprefix("torch.")
    if dtype not in COMPUTE_DTYPES:
        raise ModelError(
            f"weights must have a dtype that torch can compute in, got {dtype} in {name!r}.",
            hint="Load them in another: `dtype='bfloat16'`.",
        )


def find_device(device: str | None) -> str:
    """Return a device after checking that it works.

    Args:
        device: such as "cuda:0"; None: the GPU if there is one, else the CPU.

    Raises:
        ValueError: the device does not exist on this machine.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must exist on this machine, such as cpu or cuda:0, got {device!r}. Leave `device` out."
        ) from error
    return device


def free_memory(device: str) -> int:
    """Return the bytes that this process can still allocate on a device, within the limits of its control groups."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    from accelerate.utils import get_max_memory

    return min([int(get_max_memory()["cpu"]), *_cgroup_memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _cgroup_memory(mount: Path, membership: Path) -> Iterator[int]:
    """Yield the free bytes of the control group of this process and its parents, for cgroup versions 1 and 2.

    The page cache counts as free, because it can be reclaimed.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, limit, used = mount, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, limit, used = mount / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # In a container the name may be that on the host, of which only the root exists.
        names = [Path(*own.split("/")[1:end]) for end in range(1, len(own.split("/")) + 1)]
        for group in (root / name for name in names if ".." not in name.parts):
            try:
                stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
                yield int((group / limit).read_text()) - int(stat[used])
            except (OSError, ValueError, KeyError):  # missing, or "max"
                continue
