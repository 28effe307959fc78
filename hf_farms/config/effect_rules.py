"""RULES: the fields of configs and arguments whose effect depends on others, and when each applies.

`effects.py` warns of fields that have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_farms.config.effect_inputs import AnalyzeArguments, EvaluateArguments, Inputs, PruneArguments
from hf_farms.config.loading import LoadOptions
from hf_farms.config.lr import FarmsLRConfig
from hf_farms.config.prune import PruneConfig
from hf_farms.config.s2ft import S2FTConfig
from hf_farms.config.spectra import FarmsConfig
from hf_farms.config.texts import CalibrationConfig, EvaluationConfig, SelectionConfig
from hf_farms.registries import (
    ALLOCATIONS,
    FITS,
    LR_MAPS,
    METHODS,
    RECOVERIES,
    REFINEMENTS,
    STRATEGIES,
    AllocationEntry,
    Entry,
    Registry,
)

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When some fields of a class have an effect.

    Attributes:
        kind: class of the config, or of the arguments.
        fields: names; "spectra.fit" is a field of a config inside.
        applies: whether the fields have an effect, for a config and the input.
        condition: end of the sentence "`field` has no effect: ..." for a config.
    """

    kind: type
    fields: tuple[str, ...]
    applies: Callable[[Any, Inputs], bool]
    condition: Callable[[Any], str]


def _by_choice(kind: type, fields: tuple[str, ...], choice: str, registry: Registry[Any]) -> list[Rule]:
    """Return the rules of fields that only some entries of a registry read: those with the field in `options`."""
    return [_by_option(kind, field, choice, registry) for field in fields]


def _by_option(kind: type, field: str, choice: str, registry: Registry[Any]) -> Rule:
    return Rule(
        kind=kind,
        fields=(field,),
        applies=lambda config, _: field in registry[getattr(config, choice)].options,
        condition=_choices(choice, registry, lambda entry: field in entry.options),
    )


def _choices(choice: str, registry: Registry[Any], fits: Callable[[Any], bool]) -> Callable[[Any], str]:
    """Return the condition that `choice` is one of the entries that fit."""

    def condition(config: Any) -> str:
        text = f"it applies to {_names(choice, registry, fits)}."
        # Most users who read this have not chosen it.
        is_default = choice == "allocation" and config.allocation == "uniform" and config.recovers
        return f"{text} With recover {config.recover!r} the default is 'uniform'." if is_default else text

    return condition


def _names(choice: str, registry: Registry[Any], fits: Callable[[Any], bool]) -> str:
    """Return the entries that fit, such as "fit 'peak'" or "map 'linear' or 'step'"."""
    names = [repr(name) for name, entry in registry.items() if fits(entry)]
    return f"{choice} {' or '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)}"


def _rule(kind: type, *fields: str, when: Callable[[Any, Inputs], bool], condition: str | Callable[[Any], str]) -> Rule:
    return Rule(
        kind=kind,
        fields=fields,
        applies=when,
        condition=condition if callable(condition) else lambda _: f"it applies to {condition}.",
    )


def _measures_activations(entry: Entry) -> bool:
    return entry.needs == "activations"


def _reads_spectra(entry: AllocationEntry) -> bool:
    # A search plans the others.
    return entry.needs_spectra or "spectra" in entry.options


def _calibrating(_: Any) -> str:
    registries: list[Registry[Any]] = [METHODS, REFINEMENTS, ALLOCATIONS, RECOVERIES]
    names = [
        _names(registry.option, registry, _measures_activations)
        for registry in registries
        if any(_measures_activations(entry) for entry in registry.values())
    ]
    # Any of them is enough: "to" before each, so that they do not read as one condition.
    return f"it applies to {', to '.join(names[:-1])} and to {names[-1]}, which need calibration text."


def _text_rules(kind: type) -> list[Rule]:
    """Return the rules of the fields of a text, which depend on where it is read from."""

    def is_one_of(*kinds: str) -> Callable[[Any, Inputs], bool]:
        return lambda _, inputs: inputs.text is None or inputs.text in kinds

    return [
        _rule(kind, "column", when=is_one_of("table", "dataset"), condition="tables and datasets"),
        _rule(kind, "subset", when=is_one_of("dataset"), condition="a dataset on the Hub"),
        # The built-in text has two splits.
        _rule(
            kind,
            "split",
            when=is_one_of("dataset", "built-in"),
            condition="a dataset on the Hub and the text inside the package",
        ),
    ]


WINDOWS = ("aspect_ratio", "windows_per_dim")
EVALUATED = ("column", "subset", "split", "context_length", "max_windows")

