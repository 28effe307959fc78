"""What was measured and done, as frozen dataclasses with a versioned JSON form. Loads no torch.

SpectralReport            analyze: blocks, each with its layers
PruneReport               prune: the recipe, spectra before and after, sparsity and perplexity
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hf_farms.config import CalibrationConfig, EvaluationConfig, FarmsConfig, PruneConfig
from hf_farms.errors import DataError

if TYPE_CHECKING:
    from cattrs.preconf.json import JsonConverter

__all__ = [
    "BlockSparsity",
    "BlockSpectrum",
    "CalibrationRecord",
    "LayerRecord",
    "LayerSparsity",
    "PerplexityRecord",
    "PruneReport",
    "SpectralReport",
    "json_converter",
    "versions",
]

SCHEMA_VERSION = 1
REPORT_NAME = "hf_farms_report.json"


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer: name, role, shape, and the numbers of its `LayerSpectrum`."""

    name: str
    role: str
    shape: tuple[int, ...]
    alpha: float | None
    alpha_stderr: float | None
    window_shape: tuple[int, int]
    num_windows: int
    num_eigenvalues: int
    ks_distance: float | None
    spectral_norm: float
    frobenius_norm_sq: float
    stable_rank: float
    alpha_hat: float | None
    entropy: float
    tail_min: float | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSpectrum:
    """One block.

    Attributes:
        index: position, 0 is nearest to the input.
        name: module name.
        alpha: score of the block, by default the mean over roles of the mean alpha of their layers; routers, which
            nothing is decided for, do not count. None where no layer has an alpha.
        alpha_stderr: its standard error; None where no layer has one.
        layers: what was measured.
    """

    index: int
    name: str
    alpha: float | None
    alpha_stderr: float | None
    layers: tuple[LayerRecord, ...]

    @property
    def num_weights(self) -> int:
        """Weights of the measured layers."""
        return sum(math.prod(layer.shape) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class _Report:
    """JSON form shared by all reports."""

    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def to_json(self) -> str:
        """The report as indented JSON; never NaN or infinity."""
        return json.dumps(json_converter().unstructure(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: not JSON, another schema version, or another kind of report.
        """
        try:
            data = json.loads(text)
            found = data.get("schema_version")
        except (ValueError, AttributeError) as error:
            raise DataError(f"report must be a JSON object, got {text[:40]!r}.") from error
        if found != SCHEMA_VERSION:
            raise DataError(f"schema_version must be {SCHEMA_VERSION}, got {found!r}. Write the report again.")
        try:
            return json_converter().structure(data, cls)
        except Exception as error:
            raise DataError(f"report must be a {cls.__name__}, got JSON of another form. ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            DataError: as `from_json`, or there is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"report must be a readable file, got {str(path)!r} ({error.strerror}).") from error
        return cls.from_json(text)


@dataclass(frozen=True, kw_only=True)
class SpectralReport(_Report):
    """Alpha and its error for every layer and block of a model.

    Attributes:
        model: hub id, folder name or class name.
        model_type: `config.model_type`, or the class name.
        config: the measurement as asked for.
        window_rows: the window size that "auto" came to; None for whole matrices.
        blocks: in order of depth.
        outside: embeddings and head, where they were asked for.
        notes: what a reader must know (layers left out, lowered windows, layers without an error bar).
    """

    model: str
    model_type: str
    config: FarmsConfig
    window_rows: int | None
    blocks: tuple[BlockSpectrum, ...]
    outside: tuple[LayerRecord, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """Zeros of one layer, counted after pruning.

    Attributes:
        name: of the layer.
        num_weights: all of them.
        num_zeros: zeros among them.
        num_tokens: calibration tokens that it was multiplied with; None where the method needs none. An expert that
            got none was pruned by magnitude.
        damping: of the Hessian, in units of its mean diagonal; None where the method has none.
    """

    name: str
    num_weights: int
    num_zeros: int
    num_tokens: int | None = None
    damping: float | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSparsity:
    """Sparsity of one block: asked for (`target`), and counted after pruning (`sparsity`)."""

    index: int
    name: str
    target: float
    sparsity: float
    layers: tuple[LayerSparsity, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What activations were measured on."""

    config: CalibrationConfig | None
    num_sequences: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class PerplexityRecord:
    """Perplexity of the dense and the pruned model on the same windows.

    Attributes:
        config: the text and the windows.
        context_length: tokens in a window.
        num_tokens: predicted tokens.
        dtype: of the weights and the forward pass.
        dense: perplexity before pruning.
        pruned: perplexity after.
        nll_difference: mean NLL after minus before, in nats per token.
        nll_difference_stderr: its paired standard error over windows; None with a single window.
    """

    config: EvaluationConfig
    context_length: int
    num_tokens: int
    dtype: str
    dense: float | None
    pruned: float | None
    nll_difference: float | None
    nll_difference_stderr: float | None


@dataclass(frozen=True, kw_only=True)
class PruneReport(_Report):
    """How a model was pruned, and what came of it.

    Attributes:
        model: hub id, folder name or class name of the dense model.
        model_type: `config.model_type`, or the class name.
        config: method, sparsity, allocation and measurement.
        dtype: of the checkpoint.
        blocks: target and measured sparsity of each block.
        sparsity: measured, of all pruned layers together.
        parameter_sparsity: measured, of all parameters of the model.
        num_parameters: all parameters of the model, tied ones once.
        before: spectra of the dense model.
        after: spectra of the pruned model; None if not measured.
        calibration: None where the method needs none.
        perplexity: None if not measured.
        command: the command line that did it, if there was one.
        notes: what a reader must know.
    """

    model: str
    model_type: str
    config: PruneConfig
    dtype: str
    blocks: tuple[BlockSparsity, ...]
    sparsity: float
    parameter_sparsity: float
    num_parameters: int
    before: SpectralReport | None = None
    after: SpectralReport | None = None
    calibration: CalibrationRecord | None = None
    perplexity: PerplexityRecord | None = None
    command: str | None = None
    notes: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it stands on, without importing them."""
    found = {"python": platform.python_version()}
    for name in ("hf-farms", "torch", "transformers", "huggingface_hub"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree, or a part that is not installed
            continue
    return found


@cache
def json_converter() -> JsonConverter:
    """Between dataclasses and what JSON can hold; unknown keys are errors."""
    from cattrs.preconf.json import make_converter

    return make_converter(forbid_extra_keys=True)
