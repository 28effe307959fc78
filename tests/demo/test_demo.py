"""The demo models: small enough to ship, really trained, with known defects, and measured on unseen speeches."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import hf_farms.demo
from hf_farms import analyze, compare_checkpoints
from hf_farms.demo import DEMO_FOLDERS, demo_model, demo_text

FOLDER = Path(hf_farms.demo.__file__).parent
TRAIN = FOLDER / "text" / "train.txt"
# In the repository, not in the wheel.
UNSHIPPED = {TRAIN}
CONTEXT = 256
# Blocks that were inserted late.
LATE: dict[str, list[int]] = {"demo": [3, 5], "demo-healthy": []}
MEGABYTE = 1_000_000


def speeches(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n\n\n")


@pytest.fixture(scope="module", params=DEMO_FOLDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(demo_model(name))


@pytest.fixture(scope="module")
def model(name: str) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(demo_model(name))


def test_shipped_files_stay_small() -> None:
    shipped = [f for f in FOLDER.rglob("*") if f.is_file() and f not in UNSHIPPED and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in shipped) <= 5.2 * MEGABYTE


def test_splits_share_no_speech() -> None:
    select, test, calibration = (speeches(demo_text(split)) for split in ("select", "test", "calibration"))
    assert min(len(select), len(test), len(calibration)) >= 5
    assert not set(select) & set(test)
    assert not set(calibration) & {*select, *test}


def test_splits_share_no_long_paragraph() -> None:
    """A speech that is held out under another heading would pass the test above."""

    def long_paragraphs(path: Path) -> set[str]:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if len(line.strip()) > 150}

    seen = [demo_text("calibration"), *([TRAIN] if TRAIN.exists() else [])]
    trained = set().union(*map(long_paragraphs, seen))
    select, test = long_paragraphs(demo_text("select")), long_paragraphs(demo_text("test"))
    assert select
    assert test
    assert not trained & select
    assert not trained & test
    assert not select & test


@pytest.mark.skipif(not TRAIN.exists(), reason="train.txt is not in the wheel")
def test_train_split_holds_calibration_and_nothing_held_out() -> None:
    train = set(speeches(TRAIN))
    assert set(speeches(demo_text("calibration"))) <= train
    assert not train & {*speeches(demo_text("select")), *speeches(demo_text("test"))}


def test_unknown_split_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^split must be one of calibration, select, test, got 'train'\.$"):
        demo_text("train")  # type: ignore[arg-type]


def test_unknown_model_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^name must be one of demo, demo-healthy, got 'demo-sick'\.$"):
        demo_model("demo-sick")
    with pytest.raises(ValueError, match=r"^name must be one of demo, demo-healthy, got \['demo'\]\.$"):
        demo_model(["demo"])  # type: ignore[arg-type]


def test_paths_need_neither_torch_nor_transformers() -> None:
    code = "import sys, hf_farms.demo as d; d.demo_model(); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_loads_without_a_warning(name: str) -> None:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")  # does not propagate to the root logger, so caplog hears nothing
    logger.addHandler(handler)
    try:
        AutoTokenizer.from_pretrained(demo_model(name))
        AutoModelForCausalLM.from_pretrained(demo_model(name))
    finally:
        logger.removeHandler(handler)
    assert messages == []


def test_model_is_a_llama_with_grouped_query_attention(name: str, model: LlamaForCausalLM) -> None:
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == 8
    assert 1 < model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.max_position_embeddings == CONTEXT
    assert json.loads((demo_model(name) / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize("text", ["Fellow citizens,\n\n  we meet --  again.", "naïve – 中文 \t\U0001f600", ""])
def test_tokenizer_round_trips_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.model_max_length == CONTEXT


def test_tokenizer_and_model_agree_on_the_vocabulary(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.bos_token_id == model.config.bos_token_id == model.generation_config.bos_token_id


def test_model_is_far_better_than_a_unigram_model_on_test_speeches(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    text = demo_text("test").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    windows = tokens[: 40 * CONTEXT].reshape(40, CONTEXT)
    with torch.inference_mode():
        nll = float(model(input_ids=windows, labels=windows).loss)

    fitted = "".join(demo_text(split).read_text(encoding="utf-8") for split in ("calibration", "select"))
    counts = Counter(tokenizer(fitted, verbose=False)["input_ids"])
    total = counts.total() + len(tokenizer)
    predicted = windows[:, 1:].flatten().tolist()
    unigram_nll = -math.fsum(math.log((counts[t] + 1) / total) for t in predicted) / len(predicted)

    assert math.exp(nll) < math.exp(unigram_nll) / 5
    assert math.exp(nll) < 60


def alphas_of(model: LlamaForCausalLM) -> list[float]:
    return [block.alpha for block in analyze(model).blocks if block.alpha is not None]


def test_trained_blocks_have_a_heavier_tail_than_random_ones_and_late_blocks_do_not(
    name: str, model: LlamaForCausalLM
) -> None:
    torch.manual_seed(0)
    random = alphas_of(AutoModelForCausalLM.from_config(model.config))
    alphas = dict(enumerate(alphas_of(model)))
    late = [alphas.pop(index) for index in LATE[name]]
    assert len(random) == len(alphas) + len(late) == 8
    assert max(alphas.values()) < min(random) - 0.2
    assert all(alpha > max(alphas.values()) + 0.2 for alpha in late)


def test_the_card_names_the_late_blocks_and_their_alphas(name: str, model: LlamaForCausalLM) -> None:
    card = (demo_model(name) / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) ± [\d.]+ \| (inserted late)? *\|$", card, re.MULTILINE)
    assert [float(alpha) for _, alpha, _ in rows] == pytest.approx(alphas_of(model), abs=0.002)
    assert [int(index) for index, _, mark in rows if mark] == LATE[name]


def test_compared_with_its_twin_the_demo_is_less_trained_in_its_late_blocks_alone() -> None:
    blocks = compare_checkpoints("demo-healthy", "demo").blocks
    differences = {block.index: block.alpha.difference for block in blocks if block.alpha.difference is not None}
    late = [differences.pop(index) for index in LATE["demo"]]
    assert len(differences) == 6
    assert min(late) > 0.2
    assert max(map(abs, differences.values())) < 0.1


def test_the_twins_differ_in_weights_and_card_alone() -> None:
    demo, healthy = DEMO_FOLDERS.values()
    same = [path.name for path in demo.iterdir() if path.read_bytes() == (healthy / path.name).read_bytes()]
    assert sorted(same) == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
