"""What goes wrong in a push, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_farms.errors import HfFarmsError, HubError
from hf_farms.explain import LOGIN, endpoint, first_line, known_error, status_of
from hf_farms.masking import mask_error
from hf_farms.patience import watched

__all__ = ["explained"]

# Seconds. The client itself waits for ever.
CONNECT_TIMEOUT, UPLOAD_TIMEOUT = 3.0, 300.0


@contextmanager
def explained(what: str, *, upload: bool = False) -> Iterator[None]:
    """Turn what the Hub client raises about a push into one sentence; no request waits for ever meanwhile.

    Args:
        what: repository, model or dataset.
        upload: whether answers may take minutes; else the client's own HF_HUB_DOWNLOAD_TIMEOUT.

    Raises:
        HubError: whatever went wrong.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"a push must reach the Hub, got HF_HUB_OFFLINE for {what!r}.", hint="Unset HF_HUB_OFFLINE.")
    try:
        with watched(), _bounded(UPLOAD_TIMEOUT if upload else float(constants.HF_HUB_DOWNLOAD_TIMEOUT)):
            yield
    except HfFarmsError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library, of xet, of files and of its own through
        mask_error(error)
        raise (
            _repository_error(error, what)
            or known_error(error, what)
            or HubError(f"{what!r} could not be pushed ({first_line(error)}).", hint="Run the same command again.")
        ) from error


def _repository_error(error: Exception, what: str) -> HubError | None:
    """What a missing repository or branch means where something is written."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return None
    if isinstance(error, hub.RepositoryNotFoundError):
        if status_of(error) == 401:
            return HubError(f"the Hub at {endpoint()} did not accept the token.", hint=LOGIN)
        return HubError(
            f"repository must be there and open to this token, got {what!r}, which the Hub does not show.",
            hint="Check the name and the token, and run the same command again.",
        )
    if isinstance(error, ValueError) and "README.md" in str(error):
        found = " ".join(str(error).splitlines()[1:]).removeprefix("- ")
        return HubError(
            f"README.md must be a card that the Hub accepts, got one with: {found}.",
            hint="Correct the lines between --- at its beginning, and run the same command again.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(f"revision must be a branch of {what!r}, got one that is not there.", hint="Check --revision.")
    return None


@contextmanager
def _bounded(answer: float) -> Iterator[None]:
    """Time limits for the client's session, unless somebody has set others."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before = session.timeout
    if before.connect is None and before.read is None:
        session.timeout = type(before)(answer, connect=CONNECT_TIMEOUT, pool=None)
    try:
        yield
    finally:
        session.timeout = before
