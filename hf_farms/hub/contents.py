"""Select the files of a folder that are pushed: an allow-list of the file names of a model.

The names are those of transformers, PEFT, sentence-transformers, the Hub and hf-farms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_farms.errors import ModelError
from hf_farms.files.own_files import find_files
from hf_farms.files.shards import shard_names
from hf_farms.hub.base_model import LICENSE_FILE

__all__ = ["Contents", "read_contents"]

IMAGE = r"\.(png|jpe?g|gif|webp|svg)"
# Relative paths; each must match in full.
MODEL_FILE = re.compile(
    "|".join(
        (
            # Configs.
            r"(adapter_|generation_|tokenizer_|processor_|preprocessor_|video_preprocessor_|audio_tokenizer_|s2ft_)?"
            r"config\.json",
            r"(quantization|quantize|quant|hf_quant)_config\.json",
            r"special_tokens_map\.json|added_tokens\.json|chat_template\.(json|jinja)|modelcard\.json",
            r"additional_chat_templates/[\w-]+\.jinja",
            # Tokenizers: `VOCAB_FILES_NAMES` of all models of transformers, and of mistral-common and tiktoken.
            r"tokenizer\.json|tokenizer\.model(\.v\d+\w*)?|tekken\.json|[\w-]+\.tiktoken|prophetnet\.tokenizer",
            r"(target_|entity_)?vocab(-src|-tgt)?\.(json|txt|bpe)|merges\.txt|dict\.txt|bpe\.codes|encoder\.json",
            r"(spiece|spm|spm_char|sentencepiece(\.bpe)?)\.model|(source|target)\.spm",
            r"(byte_maps|emoji|normalizer|word_shape|word_pronunciation)\.json",
            # Weights.
            r"(?!optimizer|scheduler)[\w-][\w.-]*\.safetensors",
            r"model(\.[\w-]+)?\.safetensors\.index(\.[\w-]+)?\.json",
            # sentence-transformers.
            r"modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json",
            r"\d+_\w+/(config\.json|model\.safetensors)",
            # Files of hf-farms, and results of training or evaluation.
            r"README\.md|recipe\.yaml|hf_farms_report\.json|farms_lr\.jsonl|CITATION\.cff|\.gitattributes",
            r"(all|train|eval|test|predict)_results\.json|trainer_state\.json|\.eval_results/[\w.-]+\.ya?ml",
            rf"figures/[\w./-]+{IMAGE}",
            r"custom_generate/(\w+\.py|requirements\.txt)",
        )
    )
)
COPYING = re.compile(r"(COPYING|COPYRIGHT|ACCEPTABLE_USE_POLICY)([-_.][^/]*)?", re.IGNORECASE)
# Unfinished work of hf-farms, which is left out silently.
UNFINISHED = re.compile(r"(.*/)?(\.hf-farms-unfinished/.*|[^/]*\.partial(/.*)?)")
RELATIVE_IMPORT = re.compile(
    r"^\s*(?:from\s+\.(\w+)\s+import|from\s+\.\s+import\s+(\w+)|import\s+\.(\w+))", re.MULTILINE
)
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Contents:
    """The files of a folder, sorted into those to push and the rest.

    Attributes:
        files: files of the model: name in the repository -> path.
        others: everything else: name -> reason why it is not pushed.
    """

    files: Mapping[str, Path]
    others: Mapping[str, str]

    def left_out(self, limit: int = 6) -> str | None:
        """List the names that are not pushed, for a message; None: there are none.

        Files of a folder are listed as the folder; links are listed with their reason.
        """
        names: dict[str, str] = {}
        for name, reason in self.others.items():
            top, _, rest = name.partition("/")
            names.setdefault(f"{top}/" if rest else top, "" if rest or reason == FOREIGN else f" ({reason})")
        listed = [f"{name}{reason}" for name, reason in names.items()]
        # Links first, because users take them for files.
        listed.sort(key=lambda text: not text.endswith(")"))
        if not listed:
            return None
        more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
        return ", ".join(listed[:limit]) + more


FOREIGN = "not part of a model"


def read_contents(folder: Path) -> Contents:
    """Sort the files of a folder into those of a model, which are pushed, and the rest."""
    own, others = find_files(folder)
    own = {name: path for name, path in own.items() if not UNFINISHED.fullmatch(name)}
    referenced = {*_shards(own), *_code(own), *_images(own)}
    files = {name: path for name, path in own.items() if _is_model_file(name, referenced)}
    left_out = {name: kind for name, kind in others.items() if not UNFINISHED.fullmatch(name)}
    left_out |= {name: FOREIGN for name in own if name not in files}
    return Contents(files, dict(sorted(left_out.items())))


def _is_model_file(name: str, referenced: Collection[str]) -> bool:
    if name in referenced or MODEL_FILE.fullmatch(name):
        return True
    return "/" not in name and bool(LICENSE_FILE.fullmatch(name) or COPYING.fullmatch(name))


def _shards(own: Mapping[str, Path]) -> Iterator[str]:
    """Yield the shards that an index names; a damaged index is reported by `check_folder`."""
    for name, path in own.items():
        if name.endswith(".safetensors.index.json") and "/" not in name:
            try:
                yield from shard_names(path)
            except ModelError:
                continue


def _code(own: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules that `auto_map` of a config names, and the modules that these import from the same folder."""
    pending = {
        value.rpartition("--")[2].partition(".")[0]
        for name in CONFIGS
        if name in own
        for value in _auto_map(own[name])
        if "--" not in value
    }
    seen: set[str] = set()
    while pending:
        module = pending.pop()
        name = f"{module}.py"
        if name in own and name not in seen:
            seen.add(name)
            text = own[name].read_text(encoding="utf-8", errors="replace")
            pending |= {next(filter(None, groups)) for groups in RELATIVE_IMPORT.findall(text)}
    yield from seen


def _auto_map(config: Path) -> Iterator[str]:
    try:
        auto_map = json.loads(config.read_text(encoding="utf-8")).get("auto_map") or {}
        values = list(auto_map.values() if isinstance(auto_map, dict) else auto_map)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return
    for value in values:
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _images(own: Mapping[str, Path]) -> Iterator[str]:
    """Yield the images of the folder that the card shows."""
    if "README.md" in own:
        text = own["README.md"].read_text(encoding="utf-8", errors="replace")
        yield from (name for name in own if re.search(rf"{IMAGE}$", name, re.IGNORECASE) and name in text)
