"""Convert the tokenizer of a Llama in Meta's layout (tokenizer.model) to that of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_farms.errors import ModelError
from hf_farms.output.folder import writing

__all__ = ["TOKENIZER_FILES", "convert_tokenizer"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


def convert_tokenizer(source: Path, target: Path) -> bool:
    """Write the tokenizer of a checkpoint in Meta's layout in the format of transformers.

    Meta's download script saves `tokenizer.model` in the folder above the weights, so that folder is searched too. A
    `tokenizer.json` in the checkpoint is copied as it is.

    Args:
        source: folder of the checkpoint.
        target: an existing folder.

    Returns:
        Whether the checkpoint has a tokenizer.

    Raises:
        ModelError: the tokenizer has another format, or the library that reads it is not installed.
        OutputError: the target cannot be written.
    """
    from transformers import LlamaTokenizer

    candidates = (source, source.absolute().parent)
    folder = next((parent for parent in candidates if (parent / "tokenizer.model").is_file()), None)
    with writing(target):
        if (source / "tokenizer.json").is_file():
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, target / name)
            return True
        if folder is None:
            return False
        _check_sentencepiece(folder / "tokenizer.model")
        shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
        # Meta prepends a BOS token, which the sentencepiece file does not record.
        LlamaTokenizer.from_pretrained(target, add_bos_token=True).save_pretrained(target)
    return True


def _check_sentencepiece(path: Path) -> None:
    """Refuse other formats: Llama 3 has a tiktoken tokenizer, whose special tokens are in no file."""
    from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

    with path.open("rb") as file:
        first_byte = file.read(1)
    if first_byte != b"\n":
        raise ModelError(
            "tokenizer.model must be a sentencepiece model, got another format, such as that of Llama 3.",
            hint="Copy the tokenizer.json and tokenizer_config.json of the model's Hub repository into its folder.",
        )
    if not is_sentencepiece_available() or not is_protobuf_available():
        raise ModelError(
            "tokenizer.model must be read by sentencepiece, which is not installed.",
            hint="pip install sentencepiece protobuf",
        )
