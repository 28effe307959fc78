"""Export an adapter as a LoRA, exactly: one folder for PEFT, vLLM and SGLang."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_farms.config.checks import check, check_arguments
from hf_farms.errors import ModelError, OutputError
from hf_farms.files import names
from hf_farms.files.atomic_writes import replacing, write_text, writing
from hf_farms.files.path_checks import check_name, check_not_cached, check_parent, check_within
from hf_farms.files.paths import kind_of
from hf_farms.privacy.publishing import published_path
from hf_farms.s2ft.adapters.lora_base import BaseModel, open_base
from hf_farms.s2ft.adapters.lora_tensors import factors_of, features_of, zero_factors
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch

__all__ = ["MAX_LORA_RANKS", "LoRAExport", "export_lora"]

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# Entry of the metadata of the weights that tells an earlier export from a LoRA of something else.
MARK = {"made_by": "hf_farms.export_lora"}
# What --max-lora-rank of vLLM may be.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# SGLang multiplies these layers as one, and needs the others beside a layer.
COMPANY = {
    "q_proj": ("v_proj",),
    "k_proj": ("q_proj", "v_proj"),
    "v_proj": ("q_proj",),
    "up_proj": ("gate_proj",),
}
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class LoRAExport:
    """A LoRA that was written; its text has the flags to start a server with.

    Attributes:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        rank: r, the channels of the layer with most of them.
        modules: names of the layers that have tensors, some of them zero.
        num_bytes: bytes of the tensors.
        slice_bytes: bytes of the adapter's new slices and channels, without those of the base.
        notes: sentences on servers that cannot use the files, or need another option.
    """

    folder: Path
    rank: int
    modules: tuple[str, ...]
    num_bytes: int
    slice_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def target_names(self) -> tuple[str, ...]:
        """The last part of the layers' names, which servers take."""
        return tuple(dict.fromkeys(module.rpartition(".")[2] for module in self.modules))

    @property
    def max_lora_rank(self) -> int:
        """The smallest rank that vLLM can be started with for these files."""
        return min(rank for rank in MAX_LORA_RANKS if rank >= self.rank)

    @property
    def vllm_flags(self) -> str:
        """The options of `vllm serve`; without the last one, buffers are made for all linear layers."""
        return f"--enable-lora --max-lora-rank {self.max_lora_rank} {self._target_flag}"

    @property
    def sglang_flags(self) -> str:
        """The options of `sglang.launch_server`, whose rank is not rounded up."""
        return f"--enable-lora --max-lora-rank {self.rank} {self._target_flag}"

    @property
    def _target_flag(self) -> str:
        return f"--lora-target-modules {' '.join(self.target_names)}"

    def __str__(self) -> str:
        """Return rank and size, the flags, and the notes, a line each."""
        return "\n".join(
            (
                f"LoRA of rank {self.rank} in {len(self.modules)} layers ({', '.join(self.target_names)}): "
                f"{self.folder!s}",
                f"{self.num_bytes / MEBIBYTE:,.1f} MiB; the slices of the adapter have "
                f"{self.slice_bytes / MEBIBYTE:,.1f} MiB.",
                f"vLLM: {self.vllm_flags}",
                f"SGLang: {self.sglang_flags}",
                *self.notes,
            )
        )


