"""Text and tokenizer of the demo. Used by train_demo.py, train_text.py and planted.py.

The text is public domain: the inaugural addresses 1789-2021 and the State of the Union addresses 1945-2006 of the
presidents of the United States, each joined in order of time, as in the NLTK corpora `inaugural` and `state_union`.
In `text/*.txt` two empty lines separate the speeches.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

DEMO = Path(__file__).parents[2] / "hf_farms" / "demo"
TEXT = DEMO / "text"
CONTEXT = 256
VOCABULARY = 2048
BOUNDARY = "<|endoftext|>"
SPEECH_BREAK = "\n\n\n"

# How each inaugural address opens, in order; the source joins them without a mark.
INAUGURAL_OPENINGS = """
Fellow-Citizens of the Senate|Fellow citizens, I am again called|When it was first perceived|Friends and Fellow
Proceeding, fellow citizens|Unwilling to depart|About to add the solemnity|I should be destitute
Fellow citizens, I shall not attempt|In compliance with an usage|Fellow citizens, about to undertake
Fellow citizens, the will of the|Fellow citizens: The practice of all|Called from a retirement
Fellow citizens, without solicitation|Elected by the American people|My Countrymen, It a relief
Fellow citizens, I appear before you|Fellow-Citizens of the United States: In|Fellow-Countrymen:
Citizens of the United States:|Fellow-Citizens:|Fellow citizens, we have assembled|Fellow citizens, we have reached
Fellow-Citizens:|Fellow citizens, in the presence of this vast|Fellow-Citizens, there is no constit
My Fellow citizens, in obedience|Fellow citizens, In obedience|My fellow-citizens, when we assembled
My fellow citizens, no people on earth|My fellow citizens: Anyone who has taken|There has been a change of government
My Fellow citizens: The four years|My Countrymen:|My Countrymen: This occasion|I am certain that my fellow
When four years ago we met|On each national day|Mr. Vice President, Mr. Chief Justice|My friends, before I begin
The Price of Peace|Vice President Johnson|My fellow countrymen, on this occasion|Senator Dirksen
Mr. Vice President, Mr. Speaker, Mr. Chief Justice, Senator Cook|For myself and for our Nation|Senator Hatfield
Senator Mathias|Mr. Chief Justice, Mr. President, Vice President Quayle|My fellow citizens, today we celebrate
My fellow citizens:|President Clinton,|Vice President Cheney|My fellow citizens:|Vice President Biden
Chief Justice Roberts, President Carter|Chief Justice Roberts, Vice President Harris
"""
# Headings of the State of the Union addresses. A few speeches have none and stay with the one before them, so that
# whatever is held out is held out whole.
UNION_HEADING = re.compile(
    r"^\s*(PRESIDENT [A-Z.' ]+'S |ADDRESS (OF|BEFORE) "
    r"|Annual Message to the Congress|Address on the State of the Union)"
)
# Quotation marks and dashes that a wrong encoding has mangled, and their plain forms.
MANGLED = {
    "¡¦": "'",
    "¡X": "--",
    "¡§": '"',
    "¡¨": '"',
    "¡@": " ",
    "½¢": "1/2 cent",
    "â€¦": "...",
    "â€”": "--",
    "â€œ": '"',
    "â€”œ": '"',
    "â€": '"',
    "¦": "'",
    "§": '"',
    "¨": '"',
    "¡": "'",
}


def split_corpus(folder: Path) -> None:
    """Write train, select, test and calibration text, split by speech, from the two source files."""
    speeches = [
        *_cut(folder / "inaugural.txt", _inaugural_starts),
        *_cut(folder / "state_of_the_union.txt", _union_starts),
    ]
    kept: dict[str, list[str]] = {"train": [], "select": [], "test": []}
    for index, speech in enumerate(speeches):
        # Every twelfth speech is for testing and every twelfth, half-way between, for choosing; the very long ones are
        # trained on, as one of them would be most of what is held out.
        held_out = {0: "select", 6: "test"}.get(index % 12, "train") if len(speech) < 60_000 else "train"
        kept[held_out].append(speech)
    kept["calibration"] = kept["train"][3::9]
    TEXT.mkdir(exist_ok=True)
    for name, part in kept.items():
        (TEXT / f"{name}.txt").write_text(SPEECH_BREAK.join(part) + "\n", encoding="utf-8")
        print(f"{name}: {len(part)} speeches, {sum(map(len, part))} characters")


def _cut(path: Path, find_starts: Callable[[list[str]], list[int]]) -> list[str]:
    text = path.read_text(encoding="utf-8")
    for wrong, right in MANGLED.items():
        text = text.replace(wrong, right)
    lines = text.encode("ascii", "ignore").decode().split("\n")
    starts = find_starts(lines)
    parts = ["\n".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return [re.sub(r"\s*\n\s*\n\s*", "\n\n", part).strip() for part in parts]


def _inaugural_starts(lines: list[str]) -> list[int]:
    starts: list[int] = []
    for opening in INAUGURAL_OPENINGS.strip().replace("\n", "|").split("|"):
        after = starts[-1] + 1 if starts else 0
        starts.append(next(i for i in range(after, len(lines)) if lines[i].lower().startswith(opening.lower())))
    return starts


def _union_starts(lines: list[str]) -> list[int]:
    return [i for i, line in enumerate(lines) if UNION_HEADING.match(line)]


def speeches_of(split: str) -> list[str]:
    """The speeches of one split."""
    return (TEXT / f"{split}.txt").read_text(encoding="utf-8").strip().split(SPEECH_BREAK)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, fitted to the train split alone, that starts a text with the boundary token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(speeches_of("train"), trainer)
    boundary = (BOUNDARY, bpe.token_to_id(BOUNDARY))
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOUNDARY} $A", special_tokens=[boundary]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tokens_of(split: str, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """All speeches of a split in one row of tokens, a boundary before each."""
    return torch.tensor(
        [token for speech in speeches_of(split) for token in tokenizer(speech, verbose=False)["input_ids"]]
    )


def unigram_perplexity(train: Tensor, test: Tensor) -> float:
    """Perplexity of token frequencies with add-one smoothing, on the tokens that the model predicts."""
    counts = Counter(train.tolist())
    predicted = test[: len(test) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[:, 1:].flatten().tolist()
    total = len(train) + VOCABULARY
    return math.exp(-math.fsum(math.log((counts[t] + 1) / total) for t in predicted) / len(predicted))
