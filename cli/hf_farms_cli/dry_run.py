"""Output of --dry-run: destination, size and sparsity of a result."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from hf_farms.files.names import RECIPE, REPORT
from hf_farms_cli.console import say
from hf_farms_cli.results import readable_size

if TYPE_CHECKING:
    from hf_farms.hub import PublishableFolder, PushPlan
    from hf_farms.workflows.prune_plan import PrunePlan
    from hf_farms_cli.options import Format

__all__ = ["plan_line", "print_plan", "prune_lines", "push_lines", "unchecked_lines"]

# Files of a pruned model; the number of shards is not known before the prune.
ARTEFACTS = (
    "model*.safetensors",
    "config",
    "tokenizer",
    "README.md",
    REPORT,
    RECIPE,
    "figures",
)


def print_plan(lines: list[str], output_format: Format) -> None:
    """Print the plan in the given format."""
    if output_format == "json":
        say(json.dumps({"dry_run": True, "plan": lines}, indent=2))
        return
    for line in lines:
        say(f"[dry-run] {line}")


def prune_lines(plan: PrunePlan) -> list[str]:
    """Return the lines that describe the plan of a prune, without the push."""
    recipe, output, size = plan.recipe, plan.output, None
    # No Hub request for a finished folder.
    base = plan.finished.base if plan.finished is not None else plan.model.base_model
    if plan.finished is None:
        size = plan.model.weights_size
    state = "is finished" if plan.finished else "is continued" if output.partial.exists() else "new"
    free = shutil.disk_usage(next(p for p in output.path.absolute().parents if p.exists())).free
    expected = f"about {readable_size(size)}" if size else "unknown"
    licences = base.files if base is not None else ()
    lines = [
        *recipe.describe(),
        f"output: {output.path} ({state})",
        f"size: {expected}, {readable_size(free)} free",
        f"sparsity: {recipe.prune.sparsity:.2%} of the weights of the pruned layers",
        f"files: {', '.join((*ARTEFACTS, *licences))}",
    ]
    if base is not None and not base.local:
        licence = base.license_name or base.license or "no licence named"
        lines.append(f"base: {base.repo_id} at {base.revision} ({licence}{', gated' if base.gated else ''})")
    return lines


def plan_line(plan: PushPlan | None) -> str:
    """Describe the destination of a push in one line."""
    if plan is None:
        return "no"
    visible = {True: "private", False: "public", None: "visibility as the namespace has it"}[plan.private]
    where = "a pull request" if plan.create_pr else f"branch {plan.revision or 'main'}"
    state = "not checked" if plan.unchecked else "exists" if plan.exists else "new"
    return f"{plan.repo_id} ({state}, {visible}, {where})"


def unchecked_lines(plan: PushPlan | None) -> list[str]:
    """Return a line for each thing that only the Hub knows, if it was not asked."""
    return [f"not checked, as {plan.reason}: {what}" for what in plan.unchecked] if plan is not None else []


def push_lines(plan: PushPlan) -> list[str]:
    """Return the lines that describe a push: repository, sparsity, files."""
    assert plan.folder is not None
    lines = [f"repository: {plan_line(plan)}", *_sparsity_lines(plan.folder.report), *_file_lines(plan.folder, plan)]
    return [*lines, *unchecked_lines(plan)]


def _sparsity_lines(report: object) -> list[str]:
    from hf_farms.reports import PruneReport

    if not isinstance(report, PruneReport):
        return []
    return [f"sparsity: {report.sparsity:.2%} of the pruned layers, {report.parameter_sparsity:.2%} of all parameters"]


def _file_lines(folder: PublishableFolder, plan: PushPlan) -> list[str]:
    from hf_farms import hub

    sizes = {name: path.stat().st_size for name, path in folder.contents.files.items()}
    left = folder.contents.left_out()
    return [
        *(f"file: {name} ({readable_size(size)})" for name, size in sizes.items()),
        *(f"removed: {name}, weights of an earlier model" for name in hub.replaced_weights(plan.files, folder.path)),
        *([f"left out: {left}"] if left else []),
        f"total: {len(sizes)} files, {readable_size(sum(sizes.values()))}",
    ]
