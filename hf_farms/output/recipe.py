"""Everything that decides the bytes of a pruned model, as one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.config import DTYPES, CalibrationConfig, EvaluationConfig, PruneConfig
from hf_farms.config.checks import check
from hf_farms.errors import DataError
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import DocumentError, read_text
from hf_farms.output.existing_results import RECIPE_NAME
from hf_farms.privacy.publishing import is_local, local_path, published_path, same_place

if TYPE_CHECKING:
    from cattrs.preconf.pyyaml import PyyamlConverter

__all__ = ["RECIPE_NAME", "Recipe"]

# What may be the name of a file or folder.
LOCATED = ("model", "calibration.source", "evaluation.source")
# One that hf-farms writes has some thousand.
MAX_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Model and settings; `hf-farms prune recipe.yaml` does the same again."""

    model: str
    revision: str | None
    dtype: str
    prune: PruneConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        check(bool(self.model), "model", "a hub id, a folder or `demo`", self.model)
        check(self.dtype in DTYPES, "dtype", "auto, float32, bfloat16 or float16", self.dtype)

    def save(self, path: Path) -> None:
        """Write the YAML file, as it may be published: paths are relative to the working folder, or a last part."""
        public = self.published()
        header = "# hf-farms prune recipe.yaml\n"
        if elsewhere := [name for name, place in self.places().items() if local_path(name) != place]:
            # A name may hold line ends, and a comment must not.
            shown = "".join(letter if letter.isprintable() else "?" for letter in ", ".join(elsewhere))
            header += f"# {shown}: outside the folder that this ran in. Write where it is, or put it there.\n"
        write_text(path, header + _converter().dumps(public, sort_keys=False))

    def published(self) -> Recipe:
        """The recipe without paths to private places."""
        return self._renamed(published_path)

    def places(self) -> dict[str, str]:
        """Where the local files and folders are, by the names that are published."""
        names = (self.model, self.calibration.source, self.evaluation.source)
        return {published_path(name): local_path(name) for name in names if name is not None and is_local(name)}

    def absolute(self) -> Recipe:
        """The recipe with the paths that local names stand for."""
        return self._renamed(lambda name: local_path(name) if is_local(name) else name)

    def located(self, places: Mapping[str, str]) -> Recipe:
        """The recipe with the paths that published names stand for, as far as they are known."""
        return self._renamed(lambda name: places.get(name, name))

    def _renamed(self, rename: Callable[[str], str]) -> Recipe:
        seen, tested = self.calibration, self.evaluation
        return replace(
            self,
            model=rename(self.model),
            calibration=replace(seen, source=rename(seen.source)),
            evaluation=replace(tested, source=rename(tested.source) if tested.source is not None else None),
        )

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read what `save` wrote.

        Raises:
            DataError: no such file, not a recipe, or a setting that is out of range.
        """
        from hf_farms.files.yaml_documents import load_yaml

        try:
            return parse_dataclass(load_yaml(read_text(Path(path), limit=MAX_BYTES)), cls)
        except OSError as error:
            raise DataError(f"recipe must be a readable file, got {str(path)!r} ({error.strerror}).") from error
        except DocumentError as error:
            raise DataError(f"recipe must be one that hf-farms wrote, got {str(path)!r} ({error}).") from error

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted name."""
        return _flat(_converter().unstructure(self))

    def differences(self, other: Recipe) -> list[str]:
        """`name: this, other` for every setting that differs."""
        mine, theirs = self.flat(), other.flat()

        def same(key: str) -> bool:
            # One of them may have been published.
            if key in LOCATED and isinstance(mine[key], str) and isinstance(theirs[key], str):
                return same_place(str(mine[key]), str(theirs[key]))
            return mine[key] == theirs[key]

        return [f"{key}: {mine[key]!r}, there {theirs[key]!r}" for key in mine if not same(key)]

    def describe(self) -> list[str]:
        """The settings that count, a line each."""
        return [
            f"{key}: {value}"
            for key, value in self.flat().items()
            if self.prune.needs_calibration or not key.startswith("calibration")
        ]

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a text becomes tokens; what the model writes itself are tokens already."""
        reads = self.prune.needs_calibration and self.calibration.source != "self"
        return reads or self.evaluation.source is not None

    def texts(self) -> list[str | None]:
        """Where text is read from."""
        return [self.calibration.source if self.prune.needs_calibration else None, self.evaluation.source]


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def _converter() -> PyyamlConverter:
    from cattrs.preconf.pyyaml import make_converter

    return make_converter(forbid_extra_keys=True)
