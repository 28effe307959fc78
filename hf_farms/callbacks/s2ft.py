"""Selective fine-tuning in an unmodified Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_farms.blocks.partitioned import is_sharded
from hf_farms.callbacks.compatibility import PERMUTED, check_not_fsdp1, check_s2ft_supported
from hf_farms.callbacks.history import warn_on_failure
from hf_farms.callbacks.recording import record_training
from hf_farms.callbacks.resuming import check_resumed_checkpoint
from hf_farms.callbacks.slices import (
    check_optimizer,
    hide_slices,
    load_slices,
    save_slices_from_the_first_step,
    save_slices_with_optimizer,
    swap_in_slices,
)
from hf_farms.callbacks.trainer import (
    S2FT_MARK,
    ExportableState,
    checkpoint_folder,
    get_mark,
    log_to_trackers,
    register_callback_state,
    restart_farms_lr,
    set_mark,
    unwrap_optimizer,
    uses_deepspeed,
    uses_reentrant_checkpointing,
)
from hf_farms.config import S2FTConfig
from hf_farms.config.effects import warn_unused
from hf_farms.config.mappings import as_config
from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.files.path_checks import check_within
from hf_farms.processes import first_rank_result, launched_ranks
from hf_farms.reports import REPORT_NAME
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.s2ft.checks import check_trainable
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.engines import one_engine
from hf_farms.s2ft.saving import CONFIG_NAME, WEIGHTS_NAME, save_selection
from hf_farms.s2ft.selection import Batches, Selection, check_selections, choose_channels
from hf_farms.s2ft.surgery import apply_selection, selection_of, share_base, write_back
from hf_farms.s2ft.trainable import count_parameters, print_trainable_parameters, summary

__all__ = ["S2FTCallback"]

NAME = "S2FTCallback"

DISTRIBUTED = (
    "S2FT must be applied before the model is wrapped for distributed training. Pass it as Trainer(callbacks=[cb]), or "
    "call apply_s2ft(trainer.model, ...) before trainer.train()."
)

# Printed at the end: `trainer.save_model` does not tell callbacks its folder.
SAVED_IN = (
    "S2FT: the adapter (trained slices, and those of the base) was saved in {folder}. trainer.save_model(FOLDER) "
    "writes the model only; hf_farms.S2FTAdapter.from_model(model).save_pretrained(FOLDER) adds the adapter."
)


class S2FTCallback(TrainerCallback, ExportableState):
    """Train a few heads and channels of a model in place, and nothing else (S2FT, arXiv 2412.06289).

    Use it as `Trainer(..., callbacks=[S2FTCallback(S2FTConfig(budget=0.01))])`, or in a single process as
    `trainer.add_callback(...)`. Checkpoints are those of the plain model; each also gets the adapter,
    `s2ft_config.json` and `s2ft_adapter.safetensors` with the selection, the trained slices and those of the base, and
    so does `output_dir` at the end of the training: `hf_farms.S2FTAdapter.from_pretrained(FOLDER)` loads it.
    `trainer.save_model(FOLDER)` does not tell callbacks its folder: call
    `hf_farms.S2FTAdapter.from_model(model).save_pretrained(FOLDER)` for it. The slices of the base are kept on the CPU
    in the dtype of the model; a resumed training takes those of its checkpoint. The model stays selective after the
    training, so that another training can follow; `hf_farms.restore(model)` makes it plain. If something other than the
    optimizer changes the slices (EMA, SWA, assignment), call `hf_farms.write_back(model)` to update the weights.

    The start of the training prints the trained parameters, as PEFT does, and the heads and channels of every block.
    FSDP2: checkpoints of accelerate's kinds (sharded, full) are those of the plain model too; the float32 slices are in
    those of the optimizer, also for another number of processes. Resume them under FSDP2. Layout "permuted" and FSDP1
    are refused.

    DeepSpeed ZeRO-1, 2 and 3: checkpoints of DeepSpeed have the slices in float32 and those of the base, and
    `model.safetensors` is that of the plain model. `write_back=False` and layout "permuted" are refused under ZeRO-3.

    Slices stay in float32, whatever the model is cast to. With `bf16_full_eval` or `fp16_full_eval` a Trainer casts the
    model for `evaluate()` outside a training and leaves it cast: all weights of a float32 model are rounded from then
    on, as without S2FT (the trained ones follow their exact slices again after `model.float()`). A model that has that
    dtype already continues as if it had not been evaluated.

    To resume, pass the callback in the same way as before, as an argument or with `add_callback`: the layout of the
    optimizer's file depends on it.

    Args:
        config: options, also as a mapping.
        calibration: batches (for instance a DataLoader over about 1% of the data) for the strategies that need data.
        exclude: selections that share no channel with this one.
        selection: train these channels. To resume with another base model, pass those of the checkpoint
            (`hf_farms.s2ft.saving.load_selection`).

    Raises:
        ValueError: before the first step, for trainings that S2FT does not work with; the message names the way out.
        ModelError: adapters, quantized or sharded weights, experts.
    """

    def __init__(
        self,
        config: S2FTConfig | Mapping[str, Any] | None = None,
        *,
        calibration: Batches | None = None,
        exclude: Selection | Sequence[Selection] = (),
        selection: Selection | None = None,
    ) -> None:
        check_selections(calibration, exclude, selection)
        config = None if config is None else as_config(S2FTConfig, config)
        if selection is not None and config not in (None, selection.config):
            raise ValueError("config must be left out if there is a selection, which has its own, got another one.")
        self.config = selection.config if selection is not None else config or S2FTConfig()
        if selection is None:
            warn_unused(self.config)
        self._calibration, self._exclude, self._selection = calibration, exclude, selection
        self._coupled: CoupledModel | None = None
        self._early = self._applied = self._printed = False
        self._waiting: RemovableHandle | None = None

    def state(self) -> dict[str, Any]:
        """Return the content of `trainer_state.json` for this callback; reject a checkpoint of another engine.

        A Trainer asks at the start too, before it loads the checkpoint.
        """
        check_resumed_checkpoint(NAME)
        return {"args": {"config": asdict(self.config)}, "attributes": {}}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Change the model before the Trainer creates its optimizer."""
        check_s2ft_supported(args, self.config)
        self._early = True
        if self._apply(kwargs["model"]):
            self._stop_waiting()
            self._waiting = save_slices_from_the_first_step(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Change the model unless `on_init_end` has done so; check that the optimizer trains exactly the slices."""
        check_s2ft_supported(args, self.config)
        if state.is_world_process_zero:
            check_within(Path(args.output_dir or "."), (CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME), argument="output_dir")
        model, optimizer = kwargs["model"], unwrap_optimizer(kwargs["optimizer"])
        self._stop_waiting()
        register_callback_state(state, NAME, self.state())
        check_not_fsdp1(model, NAME)
        if one_engine(model).is_collective and self.config.layout == "permuted":
            raise ValueError(PERMUTED.format(NAME))
        if get_mark(optimizer, S2FT_MARK) not in (None, self):
            raise ValueError("callbacks must hold one S2FTCallback, got two. Remove one of them.")
        set_mark(optimizer, S2FT_MARK, self)
        late = selection_of(model) is None
        if late and self._early and self._applied:
            raise ValueError(
                "model must stay the one that S2FTCallback has changed, got another one, as model_init makes. Pass "
                "Trainer(model=...) without model_init, or use trainer.add_callback(S2FTCallback(...))."
            )
        if late and (args.world_size > 1 or uses_deepspeed(args)):
            raise ValueError(DISTRIBUTED)
        frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        lengths = [len(group["params"]) for group in optimizer.param_groups]
        if (late and self._early) or not self._apply(model):
            return
        if late:
            swap_in_slices(optimizer, model, frozen)
            restart_farms_lr(args, state, control, **kwargs)
        share_base(model)
        if uses_deepspeed(args):
            save_slices_with_optimizer(optimizer, model, None, with_slices=False)
            hide_slices(model)
        else:
            check_optimizer(optimizer, model)
            save_slices_with_optimizer(optimizer, model, lengths if late else None)
        load_slices(optimizer, model, is_resumed=state.global_step > 0)
        if uses_deepspeed(args):
            # It has restored the slices.
            write_back(model)
        if uses_reentrant_checkpointing(args):
            # A checkpointed block has gradients only if its input requires one.
            model.enable_input_require_grads()
        coupled = self._coupled_of(model)
        self._log(args, state, coupled)
        if state.is_world_process_zero and not self._printed:
            print_trainable_parameters(model, coupled)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the slices into the weights where the optimizer steps on other tensors (DeepSpeed)."""
        if uses_deepspeed(args) and selection_of(kwargs["model"]) is not None:
            write_back(kwargs["model"])

    def _log(self, args: TrainingArguments, state: TrainerState, coupled: CoupledModel) -> None:
        model = coupled.model
        logs = {f"s2ft/{name}": number for name, number in summary(model, coupled).items()}
        state.log_history.append({**logs, "epoch": state.epoch or 0.0, "step": state.global_step})
        log_to_trackers(args, state, logs, model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the adapter to the checkpoint."""
        folder, adapter = checkpoint_folder(args, state), _adapter_of(kwargs["model"], state)
        if adapter is not None and state.is_world_process_zero and folder.is_dir():
            _save(adapter, kwargs["model"], folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the report of the training and the adapter to the output folder."""
        model = kwargs["model"]
        selection = selection_of(model)
        if selection is None:
            return
        num_trained, num_parameters = count_parameters(model)
        adapter = _adapter_of(model, state)
        with warn_on_failure():
            record_training(
                args,
                state,
                model,
                num_trained=num_trained,
                num_parameters=num_parameters,
                s2ft=(selection.config, selection.channels),
            )
            if adapter is not None and state.is_world_process_zero:
                _save(adapter, model, Path(args.output_dir or "."))
                if not self._printed:
                    print(SAVED_IN.format(folder=args.output_dir or "."))  # noqa: T201 - as the line at the start
                self._printed = True

    def _apply(self, model: nn.Module) -> bool:
        """Change the model unless it has this S2FT on it already; return whether S2FT has an effect."""
        selection = selection_of(model)
        if selection is None:
            self._applied = self._choose_and_apply(model)
        elif selection.config != self.config or self._selection not in (None, selection):
            raise ValueError(
                "model must be plain or have the S2FT of this callback's config on it, got another one. Call "
                "restore(model) first, or pass the same config."
            )
        else:
            self._applied = True
        return self._applied

    def _choose_and_apply(self, model: nn.Module) -> bool:
        check_trainable(model)
        try:
            coupled = CoupledModel(model, self.config)
        except ModelError as error:
            return _warn_no_effect(str(error))
        selection = self._selection
        if selection is None:
            # All processes use the selection of the first, since they may have seen different data, and have no weights
            # under FSDP2 with cpu_ram_efficient_loading.
            ranks = launched_ranks()
            # Reading sharded weights takes all of them.
            chooses = ranks.index == 0 or is_sharded(model)
            chosen = first_rank_result(lambda: self._choose(coupled) if chooses else None, ranks)
            assert chosen is not None
            selection = chosen
        if not len(selection):
            return _warn_no_effect(f"{type(model).__name__} has no layers of roles {', '.join(self.config.roles)}.")
        apply_selection(coupled, selection)
        self._coupled = coupled
        return True

    def _choose(self, coupled: CoupledModel) -> Selection:
        return choose_channels(coupled, calibration=self._calibration, exclude=self._exclude)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.remove()
        self._waiting = None

    def _coupled_of(self, model: nn.Module) -> CoupledModel:
        """Return the structures of this model, those of `_choose_and_apply` if it has just changed this model."""
        # Not kept: a callback that outlives its training must not keep the model in memory.
        coupled, self._coupled = self._coupled, None
        return coupled if coupled is not None and coupled.model is model else CoupledModel(model, self.config)


def _adapter_of(model: nn.Module, state: TrainerState) -> S2FTAdapter | Selection | None:
    """Return the adapter; the selection alone for weights that have no name of their own in a checkpoint.

    Returns:
        None without S2FT, and on other processes than the first, which only take part where slices are sharded.
    """
    selection = selection_of(model)
    if selection is None or not (state.is_world_process_zero or one_engine(model).is_collective):
        return None
    try:
        return S2FTAdapter.from_model(model)
    except ModelError as error:
        warnings.warn(f"Only the selection is saved, and no adapter: {error}", HfFarmsWarning, stacklevel=2)
        return selection


def _save(adapter: S2FTAdapter | Selection, model: nn.Module, folder: Path) -> None:
    if isinstance(adapter, S2FTAdapter):
        adapter.save_pretrained(folder)
    else:
        save_selection(adapter, folder, model=model)


def _warn_no_effect(reason: str) -> bool:
    warnings.warn(f"S2FTCallback has no effect, the whole model is trained: {reason}", NoEffectWarning, stacklevel=2)
    return False
