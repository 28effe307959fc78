"""Build header and template values of the card of a trained model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hf_farms.config import FarmsLRConfig, LayerwiseLRConfig, S2FTConfig
from hf_farms.registries import STRATEGIES
from hf_farms.reports.training import FarmsLRRecord, S2FTRecord, TrainReport
from hf_farms_cards.figures.blocks import dark_of
from hf_farms_cards.figures.training import LR, QUANTITIES, section, selected_by_block
from hf_farms_cards.licences import license_of
from hf_farms_cards.markdown import one_line
from hf_farms_cards.metadata import card_data, hub_id, metric_results
from hf_farms_cards.prune_card import base_text
from hf_farms_cards.quick_start import Checkpoint, as_call, quick_start
from hf_farms_cards.tasks import task_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["trained_card"]

Config = FarmsLRConfig | LayerwiseLRConfig | S2FTConfig

RATES, FACTORS, SELECTIVE = "FarmsLR", "LayerwiseLR", "S2FT"


def trained_card(
    report: TrainReport, *, repo_id: str | None, checkpoint: Checkpoint
) -> tuple[ModelCardData, dict[str, Any]]:
    """Return header and values of the template `train.md.j2`; arguments as for `render_card`."""
    name = repo_id or "-".join(filter(None, [_last_part(report.model), report.method.replace(" and ", "-")]))
    base = hub_id(report.model, report.base)
    architecture = checkpoint.architecture or report.architecture
    task = task_of(report.model_type, architecture, tag=report.task)
    # A classifier built on a language model has its own task. The task of the base is used if nothing else is known.
    base_tag = report.base.pipeline_tag if report.base and not (architecture or report.task) else None
    monitored = report.farms_lr is not None and report.farms_lr.config is not None and report.farms_lr.config.monitor
    rates = None if monitored else report.farms_lr
    methods = {"s2ft": report.s2ft, "farms-lr": rates, "layerwise-lr": report.layerwise_lr}
    tags = [tag for tag, used in methods.items() if used is not None]
    by_alpha = report.s2ft is not None and report.s2ft.config.budget_allocation == "farms"
    measured = by_alpha or report.farms_lr is not None
    data = card_data(
        name=name,
        base=report.base,
        base_id=base,
        tags=[*(["farms"] if measured else []), *tags],
        pipeline_tag=base_tag or task.pipeline_tag,
        results=metric_results(report.metrics, task=base_tag or task.pipeline_tag),
    )
    known = report.num_trained is not None and report.num_parameters
    values = {
        "report": report,
        "title": name.rsplit("/", 1)[-1],
        "base": base_text(report.model, base) if report.model else Markup("A model"),
        "known": report.model is not None,
        "base_id": base,
        "license": license_of(report.base, checkpoint.files or frozenset()) if report.base else None,
        "share": report.num_trained / report.num_parameters if known else None,  # type: ignore[operator]
        "measured": measured,
        "evaluated": any(name.startswith("eval_") for name in report.metrics),
        "strategy": STRATEGIES[report.s2ft.config.strategy].describe(report.s2ft.config) if report.s2ft else None,
        **_selection(report.s2ft),
        "snippet": _snippet(report),
        "quick_start": quick_start(name, task, checkpoint, pruned=False),
        "change": "some of the weights were fine-tuned; all others are unchanged."
        if report.s2ft
        else "the weights were fine-tuned.",
        **_learning_rates(report.farms_lr),
        "scaled": QUANTITIES[report.layerwise_lr.config.quantity] if report.layerwise_lr else None,
        "figure": (LR, dark_of(LR)),
    }
    return data, values


def _learning_rates(record: FarmsLRRecord | None) -> dict[str, Any]:
    """Return the values of the section on learning rates, and the range of the last factors."""
    if record is None or not record.measurements:
        return {"quantity": None, "range": None, "still": False, "monitored": False}
    factors = [block.factor for block in record.measurements[-1].blocks]
    values = section(record)
    return {
        **values,
        "range": (min(factors), max(factors)) if any(factor != 1 for factor in factors) else None,
        "still": not values["moved"],
    }


def _last_part(model: str | None) -> str:
    return one_line((model or "model").replace("\\", "/").rstrip("/")).rsplit("/", 1)[-1]


def _selection(record: S2FTRecord | None) -> dict[str, Any]:
    """Return the selected channels by block and kind; a small budget leaves some roles without any."""
    selected = selected_by_block(record) if record else {}
    chosen = [layer.name for layer in record.layers if layer.num_selected] if record else []
    # Paths inside the blocks.
    layers = list(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in chosen))
    return {
        "selected": selected,
        "kinds": list(dict.fromkeys(kind for counts in selected.values() for kind in counts)),
        "layers": layers,
        "heads": any(map(_is_attention, layers)) or not layers,
        "channels": not all(map(_is_attention, layers)) or not layers,
    }


def _is_attention(path: str) -> bool:
    return "attn" in path.lower() or "attention" in path.lower()


def _snippet(report: TrainReport) -> str:
    """Format the callbacks of the training as Python code."""
    methods: list[tuple[str, Config | None]] = []
    if report.s2ft is not None:
        methods.append((SELECTIVE, report.s2ft.config))
    if report.farms_lr is not None:
        methods.append((RATES, report.farms_lr.config))
    if report.layerwise_lr is not None:
        methods.append((FACTORS, report.layerwise_lr.config))
    suffixes = {name: ("Callback", *(["Config"] * bool(config))) for name, config in methods}
    names = sorted(f"{name}{suffix}" for name in suffixes for suffix in suffixes[name])
    callbacks = [f"    {name}Callback({_arguments(name, config)})," for name, config in methods]
    return "\n".join([f"from hf_farms import {', '.join(names)}", "", "callbacks = [", *callbacks, "]"])


def _arguments(name: str, config: Config | None) -> str:
    """Return the arguments of a callback; the factors stand in a table of the card, and may be functions."""
    call = as_call(config) if config else ""
    return f"factors, {call}" if name == FACTORS else call
