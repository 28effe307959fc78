"""The calls of a submodule on the calibration sequences: inputs, targets, and runs with other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_farms.blocks import BlockCall, TokenMask
from hf_farms.blocks.arguments import OutputForm, hidden_argument, hidden_like
from hf_farms.blocks.wrappers import run_eagerly
from hf_farms.errors import ModelError
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import Run

__all__ = ["State", "SubmoduleCalls", "fit_dtype", "recorded_calls"]

# Parameters and buffers of a module by name.
State = dict[str, Tensor]


class SubmoduleCalls:
    """The calls of a submodule on the calibration sequences, with the outputs that it should have.

    Args:
        module: the submodule.
        folder: folder for inputs and targets; None to keep them in memory.
        dtype: dtype of the runs, of `fit_dtype`.
    """

    def __init__(self, module: nn.Module, folder: Path | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        self._module, self._dtype = module, dtype
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        self._state: State = {name: self._cast(tensor.detach()) for name, tensor in tensors.items()}
        self._inputs = HiddenStates(folder / "inputs" if folder else None)
        self._targets = HiddenStates(folder / "targets" if folder else None)
        self._calls: list[BlockCall] = []
        self._token_masks: list[TokenMask | None] = []
        self._num_recorded = 0

    def __len__(self) -> int:
        return len(self._calls)

    def record(self, runs: Sequence[Run], target: Callable[[int, BlockCall, Tensor], Tensor]) -> None:
        """Run the block on each sequence, and keep the inputs that the submodule gets there.

        Args:
            runs: of the block.
            target: called after each run with the number of the call among all that were ever recorded, the call and
                its input; returns the target.
        """
        for run, token_mask in runs:
            for call, hidden in recorded_calls(self._module, run):
                wanted = target(self._num_recorded, call, hidden)
                self._num_recorded += 1
                if token_mask is not None and not token_mask.num_tokens:
                    continue
                self._calls.append(call)
                self._token_masks.append(token_mask)
                self._inputs.append(hidden)
                self._targets.append(wanted)

    def difference(self, index: int, weights: State) -> Tensor:
        """Return output minus target of one call in float32, for the tokens that count."""
        output = self.run(self._calls[index], self._inputs[index], weights)
        return self._counted(index, output.float() - self._targets[index])

    def error(self, indices: Sequence[int], weights: State) -> float:
        """Return the mean squared error over all entries of some calls."""
        total, count = 0.0, 0
        for index in indices:
            difference = self.difference(index, weights)
            total += float(difference.square().sum(dtype=torch.float64))
            count += difference.numel()
        return total / max(1, count)

    def variance(self, indices: Sequence[int]) -> float:
        """Return the mean squared deviation of the targets of some calls from the means of their channels."""
        rows = squares = 0.0
        sums: Tensor | None = None
        for index in indices:
            target = self._counted(index, self._targets[index]).flatten(0, -2).double()
            rows += len(target)
            squares += float(target.square().sum())
            sums = target.sum(dim=0) if sums is None else sums + target.sum(dim=0)
        if sums is None or not rows:
            return 0.0
        return (squares - float(sums.square().sum()) / rows) / (rows * len(sums))

    def _counted(self, index: int, rows: Tensor) -> Tensor:
        token_mask = self._token_masks[index]
        return token_mask.of(rows) if token_mask else rows

    def run(self, call: BlockCall, hidden: Tensor, weights: State) -> Tensor:
        """Run the submodule with some weights replaced, in the dtype of the runs."""
        state = self._state | {name: weight.to(self._dtype) for name, weight in weights.items()}

        def module(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self._module, state, self._cast(args), self._cast(kwargs))

        with run_eagerly():
            return call.run(cast(nn.Module, module), hidden)

    def _cast(self, value: Any) -> Any:
        """Convert floats in nested arguments to float32, if the runs are in it; else they have the model's dtypes."""
        if self._dtype != torch.float32:
            return value
        if isinstance(value, Tensor):
            return value.float() if value.is_floating_point() else value
        if type(value) is dict:
            return {key: self._cast(inner) for key, inner in value.items()}
        return type(value)(map(self._cast, value)) if type(value) in (list, tuple) else value


def recorded_calls(module: nn.Module, run: Callable[[], object]) -> list[tuple[BlockCall, Tensor]]:
    """Run a block, and return the calls of a module inside of it with their hidden states.

    Raises:
        ModelError: the module takes or returns no hidden states.
    """
    calls: list[tuple[BlockCall, Tensor]] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, others, named = hidden_argument(args, kwargs)
        calls.append((BlockCall(list(others), named, not args, OutputForm(None, None)), hidden.detach()))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call, hidden = calls[-1]
        place = next((place for place, _ in hidden_like(output, hidden)), -1)
        if place == -1:
            raise ModelError(f"submodules must return hidden states, got none from {type(_module).__name__}.")
        call.form = OutputForm(place, None)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def fit_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype in which a module is run to be fitted: bfloat16 where it saves time, float64 for a model in
    it, else float32.

    float16 would need a scaled loss: gradients of a mean over a sequence are below its range. On processors without
    units for bfloat16, its products take longer than those of float32.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    if parameters and all(parameter.dtype == torch.float64 for parameter in parameters):
        return torch.float64
    is_bfloat16 = bool(parameters) and all(parameter.dtype == torch.bfloat16 for parameter in parameters)
    return torch.bfloat16 if is_bfloat16 and _has_bfloat16(parameters[0].device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    # Names with an underscore, of which torch has no public equivalent.
    checks = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("amx_tile", "avx512_bf16"))
    return any(check() for check in checks if check is not None)
