"""Write the quick start of a card: Python code that loads the model and runs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hf_farms.files.documents import DocumentError, load_json, read_text
from hf_farms.files.names import MODEL_CONFIG, RECIPE
from hf_farms.files.own_files import is_own_file
from hf_farms.privacy.publishing import published_text
from hf_farms_cards.tasks import Task, task_of

__all__ = ["Checkpoint", "Task", "as_call", "quick_start", "task_of"]


# File names of transformers tokenizers; `merges.txt` never occurs alone.
TOKENIZER_FILE = re.compile(r"tokenizer(_config)?\.json|tekken\.json|.*\.model|.*vocab.*\.(json|txt)|.*\.tiktoken")
PROCESSOR_FILES = {"preprocessor_config.json", "processor_config.json"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Metadata from the files of a model.

    Attributes:
        architecture: class that saved the model; None if unknown, then the model type is used.
        chat: whether its tokenizer has a chat template.
        recipe: text of its recipe.yaml, or None.
        files: names of all files; None if unknown.
    """

    architecture: str | None = None
    chat: bool = False
    recipe: str | None = None
    files: frozenset[str] | None = None

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        """Read the metadata from a folder; missing or damaged files count as unknown."""
        names = _read_json(folder / MODEL_CONFIG).get("architectures")
        recipe = folder / RECIPE
        return cls(
            architecture=names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None,
            chat=(folder / "chat_template.jinja").is_file()
            or bool(_read_json(folder / "tokenizer_config.json").get("chat_template")),
            # Links are not followed: the card would publish the content of their target.
            recipe=published_text(recipe.read_text(encoding="utf-8", errors="replace"))
            if is_own_file(recipe)
            else None,
            files=frozenset(path.name for path in folder.iterdir()),
        )

    @property
    def has_processor(self) -> bool:
        """Whether the files include an image processor; True if the files are unknown."""
        return self.files is None or bool(self.files & PROCESSOR_FILES)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the files include a tokenizer; True if the files are unknown."""
        return self.files is None or any(TOKENIZER_FILE.fullmatch(name) for name in self.files)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # reading a named pipe would block
        return {}
    try:
        data = load_json(read_text(path), allow_nan=True).data
    except (OSError, DocumentError):
        return {}
    return data if isinstance(data, dict) else {}


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

ANSWER = """\
from transformers import {auto_class}, AutoTokenizer

name = "{name}"
model = {auto_class}.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

inputs = tokenizer("Where is the river?", "The river is behind the house.", return_tensors="pt")
output = model(**inputs)
start, end = int(output.start_logits.argmax()), int(output.end_logits.argmax())
print("Answer:", tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""

CLASSIFY = """\
from transformers import pipeline

classify = pipeline("{tag}", model="{name}")
print(classify("The people of this country are its strength."))"""

CLASSIFY_IMAGE = """\
from PIL import Image
from transformers import pipeline

classify = pipeline("{tag}", model="{name}")
print(classify(Image.new("RGB", (224, 224), "green")))  # or the name of a file"""

EMBED = """\
from transformers import {auto_class}, AutoTokenizer

name = "{name}"
model = {auto_class}.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

output = model(**tokenizer("The people of this country", return_tensors="pt"))
print(output[0].shape)"""

# Templates with raw model inputs, for checkpoints without tokenizer or image processor.
BARE = """\
import torch
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}")
{lines}"""
IDS = "ids = torch.tensor([[5, 6, 7, 8]])  # from its tokenizer, which is not stored here\n"
SCORES = """\
for label, score in zip(model.config.id2label.values(), output.logits[0].tolist()):
    print(label, score)"""
BARE_LINES = {
    "text-generation": f"{IDS}print(model.generate(ids, max_new_tokens=8))",
    "text2text-generation": f"{IDS}print(model.generate(ids, max_new_tokens=8))",
    "fill-mask": f"{IDS}print(model(ids).logits[0].argmax(-1))",
    "text-classification": f"{IDS}output = model(ids)\n{SCORES}",
    "token-classification": f"{IDS}labels = model(ids).logits[0].argmax(-1).tolist()\n"
    "print([model.config.id2label[label] for label in labels])",
    "question-answering": f"{IDS}output = model(ids)\n"
    'print("Answer:", int(output.start_logits.argmax()), "to", int(output.end_logits.argmax()))',
    "feature-extraction": f"{IDS}print(model(ids)[0].shape)",
    "image-classification": """\
size = getattr(model.config, "image_size", 224)
output = model(torch.rand(1, model.config.num_channels, size, size))
"""
    + SCORES,
}

LOAD = """\
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}")
print(f"{{model.num_parameters():,}} parameters")"""

COUNT = """\
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}")
zeros = sum(int((p == 0).sum()) for p in model.parameters())
print(f"{{zeros / model.num_parameters():.2%}} of the parameters are zero")"""


# Templates for checkpoints with a tokenizer (or image processor).
WITH_TOKENIZER = {
    "text-generation": GENERATE,
    "text2text-generation": GENERATE,
    "fill-mask": FILL_MASK,
    "text-classification": CLASSIFY,
    "token-classification": CLASSIFY,
    "question-answering": ANSWER,
    "feature-extraction": EMBED,
    "image-classification": CLASSIFY_IMAGE,
}
PROMPTS = {"text-generation": "The people of this country", "text2text-generation": "A long story:"}


def quick_start(name: str, task: Task, checkpoint: Checkpoint, *, pruned: bool) -> str:
    """Return Python code that loads the model and prints an output.

    Args:
        name: repository or folder of the model.
        task: task of the model.
        checkpoint: metadata of its files; without a tokenizer, only the model is loaded.
        pruned: whether to count zeros if there is no better example.
    """
    has_preprocessor = checkpoint.has_processor if task.pipeline_tag.startswith("image-") else checkpoint.has_tokenizer
    if task.pipeline_tag == "text-generation" and has_preprocessor and checkpoint.chat:
        template = CHAT
    elif task.pipeline_tag in WITH_TOKENIZER and has_preprocessor:
        template = WITH_TOKENIZER[task.pipeline_tag]
    elif pruned:
        template = COUNT
    else:
        template = BARE if task.pipeline_tag in BARE_LINES else LOAD
    return template.format(
        auto_class=task.auto_class,
        tag=task.pipeline_tag,
        name=re.sub(r'["\\\n\r]', "", name),
        prompt=PROMPTS.get(task.pipeline_tag),
        lines=BARE_LINES.get(task.pipeline_tag),
    )


def as_call(config: Any, **defaults: Any) -> str:
    """Format a config as a Python call, without fields that have their default.

    Args:
        config: a dataclass.
        defaults: of fields whose default depends on other fields.
    """
    default = type(config)()
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    changed = {key: value for key, value in values.items() if value != defaults.get(key, getattr(default, key))}
    return f"{type(config).__name__}({', '.join(f'{key}={_literal(value)}' for key, value in changed.items())})"


def _literal(value: Any) -> str:
    if is_dataclass(value):
        return as_call(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return json.dumps(value) if isinstance(value, str) else repr(value)
