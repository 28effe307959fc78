"""Folders of adapters: describe, fuse and export them, and stage one for a push."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hf_farms import hub
from hf_farms.config.checks import check
from hf_farms.errors import HfFarmsWarning, ModelError, OutputError, argument_errors
from hf_farms.files import names
from hf_farms.files.own_files import is_own_file
from hf_farms.hub.base_model import fetch_base_model
from hf_farms.hub.licence_files import copy_licence_files
from hf_farms.licences import generated_name
from hf_farms.loading.devices import parse_dtype
from hf_farms.output.allowed_paths import check_apart
from hf_farms.output.new_folder import check_new_folder, new_folder
from hf_farms.privacy.publishing import is_local
from hf_farms.reports import json_converter
from hf_farms.reports.adapters import AdapterSummary, PatchSummary
from hf_farms.s2ft.adapters.files import write_description
from hf_farms.s2ft.adapters.fusing import check_fuse_options, fuse, overlaps
from hf_farms.s2ft.adapters.loading import load_adapter, read_description
from hf_farms.s2ft.adapters.lora_export import LoRAExport, export_lora
from hf_farms.s2ft.adapters.patches import S2FTAdapter

if TYPE_CHECKING:
    from hf_farms.reports import BaseModelRecord

__all__ = [
    "AdapterPush",
    "FusedAdapter",
    "describe_adapter",
    "export_adapter",
    "fuse_adapters",
    "planned_push",
]

CARD = "README.md"
FILES = (names.SELECTED_CHANNELS, names.SELECTION)


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


@dataclass(frozen=True)
class AdapterPush:
    """A push that was checked, and the staged files.

    Attributes:
        plan: destination.
        folder: a temporary folder with the adapter, its card and licence files.
    """

    plan: hub.PushPlan
    folder: Path


@contextmanager
def planned_push(
    adapter: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    allow_foreign_files: bool = False,
    token: str | None = None,
) -> Iterator[AdapterPush]:
    """Check everything that a push needs, and stage its files while the context is open; nothing is created.

    Args:
        adapter: folder of `S2FTAdapter.save_pretrained`. Its README.md is kept, if the folder has no model.
        repo_id: as for `push`.
        private: as for `push`.
        create_pr: as for `push`.
        revision: as for `push`.
        allow_foreign_files: also write to a repository that contains files not written by hf-farms.
        token: as for `push`.

    Raises:
        DataError: as `S2FTAdapter.from_pretrained`.
        HubError: as `push`.
        ValueError: as `push`.
    """
    from hf_farms_cards.adapter_card import render_adapter_card

    source = Path(adapter)
    content, description = read_description(source)
    summary = describe_adapter(content)
    if link := next((name for name in FILES if not is_own_file(source / name)), None):
        raise OutputError(f"{link} must be a file of {str(source)!r} to be pushed, got none or a link.")
    base = _base_record(summary, token)
    with TemporaryDirectory(prefix="hf-farms-adapter-") as temporary:
        folder = Path(temporary) / source.absolute().name
        folder.mkdir()
        shutil.copyfile(source / names.SELECTED_CHANNELS, folder / names.SELECTED_CHANNELS)
        # The copy beside the weights may be that of another adapter, after a save that was killed.
        write_description(folder, description)
        if base is not None:
            copy_licence_files(base, folder, token=token)
        plan = hub.preflight(
            generated_name(base, folder.name),
            repo_id=repo_id,
            private=private,
            base=base,
            folder=folder,
            revision=revision,
            create_pr=create_pr,
            allow_foreign_files=allow_foreign_files,
            create=False,
            token=token,
        )
        if is_own_file(source / CARD) and not (source / names.MODEL_CONFIG).exists():
            shutil.copyfile(source / CARD, folder / CARD)
        else:
            files = [path.name for path in folder.iterdir()]
            text = render_adapter_card(description, repo_id=plan.repo_id, base=base, files=files)
            (folder / CARD).write_text(text, encoding="utf-8")
        checked = hub.PublishableFolder(folder, hub.read_contents(folder), None)
        yield AdapterPush(replace(plan, folder=checked), folder)


def _base_record(summary: AdapterSummary, token: str | None) -> BaseModelRecord | None:
    """Return licence and commit of the base model; None where it is not on the Hub, with a warning if it was."""
    name = summary.base_model
    if name is None or "/" not in name or is_local(name):
        return None
    removed: ModelError | None = None
    for revision in dict.fromkeys((summary.base_revision, None)):
        try:
            return fetch_base_model(name, revision=revision, token=token)
        except ModelError as error:  # that commit or all of it
            removed = error
    # Through the generator of `planned_push` and its context manager.
    warnings.warn(f"The card cannot name the licence of the base model: {removed}", HfFarmsWarning, stacklevel=5)
    return None
