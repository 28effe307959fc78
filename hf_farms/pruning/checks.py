"""What a method cannot do with a model, found out before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hf_farms.blocks import BlockSource
from hf_farms.blocks.chain import WITHOUT_ACTIVATIONS
from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsError, ModelError
from hf_farms.pruning.cuts import check_layers

__all__ = ["check_method"]


def check_method(source: BlockSource, config: PruneConfig, batch: Tensor | Mapping[str, Tensor] | None) -> None:
    """Refuse what the method cannot do with these blocks.

    Args:
        source: the blocks.
        config: method and pattern.
        batch: token ids, or inputs of the model by name, to try; None: the method is not tried.

    Raises:
        ModelError: as `check_layers`; or activations are measured, and the blocks cannot be run one after another.
    """
    check_layers(source, config)
    if not config.needs_calibration or batch is None:
        return
    inputs = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    try:
        source.check_chain(inputs)
    except HfFarmsError as error:
        error.hint = error.hint or WITHOUT_ACTIVATIONS
        raise
    except (TypeError, ValueError, AttributeError) as error:  # what a forward says of inputs that it does not take
        raise ModelError(
            f"method {config.method!r} must have a model that runs on {', '.join(sorted(inputs))}, got "
            f"{type(error).__name__} ({error}) from {source.name!r}.",
            hint=WITHOUT_ACTIVATIONS,
        ) from error
