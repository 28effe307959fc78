"""Export an adapter as a LoRA, exactly: one folder for PEFT, vLLM and SGLang.

lora_tensors.py   a patch as the two factors of a LoRA
lora_base.py      the base model: names in memory, linear layers, slices
lora_servers.py   ranks, layers that go together, options of servers
lora_files.py     the folder
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_farms.config.checks import check, check_arguments
from hf_farms.demo import DEMO_FOLDERS
from hf_farms.errors import ModelError
from hf_farms.privacy.publishing import is_local, published_path
from hf_farms.s2ft.adapters.lora_base import BaseModel, open_base
from hf_farms.s2ft.adapters.lora_files import check_lora_folder, save_lora
from hf_farms.s2ft.adapters.lora_servers import (
    MAX_LORA_RANKS,
    LoRAExport,
    companions,
    notes_on,
    pattern_of,
    servers_with_lora,
    short_names,
)
from hf_farms.s2ft.adapters.lora_tensors import factors_of, features_of, is_transposed, zero_factors
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch

__all__ = ["LoRAExport", "export_lora"]

# Names of embeddings in transformers: without the base, their weights look like those of linear layers.
EMBEDDING = re.compile(r"(^|\.)(embed_(tokens|positions|in)|(\w+_)?embeddings?|wte|wpe|shared)$")


def export_lora(
    adapter: S2FTAdapter,
    folder: str | Path,
    *,
    base: nn.Module | str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> LoRAExport:
    """Write an adapter as a LoRA: the product of its factors is the change of each weight.

    For input channels (o, down) A selects the channels and B holds the differences; for output channels (q, k, v, up,
    gate) it is the other way round. r is the number of channels of the layer with most of them, and lora_alpha = r;
    other layers get zero rows. A fused weight (`qkv_proj`) is one layer. `merge_and_unload` of PEFT gives the trained
    weights up to float32 rounding of the difference: in half precision usually bit for bit, except for weights that
    became thousands of times smaller. `S2FTAdapter.merge` is always exact.

    Args:
        adapter: with the slices of its base; else `base` is needed.
        folder: created if it does not exist; an earlier export in it is replaced, other files stay.
        base: the base model, or the folder or Hub id of its checkpoint. It is needed for models whose parameters are
            renamed on loading. With it, blocks without channels get zero tensors, and so do layers that SGLang stacks
            with trained ones (q, v and gate); target modules are short names unless other layers have them too; and
            the config has the task, which `AutoPeftModelForCausalLM` reads. The config names it as the base, without
            a private path; a Hub id that the adapter has is kept where this is a folder. PEFT cannot load `demo` by
            its name: `PeftModel.from_pretrained(model, folder)` takes a model that was loaded before.
        dtype: of the tensors. None is float32 (float64 for a float64 model), as the difference of two half-precision
            numbers is rarely one. A narrower dtype takes less space and rounds the change; so do vLLM and SGLang,
            which cast the tensors to the dtype of the model.

    Returns:
        Sizes, and the options to start a server with: `print` it.

    Raises:
        ValueError: neither the adapter nor `base` has the slices of the base, or a dtype that is not floating-point.
        ModelError: more channels than the largest rank of vLLM, weights that are not those of linear layers, or
            another base.
        OutputError: a folder with a model or with a LoRA that was not exported here; a path that cannot be written.
    """
    check_arguments(export_lora, folder=folder)
    _check_dtype(dtype)
    patches = tuple(adapter.patches.values())
    rank, path = _rank(patches), Path(folder)
    check_lora_folder(path)
    _check_base(patches, base)
    opened = None if base is None else open_base(base)
    layers = _layers(patches, opened)
    features = _all_features(layers, opened)
    options: dict[str, Any] = {"rank": rank, "dtype": dtype or torch.promote_types(adapter.dtype, torch.float32)}
    tensors: dict[str, Tensor] = {}
    for module, shape in features.items():
        patch = layers.get(module)
        a, b = (
            zero_factors(shape, **options)
            if patch is None
            else factors_of(patch, _base_slices(patch, module, opened), **options)
        )
        tensors |= {f"base_model.model.{module}.lora_{end}.weight": tensor for end, tensor in (("A", a), ("B", b))}
    model_type = None if opened is None else opened.model_type
    transposed = any(is_transposed(patch) for patch in patches)
    targets, servers = _target_modules(features, opened), servers_with_lora(model_type, transposed=transposed)
    name, revision = _base_name(adapter, base, opened)
    config = _config(name, revision, opened, rank=rank, targets=targets, transposed=transposed)
    save_lora(path, tensors, config)
    return LoRAExport(
        folder=path,
        rank=rank,
        modules=tuple(features),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        slice_bytes=sum(patch.values.nbytes + patch.indices.nbytes for patch in patches),
        itemsize=adapter.dtype.itemsize,
        num_features=sum(sum(shape) for shape in features.values()),
        servers=servers,
        notes=tuple(notes_on(rank, features, servers=servers, model_type=model_type)),
    )


def _check_dtype(dtype: object) -> None:
    floating = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    check(floating, "dtype", "None or a floating-point dtype of torch", dtype)


def _rank(patches: Sequence[WeightPatch]) -> int:
    """Return the channels of the weight with most of them.

    Raises:
        ModelError: more than any server takes.
    """
    largest = max(patches, key=lambda patch: len(patch.indices))
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
        if known is None and attribute == "weight" and EMBEDDING.search(module):
            raise ModelError(
                f"patched weights must be those of linear layers for a LoRA, got {patch.name}, named as an embedding.",
                hint="Serve the merged model; if it is a linear layer, pass the base model as base.",
            )
        if attribute != "weight" or (known is not None and module not in known):
            raise ModelError(
                f"patched weights must be those of linear layers for a LoRA, got {patch.name}.",
                hint="Serve the merged model.",
            )
        layers[module] = patch
    return layers


def _all_features(layers: Mapping[str, WeightPatch], base: BaseModel | None) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each layer that gets tensors, in the order of the model.

    With a base these are the layers of the patches in all blocks, and those that SGLang stacks with them.
    """
    if base is None:
        return {module: features_of(patch) for module, patch in layers.items()}
    patterns = {pattern_of(module) for module in layers}
    patterns |= {other for pattern in patterns for other in companions(pattern)}
    return {module: shape for module, shape in base.features().items() if pattern_of(module) in patterns}


