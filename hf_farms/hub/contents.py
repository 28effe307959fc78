"""What of a folder belongs to a model, by name: only that is pushed.

The names are those that transformers, PEFT, sentence-transformers and the Hub give to the files of a model, and ours.
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
from hf_farms.hub.base_model import LICENCE_FILE

__all__ = ["Contents", "read_contents"]

IMAGE = r"\.(png|jpe?g|gif|webp|svg)"
# Names in the folder itself, and paths below it; each as a whole.
BELONGING = re.compile(
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
            # Ours, and results of a training or an evaluation.
            r"README\.md|recipe\.yaml|hf_farms_report\.json|farms_lr\.jsonl|CITATION\.cff|\.gitattributes",
            r"(all|train|eval|test|predict)_results\.json|trainer_state\.json|\.eval_results/[\w.-]+\.ya?ml",
            rf"figures/[\w./-]+{IMAGE}",
            r"custom_generate/(\w+\.py|requirements\.txt)",
        )
    )
)
COPYING = re.compile(r"(COPYING|COPYRIGHT|ACCEPTABLE_USE_POLICY)([-_.][^/]*)?", re.IGNORECASE)
# Nobody needs to be told that our own unfinished work is not pushed.
OWN_STATE = re.compile(r"(.*/)?(\.hf-farms-unfinished/.*|[^/]*\.partial(/.*)?)")
MODULES = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|from\s+\.\s+import\s+(\w+)|import\s+\.(\w+))", re.MULTILINE)
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Contents:
    """What is in a folder.

    Attributes:
        files: what belongs to the model: names in a repository, and where they are.
        others: names of everything else, each with why it is left out.
    """

    files: Mapping[str, Path]
    others: Mapping[str, str]

    def left_out(self, limit: int = 6) -> str | None:
        """What is not pushed, as the middle of a sentence: folders as one, links with what they are; None: nothing."""
        names: dict[str, str] = {}
        for name, why in self.others.items():
            top, _, rest = name.partition("/")
            names.setdefault(f"{top}/" if rest else top, "" if rest or why == FOREIGN else f" ({why})")
        shown = [f"{name}{why}" for name, why in names.items()]
        # Links first: these are what somebody may have taken for a file.
        shown.sort(key=lambda text: not text.endswith(")"))
        if not shown:
            return None
        more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
        return ", ".join(shown[:limit]) + more


FOREIGN = "not part of a model"


def read_contents(folder: Path) -> Contents:
    """Sort what is in a folder into what belongs to a model and what does not."""
    own, others = find_files(folder)
    own = {name: path for name, path in own.items() if not OWN_STATE.fullmatch(name)}
    also = {*_shards(own), *_code(own), *_images(own)}
    files = {name: path for name, path in own.items() if _belongs(name, also)}
    left = {name: kind for name, kind in others.items() if not OWN_STATE.fullmatch(name)}
    left |= {name: FOREIGN for name in own if name not in files}
    return Contents(files, dict(sorted(left.items())))


def _belongs(name: str, also: Collection[str]) -> bool:
    if name in also or BELONGING.fullmatch(name):
        return True
    return "/" not in name and bool(LICENCE_FILE.fullmatch(name) or COPYING.fullmatch(name))


def _shards(own: Mapping[str, Path]) -> Iterator[str]:
    """What the indices name; where one is damaged, `check_folder` says so."""
    for name, path in own.items():
        if name.endswith(".safetensors.index.json") and "/" not in name:
            try:
                yield from shard_names(path)
            except ModelError:
                continue


def _code(own: Mapping[str, Path]) -> Iterator[str]:
    """Modules that the configs name (`auto_map`), and those that these import from beside them."""
    waiting = {
        value.rpartition("--")[2].partition(".")[0]
        for name in CONFIGS
        if name in own
        for value in _auto_map(own[name])
        if "--" not in value
    }
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        name = f"{module}.py"
        if name in own and name not in seen:
            seen.add(name)
            text = own[name].read_text(encoding="utf-8", errors="replace")
            waiting |= {next(filter(None, found)) for found in MODULES.findall(text)}
    yield from seen


def _auto_map(config: Path) -> Iterator[str]:
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("auto_map") or {}
        values = list(found.values()) if isinstance(found, dict) else found
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    for value in values:
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _images(own: Mapping[str, Path]) -> Iterator[str]:
    """Images that the card shows from beside it."""
    if "README.md" in own:
        text = own["README.md"].read_text(encoding="utf-8", errors="replace")
        yield from (name for name in own if re.search(rf"{IMAGE}$", name, re.IGNORECASE) and name in text)
