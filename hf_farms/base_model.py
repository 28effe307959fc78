"""What the Hub says of the dense model: its commit, its licence, and what the licence asks of a pruned copy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_farms.errors import HfFarmsError, HfFarmsWarning, HubError, ModelError
from hf_farms.explain import explain
from hf_farms.licences import duties_of
from hf_farms.output import replacing, writing
from hf_farms.own_files import copy_file, describe_kind, is_own_file
from hf_farms.patience import watched
from hf_farms.reports import BaseModelRecord
from hf_farms.requests import client, retried

__all__ = ["TIMEOUT", "asking_about", "copy_licence_files", "describe_base", "describe_folder", "is_on_the_hub"]

TIMEOUT = 10  # seconds; of one answer
NOTICE = "NOTICE"
# What is read of a card.
CARD_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")
# Beside the weights; a folder of that name is not one.
LICENCE_FILE = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)([-_.][^/]*)?", re.IGNORECASE)


def is_on_the_hub(model: str) -> bool:
    """Whether a model's name is a hub id, and not `demo` or a folder."""
    return model != "demo" and not Path(model).is_dir()


def describe_base(model: str, *, revision: str | None = None, token: str | None = None) -> BaseModelRecord | None:
    """Ask the Hub about the dense model, in one call, or two where it is gated.

    With the Hub switched off (HF_HUB_OFFLINE), what is in the cache answers, with a warning where the card is missing.

    Args:
        model: `demo`, a folder, or a hub id.
        revision: branch, tag or commit.
        token: None: the one that is logged in.

    Returns:
        None for `demo` and folders.

    Raises:
        ModelError: not there, no access, or not in the cache and the Hub is switched off.
        HubError: the Hub refused the token or cannot be reached.
    """
    from huggingface_hub import constants

    if not is_on_the_hub(model):
        return None
    if constants.HF_HUB_OFFLINE:
        with asking_about(model, revision):
            return _cached(model, revision)
    with asking_about(model, revision):
        api, what = client(token), f"Asking for {model}"
        info = retried(lambda: api.model_info(model, revision=revision, timeout=TIMEOUT), what=what)
        if info.gated:
            retried(lambda: api.auth_check(model), what=what)
    card = _plain_card(info.card_data)
    tagged = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return _record(
        model,
        info.sha,
        {"license": tagged, "pipeline_tag": info.pipeline_tag} | {key: value for key, value in card.items() if value},
        gated=bool(info.gated),
        files=[sibling.rfilename for sibling in info.siblings or ()],
    )


def describe_folder(folder: Path) -> BaseModelRecord | None:
    """What the card and the licence files in a folder say of the dense model.

    Returns:
        None where there are neither.
    """
    card, files = _card_of(folder), _files_in(folder)
    record = _record(folder.absolute().name, None, card, files=files, local=True)
    return record if card or record.files else None


def _cached(model: str, revision: str | None) -> BaseModelRecord:
    """The record of a model that is on this machine."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    for file in ("config.json", "params.json", "README.md"):
        found = try_to_load_from_cache(model, file, revision=revision)
        if isinstance(found, str):
            snapshot = Path(found).parent
            card: dict[str, Any] | None = {}
            if try_to_load_from_cache(model, "README.md", revision=revision) is not _CACHED_NO_EXIST:
                card = _card_of(snapshot)
            if card is None:
                warnings.warn(
                    f"The card of {model!r} is not on this machine and the Hub is switched off (HF_HUB_OFFLINE): "
                    f"its licence and licence files are not known. Run `hf download {model}` before.",
                    HfFarmsWarning,
                    stacklevel=3,
                )
            return _record(model, snapshot.name, card, files=_files_in(snapshot))
    raise ModelError(
        f"{model!r} is not on this machine and the Hub is switched off (HF_HUB_OFFLINE).",
        hint="Unset HF_HUB_OFFLINE, or name a local folder.",
    )


def _card_of(folder: Path) -> dict[str, Any] | None:
    """Front matter of a README.md; None: no such file, or none that can be read."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if not (folder / "README.md").is_file():  # a pipe of that name would be waited for
        return None
    try:
        # As ModelCard.load reads it, which prints a remark where there is no front matter.
        text = (folder / "README.md").read_bytes().decode("utf-8")
        return _plain_card(ModelCard(text, ignore_metadata_errors=True).data) if REGEX_YAML_BLOCK.search(text) else {}
    except Exception:  # a card is text of others: yaml and the card class raise their own
        return None


