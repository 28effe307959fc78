"""recipe.yaml: all settings that determine the bytes of a pruned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.config import DTYPES, CalibrationConfig, EvaluationConfig, PruneConfig, SelectionConfig
from hf_farms.config.checks import check
from hf_farms.errors import DataError
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import DocumentError, read_text
from hf_farms.output.existing_results import RECIPE_NAME
from hf_farms.privacy.publishing import is_local, local_path, published_path, same_place
from hf_farms.registries import RECOVERIES

if TYPE_CHECKING:
    from cattrs.preconf.pyyaml import PyyamlConverter

__all__ = ["RECIPE_NAME", "Recipe"]

# Settings that may name a file or folder.
PATH_SETTINGS = ("model", "calibration.source", "evaluation.source", "selection.source")
# A recipe has a few thousand bytes.
MAX_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Model and settings of a run; `hf-farms prune recipe.yaml` reproduces it.

    Raises:
        ValueError: the model is empty or the dtype unknown.
    """

    model: str
    revision: str | None
    dtype: str
    prune: PruneConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    # None where nothing is chosen or accepted on a text.
    selection: SelectionConfig | None = None

    def __post_init__(self) -> None:
        check(bool(self.model), "model", "a hub id, a folder or `demo`", self.model)
        check(self.dtype in DTYPES, "dtype", "auto, float32, bfloat16 or float16", self.dtype)
        # The recipe determines the result, whatever the defaults of a later version are.
        calibration, passes = self.calibration, self.prune.recover_passes
        if calibration.num_continuations is None and self._default_continuations == 0:
            object.__setattr__(self, "calibration", calibration.settled())
        object.__setattr__(self, "prune", self.prune.settled(self.calibration.total_sequences))
        if not self.is_decided:
            object.__setattr__(self, "prune", replace(self.prune, recover_passes=passes))
        if self.prune.needs_selection and self.selection is None:
            object.__setattr__(self, "selection", SelectionConfig())

    @property
    def _default_continuations(self) -> int:
        """Continuations by default, if the model can write them."""
        if self.calibration.source == "self":
            return 0
        return RECOVERIES[self.prune.recover].default_continuations(self.calibration.num_sequences)

    @property
    def is_decided(self) -> bool:
        """Whether no setting is a default that depends on the model."""
        return self.calibration.num_continuations is not None

    def decided(self, *, writes: bool) -> Recipe:
        """Return the recipe with a number in place of each default that depends on the model.

        Args:
            writes: whether the model is in memory and can generate text.
        """
        if self.is_decided:
            return self
        count = self._default_continuations if writes else 0
        return replace(self, calibration=replace(self.calibration, num_continuations=count))

    def save(self, path: Path) -> None:
        """Write the recipe as YAML, with paths relative to the working folder or cut to their last part."""
        public = self.published()
        header = "# hf-farms prune recipe.yaml\n"
        if outside := [name for name, path in self.places().items() if local_path(name) != path]:
            # A name may contain line ends, which would end the comment.
            names = "".join(letter if letter.isprintable() else "?" for letter in ", ".join(outside))
            header += f"# {names}: outside the folder that this ran in. Write where it is, or put it there.\n"
        write_text(path, header + _converter().dumps(_without_none(public), sort_keys=False))

    def published(self) -> Recipe:
        """Return the recipe without private paths."""
        return self._renamed(published_path)

    def places(self) -> dict[str, str]:
        """Return the local files and folders of the recipe, without those of the package: published name -> path."""
        selection = self.selection.source if self.selection is not None else None
        names = (self.model, self.calibration.source, self.evaluation.source, selection)
        places = {published_path(name): local_path(name) for name in names if name is not None and is_local(name)}
        return {name: path for name, path in places.items() if is_local(name)}

    def absolute(self) -> Recipe:
        """Return the recipe with absolute paths in place of local names."""
        return self._renamed(lambda name: local_path(name) if is_local(name) else name)

    def located(self, places: Mapping[str, str]) -> Recipe:
        """Return the recipe with local paths in place of published names.

        Args:
            places: published name -> absolute path; other names are unchanged.
        """
        return self._renamed(lambda name: places.get(name, name))

    def _renamed(self, rename: Callable[[str], str]) -> Recipe:
        calibration, evaluation, selection = self.calibration, self.evaluation, self.selection
        return replace(
            self,
            model=rename(self.model),
            calibration=replace(calibration, source=rename(calibration.source)),
            evaluation=replace(evaluation, source=rename(evaluation.source) if evaluation.source is not None else None),
            selection=replace(selection, source=rename(selection.source)) if selection is not None else None,
        )

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe that `save` wrote.

        Raises:
            DataError: the file is missing or no recipe, or a setting is out of range.
        """
        from hf_farms.files.yaml_documents import load_yaml

        try:
            return parse_dataclass(load_yaml(read_text(Path(path), limit=MAX_BYTES)), cls)
        except OSError as error:
            raise DataError(f"recipe must be a readable file, got {str(path)!r} ({error.strerror}).") from error
        except DocumentError as error:
            raise DataError(f"recipe must be one that hf-farms wrote, got {str(path)!r} ({error}).") from error

    def flat(self) -> dict[str, object]:
        """Return all settings: dotted name -> value."""
        return _flat(_without_none(self))

    def differences(self, other: Recipe) -> list[str]:
        """Describe each setting that differs from another recipe's, as "name: this, previously other"."""
        settings, others = self.flat(), other.flat()

        def is_equal(key: str) -> bool:
            # One of the names may be a published one.
            one, other = settings.get(key), others.get(key)
            if key in PATH_SETTINGS and isinstance(one, str) and isinstance(other, str):
                return same_place(one, other)
            return one == other

        keys = dict.fromkeys((*settings, *others))
        return [f"{key}: {settings.get(key)!r}, previously {others.get(key)!r}" for key in keys if not is_equal(key)]

    def describe(self) -> list[str]:
        """Return the settings that have an effect, as lines "name: value"."""
        settings, others = (_flat(self.decided(writes=writes).effective()) for writes in (True, False))
        unless = " (where the model is streamed, or cannot generate text: {})"
        return [
            f"{key}: {value}{unless.format(others[key]) if others[key] != value else ''}"
            for key, value in settings.items()
        ]

    def effective(self) -> dict[str, object]:
        """Return the settings that have an effect, as mappings."""
        unused = {"calibration": not self.prune.needs_calibration, "selection": not self.prune.needs_selection}
        return {name: value for name, value in _without_none(self).items() if not unused.get(name)}

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a text must be tokenized; self-calibration generates tokens."""
        calibrates_on_text = self.prune.needs_calibration and self.calibration.source != "self"
        return calibrates_on_text or self.evaluation.source is not None or self.prune.needs_selection

    def texts(self) -> list[str | None]:
        """Return the sources of calibration, evaluation and selection text; None: not used."""
        selection = self.selection.source if self.selection is not None and self.prune.needs_selection else None
        return [self.calibration.source if self.prune.needs_calibration else None, self.evaluation.source, selection]


def _without_none(recipe: Recipe) -> dict[str, object]:
    """Return a recipe as mappings, without texts that it does not have."""
    settings: dict[str, object] = _converter().unstructure(recipe)
    if recipe.selection is None:
        del settings["selection"]
    return settings


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def _converter() -> PyyamlConverter:
    from cattrs.preconf.pyyaml import make_converter

    return make_converter(forbid_extra_keys=True)