# The first rule of a field that does not apply gives the reason.
RULES: tuple[Rule, ...] = (
    *_by_choice(FarmsConfig, ("tail_divisor", "released_peak_bound"), "fit", FITS),
    _rule(FarmsConfig, *WINDOWS, when=lambda c, _: c.window_rows is not None, condition="windows, not whole matrices"),
    *_by_choice(PruneConfig, ("granularity", "spread", "shrink", "ends", "minutes"), "allocation", ALLOCATIONS),
    *_by_choice(PruneConfig, ("damping", "block_size"), "method", METHODS),
    # With a pattern the mask is chosen in each group, wherever the block ends.
    _rule(
        PruneConfig,
        "block_size",
        when=lambda c, _: c.group is None or "block_size" not in METHODS[c.method].options,
        condition="pattern 'unstructured'",
    ),
    *_by_choice(PruneConfig, ("recover_passes", "recover_rate", "recover_budget"), "recover", RECOVERIES),
    _rule(
        PruneConfig,
        "max_sparsity",
        # Under a pattern such as N:8 each block is rounded to whole groups, below the limit.
        when=lambda c, _: not ALLOCATIONS[c.allocation].even or c.group is not None,
        condition=_choices("allocation", ALLOCATIONS, lambda e: not e.even),
    ),
    _rule(
        PruneConfig,
        "spectra",
        when=lambda c, _: _reads_spectra(ALLOCATIONS[c.allocation]),
        condition=_choices("allocation", ALLOCATIONS, _reads_spectra),
    ),
    _rule(
        PruneConfig,
        "spectra.window_rows",
        *(f"spectra.{field}" for field in WINDOWS),
        when=lambda c, _: ALLOCATIONS[c.allocation].needs != "matrix",
        condition=_choices("allocation", ALLOCATIONS, lambda e: e.needs == "windows"),
    ),
    *_by_choice(S2FTConfig, ("keep", "seed"), "strategy", STRATEGIES),
    _rule(
        S2FTConfig,
        "spread",
        "spectra",
        when=lambda c, _: c.budget_allocation == "farms",
        condition="budget_allocation 'farms'",
    ),
    _rule(
        FarmsLRConfig,
        *("map", "min_scale", "max_scale", "released_step", "quantity", "shrink", "normalize", "ends"),
        "min_eigenvalues",
        when=lambda c, _: not c.monitor,
        condition="monitor=False",
    ),
    *_by_choice(FarmsLRConfig, ("min_scale", "max_scale", "released_step"), "map", LR_MAPS),
    _rule(FarmsLRConfig, "interval", "smoothing", when=lambda c, _: not c.frozen, condition="frozen=False"),
    _rule(
        FarmsLRConfig,
        "max_share",
        when=lambda c, _: not c.frozen and c.interval == "auto",
        condition="interval 'auto' and frozen=False",
    ),
    _rule(FarmsLRConfig, "spectra.block_score", when=lambda c, _: c.unit == "block", condition="unit 'block'"),
    _rule(
        CalibrationConfig,
        *CalibrationConfig.__dataclass_fields__,
        when=lambda _, inputs: inputs.calibrates,
        condition=_calibrating,
    ),
    _rule(CalibrationConfig, "num_continuations", when=lambda c, _: c.source != "self", condition="a text"),
    *_text_rules(CalibrationConfig),
    _rule(
        SelectionConfig,
        *SelectionConfig.__dataclass_fields__,
        when=lambda _, inputs: inputs.selects,
        condition=lambda _: (
            f"it applies to {_names('allocation', ALLOCATIONS, lambda e: e.needs == 'losses')} and to "
            f"{_names('recover', RECOVERIES, _measures_activations)}."
        ),
    ),
    _rule(
        SelectionConfig,
        "split",
        when=lambda _, inputs: inputs.text in (None, "dataset"),
        condition="a dataset on the Hub",
    ),
    *_text_rules(SelectionConfig),
    _rule(
        EvaluationConfig,
        *EvaluationConfig.__dataclass_fields__,
        when=lambda _, inputs: inputs.perplexity,
        condition="metric 'perplexity'",
    ),
    _rule(EvaluationConfig, *EVALUATED, when=lambda c, _: c.source is not None, condition="an evaluation text"),
    *_text_rules(EvaluationConfig),
    _rule(
        LoadOptions,
        "device",
        when=lambda _, inputs: inputs.measured,
        condition="a model, not to a saved report",
    ),
    _rule(
        LoadOptions,
        "revision",
        when=lambda _, inputs: inputs.model in (None, "hub"),
        condition="a model on the Hub",
    ),
    _rule(LoadOptions, "allow_pickle", when=lambda _, inputs: inputs.checkpoint, condition="checkpoints"),
    _rule(
        AnalyzeArguments,
        "outside",
        when=lambda _, inputs: inputs.measured,
        condition="a model, not to a saved report",
    ),
    _rule(
        PruneArguments,
        "baseline",
        # Not to measure it is always possible.
        when=lambda a, _: not a.baseline or (a.evaluates and a.allocation != "uniform"),
        condition="an evaluation text and an allocation that is not 'uniform'",
    ),
    _rule(
        EvaluateArguments,
        "num_fewshot",
        "limit",
        "batch_size",
        "include_path",
        when=lambda a, _: bool(a.tasks),
        condition="`tasks`",
    ),
    _rule(
        EvaluateArguments,
        "base",
        when=lambda a, _: not a.base or a.perplexity or bool(a.tasks),
        condition="metric 'perplexity' and to `tasks`",
    ),
)
