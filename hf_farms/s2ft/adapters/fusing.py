"""Make one adapter of several."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence

import torch

from hf_farms.config.checks import check, is_number, is_seed
from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning
from hf_farms.registries.combinations import COMBINATIONS
from hf_farms.s2ft.adapters.fused_patches import fused_patch
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch

__all__ = ["check_fuse_options", "fuse", "overlaps"]


def fuse(
    adapters: Sequence[S2FTAdapter],
    *,
    weights: Sequence[float] | None = None,
    combination: str = "linear",
    density: float | None = None,
    seed: int | None = None,
) -> S2FTAdapter:
    """Make one adapter of several adapters of the same base (arXiv 2412.06289, section 5).

    The new values are those of the base plus the combined change. Channels of one adapter get `weight · change` under
    "linear" and "cat", and with a weight of 1 the slice as it is, bit for bit: disjoint selections are fused exactly.
    Selections are made disjoint with `exclude` of `S2FTCallback`, `apply_s2ft` and `select_channels`; `overlaps`
    returns the share of shared channels by weight.

    Channels of several adapters are combined by one of these rules, named as in PEFT's `add_weighted_adapter`. PEFT
    applies them to the factors of LoRA, here they act on the changes of the weights:

    - "linear": weighted mean, `sum(w · change) / sum(w)`. (In PEFT it mixes the factors of one adapter with those of
      another, and is no sum of the adapters.)
    - "cat": weighted sum, `sum(w · change)`, as in PEFT.
    - "magnitude_prune": weighted sum of the largest entries of each adapter.
    - "ties": of those, the mean of the entries that have the sign of their sum (arXiv 2306.01708).
    - "dare_linear": weighted sum of random entries of each adapter, divided by `density` (arXiv 2311.03099).
    - "dare_ties": the random entries of "dare_linear", combined as in "ties".

    PEFT's combinations by singular values ("svd", "ties_svd", ...) are not offered: a sum of patches is a patch.

    Sums are float64 and rounded once to the dtype of the adapters. Memory: 16 bytes for each adapter and entry of the
    largest fused slice.

    Args:
        adapters: of one base model; their order matters for the random choices only.
        weights: one for each adapter; None: 1 each. Positive for "linear".
        combination: rule for the channels of several adapters; also for other channels if it takes a density.
        density: share of the entries of each adapter that is kept, over 0 up to 1; required by the last four.
        seed: of "dare_linear" and "dare_ties"; None: 0.

    Returns:
        The adapter, without a selection. Its base model is that of all adapters; None, with a warning, if any names
        none.

    Raises:
        ValueError: no adapters, invalid options, adapters without the base slices that are needed, or that patch one
            weight on different sides.
        ModelError: adapters of different bases, sizes or dtypes.
    """
    _check_adapters(adapters)
    check_fuse_options(len(adapters), weights=weights, combination=combination, density=density, seed=seed)
    entry = COMBINATIONS[combination]
    factors = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    options = _used_options(combination, density, seed)
    _check_bases(adapters)
    generator = torch.Generator().manual_seed(int(options["seed"]))
    patches = {
        name: fused_patch(_patches(adapters, name), factors, entry, density=options["density"], generator=generator)
        for name in _names(adapters)
    }
    _warn_overlap(adapters)
    _warn_unknown_base(adapters)
    return S2FTAdapter(
        patches=patches,
        base_model=_common(adapter.base_model for adapter in adapters),
        base_revision=_common(adapter.base_revision for adapter in adapters),
        dtype=adapters[0].dtype,
    )


def overlaps(adapters: Sequence[S2FTAdapter]) -> dict[str, float]:
    """Return for each patched weight the share of its patched channels that more than one adapter has.

    Args:
        adapters: at least one.

    Raises:
        ValueError: no adapters, or adapters that patch one weight on different sides.
    """
    _check_adapters(adapters)
    return {name: shared / union for name, (shared, union) in _shared_channels(adapters).items()}


def _check_adapters(adapters: object) -> None:
    is_list = isinstance(adapters, Sequence) and not isinstance(adapters, str) and len(adapters) > 0
    check(is_list, "adapters", "a list of at least one S2FTAdapter", adapters)
    for adapter in adapters:  # type: ignore[attr-defined]
        if not isinstance(adapter, S2FTAdapter):
            raise ValueError(
                f"adapters must be of S2FTAdapter, got {type(adapter).__name__}. Load it first: "
                f"S2FTAdapter.from_pretrained(...)."
            )


def check_fuse_options(
    number: int,
    *,
    weights: Sequence[float] | None = None,
    combination: str = "linear",
    density: float | None = None,
    seed: int | None = None,
) -> None:
    """Check the options of `fuse` for a number of adapters that need not be loaded.

    Raises:
        ValueError: an invalid option.
    """
    entry = COMBINATIONS[combination]
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) == number
    check(weights is None or is_list, "weights", f"a list of {number} numbers, one for each adapter", weights)
    for weight in weights or ():
        check(is_number(weight) and math.isfinite(weight) and weight != 0, "weights", "finite and not 0", weight)
        if entry.mean:
            check(weight > 0, "weights", f"positive for {combination!r}", weight, "Pass `combination='cat'`.")
    if "density" in entry.options:
        in_range = is_number(density) and 0 < density <= 1
        check(
            in_range, "density", f"over 0 and up to 1 for {combination!r}", density, "Pass `density=0.5`, for instance."
        )
    check(seed is None or is_seed(seed), "seed", "an integer from 0", seed)


def _used_options(combination: str, density: float | None, seed: int | None) -> dict[str, float]:
    """Return density and seed; name those that the combination does not read."""
    values, defaults = {"density": density, "seed": seed}, {"density": 1.0, "seed": 0.0}
    used = COMBINATIONS[combination].options
    for name, value in values.items():
        if value is not None and name not in used:
            warnings.warn(
                f"{name} has no effect with combination {combination!r}, got {value!r}. Leave it out.",
                NoEffectWarning,
                stacklevel=3,
            )
    return {
        name: float(value) if value is not None and name in used else defaults[name] for name, value in values.items()
    }


def _check_bases(adapters: Sequence[S2FTAdapter]) -> None:
    """Refuse adapters of different base models, dtypes, or shapes and sides of a weight."""
    first = adapters[0]
    names = {adapter.base_model for adapter in adapters if adapter.base_model is not None}
    if len(names) > 1:
        raise ModelError(
            f"adapters must have the same base model to be fused, got {' and '.join(sorted(names))}.",
            hint="Train both from one base model.",
        )
    for adapter in adapters[1:]:
        if adapter.dtype != first.dtype:
            raise ModelError(
                f"adapters must have the same dtype to be fused, got {first.dtype} and {adapter.dtype}.",
                hint="Make both from models in one dtype.",
            )
    for name in _names(adapters):
        one, *others = _patches(adapters, name).values()
        for other in others:
            if tuple(other.shape) != tuple(one.shape):
                raise ModelError(
                    f"adapters must have the same base model to be fused, got {tuple(one.shape)} and "
                    f"{tuple(other.shape)} as shapes of {name}.",
                    hint="Train both from one base model.",
                )
    _shared_channels(adapters)


def _shared_channels(adapters: Sequence[S2FTAdapter]) -> dict[str, tuple[int, int]]:
    """Return for each weight the number of channels that several adapters patch, and that any of them patches."""
    counts = {}
    for name in _names(adapters):
        patches = list(_patches(adapters, name).values())
        if len({patch.side for patch in patches}) > 1:
            raise ValueError(
                f"adapters must patch the same side of a weight to be fused, got inputs and outputs of {name}, which "
                f"cross. Train its role in one of them only (S2FTConfig(roles=...)), or serve them by AdapterRouter."
            )
        _, number = torch.cat([patch.indices for patch in patches]).unique(return_counts=True)
        counts[name] = int((number > 1).sum()), len(number)
    return counts


def _warn_overlap(adapters: Sequence[S2FTAdapter]) -> None:
    counts = _shared_channels(adapters)
    shared = sum(count for count, _ in counts.values())
    if shared:
        share = shared / sum(union for _, union in counts.values())
        name = max(counts, key=lambda name: counts[name][0] / counts[name][1])
        warnings.warn(
            f"adapters overlap in {share:.1%} of the fused channels, most in {name} "
            f"({counts[name][0] / counts[name][1]:.1%}), where their changes interfere. `overlaps(adapters)` "
            "has the share of each weight. Train them on disjoint selections (`exclude` of S2FTCallback).",
            HfFarmsWarning,
            stacklevel=3,
        )


def _warn_unknown_base(adapters: Sequence[S2FTAdapter]) -> None:
    unknown = sum(adapter.base_model is None for adapter in adapters)
    if unknown and len(adapters) > 1:
        warnings.warn(
            f"the base of {unknown} of the {len(adapters)} adapters cannot be checked, as they name no base model: "
            f"only the channels that several adapters have were compared. Fuse adapters of one base only.",
            HfFarmsWarning,
            stacklevel=3,
        )


def _names(adapters: Sequence[S2FTAdapter]) -> list[str]:
    """Return the names of all patched weights: in the order of the adapters if they agree, else by number and name."""
    orders = {tuple(adapter.patches) for adapter in adapters}
    if len(orders) == 1:
        return list(*orders)
    return sorted({name for order in orders for name in order}, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names as numbers."""
    return [(int(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _common(values: Iterable[str | None]) -> str | None:
    """Return the value of all, or None if they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _patches(adapters: Sequence[S2FTAdapter], name: str) -> dict[int, WeightPatch]:
    """Return the patches of a weight by position of their adapter."""
    return {i: adapter.patches[name] for i, adapter in enumerate(adapters) if name in adapter.patches}
