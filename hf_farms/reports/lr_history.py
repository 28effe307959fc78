"""`farms_lr.jsonl`: the measurements of a training with FarmsLRCallback, one line each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hf_farms.files import names

__all__ = ["HISTORY_NAME", "BlockFactor", "LRHistoryEntry", "LRMeasurement", "LayerFactor", "read_history"]

HISTORY_NAME = names.HISTORY


@dataclass(frozen=True, kw_only=True)
class BlockFactor:
    """One block in one measurement.

    Attributes:
        name: of the block.
        alpha: its score; None if no layer has an alpha.
        alpha_stderr: its standard error; None if no layer has one.
        factor: mean over the parameters that it was applied to.
    """

    name: str
    alpha: float | None
    alpha_stderr: float | None
    factor: float


@dataclass(frozen=True, kw_only=True)
class LayerFactor:
    """One layer in one measurement; numbers are None for a layer without an alpha."""

    name: str
    alpha: float | None
    alpha_stderr: float | None = None
    factor: float


@dataclass(frozen=True, kw_only=True)
class LRMeasurement:
    """Alphas and factors from one step on.

    Attributes:
        step: first step with these factors.
        epoch: of that step.
        seconds: time of the measurement.
        blocks: in the order of the model.
    """

    step: int
    epoch: float | None
    seconds: float
    blocks: tuple[BlockFactor, ...]


@dataclass(frozen=True, kw_only=True)
class LRHistoryEntry(LRMeasurement):
    """A measurement with every layer, as the file has it; reports keep the layers of the last one only."""

    layers: tuple[LayerFactor, ...] = ()

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Parse a line that `to_line` wrote, in this version or an earlier one.

        Raises:
            ValueError: the line is not JSON (a `json.JSONDecodeError`), or JSON of another form.
        """
        try:
            data: Any = json.loads(line)
        except RecursionError as error:
            raise ValueError(f"line must be a measurement of FarmsLRCallback, got {line[:80]!r}.") from error
        try:
            if not isinstance(data["step"], int):
                raise TypeError(f"step must be an integer, got {data['step']!r}")
            return cls(
                step=data["step"],
                epoch=data["epoch"],
                seconds=data["seconds"],
                blocks=tuple(BlockFactor(**block) for block in data["blocks"]),
                layers=tuple(LayerFactor(name=name, **numbers) for name, numbers in data.get("layers", {}).items()),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"line must be a measurement of FarmsLRCallback, got {line[:80]!r} ({type(error).__name__}: {error})."
            ) from error

    def to_line(self) -> str:
        """Return the entry as one line of JSON, without the line break."""
        data = asdict(self)
        data["layers"] = {layer.pop("name"): layer for layer in data["layers"]}
        return json.dumps(data)


def read_history(path: Path, *, up_to: int | None = None, strict: bool = True) -> list[LRHistoryEntry]:
    """Read a history file; a last line that was cut off is ignored.

    Args:
        path: of the file; a missing one has no entries.
        up_to: ignore measurements after this step.
        strict: raise for a complete line that is not a measurement. Otherwise ignore it and all later lines.

    Raises:
        ValueError: a line is JSON of another form.
    """
    entries: list[LRHistoryEntry] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = LRHistoryEntry.from_line(line)
        except json.JSONDecodeError:
            break
        except ValueError:
            if strict:
                raise
            break
        if up_to is None or entry.step <= up_to:
            entries.append(entry)
    return entries
