"""`hf-farms env`: versions, hardware and settings for a bug report. Works without torch and without the network."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

from hf_farms.privacy.masking import mask_secrets
from hf_farms_cli.console import check_format, err, guarded, say
from hf_farms_cli.options import DebugOption, FormatOption, JsonOption, QuietOption

__all__ = ["env_command", "environment"]

PACKAGES = (
    *("torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "tokenizers", "datasets", "evaluate"),
    *("peft", "lm-eval", "numpy", "typer"),
)
GIB = 2**30


@guarded
def env_command(
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Print versions, hardware and settings for a bug report. Tokens are never printed, only whether one is set.

    Examples:
        hf-farms env
        hf-farms env --json
    """
    output_format = check_format(format_, quiet, json_)
    if output_format == "quiet":
        say(_version("hf-farms") or "")
    elif output_format == "json":
        say(json.dumps(environment(), indent=2))
    else:
        if output_format == "human":
            err.print("Copy the text below into your bug report.\n")
        for name, value in environment().items():
            say(f"- {name}: {_text(value)}")


def environment() -> dict[str, Any]:
    """Return all facts in the order in which they are printed; None: not installed or unknown."""
    return {
        "hf-farms": _version("hf-farms"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cpu count": os.cpu_count(),
        "memory (GiB)": _memory(),
        **_torch(),
        **_hub(),
        "python executable": sys.executable,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _torch() -> dict[str, Any]:
    """Return the hardware that torch sees, or its error: a broken installation may be the bug."""
    try:
        import torch

        cuda = torch.cuda.is_available()
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count() if cuda else 0)]
        return {
            "torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else _other_build(torch),
            "gpu": [f"{device.name}, {device.total_memory / GIB:.0f} GiB" for device in devices],
            "torch threads": torch.get_num_threads(),
        }
    except Exception as error:
        return {"torch cannot be used": " ".join(f"{type(error).__name__}: {error}".split())}


def _other_build(torch: Any) -> str:
    if getattr(torch.version, "hip", None):
        return f"ROCm {torch.version.hip}"
    return "MPS" if torch.backends.mps.is_available() else "CPU"


def _hub() -> dict[str, Any]:
    try:
        from huggingface_hub import constants, get_token
        from huggingface_hub.utils import is_agent  # type: ignore[attr-defined]

        return {
            "HF_ENDPOINT": mask_secrets(constants.ENDPOINT),
            "HF_HOME": constants.HF_HOME,
            "HF_HUB_OFFLINE": constants.HF_HUB_OFFLINE,
            "has token": get_token() is not None,
            "run by an agent": is_agent(),
        }
    except Exception as error:
        return {"huggingface_hub cannot be used": " ".join(f"{type(error).__name__}: {error}".split())}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "not available" if value is None else str(value)