def _base_slices(patch: WeightPatch, module: str, base: BaseModel | None) -> Tensor:
    """Return the slices of the base; a given base is compared even where the adapter has its own."""
    if base is not None:
        return base.slices(patch, f"{module}.weight")
    assert patch.base is not None
    return patch.base


def _target_modules(modules: Iterable[str], base: BaseModel | None) -> list[str]:
    """Return short names if these are the only layers that have them, as PEFT warns of layers without tensors."""
    modules = list(modules)
    if base is None:
        return modules
    short = short_names(modules)
    matching = [module for module in base.features() if module.rpartition(".")[2] in short]
    return list(short) if matching == modules else modules


def _base_name(
    adapter: S2FTAdapter, base: nn.Module | str | Path | None, opened: BaseModel | None
) -> tuple[str | None, str | None]:
    """Return name and revision of the base for the config of PEFT: those of the given base, unless it is a copy.

    Anybody can load a Hub id that the adapter has; a folder is one of this machine.
    """
    recorded = adapter.base_model, adapter.base_revision
    config = getattr(opened.model, "config", None) if opened is not None else None
    given = str(base) if isinstance(base, str | Path) else getattr(config, "_name_or_path", None)
    name = published_path(given or "")
    on_hub = recorded[0] is not None and not is_local(recorded[0]) and recorded[0] not in DEMO_FOLDERS
    if not name or name == recorded[0] or (on_hub and (is_local(name) or name in DEMO_FOLDERS)):
        return recorded
    return name, getattr(config, "_commit_hash", None)


def _config(
    name: str | None,
    revision: str | None,
    base: BaseModel | None,
    *,
    rank: int,
    targets: list[str],
    transposed: bool,
) -> dict[str, Any]:
    """Return the config of PEFT. Servers refuse a target that is no list, and an initialization that is a text."""
    return {
        "peft_type": "LORA",
        "task_type": None if base is None else base.task_type,
        "base_model_name_or_path": name,
        "revision": revision,
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
