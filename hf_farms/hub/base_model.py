"""Metadata of the dense model on the Hub: commit, license, languages, size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.files.own_files import is_own_file
from hf_farms.hub.client import client, hub_errors, with_retries
from hf_farms.reports import BaseModelRecord

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = [
    "LICENSE_FILE",
    "TIMEOUT",
    "WEIGHTS",
    "ask_model",
    "base_model_of",
    "fetch_base_model",
    "read_base_model",
    "weights_size",
]

TIMEOUT = 10  # seconds per request
NOTICE = "NOTICE"
# Keys that are read from a card.
CARD_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
# Files only, in the same folder as the weights.
LICENSE_FILE = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)([-_.][^/]*)?", re.IGNORECASE)


def ask_model(name: str, *, revision: str | None = None, token: str | None = None) -> ModelInfo:
    """Fetch the info of a model from the Hub in one request: commit, card, and files with their sizes.

    Args:
        name: a hub id.
        revision: branch, tag or commit.
        token: None: the token of `hf auth login`.

    Raises:
        ModelError: it does not exist, or this token has no access.
        HubError: the Hub refused the token or cannot be reached.
    """
    with hub_errors(name, action="ask", revision=revision):
        api = client(token)
        return with_retries(
            lambda: api.model_info(name, revision=revision, timeout=TIMEOUT, files_metadata=True),
            what=f"Asking for {name}",
        )


def fetch_base_model(
    name: str, *, revision: str | None = None, token: str | None = None, info: ModelInfo | None = None
) -> BaseModelRecord:
    """Fetch the record of a model on the Hub; check access if it is gated.

    With HF_HUB_OFFLINE, read it from the cache, with a warning if the card is missing there.

    Args:
        name: a hub id.
        revision: branch, tag or commit.
        token: None: the token of `hf auth login`.
        info: of the Hub, if it was fetched already.

    Raises:
        ModelError: it does not exist, access was not granted, or it is not in the cache and the Hub is switched off.
        HubError: the Hub refused the token or cannot be reached.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        with hub_errors(name, action="ask", revision=revision):
            return _cached(name, revision)
    if info is None:
        info = ask_model(name, revision=revision, token=token)
    if info.gated:
        with hub_errors(name, action="ask", revision=revision):
            with_retries(lambda: client(token).auth_check(name), what=f"Asking for {name}")
    card = _plain_card(info.card_data)
    tagged = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return _record(
        name,
        info.sha,
        {"license": tagged, "pipeline_tag": info.pipeline_tag} | {key: value for key, value in card.items() if value},
        gated=bool(info.gated),
        files=[sibling.rfilename for sibling in info.siblings or ()],
    )


def read_base_model(folder: Path) -> BaseModelRecord | None:
    """Read the record of the dense model from the card and the license files of a folder.

    Returns:
        None if the folder has neither.
    """
    record = base_model_of(folder)
    return record if _card_of(folder) or record.files else None


def base_model_of(folder: Path) -> BaseModelRecord:
    """Read the record of a local model, which may have neither card nor license files."""
    return _record(folder.absolute().name, None, _card_of(folder), files=_files_in(folder), local=True)


def _cached(model: str, revision: str | None) -> BaseModelRecord:
    """Read the record of a model from the cache."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    for file in ("config.json", "params.json", "README.md"):
        cached = try_to_load_from_cache(model, file, revision=revision)
        if isinstance(cached, str):
            snapshot = Path(cached).parent
            card: dict[str, Any] | None = {}
            if try_to_load_from_cache(model, "README.md", revision=revision) is not _CACHED_NO_EXIST:
                card = _card_of(snapshot)
            if card is None:
                warnings.warn(
                    f"The card of {model!r} is not on this machine and the Hub is switched off (HF_HUB_OFFLINE): "
                    f"its license and license files are not known. Run `hf download {model}` before.",
                    HfFarmsWarning,
                    stacklevel=3,
                )
            return _record(model, snapshot.name, card, files=_files_in(snapshot))
    raise ModelError(
        f"{model!r} is not on this machine and the Hub is switched off (HF_HUB_OFFLINE).",
        hint="Unset HF_HUB_OFFLINE, or name a local folder.",
    )


def _card_of(folder: Path) -> dict[str, Any] | None:
    """Return the front matter of README.md; None if the file does not exist or cannot be read."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if not (folder / "README.md").is_file():  # reading a pipe of that name would block
        return None
    try:
        # Same parsing as ModelCard.load, which prints a remark if the card has no front matter.
        text = (folder / "README.md").read_bytes().decode("utf-8")
        return _plain_card(ModelCard(text, ignore_metadata_errors=True).data) if REGEX_YAML_BLOCK.search(text) else {}
    except Exception:  # yaml and the card class raise various errors for invalid cards
        return None


def _files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if is_own_file(path)]


def _plain_card(data: Any) -> dict[str, Any]:
    # Only these keys: aliases in a malicious YAML could expand to more than the memory.
    return {key: data.get(key) for key in CARD_KEYS if data.get(key) is not None} if data is not None else {}


def _record(
    model: str,
    revision: str | None,
    card: dict[str, Any] | None,
    *,
    files: Iterable[str],
    gated: bool = False,
    local: bool = False,
) -> BaseModelRecord:
    read, card = card is not None, card or {}
    return BaseModelRecord(
        repo_id=model,
        revision=revision,
        license=_first(card.get("license")),
        license_name=_first(card.get("license_name")),
        license_link=_first(card.get("license_link")),
        gated=gated,
        languages=tuple(_texts(card.get("language"))),
        pipeline_tag=_first(card.get("pipeline_tag")),
        files=tuple(sorted(filter(LICENSE_FILE.fullmatch, files))),
        card_read=read,
        local=local,
    )


def _texts(value: object) -> list[str]:
    """Return the texts of a field, which holds one or a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str) and text]


def _first(value: object) -> str | None:
    return next(iter(_texts(value)), None)


def weights_size(sizes: Mapping[str, int]) -> int | None:
    """Return the bytes of a model's weight files; a pruned copy in the same dtype has the same size.

    Args:
        sizes: bytes of each file of a model, by its name.

    Returns:
        None if no file has a known name.
    """
    for ending in (".safetensors", ".bin"):
        weights = [size for name, size in sizes.items() if name.endswith(ending) and WEIGHTS.fullmatch(name)]
        if weights:
            return sum(weights)
    return sum(size for name, size in sizes.items() if name.startswith("consolidated.")) or None
