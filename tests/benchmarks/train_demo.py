"""Train the embedded demo model. Not part of the wheel.

    # Once: inaugural.txt, state_of_the_union.txt -> text/*.txt
    python tests/benchmarks/train_demo.py --split-from FOLDER
    python tests/benchmarks/train_demo.py --output hf_farms/demo/model

The text is public domain: the inaugural addresses 1789-2021 and the State of the Union addresses 1945-2006 of the
presidents of the United States, each joined in order of time, as in the NLTK corpora `inaugural` and `state_union`.
In `text/*.txt` two empty lines separate the speeches. Everything is chosen on `select.txt`; `test.txt` is only read
at the end, for the card.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_farms.spectra.analysis import analyze

HERE = Path(__file__).parents[2] / "hf_farms" / "demo"
TEXT = HERE / "text"
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


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of the context length: consecutive ones, or as many at random places."""

    def __init__(self, tokens: Tensor, *, shuffle: bool) -> None:
        self.tokens, self.shuffle = tokens, shuffle

    def __len__(self) -> int:
        return len(self.tokens) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = int(torch.randint(len(self.tokens) - CONTEXT, ())) if self.shuffle else index * CONTEXT
        window = self.tokens[start : start + CONTEXT]
        return {"input_ids": window, "labels": window}


def new_model(boundary: int) -> LlamaForCausalLM:
    """A small Llama with grouped-query attention, random."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=boundary,
        eos_token_id=boundary,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, epochs: int, seed: int) -> None:
    """Train in place; the weights that are best on the select split stay."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.1,
            adam_beta2=0.95,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            logging_steps=100,
            seed=seed,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=Windows(tokens_of("train", tokenizer), shuffle=True),
            eval_dataset=Windows(tokens_of("select", tokenizer), shuffle=False),
        ).train()


def perplexity(model: torch.nn.Module, tokens: Tensor) -> tuple[float, int]:
    """Perplexity over whole windows, and the number of predicted tokens."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    with torch.no_grad():
        losses = [float(model(input_ids=w[None], labels=w[None]).loss) for w in windows]
    return math.exp(math.fsum(losses) / len(losses)), len(losses) * (CONTEXT - 1)


def unigram_perplexity(train: Tensor, test: Tensor) -> float:
    """Perplexity of token frequencies with add-one smoothing, on the tokens that the model predicts."""
    counts = Counter(train.tolist())
    predicted = test[: len(test) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[:, 1:].flatten().tolist()
    total = len(train) + VOCABULARY
    return math.exp(-math.fsum(math.log((counts[t] + 1) / total) for t in predicted) / len(predicted))


def block_alphas(model: torch.nn.Module) -> tuple[float, float, float]:
    """Lowest, highest and mean alpha of the blocks."""
    alphas = [block.alpha for block in analyze(model).blocks if block.alpha is not None]
    return min(alphas), max(alphas), math.fsum(alphas) / len(alphas)


def write_card(folder: Path, tokenizer: PreTrainedTokenizerFast, command: str) -> None:
    """Measure what is shipped (bfloat16, read back from the folder) and describe it."""
    model = AutoModelForCausalLM.from_pretrained(folder)  # from_pretrained leaves it in evaluation mode
    test = tokens_of("test", tokenizer)
    on_test, count = perplexity(model, test)
    on_select, _ = perplexity(model, tokens_of("select", tokenizer))
    train = tokens_of("train", tokenizer)
    unigram = unigram_perplexity(train, test)
    card = (HERE / "card.md").read_text(encoding="utf-8")
    card = card.format(
        test=on_test,
        select=on_select,
        unigram=unigram,
        tokens=count,
        command=command,
        context=CONTEXT,
        parameters=model.num_parameters(),
        vocabulary=VOCABULARY,
        train_tokens=len(train),
        alpha=block_alphas(model),
        random=block_alphas(AutoModelForCausalLM.from_config(model.config)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"test {on_test:.2f}, select {on_select:.2f}, unigram {unigram:.2f} over {count} tokens")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split-from", type=Path, help="folder with inaugural.txt and state_of_the_union.txt")
    parser.add_argument("--output", type=Path, help="folder for the model")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output and options.output.exists():
        mine = options.output.is_dir() and options.output.resolve() == (HERE / "model").resolve()
        if not mine and (not options.output.is_dir() or any(options.output.iterdir())):
            parser.error(f"--output must be new, empty or the demo's own folder, got {str(options.output)!r}")
    if options.split_from:
        split_corpus(options.split_from)
    if options.output:
        set_seed(options.seed)
        tokenizer = train_tokenizer()
        model = new_model(tokenizer.bos_token_id)
        train(model, tokenizer, epochs=options.epochs, seed=options.seed)
        if options.output.exists():
            shutil.rmtree(options.output)
        model.bfloat16().save_pretrained(options.output)
        (options.output / "model.safetensors").chmod(0o644)  # is written for the owner alone, and ships in a wheel
        tokenizer.save_pretrained(options.output)
        command = (
            f"python tests/benchmarks/train_demo.py --output {options.output} --epochs {options.epochs} "
            f"--seed {options.seed}"
        )
        write_card(options.output, tokenizer, command)


if __name__ == "__main__":
    main()
