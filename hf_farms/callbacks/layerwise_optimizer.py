"""layerwise_optimizer: a group of the optimizer for each factor, for engines whose steps cannot be given finer ones."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from hf_farms.callbacks.groups import TAG, Group
from hf_farms.callbacks.layerwise import LayerwiseCallback
from hf_farms.callbacks.resuming import check_same_groups
from hf_farms.callbacks.trainer import trainer_of_optimizer, uses_deepspeed
from hf_farms.errors import NoEffectWarning

__all__ = ["layerwise_optimizer"]

EXAMPLE = "Trainer(callbacks=[callback], optimizer_cls_and_kwargs=layerwise_optimizer(callback))"


def layerwise_optimizer(callback: LayerwiseCallback) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return `optimizer_cls_and_kwargs` of a Trainer under DeepSpeed: a group for each factor of a callback.

    `Trainer(..., callbacks=[callback], optimizer_cls_and_kwargs=layerwise_optimizer(callback))`. The optimizer is that
    of `optim` and the other TrainingArguments; its groups are those of the Trainer, with and without weight decay,
    split by the layers whose factors the parameters follow. Checkpoints have these groups: resume with the same line,
    and the same patterns or `unit`.

    The callback asks for it where its own way does not work (an optimizer that does not compute element by element,
    another version of DeepSpeed). Without DeepSpeed it changes nothing and warns. With `unit="layer"` there are
    hundreds of groups, with which ZeRO-1 and 2 are slow.

    Args:
        callback: a FarmsLRCallback or LayerwiseLRCallback, also to be passed as a callback.

    Raises:
        ValueError: another argument; at the start of the training, an optimizer that makes its own groups (GaLore,
            LOMO, Muon), or a Trainer without this callback.
    """
    if not isinstance(callback, LayerwiseCallback):
        kinds = "a FarmsLRCallback or LayerwiseLRCallback"
        raise ValueError(f"callback must be {kinds}, got {callback!r}. Pass {EXAMPLE}.")
    return _LayerwiseOptimizer, {"callback": callback}


class _LayerwiseOptimizer(torch.optim.Optimizer):
    """Stands for a class of optimizers where a Trainer asks for one, and makes the optimizer that `optim` names."""

    def __new__(cls, groups: list[Group], callback: LayerwiseCallback) -> Any:
        trainer: Any = trainer_of_optimizer()
        assert trainer is not None, "only a Trainer may make it"
        if callback not in trainer.callback_handler.callbacks:
            raise ValueError(f"callbacks must hold the callback of layerwise_optimizer, got none. Pass {EXAMPLE}.")
        made, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
        makes_groups = options.keys() & {"params", "model", "optimizer_dict"}
        if makes_groups or not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
            raise ValueError(
                f"optim must be an optimizer whose groups can be split for layerwise_optimizer, got "
                f"{str(trainer.args.optim)!r}, which makes its own. Set optim='adamw_torch'."
            )
        if uses_deepspeed(trainer.args):
            groups = callback.split_groups(groups, trainer.model, trainer.state)
        else:
            warnings.warn(
                "layerwise_optimizer has no effect: only DeepSpeed needs groups in the optimizer. Remove "
                "optimizer_cls_and_kwargs.",
                NoEffectWarning,
                stacklevel=2,
            )
        optimizer = made(groups, **options)
        optimizer.register_load_state_dict_pre_hook(_check_groups)
        return optimizer


def _check_groups(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Reject a checkpoint of other groups, also where no Trainer loads it."""
    check_same_groups(
        *([group.get(TAG) for group in groups] for groups in (state["param_groups"], optimizer.param_groups))
    )