def _files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if is_own_file(path)]


def _plain_card(data: Any) -> dict[str, Any]:
    # All of it would be copied: aliases in the YAML of others can make that larger than any memory.
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
        files=tuple(sorted(filter(LICENCE_FILE.fullmatch, files))),
        card_read=read,
        local=local,
    )


def _texts(value: object) -> list[str]:
    """One text or many: cards have both."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str) and text]


def _first(value: object) -> str | None:
    return next(iter(_texts(value)), None)


def copy_licence_files(base: BaseModelRecord | Path, folder: Path, *, token: str | None = None) -> tuple[str, ...]:
    """Put the licence files of the dense model into a folder, and the NOTICE that its licence asks for.

    Only regular files are copied: a link of a local model may lead to anything. What is left out is said by a warning.

    Args:
        base: of a model on the Hub, at its recorded commit; or the folder of a local one.
        folder: where they go; files of the same name are replaced.
        token: None: the one that is logged in.

    Returns:
        Names of the files that were written.

    Raises:
        ModelError: a file is not there, or access was not granted.
        HubError: the Hub cannot be reached.
        OutputError: the folder cannot be written.
    """
    if isinstance(base, Path):
        record = _record(base.absolute().name, None, _card_of(base), files=_files_in(base), local=True)
        found = {name: base / name for name in record.files}
        _warn_of_left_out(base)
    else:
        record, found = base, _downloaded(base, token)
    duties = duties_of(record)
    with writing(folder):
        for name, path in found.items():
            with replacing(folder / name) as unfinished:
                copy_file(path, unfinished)
        notice = duties.notice if duties is not None else None
        if notice is None or any(name.upper().startswith(NOTICE) for name in found):
            return tuple(found)
        with replacing(folder / NOTICE) as unfinished:
            unfinished.write_text(notice + "\n", encoding="utf-8")
    return (*found, NOTICE)


def _warn_of_left_out(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if LICENCE_FILE.fullmatch(path.name))
    left = {name: describe_kind(folder / name) for name in names if not is_own_file(folder / name)}
    for name, kind in left.items():
        if kind != "a folder":
            warnings.warn(
                f"{name} of {str(folder)!r} is not copied, as it is {kind}. If it is the licence, put the file itself "
                "there.",
                HfFarmsWarning,
                stacklevel=3,
            )


def _downloaded(base: BaseModelRecord, token: str | None) -> dict[str, Path]:
    from huggingface_hub import hf_hub_download

    found = {}
    for name in base.files:
        with asking_about(base.repo_id, base.revision):
            # The client's own copy, whatever the cache makes of it.
            found[name] = Path(
                retried(
                    lambda name=name: hf_hub_download(  # type: ignore[misc]
                        base.repo_id, name, revision=base.revision, token=token, library_name="hf-farms"
                    ),
                    what=f"Downloading {name}",
                    reads=True,
                )
            ).resolve()
    return found


@contextmanager
def asking_about(model: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub client raises about a model into one sentence."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        with watched():
            yield
    except HFValidationError as error:
        raise ModelError(f"model must be a hub id or an existing folder, got {model!r}. Check the path.") from error
    except HfFarmsError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library, of JSON and of its own through
        said = explain(error, what=model)
        cached = isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str)
        if isinstance(said, HubError) and "could not be reached" in str(said) and cached:
            raise HubError(str(said), hint="To use the copy on this machine, set HF_HUB_OFFLINE=1.") from error
        raise said from error
