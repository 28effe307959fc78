"""Push an adapter of S²FT to the Hub, with its card and the licence of its base model."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from hf_farms_cards.adapter_card import render_adapter_card

from hf_farms import hub
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.files import names
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.documents import load_json, read_text
from hf_farms.hub.base_model import fetch_base_model
from hf_farms.hub.licence_files import copy_licence_files
from hf_farms.licences import generated_name
from hf_farms.loading.names import ModelRef
from hf_farms.privacy.publishing import is_local
from hf_farms.reports import BaseModelRecord
from hf_farms.s2ft.adapters.patches import S2FTAdapter

__all__ = ["push_adapter"]


def push_adapter(
    adapter: S2FTAdapter,
    repo_id: str,
    *,
    include_base: bool = True,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
) -> str:
    """Check and upload an adapter; see `S2FTAdapter.push_to_hub`."""
    base = _base_of(adapter, token)
    name = repo_id.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="hf-farms-adapter-") as parent:
        folder = Path(parent) / (name or "adapter")
        adapter.save_pretrained(folder, include_base=include_base)
        plan = hub.preflight(
            generated_name(base, name),
            repo_id=repo_id,
            private=private,
            base=base,
            folder=folder,
            revision=revision,
            create_pr=create_pr,
            allow_foreign_files=overwrite,
            create=False,
            token=token,
        )
        if base is not None:
            _copy_licence(base, folder, token)
        description = load_json(read_text(folder / names.SELECTION)).data
        files = [path.name for path in folder.iterdir()]
        card = render_adapter_card(description, repo_id=plan.repo_id, base=base, files=files)
        write_text(folder / "README.md", card)
        return hub.push(folder, plan=plan, commit_message=commit_message, token=token)


def _base_of(adapter: S2FTAdapter, token: str | None) -> BaseModelRecord | None:
    """Fetch the record of the base model: its licence determines name, visibility, files and card."""
    name = adapter.base_model
    if not name or is_local(name) or "/" not in name or ModelRef.parse(name).kind != "hub":
        return None
    try:
        return fetch_base_model(name, revision=adapter.base_revision, token=token)
    except HfFarmsError as error:
        warnings.warn(f"The card cannot name the licence of the base model: {error}", HfFarmsWarning, stacklevel=4)
        return None


def _copy_licence(base: BaseModelRecord, folder: Path, token: str | None) -> None:
    try:
        copy_licence_files(base, folder, token=token)
    except HfFarmsError as error:
        warnings.warn(f"The licence files of the base model were not copied: {error}", HfFarmsWarning, stacklevel=4)
