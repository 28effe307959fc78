"""What a model takes on disk, and whether a dataset is there, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path

from hf_farms.demo import demo_model
from hf_farms.errors import DataError, HubError
from hf_farms.hub.explained import explained
from hf_farms.hub.folders import WEIGHTS
from hf_farms.requests import client, retried
from hf_farms.texts import BUILT_IN, check_source

__all__ = ["check_dataset", "weights_size"]

WRITTEN_BY_THE_MODEL = "self"


def weights_size(model: str, *, revision: str | None = None, token: str | None = None) -> int | None:
    """Bytes of a model's weight files; a pruned copy in the same dtype takes as many.

    Args:
        model: `demo`, a folder, or a hub id.
        revision: of a hub id.
        token: None: the one that is logged in.

    Returns:
        None where it cannot be known: the Hub is switched off, or the files have other names.

    Raises:
        HubError: the Hub refused or could not be reached.
    """
    from huggingface_hub import constants

    folder = demo_model() if model == "demo" else Path(model)
    if folder.is_dir():
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    elif constants.HF_HUB_OFFLINE:
        return None
    else:
        api = client(token)
        with explained(model):
            info = retried(
                lambda: api.model_info(model, revision=revision, files_metadata=True), what=f"Asking for {model}"
            )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    for ending in (".safetensors", ".bin"):
        found = [size for name, size in sizes.items() if name.endswith(ending) and WEIGHTS.fullmatch(name)]
        if found:
            return sum(found)
    original = [size for name, size in sizes.items() if name.startswith("consolidated.")]
    return sum(original) or None


def check_dataset(source: str | None, *, token: str | None = None) -> None:
    """Refuse a text that is not there: a file by looking, a dataset of the Hub by one request.

    With the Hub switched off (HF_HUB_OFFLINE) nothing is asked: it may be on this machine.

    Args:
        source: of calibration or evaluation text; None: no text.
        token: None: the one that is logged in.

    Raises:
        DataError: there is no such file or dataset, or no access to it.
        HubError: the Hub could not be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if source is None or source in (BUILT_IN, WRITTEN_BY_THE_MODEL):
        return
    check_source(source)
    if Path(source).exists() or constants.HF_HUB_OFFLINE:
        return
    api = client(token)
    try:
        with explained(source):
            retried(lambda: api.dataset_info(source), what=f"Looking for dataset {source}")
    except (HubError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, hub.GatedRepoError):
            raise DataError(
                f"{source!r} is gated, and access was not granted to this token.",
                hint=f"Accept its conditions at {constants.ENDPOINT}/datasets/{source}, then run `hf auth login`.",
            ) from cause
        if isinstance(cause, hub.RepositoryNotFoundError | hub.HFValidationError):
            raise DataError(
                f"text must be a file or a dataset on the Hub, got {source!r}, which is neither.",
                hint="Check the name; for a private dataset run `hf auth login`.",
            ) from cause
        raise
