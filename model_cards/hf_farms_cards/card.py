"""Report -> text of a model card."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hf_farms.config import default_output_name
from hf_farms.reports import PruneReport

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["FIGURE", "render_card"]

# Where the figure lies, relative to the card.
FIGURE = "figures/blocks.png"


def render_card(report: PruneReport, *, repo_id: str | None = None) -> str:
    """Describe a pruned model in the form that the Hub shows.

    Args:
        report: what `prune` or the command line measured.
        repo_id: where the model will be found; None: the name of the output folder.

    Returns:
        Markdown with a YAML header. The figure is expected at `FIGURE` beside it.
    """
    from huggingface_hub import ModelCard
    from jinja2 import Environment, StrictUndefined

    # StrictUndefined: a card with a hole in it must fail here and not on the Hub.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["number"] = _number
    template = environment.from_string(files(__package__).joinpath("templates/prune.md.j2").read_text(encoding="utf-8"))
    name = repo_id or default_output_name(report.model, report.config)
    body = template.render(
        report=report,
        name=name,
        base=report.model,
        base_link=_hub_id(report.model),
        rows=_rows(report),
        figure=FIGURE,
        command=report.command or f"hf-farms prune {report.model}",
    )
    return str(ModelCard(f"---\n{_card_data(report, name).to_yaml()}\n---\n\n{body}"))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _hub_id(model: str) -> str | None:
    """The model's id on the Hub, if its name can be one."""
    parts = model.split("/")
    return model if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") else None


def _card_data(report: PruneReport, name: str) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    base = _hub_id(report.model)
    results = None
    if report.perplexity is not None and report.perplexity.pruned is not None:
        source = str(report.perplexity.config.source)
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=source,
                dataset_name=source,
                metric_type="perplexity",
                metric_value=round(float(report.perplexity.pruned), 4),
                metric_name=f"perplexity (context {report.perplexity.context_length})",
            )
        ]
    return ModelCardData(
        library_name="transformers",
        base_model=base,
        base_model_relation="finetune" if base else None,
        tags=["hf-farms", "farms", "pruned", "sparse", report.config.method],
        model_name=name.rsplit("/", 1)[-1] if results else None,
        eval_results=results,
    )


def _rows(report: PruneReport) -> list[dict[str, Any]]:
    """One row per block for the table."""
    before = {b.index: b for b in report.before.blocks} if report.before else {}
    after = {b.index: b for b in report.after.blocks} if report.after else {}
    return [
        {"block": block, "before": before.get(block.index), "after": after.get(block.index)} for block in report.blocks
    ]