def export_lora(
    adapter: S2FTAdapter,
    folder: str | Path,
    *,
    base: nn.Module | str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> LoRAExport:
    """Write an adapter as a LoRA whose product is exactly the change of every weight.

    r is the number of channels of the layer with most of them and lora_alpha = r; other layers get zero rows. Fused
    weights (`qkv_proj`) are one layer, with the rows of the model.

    Args:
        adapter: with the slices of its base, or `base` must be given.
        folder: created if it does not exist; an earlier export in it is replaced, other files stay.
        base: the base model or its checkpoint. With it, blocks without channels get zero tensors, and so do the layers
            that SGLang needs beside trained ones (q and v, gate); target modules are short names where no other layer
            has them, else full ones; and the file has the task, which `AutoPeftModelForCausalLM` needs. Models that
            transformers renames on loading need it for their names in memory.
        dtype: of the tensors. None is float32 (float64 of a float64 model), because the difference of two
            half-precision numbers is rarely one: a narrower dtype takes less space and rounds the change, as vLLM and
            SGLang do to the dtype of the model.

    Returns:
        Sizes, and the flags to start a server with; `print` it.

    Raises:
        ValueError: slices of the base that neither the adapter nor `base` has; a dtype of no floating-point numbers.
        ModelError: more channels than the largest rank of vLLM, weights that are not those of a linear layer, or
            another base.
        OutputError: a folder with a LoRA that was not exported here, or with a model.
    """
    check_arguments(export_lora, folder=folder)
    _check_dtype(dtype)
    patches = tuple(adapter.patches.values())
    rank = _rank(patches)
    path = Path(folder)
    _check_folder(path)
    _check_base(patches, base)
    opened = None if base is None else open_base(base)
    layers = _layers(patches, opened)
    company = _company(layers, opened)
    options: dict[str, Any] = {"rank": rank, "dtype": dtype or torch.promote_types(adapter.dtype, torch.float32)}
    tensors: dict[str, Tensor] = {}
    for module, features in company.items():
        if (patch := layers.get(module)) is None:
            factors = zero_factors(features, **options)
        else:
            factors = factors_of(patch, _base_slices(patch, module, opened), **options)
        for end, tensor in zip(("lora_A", "lora_B"), factors, strict=True):
            tensors[f"base_model.model.{module}.{end}.weight"] = tensor
    targets = _target_modules(company, opened)
    _write(path, tensors, _config(adapter, opened, rank=rank, targets=targets, transposed=_transposed(patches)))
    return LoRAExport(
        folder=path,
        rank=rank,
        modules=tuple(company),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        slice_bytes=sum(patch.values.nbytes + patch.indices.nbytes for patch in patches),
        notes=tuple(_notes(patches, company, rank, has_base=opened is not None)),
    )


def _check_dtype(dtype: object) -> None:
    floating = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    check(floating, "dtype", "None or a floating-point dtype of torch", dtype)


def _rank(patches: Iterable[WeightPatch]) -> int:
    """Return the channels of the weight with most of them.

    Raises:
        ValueError: the adapter is empty.
        ModelError: more than any server takes.
    """
    largest = max(patches, key=lambda patch: len(patch.indices), default=None)
    if largest is None:
        raise ValueError("adapter must patch at least one weight, got an empty one. Train it first.")
    rank, most = len(largest.indices), MAX_LORA_RANKS[-1]
    if rank > most:
        raise ModelError(
            f"adapter must have at most {most} channels of each weight for a LoRA, the largest rank of vLLM, got "
            f"{rank} in {largest.name}.",
            hint=f"Serve the merged model, or train again with S2FTConfig(max_channels={most}).",
        )
    return rank


def _check_base(patches: Iterable[WeightPatch], base: object) -> None:
    missing = next((patch.name for patch in patches if patch.base is None), None)
    if missing is not None and base is None:
        raise ValueError(
            f"base must be given for an adapter without the slices of its base, got None (first {missing}). Pass the "
            "base model or its folder."
        )


def _layers(patches: Iterable[WeightPatch], base: BaseModel | None) -> dict[str, WeightPatch]:
    """Return the patches by the name of their layer in memory.

    Raises:
        ModelError: patches of something else than the weight of a linear layer.
    """
    parameters = {patch.name: patch.name for patch in patches} if base is None else base.names_in_memory(tuple(patches))
    known = None if base is None else base.features()
    layers = {}
    for patch in patches:
        module, _, attribute = parameters[patch.name].rpartition(".")
        if attribute != "weight" or (known is not None and module not in known):
            raise ModelError(
                f"patched weights must be those of linear layers for a LoRA, got {patch.name}.",
                hint="Serve the merged model.",
            )
        layers[module] = patch
    return layers


def _company(layers: Mapping[str, WeightPatch], base: BaseModel | None) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of all layers that get tensors, in the order of the model if that is known.

    Beside the patched ones these are the same layers of other blocks, and those that SGLang needs.
    """
    if base is None:
        return {module: features_of(patch) for module, patch in layers.items()}
    wanted = {_pattern(module) for module in layers}
    wanted |= {other for pattern in wanted for other in _beside(pattern)}
    return {module: (m, n) for module, (m, n) in base.features().items() if _pattern(module) in wanted}


def _pattern(module: str) -> str:
    """Replace the numbers in a name: the layer of any block."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", module)


