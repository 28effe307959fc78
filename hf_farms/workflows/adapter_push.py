"""Push an adapter of S²FT to the Hub, from memory or from its folder, with a card and the license of its base model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_farms import hub
from hf_farms.errors import HfFarmsError, HfFarmsWarning, ModelError, OutputError
from hf_farms.files import names
from hf_farms.files.documents import load_json, read_text
from hf_farms.files.own_files import is_own_file
from hf_farms.hub.base_model import fetch_base_model
from hf_farms.hub.client import is_unreachable
from hf_farms.hub.preflight import UNREACHABLE
from hf_farms.licences import generated_name
from hf_farms.loading.names import ModelRef
from hf_farms.privacy.publishing import is_local
from hf_farms.s2ft.adapters.files import write_description
from hf_farms.s2ft.adapters.loading import read_description
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.workflows.card import copy_license

if TYPE_CHECKING:
    from hf_farms.reports import BaseModelRecord

__all__ = ["AdapterPush", "planned_push", "push_adapter"]

CARD = "README.md"
FILES = (names.SELECTED_CHANNELS, names.SELECTION)
PREFIX = "hf-farms-adapter-"
# What a plan lacks where the Hub was not asked for the base model.
LICENSE = "the license of the base model, which may ask for its files and another name"


@dataclass(frozen=True)
class AdapterPush:
    """A push that was checked, and the staged files.

    Attributes:
        plan: destination.
        folder: a temporary folder with the adapter, its card and license files.
    """

    plan: hub.PushPlan
    folder: Path


def push_adapter(
    adapter: S2FTAdapter,
    repo_id: str,
    *,
    include_base: bool = True,
    commit_message: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    **options: Any,
) -> str:
    """Check and upload an adapter; see `S2FTAdapter.push_to_hub`, also for the other options."""
    with TemporaryDirectory(prefix=PREFIX) as temporary:
        folder = Path(temporary) / (repo_id.rpartition("/")[2] or "adapter")
        adapter.save_pretrained(folder, include_base=include_base)
        description = load_json(read_text(folder / names.SELECTION)).data
        push = _checked_push(folder, description, repo_id, allow_foreign_files=overwrite, token=token, **options)
        return hub.push(folder, plan=push.plan, commit_message=commit_message, token=token)


@contextmanager
def planned_push(
    adapter: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    allow_foreign_files: bool = False,
    unreachable_ok: bool = False,
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
        unreachable_ok: as for `plan_push`; such a plan can only be shown.
        token: as for `push`.

    Raises:
        DataError: as `S2FTAdapter.from_pretrained`.
        HubError: as `push`.
        ValueError: as `push`.
    """
    source = Path(adapter)
    _, description = read_description(source)
    if link := next((name for name in FILES if not is_own_file(source / name)), None):
        raise OutputError(f"{link} must be a file of {str(source)!r} to be pushed, got none or a link.")
    with TemporaryDirectory(prefix=PREFIX) as temporary:
        folder = Path(temporary) / source.absolute().name
        folder.mkdir()
        shutil.copyfile(source / names.SELECTED_CHANNELS, folder / names.SELECTED_CHANNELS)
        # The copy beside the weights may be that of another adapter, after a save that was killed.
        write_description(folder, description)
        if is_own_file(source / CARD) and not (source / names.MODEL_CONFIG).exists():
            shutil.copyfile(source / CARD, folder / CARD)
        yield _checked_push(
            folder,
            description,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            allow_foreign_files=allow_foreign_files,
            unreachable_ok=unreachable_ok,
            token=token,
        )


def _checked_push(
    folder: Path,
    description: Mapping[str, Any],
    repo_id: str | None,
    *,
    token: str | None,
    unreachable_ok: bool = False,
    **options: Any,
) -> AdapterPush:
    """Check a push, and add license files and a card to the staged files of an adapter.

    Args:
        folder: with the files of the adapter, and maybe a card, which is kept.
        description: of the adapter.
        repo_id: as for `planned_push`.
        token: as for `planned_push`.
        unreachable_ok: as for `planned_push`.
        options: of `preflight`.
    """
    from hf_farms_cards.adapter_card import render_adapter_card

    base, unreached = None, False
    try:
        base = _base_record(description, token)
        if base is not None:
            copy_license(base, folder, token)
    except HfFarmsError as error:
        unreached = unreachable_ok and is_unreachable(error)
        if not unreached:
            raise
    plan = hub.preflight(
        generated_name(base, folder.name),
        repo_id=repo_id,
        base=base,
        folder=folder,
        create=False,
        unreachable_ok=unreachable_ok,
        token=token,
        **options,
    )
    if unreached:
        plan = replace(plan, unchecked=(*plan.unchecked, LICENSE), reason=UNREACHABLE)
    if not (folder / CARD).exists():
        files = [path.name for path in folder.iterdir()]
        text = render_adapter_card(description, repo_id=plan.repo_id, base=base, files=files)
        (folder / CARD).write_text(text, encoding="utf-8")
    checked = hub.PublishableFolder(folder, hub.read_contents(folder), None)
    return AdapterPush(replace(plan, folder=checked), folder)


def _base_record(description: Mapping[str, Any], token: str | None) -> BaseModelRecord | None:
    """Return license and commit of the base model; None where it is not on the Hub, with a warning if it was.

    The license determines name, visibility, files and card.
    """
    name = description["base_model"]
    if name is None or is_local(name) or not _is_repo_id(name):
        return None
    removed: ModelError | None = None
    for revision in dict.fromkeys((description["base_revision"], None)):
        try:
            return fetch_base_model(name, revision=revision, token=token)
        except ModelError as error:  # that commit or all of it
            if is_unreachable(error):
                raise
            removed = error
    # In front of `push_to_hub`, or of the context manager of `planned_push`.
    warnings.warn(f"The card cannot name the license of the base model: {removed}", HfFarmsWarning, stacklevel=5)
    return None


def _is_repo_id(name: str) -> bool:
    """Return whether a repository of the Hub can have this name; some, as "gpt2", have no namespace."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return ModelRef.parse(name).kind == "hub"
