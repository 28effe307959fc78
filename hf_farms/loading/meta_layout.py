"""Repositories and folders in Meta's own layout, such as `meta-llama/Llama-2-7b`: recognized before any download.

If a sibling repository `…-hf` exists, which transformers can load, it is used. Otherwise the weights are converted;
this needs consent because they are pickled.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_farms.errors import ModelError
from hf_farms.hub.base_model import TIMEOUT
from hf_farms.hub.client import client, hub_errors, with_retries
from hf_farms.loading.meta_conversion import convert_weights
from hf_farms.loading.meta_tokenizer import TOKENIZER_FILES, convert_tokenizer
from hf_farms.loading.names import ModelRef
from hf_farms.output.folder import writing

__all__ = ["MetaCheckpoint", "find_meta_checkpoint"]

CONFIG, PARAMS = "config.json", "params.json"
SHARD = re.compile(r"consolidated\.(\d+)\.pth")
MISTRAL = re.compile(r"consolidated.*\.safetensors")
ELSEWHERE = "Name a repository of this model that has a config.json."


@dataclass(frozen=True, kw_only=True)
class MetaCheckpoint:
    """A model in Meta's layout, and its replacement.

    Attributes:
        model: as the user gave it.
        sibling: repository of the same model that transformers can load; None: convert the weights.
        revision: commit of the original on the Hub; None of a folder.
        shards: names of the weight files.
    """

    model: ModelRef
    sibling: str | None = None
    revision: str | None = None
    shards: tuple[str, ...] = ()

    @property
    def replaced_by(self) -> str:
        """End of the note in reports and cards."""
        return f"{self.sibling!r} was loaded in its place" if self.sibling else "it was converted"

    def transformers_path(self, *, tokenizer: bool = True) -> str:
        """Return a repository or folder that transformers can load; convert at most once, into the Hub's cache.

        Args:
            tokenizer: whether a tokenizer is needed too.

        Raises:
            ModelError: damaged, incomplete or not a Llama.
            OutputError: the disk is full.
        """
        if self.sibling is not None:
            return self.sibling
        from huggingface_hub import cached_assets_path
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        home = cached_assets_path("hf_farms", namespace="original", subfolder=self._key())
        folder, unfinished = home / "model", home / "model.partial"
        # Several launched processes open the same model at once.
        with WeakFileLock(home / ".lock"):
            if not folder.exists():
                source = self._source((PARAMS, *self.shards))
                _check_space(home, sum((source / shard).stat().st_size for shard in self.shards))
                shutil.rmtree(unfinished, ignore_errors=True)
                with writing(home):
                    unfinished.mkdir()
                convert_weights(source, self.shards, unfinished)
                unfinished.rename(folder)
            if tokenizer and not (folder / "tokenizer.json").exists():
                self._add_tokenizer(folder, home / "tokenizer.partial")
        return str(folder)

    def _add_tokenizer(self, folder: Path, unfinished: Path) -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        with writing(folder):
            unfinished.mkdir()
        if convert_tokenizer(self._source(TOKENIZER_FILES), unfinished):
            # The file by which a tokenizer is known to be complete comes last.
            for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "tokenizer.json"):
                path.replace(folder / path.name)
        shutil.rmtree(unfinished)

    def _source(self, files: Iterable[str]) -> Path:
        """Return a folder that holds those of these files that exist."""
        if self.model.folder is not None:
            return self.model.folder
        from huggingface_hub import snapshot_download

        name = self.model.name
        with hub_errors(name, action="ask", revision=self.revision):
            return Path(
                snapshot_download(name, revision=self.revision, allow_patterns=list(files), library_name="hf-farms")
            )

    def _key(self) -> str:
        """Return a folder name that identifies the files to convert."""
        if self.model.folder is None:
            return f"{self.model.name.replace('/', '--')}-{self.revision}"
        folder = self.model.folder.resolve()
        stats = [(folder / file).stat() for file in (PARAMS, *self.shards)]
        content = repr((str(folder), [(stat.st_size, stat.st_mtime_ns) for stat in stats]))
        return f"{folder.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def find_meta_checkpoint(model: ModelRef, *, allow_pickle: bool = False) -> MetaCheckpoint | None:
    """Recognize a model in Meta's layout from its list of files.

    Args:
        model: `demo`, a folder, or a hub id. With a revision, the sibling repository is not used, as its revisions
            are others.
        allow_pickle: convert pickled weights if no sibling exists; code in them is not run.

    Returns:
        None for the layout of transformers, or an unknown one.

    Raises:
        ModelError: Mistral's own layout, a missing shard, or pickled weights without consent.
        HubError: the Hub cannot be reached, and the model is not in the cache.
    """
    if model.kind == "demo":
        return None
    sibling, reason, commit = None, "", None
    if model.folder is not None:
        files = [path.name for path in model.folder.iterdir() if path.is_file()]
    elif _cached(model.name, CONFIG, model.revision) is not None:
        return None
    else:
        files, commit = _files_on_hub(model)
        if commit is None or _is_original(model.name, files):
            sibling, reason = _find_sibling(model.name) if model.revision is None else (None, "")
        if sibling is not None:
            return MetaCheckpoint(model=model, sibling=sibling, revision=commit)
    if not _is_original(model.name, files):
        return None
    if model.folder is not None and (model.folder.resolve().parent / CONFIG).is_file():
        raise ModelError(
            f"model folder must have a {CONFIG}, got {model.name!r} without.",
            hint="Name its parent folder, which has one.",
        )
    shards = _shards(model.name, files)
    if not allow_pickle:
        raise ModelError(
            f"weights must be safetensors, got pickled ones ({shards[0]}) in Meta's own layout in {model.name!r}"
            f"{reason}.",
            hint="Convert them with `allow_pickle=True` (no code in them is run), or name a repository of this model "
            f"that has a {CONFIG}.",
        )
    return MetaCheckpoint(model=model, revision=commit, shards=shards)


def _is_original(name: str, files: Iterable[str]) -> bool:
    files = set(files)
    if CONFIG in files or PARAMS not in files:
        return False
    if any(MISTRAL.fullmatch(file) for file in files):
        raise ModelError(
            f"model must have the layout of transformers or of Meta's Llama, got Mistral's own in {name!r}.",
            hint=ELSEWHERE,
        )
    return any(SHARD.fullmatch(file) for file in files)


def _shards(name: str, files: Iterable[str]) -> tuple[str, ...]:
    numbered = {int(match[1]): file for file in files if (match := SHARD.fullmatch(file))}
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        raise ModelError(
            f"shards must be numbered without gaps, got {name!r} without consolidated.{missing[0]:02d}.pth.",
            hint="Download the model again.",
        )
    return tuple(numbered[number] for number in sorted(numbered))


def _files_on_hub(model: ModelRef) -> tuple[list[str], str | None]:
    """Return the names of the files and the commit; with HF_HUB_OFFLINE, those in the cache."""
    if model.info is not None:
        return [file.rfilename for file in model.info.siblings or ()], model.info.sha
    cached = _cached(model.name, PARAMS, model.revision)
    return ([path.name for path in cached.parent.iterdir()], cached.parent.name) if cached else ([], None)


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _find_sibling(name: str) -> tuple[str | None, str]:
    """Return the `-hf` repository that transformers can load; or None and the reason, as the end of a sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    sibling = f"{name}-hf"
    if constants.HF_HUB_OFFLINE:
        return (sibling, "") if _cached(sibling, CONFIG, None) else (None, f", and {sibling!r} is not on this machine")
    with hub_errors(sibling, action="ask", revision=None):
        try:
            info = with_retries(lambda: client().model_info(sibling, timeout=TIMEOUT), what=f"Asking for {sibling}")
            if info.gated:
                with_retries(lambda: client().auth_check(sibling), what=f"Asking for {sibling}")
        except GatedRepoError:
            page = f"{constants.ENDPOINT}/{sibling}"
            return None, f", and access to {sibling!r}, which has others, was not granted: ask for it at {page}"
        except RepositoryNotFoundError:
            return None, f", and there is no {sibling!r} on the Hub"
    if CONFIG not in [file.rfilename for file in info.siblings or ()]:
        return None, f", and {sibling!r} has no {CONFIG} either"
    return sibling, ""


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"the converted model must fit on the disk, got {free / 1e9:.3g} GB free for {needed / 1e9:.3g} GB in "
            f"{str(folder)!r}.",
            hint="Free some space, or move the cache: HF_HOME.",
        )