def _beside(module: str) -> list[str]:
    """Return the names of the layers that SGLang needs beside this one."""
    parent, _, name = module.rpartition(".")
    return [f"{parent}.{other}" for other in COMPANY.get(name, ())]


def _base_slices(patch: WeightPatch, module: str, base: BaseModel | None) -> Tensor:
    if patch.base is not None:
        return patch.base
    assert base is not None
    return base.slices(patch, f"{module}.weight")


def _target_modules(modules: Iterable[str], base: BaseModel | None) -> list[str]:
    """Return short names if they match these layers only; PEFT warns of layers without tensors."""
    modules = list(modules)
    short = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    if base is None:
        return modules
    matched = {module for module in base.features() if module.rpartition(".")[2] in short}
    return short if matched == set(modules) else modules


def _transposed(patches: Iterable[WeightPatch]) -> bool:
    """Return whether the weights are those of Conv1D, `(inputs, outputs)`."""
    return any((patch.dim == 1) != (patch.side == "inputs") for patch in patches)


def _config(
    adapter: S2FTAdapter, base: BaseModel | None, *, rank: int, targets: list[str], transposed: bool
) -> dict[str, Any]:
    """Return the config of PEFT. Servers refuse a target that is no list, and an initialisation that is a text."""
    name = adapter.base_model
    if name is None and base is not None:
        name = published_path(getattr(getattr(base.model, "config", None), "_name_or_path", None) or "") or None
    return {
        "peft_type": "LORA",
        "task_type": None if base is None else base.task_type,
        "base_model_name_or_path": name,
        "revision": adapter.base_revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _notes(patches: Iterable[WeightPatch], modules: Iterable[str], rank: int, *, has_base: bool) -> Iterable[str]:
    if _transposed(patches):
        yield "vLLM and SGLang have no LoRA for GPT-2: serve the merged model there."
    alone = {_pattern(name) for module in modules for name in _beside(module)} - {_pattern(name) for name in modules}
    if alone and not has_base:
        missing = sorted({name.rpartition(".")[2] for name in alone})
        yield f"SGLang needs zero tensors of {', '.join(missing)} too, if the model has them: pass `base`."
    below = max((step for step in MAX_LORA_RANKS if step < rank), default=0)
    if rank not in MAX_LORA_RANKS and rank <= 1.1 * below:
        yield f"Rank {rank} just misses {below}: S2FTConfig(max_channels={below}) makes the buffers of vLLM smaller."


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds a LoRA of another origin, or a model, which the LoRA would change.

    Raises:
        OutputError: as said, or a path that cannot be written.
    """
    check_name(folder, argument="folder")
    if kind_of(folder) not in (None, "folder"):
        raise OutputError(f"folder must be a folder or not exist, got the {kind_of(folder)} {str(folder)!r}.")
    check_not_cached(folder, argument="folder")
    check_parent(folder, argument="folder")
    check_within(folder, (CONFIG_NAME, WEIGHTS_NAME))
    foreign = [name for name in (names.MODEL_CONFIG, "adapter_model.bin") if (folder / name).exists()]
    if not foreign and not _is_own(folder):
        foreign = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if (folder / name).exists()]
    if foreign:
        raise OutputError(
            f"folder must be new, or hold an earlier export, got {foreign[0]} of something else in {str(folder)!r}.",
            hint="Choose another folder.",
        )


def _is_own(folder: Path) -> bool:
    """Return whether the weights in a folder are those of an export."""
    try:
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            return MARK.items() <= (file.metadata() or {}).items()
    except (OSError, SafetensorError):
        return False


def _write(folder: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and config. Without the config, which comes last, the folder is no LoRA: never an old one with it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS_NAME) as unfinished:
            save_file(tensors, unfinished, metadata={"format": "pt", **MARK})
            (folder / CONFIG_NAME).unlink(missing_ok=True)
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
