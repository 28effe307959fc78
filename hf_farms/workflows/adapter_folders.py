"""Folders of adapters: describe, fuse and export them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_farms.config.checks import check
from hf_farms.errors import argument_errors
from hf_farms.loading.devices import parse_dtype
from hf_farms.output.allowed_paths import check_apart
from hf_farms.output.new_folder import check_new_folder, new_folder
from hf_farms.reports import json_converter
from hf_farms.reports.adapters import AdapterSummary, PatchSummary
from hf_farms.s2ft.adapters.fusing import check_fuse_options, fuse, overlaps
from hf_farms.s2ft.adapters.loading import load_adapter
from hf_farms.s2ft.adapters.lora_export import LoRAExport, export_lora
from hf_farms.s2ft.adapters.patches import S2FTAdapter

__all__ = [
    "FusedAdapter",
    "describe_adapter",
    "export_adapter",
    "fuse_adapters",
]


def describe_adapter(adapter: str | Path | S2FTAdapter, *, revision: str | None = None) -> AdapterSummary:
    """Return what an adapter changes.

    Args:
        adapter: an adapter, a folder or a Hub id.
        revision: of a Hub id.

    Raises:
        DataError: as `S2FTAdapter.from_pretrained`.
    """
    if not isinstance(adapter, S2FTAdapter):
        adapter = load_adapter(adapter, revision=revision)
    selection = adapter.selection
    patches = tuple(
        PatchSummary(
            name=name,
            side=patch.side,
            shape=patch.shape,
            channels=len(patch.indices),
            size=patch.shape[patch.dim],
            num_bytes=patch.values.nbytes,
            includes_base=patch.base is not None,
        )
        for name, patch in adapter.patches.items()
    )
    return AdapterSummary(
        base_model=adapter.base_model,
        base_revision=adapter.base_revision,
        dtype=str(adapter.dtype).removeprefix("torch."),
        selection=None if selection is None else json_converter().unstructure(selection),
        patches=patches,
        num_bytes=sum(patch.num_bytes for patch in patches),
        base_bytes=sum(patch.num_bytes for patch in patches if patch.includes_base),
    )


@dataclass(frozen=True)
class FusedAdapter:
    """An adapter that `fuse_adapters` has written.

    Attributes:
        folder: of the adapter.
        adapter: the adapter.
        overlaps: share of the patched channels that more than one of the adapters has, by name of the weight.
    """

    folder: Path
    adapter: S2FTAdapter
    overlaps: Mapping[str, float]


def fuse_adapters(
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    combination: str = "linear",
    density: float | None = None,
    seed: int | None = None,
    include_base: bool = True,
) -> FusedAdapter:
    """Make one adapter of several and write it; see `fuse`.

    Args:
        adapters: folders or Hub ids.
        output: a new folder.
        weights: as for `fuse`.
        combination: as for `fuse`.
        density: as for `fuse`.
        seed: as for `fuse`.
        include_base: as for `S2FTAdapter.save_pretrained`.

    Raises:
        ValueError: as `fuse`.
        ModelError: as `fuse`.
        DataError: as `S2FTAdapter.from_pretrained`.
        OutputError: a folder that has files, or that cannot be written.
    """
    with argument_errors():
        check(len(adapters) > 1, "adapters", "at least two to be fused", list(map(str, adapters)))
        check_fuse_options(len(adapters), weights=weights, combination=combination, density=density, seed=seed)
    reads = {f"the adapter {name}": name for name in map(str, adapters)}
    check_new_folder(output, reads=reads)
    loaded = [load_adapter(name) for name in adapters]
    fused = fuse(loaded, weights=weights, combination=combination, density=density, seed=seed)
    with new_folder(output, reads=reads) as folder:
        fused.save_pretrained(folder, include_base=include_base)
    return FusedAdapter(Path(output).expanduser(), fused, overlaps(loaded))


def export_adapter(
    adapter: str | Path, output: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
) -> LoRAExport:
    """Write an adapter as a LoRA for PEFT, vLLM and SGLang; see `export_lora`.

    Args:
        adapter: a folder or a Hub id.
        output: folder of the LoRA; an earlier export in it is replaced.
        base: the base model: `demo`, a folder or a Hub id; as for `export_lora`.
        dtype: of the tensors; "auto" is float32, which is exact.

    Raises:
        ValueError: as `export_lora`.
        ModelError: as `export_lora`.
        DataError: as `S2FTAdapter.from_pretrained`.
        OutputError: as `export_lora`, or a folder inside the adapter or the model.
    """
    with argument_errors():
        parsed = parse_dtype(dtype)
    target = Path(output).expanduser()
    check_apart(target, {"the adapter": adapter, "the model": base})
    return export_lora(load_adapter(adapter), target, base=base, dtype=None if dtype == "auto" else parsed)
