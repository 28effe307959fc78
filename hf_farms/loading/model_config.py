"""Read the config.json of a model, without running custom code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_farms.loading.refusals import ADAPTER, adapter_error, custom_code_error

__all__ = ["read_config"]


def read_config(name: str, path: str, revision: str | None) -> Any:
    """Read the config of a model.

    Args:
        name: of the model, for messages.
        path: a folder or a Hub id.
        revision: a branch, tag or commit of the Hub id.

    Returns:
        A `PretrainedConfig`.

    Raises:
        ModelError: the model is an adapter or needs custom code.
    """
    from transformers import AutoConfig

    try:
        # Not None, with which transformers asks on the terminal, and a "y" runs the code.
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (ValueError, OSError) as error:
        if "trust_remote_code" in str(error):
            raise custom_code_error(name, "model") from error
        no_config = "does not appear to have a file named" in str(error)
        if no_config and (adapter := _cached_adapter(path, revision)) is not None:
            raise adapter_error(name, adapter) from error
        raise
    if (adapter := _cached_adapter(path, revision)) is not None:
        raise adapter_error(name, adapter)
    return config


def _cached_adapter(path: str, revision: str | None) -> Path | None:
    from transformers.utils.hub import cached_file

    file = cached_file(
        path,
        ADAPTER,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(file) if file else None
