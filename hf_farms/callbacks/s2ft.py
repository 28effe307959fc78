"""Selective fine-tuning in an unmodified Trainer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.compatibility import require_step_hooks
from hf_farms.callbacks.farms_lr import MARK as LEARNING_RATES
from hf_farms.callbacks.groups import innermost
from hf_farms.callbacks.history import recording, track
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.slices import check_optimizer, load_slices, save_slices_with_optimizer, swap_in_slices
from hf_farms.config import S2FTConfig
from hf_farms.distributed import launched_ranks
from hf_farms.errors import ModelError, NoEffectWarning
from hf_farms.files.path_checks import check_within
from hf_farms.reports import REPORT_NAME
from hf_farms.s2ft.checks import check_plain
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, save_selection
from hf_farms.s2ft.selection import Batches, Selection, select_channels
from hf_farms.s2ft.surgery import apply_s2ft, selection_of, summary
from hf_farms.s2ft.trainable import print_trainable_parameters

__all__ = ["S2FTCallback"]

NAME = "S2FTCallback"
MARK = "_hf_farms_s2ft"
DISTRIBUTED = (
    "S2FT must be applied before the model is wrapped for distributed training. Pass it as Trainer(callbacks=[cb]), or "
    "call apply_s2ft(trainer.model, ...) before trainer.train()."
)

# Printed at the end: what a Trainer writes for itself is all that a callback is told of.
ELSEWHERE = (
    "S2FT: what was trained lies in {folder}. Into another folder trainer.save_model writes the model alone; "
    "hf_farms.s2ft.saving.save_selection(selection_of(model), FOLDER, model=model) adds the rest."
)


class S2FTCallback(TrainerCallback):
    """Train a few heads and channels of a model, in place, and nothing else (S2FT, arXiv 2412.06289).

    `Trainer(..., callbacks=[S2FTCallback(S2FTConfig(budget=0.01))])`, or `trainer.add_callback(...)` in one process.
    Checkpoints are those of the plain model; beside them, and in `output_dir` when the training ends, lie
    `s2ft_config.json` and the selected channels. `trainer.save_model(FOLDER)` tells no callback about its folder: there
    `hf_farms.s2ft.saving.save_selection(selection_of(model), FOLDER, model=model)` writes them, with `selection_of` of
    `hf_farms.s2ft.surgery`, before `restore`. The model stays selective after the training, so that another one can
    follow; `hf_farms.restore(model)` makes it plain. Where something else than the optimizer changes the slices (EMA,
    SWA, assignment), `hf_farms.write_back(model)` makes the weights follow.

    What is trained is printed when the training begins, as PEFT does it: parameters, and the heads and channels of
    every block. Slices stay in float32, whatever the model is cast to. With `bf16_full_eval` or `fp16_full_eval` a
    Trainer casts the model for `evaluate()` outside a training and leaves it so: of a float32 model all weights are
    rounded from then on, as without S2FT (the trained ones follow their exact slices again after `model.float()`); a
    model that has that dtype already goes on as if it had not been evaluated.

    Resume with the callback given as it was before, as an argument or added: the optimizer's file is laid out for it.

    Args:
        config: options, also as a mapping of them.
        calibration: batches (a DataLoader, say, over about 1% of the data) for the strategies that need some.
        exclude: selections that this one must share no channel with.
        selection: train these channels; on resuming with another base model, those of the checkpoint
            (`hf_farms.s2ft.saving.load_selection`).

    Raises:
        ValueError: before the first step, for what S2FT does not work with; each says the way out.
        ModelError: adapters, quantised or sharded weights, experts.
    """

    def __init__(
        self,
        config: S2FTConfig | Mapping[str, Any] | None = None,
        *,
        calibration: Batches | None = None,
        exclude: Selection | Sequence[Selection] = (),
        selection: Selection | None = None,
    ) -> None:
        if config is not None and not isinstance(config, S2FTConfig):
            config = S2FTConfig(**config)
        if selection is not None and config not in (None, selection.config):
            raise ValueError("config must be left out beside a selection, which has its own, got another one.")
        self.config = selection.config if selection is not None else config or S2FTConfig()
        self._calibration, self._exclude, self._selection = calibration, exclude, selection
        self._early = self._applied = self._printed = False

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Change the model before there is an optimizer."""
        _check_supported(args)
        self._early = True
        self._apply(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Change the model if that is still to be done; see that exactly the slices are trained."""
        _check_supported(args)
        if state.is_world_process_zero:
            check_within(Path(args.output_dir or "."), (CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME), argument="output_dir")
        model, optimizer = kwargs["model"], innermost(kwargs["optimizer"])
        other = getattr(optimizer, MARK, None)
        if other is not None and other is not self:
            raise ValueError("callbacks must hold one S2FTCallback, got two. Remove one of them.")
        setattr(optimizer, MARK, self)
        late = selection_of(model) is None
        if late and self._early and self._applied:
            raise ValueError(
                "model must stay the one that S2FTCallback has changed, got another one, as model_init makes. Pass "
                "Trainer(model=...) without model_init, or use trainer.add_callback(S2FTCallback(...))."
            )
        if late and args.world_size > 1:
            raise ValueError(DISTRIBUTED)
        frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        lengths = [len(group["params"]) for group in optimizer.param_groups]
        if (late and self._early) or not self._apply(model):
            return
        if late:
            swap_in_slices(optimizer, model, frozen)
            if (other := getattr(optimizer, LEARNING_RATES, None)) is not None:
                # It has put the parameters that were there into groups; now there are others.
                other.on_train_begin(args, state, control, **kwargs)
        check_optimizer(optimizer, model)
        save_slices_with_optimizer(optimizer, model, lengths if late else None)
        load_slices(optimizer, model)
        if _is_reentrant(args):
            # Else nothing that goes into a checkpointed block requires a gradient, and none comes out of it.
            model.enable_input_require_grads()
        _log(args, state, model)
        if state.is_world_process_zero and not self._printed:
            print_trainable_parameters(model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write beside the checkpoint what was trained."""
        selection = selection_of(kwargs["model"])
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if selection is not None and state.is_world_process_zero and folder.is_dir():
            save_selection(selection, folder, model=kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write into the output folder what was trained, for the card."""
        model = kwargs["model"]
        selection = selection_of(model)
        if selection is None:
            return
        numbers = summary(model)
        trained = int(numbers["trainable_parameters"])
        with recording():
            record_training(
                args,
                state,
                model,
                num_trained=trained,
                num_parameters=round(trained / numbers["trainable_share"]),
                s2ft=(selection.config, selection.channels),
            )
            if state.is_world_process_zero:
                save_selection(selection, args.output_dir or ".", model=model)
                if not self._printed:
                    print(ELSEWHERE.format(folder=args.output_dir or "."))  # noqa: T201 - beside the line at the start
                self._printed = True

    def _apply(self, model: nn.Module) -> bool:
        """Change the model, unless it is changed already as it should be; whether it has an effect."""
        there = selection_of(model)
        if there is None:
            self._applied = self._choose_and_apply(model)
        elif there.config != self.config or self._selection not in (None, there):
            raise ValueError(
                "model must be plain or have the S2FT of this callback's config on it, got another one. Call "
                "restore(model) first, or pass the same config."
            )
        else:
            self._applied = True
        return self._applied

    def _choose_and_apply(self, model: nn.Module) -> bool:
        check_plain(model)
        try:
            ModelBlockSource(model)
        except ModelError as error:
            return _no_effect(str(error))
        selection = self._selection
        if selection is None:
            selection = select_channels(model, self.config, calibration=self._calibration, exclude=self._exclude)
            # Where the processes saw different numbers, all take those of the first.
            selection = launched_ranks().gather(selection)[0]
        if not len(selection):
            return _no_effect(f"{type(model).__name__} has no layers of roles {', '.join(self.config.roles)}.")
        apply_s2ft(model, selection=selection)
        return True


def _is_reentrant(args: TrainingArguments) -> bool:
    """Whether activation checkpointing is on and of the reentrant kind; it had another name in older transformers."""
    name = "activation" if hasattr(args, "activation_checkpointing") else "gradient"
    options: Any = getattr(args, f"{name}_checkpointing_kwargs") or {}
    return bool(getattr(args, f"{name}_checkpointing") and options.get("use_reentrant"))


def _no_effect(why: str) -> bool:
    warnings.warn(f"S2FTCallback has no effect, the whole model is trained: {why}", NoEffectWarning, stacklevel=2)
    return False


def _check_supported(args: TrainingArguments) -> None:
    """Refuse what moves weights where the slices do not see it, or reads parameters by position or foreign names."""
    require_step_hooks(args, NAME)
    optim = str(getattr(args.optim, "value", args.optim))
    if optim.startswith("schedule_free"):
        raise ValueError(
            f"optim must change weights in its step only for {NAME}, got {optim!r}, which changes them for every "
            "evaluation. Use --optim adamw_torch."
        )
    # `accelerate launch` says it in the environment.
    if getattr(args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(f"weights must be whole on every process for {NAME}, got FSDP. Use DDP, or one process.")
    if getattr(args, "use_vllm", False):
        raise ValueError(
            f"generation must be that of the model itself for {NAME}, got use_vllm=True, which sends every named "
            "parameter to vLLM, the slices too. Set use_vllm=False."
        )
    if getattr(args, "sync_ref_model", False):
        raise ValueError(
            f"the reference model must stay as it is for {NAME}, got sync_ref_model=True, which mixes parameters by "
            "position. Set sync_ref_model=False."
        )


def _log(args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
    numbers = summary(model)
    logs = {f"s2ft/{name}": number for name, number in numbers.items()}
    state.log_history.append({**logs, "epoch": state.epoch or 0.0, "step": state.global_step})
    track(args, state, logs, model)
