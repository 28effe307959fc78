"""Check that a dataset on the Hub exists, with one request and before any download."""

from __future__ import annotations

from pathlib import Path

from hf_farms.data.texts import BUILT_IN, check_source
from hf_farms.errors import DataError, HubError
from hf_farms.hub.client import client, hub_errors, with_retries
from hf_farms.hub.mistyped import did_you_mean, name_other_places

__all__ = ["check_dataset"]

SELF_CALIBRATION = "self"
# Names of texts that are no file and no dataset.
INSIDE = (BUILT_IN,)


def check_dataset(source: str | None, *, token: str | None = None) -> None:
    """Refuse a text file or dataset that does not exist. A dataset costs one request to the Hub.

    With HF_HUB_OFFLINE no request is made, because the dataset may be on this machine.

    Args:
        source: of calibration or evaluation text; None: no text.
        token: for the Hub; None: the saved token or HF_TOKEN.

    Raises:
        DataError: the file or dataset does not exist, or access is denied.
        HubError: the Hub could not be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if source is None or source in (BUILT_IN, SELF_CALIBRATION):
        return
    check_source(source)
    if Path(source).exists() or constants.HF_HUB_OFFLINE:
        return
    api = client(token)
    try:
        with hub_errors(source, action="push"):
            with_retries(lambda: api.dataset_info(source), what=f"Looking for dataset {source}")
    except (HubError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, hub.GatedRepoError):
            raise DataError(
                f"dataset {source!r} is gated, and access was not granted to this token.",
                hint=f"Accept its conditions at {constants.ENDPOINT}/datasets/{source}, then run `hf auth login`.",
            ) from cause
        if isinstance(cause, hub.RepositoryNotFoundError | hub.HFValidationError):
            raise DataError(
                f"text must be a file or a dataset on the Hub, got {source!r}, which is neither.",
                hint=f"{did_you_mean(source, INSIDE)}Check the name; for a private dataset run `hf auth login`.",
            ) from cause
        if isinstance(error, HubError):
            raise name_other_places(error, source, packaged=INSIDE, kind="file") from error
        raise
