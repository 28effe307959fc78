"""Output of --dry-run: destination, size and sparsity of a result, as lines and as values."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_farms.files.names import RECIPE, REPORT
from hf_farms_cli.console import say
from hf_farms_cli.results import readable_size

if TYPE_CHECKING:
    from hf_farms.hub import PublishableFolder, PushPlan
    from hf_farms.output.recipe import Recipe
    from hf_farms.workflows.prune_plan import PrunePlan
    from hf_farms_cli.options import Format

__all__ = ["Planned", "print_plan", "prune_plan", "push_plan"]

# Files of a pruned model; the number of shards is not known before the prune.
ARTIFACTS = (
    "model*.safetensors",
    "config",
    "tokenizer",
    "README.md",
    REPORT,
    RECIPE,
    "figures",
)


@dataclass(frozen=True)
class Planned:
    """What a command would do.

    Attributes:
        lines: for people and agents.
        values: the same for programs.
        results: paths and ids alone.
    """

    lines: list[str]
    values: dict[str, object]
    results: list[str]


def print_plan(planned: Planned, output_format: Format) -> None:
    """Print the plan in the given format."""
    if output_format == "json":
        say(json.dumps({"dry_run": True, "plan": planned.values}, indent=2))
        return
    for line in planned.results if output_format == "quiet" else [f"[dry-run] {line}" for line in planned.lines]:
        say(line)


def prune_plan(plan: PrunePlan, target: PushPlan | None) -> Planned:
    """Describe a prune, and the push of its result if there is one."""
    recipe, output, size = _expected_recipe(plan), plan.output, None
    # No Hub request for a finished folder.
    base = plan.finished.base if plan.finished is not None else plan.model.base_model
    if plan.finished is None:
        size = plan.model.weights_size
    state = "is finished" if plan.finished else "is continued" if output.partial.exists() else "new"
    free = shutil.disk_usage(next(p for p in output.path.absolute().parents if p.exists())).free
    expected = f"about {readable_size(size)}" if size else "unknown"
    files = [*ARTIFACTS, *(base.files if base is not None else ())]
    lines = [
        *recipe.describe(),
        f"output: {output.path} ({state})",
        f"size: {expected}, {readable_size(free)} free",
        f"sparsity: {recipe.prune.sparsity:.2%} of the weights of the pruned layers",
        f"files: {', '.join(files)}",
    ]
    values = {
        **recipe.effective(),
        "output": str(output.path),
        "state": state.removeprefix("is "),
        "size_bytes": size,
        "free_bytes": free,
        "files": files,
        "base": None,
    }
    if base is not None and not base.local:
        license = base.license_name or base.license
        gated = ", gated" if base.gated else ""
        lines.append(f"base: {base.repo_id} at {base.revision} ({license or 'no license named'}{gated})")
        place = {"repo_id": base.repo_id, "revision": base.revision}
        values["base"] = {**place, "license": license, "gated": bool(base.gated)}
    lines += [f"push: {_destination(target)}", *_unchecked(target)]
    values["push"] = _destination_values(target) if target is not None else None
    return Planned(lines, values, [str(output.path), *([target.repo_id] if target is not None else [])])


def _expected_recipe(plan: PrunePlan) -> Recipe:
    """Return the recipe with the numbers that finished or unfinished work has; else some depend on the model."""
    recipe = plan.recipe
    text = plan.finished.calibration if plan.finished is not None else None
    for candidate in (recipe.decided(writes=True), recipe.decided(writes=False)):
        if text is not None and text.config is not None:
            same = text.config.num_continuations == candidate.calibration.num_continuations
        else:
            # Texts and weights, which decide too where work may be begun again, are not read here.
            same = plan.output.was_begun_with(candidate.flat(), dict)
        if same:
            return candidate
    return recipe.decided(writes=False) if plan.load.stream else recipe


def _destination(plan: PushPlan | None) -> str:
    """Describe the destination of a push in one line."""
    if plan is None:
        return "no"
    visible = {True: "private", False: "public", None: "visibility as the namespace has it"}[plan.private]
    where = "a pull request" if plan.create_pr else f"branch {plan.revision or 'main'}"
    state = "not checked" if plan.unchecked else "exists" if plan.exists else "new"
    return f"{plan.repo_id} ({state}, {visible}, {where})"


def _destination_values(plan: PushPlan) -> dict[str, object]:
    return {
        "repo_id": plan.repo_id,
        "exists": None if plan.unchecked else plan.exists,
        "private": plan.private,
        "create_pr": plan.create_pr,
        "branch": None if plan.create_pr else plan.revision or "main",
        "unchecked": list(plan.unchecked),
        "unchecked_reason": plan.reason or None,
    }


def _unchecked(plan: PushPlan | None) -> list[str]:
    """Return a line for each thing that only the Hub knows, if it was not asked."""
    return [f"not checked, as {plan.reason}: {what}" for what in plan.unchecked] if plan is not None else []


def push_plan(plan: PushPlan) -> Planned:
    """Describe a push: repository, sparsity, files."""
    from hf_farms.reports import PruneReport

    assert plan.folder is not None
    report, files = plan.folder.report, _files(plan.folder, plan)
    lines, values = [f"repository: {_destination(plan)}"], _destination_values(plan)
    if isinstance(report, PruneReport):
        shares = f"{report.sparsity:.2%} of the pruned layers, {report.parameter_sparsity:.2%} of all parameters"
        lines.append(f"sparsity: {shares}")
        values |= {"sparsity": report.sparsity, "parameter_sparsity": report.parameter_sparsity}
    return Planned([*lines, *files.lines, *_unchecked(plan)], values | files.values, [plan.repo_id, *files.results])


def _files(folder: PublishableFolder, plan: PushPlan) -> Planned:
    from hf_farms import hub

    sizes = {name: path.stat().st_size for name, path in folder.contents.files.items()}
    left = folder.contents.left_out()
    removed = sorted(hub.replaced_weights(plan.files, folder.path))
    lines = [
        *(f"file: {name} ({readable_size(size)})" for name, size in sizes.items()),
        *(f"removed: {name}, weights of an earlier model" for name in removed),
        *([f"left out: {left}"] if left else []),
        f"total: {len(sizes)} files, {readable_size(sum(sizes.values()))}",
    ]
    values = {
        "files": [{"name": name, "size_bytes": size} for name, size in sizes.items()],
        "removed": removed,
        "left_out": left,
        "size_bytes": sum(sizes.values()),
    }
    return Planned(lines, dict(values), list(sizes))
