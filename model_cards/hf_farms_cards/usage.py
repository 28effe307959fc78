"""What kind of model it is -> the lines that load it and show that it works."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hf_farms.documents import DocumentError, load_json, read_text
from hf_farms.own_files import is_own_file
from hf_farms.privacy import published_text

__all__ = ["Checkpoint", "Task", "as_call", "quick_start", "task_of"]


# As transformers' tokenizers write them; `merges.txt` never comes alone.
TOKENIZER_FILE = re.compile(r"tokenizer(_config)?\.json|tekken\.json|.*\.model|.*vocab.*\.(json|txt)|.*\.tiktoken")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the files of a model say, beside its report.

    Attributes:
        architecture: class that it was saved from; None: not known, the model type decides.
        chat: its tokenizer has a chat template.
        recipe: text of its recipe.yaml; None: there is none.
        files: names of all files; None: not known.
    """

    architecture: str | None = None
    chat: bool = False
    recipe: str | None = None
    files: frozenset[str] | None = None

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        """Read a folder; what is missing there or is not as it should be is not known."""
        names = _json(folder / "config.json").get("architectures")
        recipe = folder / "recipe.yaml"
        return cls(
            architecture=names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None,
            chat=(folder / "chat_template.jinja").is_file()
            or bool(_json(folder / "tokenizer_config.json").get("chat_template")),
            # A link may lead to anything, and the card shows all of it.
            recipe=published_text(recipe.read_text(encoding="utf-8", errors="replace"))
            if is_own_file(recipe)
            else None,
            files=frozenset(path.name for path in folder.iterdir()),
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer is among the files; they may not be known, and most models have one."""
        return self.files is None or any(TOKENIZER_FILE.fullmatch(name) for name in self.files)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe of that name would be waited for
        return {}
    try:
        found = load_json(read_text(path), allow_nan=True).data
    except (OSError, DocumentError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Task:
    """The Hub's name of a task, and transformers' class for it."""

    pipeline_tag: str
    auto_class: str


# By the end of a class name of transformers, the longer first.
BY_ARCHITECTURE = {
    "ForCausalLM": Task("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": Task("text-generation", "AutoModelForCausalLM"),
    "ForMaskedLM": Task("fill-mask", "AutoModelForMaskedLM"),
    "ForImageClassification": Task("image-classification", "AutoModelForImageClassification"),
    "ForSequenceClassification": Task("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": Task("token-classification", "AutoModelForTokenClassification"),
    "ForQuestionAnswering": Task("question-answering", "AutoModelForQuestionAnswering"),
}
SEQ2SEQ = Task("text2text-generation", "AutoModelForSeq2SeqLM")
VISION_LANGUAGE = Task("image-text-to-text", "AutoModelForImageTextToText")
ANY = Task("feature-extraction", "AutoModel")
# Where only `config.model_type` is known: what is no language model that writes.
BY_MODEL_TYPE = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert"), "ForMaskedLM"),
    **dict.fromkeys(("vit", "deit", "swin", "convnext", "resnet", "dinov2"), "ForImageClassification"),
}
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "umt5")
WITH_IMAGES = ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "mllama", "llama4", "idefics3")


def task_of(model_type: str, architecture: str | None = None) -> Task:
    """The task of a model.

    Args:
        model_type: of its config.
        architecture: the class that it was saved from, where that is known; else the model type decides.
    """
    if architecture is None:
        if model_type in ENCODER_DECODERS:
            return SEQ2SEQ
        if model_type in WITH_IMAGES:
            return VISION_LANGUAGE
        return BY_ARCHITECTURE[BY_MODEL_TYPE.get(model_type, "ForCausalLM")]
    for end, task in BY_ARCHITECTURE.items():
        if architecture.endswith(end):
            return task
    if architecture.endswith("ForConditionalGeneration"):
        return VISION_LANGUAGE if model_type in WITH_IMAGES else SEQ2SEQ if model_type in ENCODER_DECODERS else ANY
    return ANY


GENERATE = """\
from transformers import {auto_class}, AutoTokenizer

name = "{name}"
model = {auto_class}.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

inputs = tokenizer("{prompt}", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""

CHAT = """\
from transformers import {auto_class}, AutoTokenizer

name = "{name}"
model = {auto_class}.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

messages = [{{"role": "user", "content": "What is a forest?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

FILL_MASK = """\
from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")
print(fill(f"The capital of France is {{fill.tokenizer.mask_token}}."))"""

COUNT = """\
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}")
zeros = sum(int((p == 0).sum()) for p in model.parameters())
print(f"{{zeros / model.num_parameters():.2%}} of the parameters are zero")"""


def quick_start(name: str, task: Task, *, chat: bool = False, tokenizer: bool = True) -> str:
    """Python that loads the model and prints something.

    Args:
        name: of the repository or folder.
        task: of the model.
        chat: its tokenizer has a chat template.
        tokenizer: it has one; without it the model alone is loaded.
    """
    safe = re.sub(r'["\\\n\r]', "", name)
    if not tokenizer:
        return COUNT.format(auto_class=task.auto_class, name=safe)
    if task.pipeline_tag == "text-generation" and chat:
        return CHAT.format(auto_class=task.auto_class, name=safe)
    if task.pipeline_tag in ("text-generation", "text2text-generation"):
        prompt = "The people of this country" if task.pipeline_tag == "text-generation" else "A long story:"
        return GENERATE.format(auto_class=task.auto_class, name=safe, prompt=prompt)
    template = FILL_MASK if task.pipeline_tag == "fill-mask" else COUNT
    return template.format(auto_class=task.auto_class, name=safe)


def as_call(config: Any) -> str:
    """A config in Python, without what is as by default."""
    default = type(config)()
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    changed = {key: value for key, value in changed.items() if value != getattr(default, key)}
    return f"{type(config).__name__}({', '.join(f'{key}={_python(value)}' for key, value in changed.items())})"


def _python(value: Any) -> str:
    if is_dataclass(value):
        return as_call(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))}{',' if len(value) == 1 else ''})"
    return json.dumps(value) if isinstance(value, str) else repr(value)
