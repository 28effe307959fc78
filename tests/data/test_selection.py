"""Selection sequences: two halves of a text that neither calibrates nor evaluates."""

import pytest
import torch
from models import tiny

from hf_farms.config import CalibrationConfig, EvaluationConfig, SelectionConfig
from hf_farms.data.selection import (
    ACCEPTANCE_TOKENS,
    MAX_TOKENS,
    acceptance_sequences,
    check_selection_apart,
    selection_sequences,
    split_selection,
)
from hf_farms.data.selection_source import check_selection_source
from hf_farms.data.texts import read_text
from hf_farms.demo import demo_text
from hf_farms.errors import DataError


class Letters:
    """A tokenizer of one token per word."""

    def __call__(self, text, **options):
        return {"input_ids": [hash(word) % 97 for word in text.split()]}


@pytest.fixture
def model():
    return tiny("llama")


def test_the_default_is_the_part_of_the_package_that_is_used_for_nothing_else(model):
    assert read_text("speeches", split="select") == demo_text("select").read_text(encoding="utf-8")
    sequences, notes = selection_sequences(SelectionConfig(), model=model, tokenizer=Letters())
    words = demo_text("select").read_text(encoding="utf-8").split()
    assert sequences[0].tolist() == [[hash(word) % 97 for word in words[:64]]]
    assert notes == ["Selection sequences have 64 tokens, the context length of the model."]
    most = MAX_TOKENS // 64
    assert len(sequences) == min(2 * most, len(words) // 64)


def test_halves_are_those_of_the_text(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, range(8 * 50 + 3))))
    config = SelectionConfig(source=str(text), sequence_length=50)
    sequences, _ = selection_sequences(config, model=model, tokenizer=Letters())
    halves = split_selection(sequences)
    assert [batch["input_ids"].shape for batch in halves.search] == [(1, 50)] * 4
    assert torch.equal(halves.acceptance[0]["input_ids"], sequences[4])


def test_a_recovery_is_accepted_on_spaced_sequences_of_the_second_half():
    rows = list(torch.arange(80)[:, None].expand(80, 256))
    chosen = acceptance_sequences(rows, calibration=[])
    assert [int(batch["input_ids"][0, 0]) for batch in chosen] == [40 + 40 * i // 16 for i in range(16)]
    assert sum(batch["input_ids"].numel() for batch in chosen) == ACCEPTANCE_TOKENS
    # Two of long ones.
    assert len(acceptance_sequences(list(torch.zeros(6, 5000, dtype=torch.long)), calibration=[])) == 2


def test_a_short_text_is_refused(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("word " * 199)
    with pytest.raises(DataError, match=r"selection text must have at least 200 tokens \(four sequences, two in each"):
        selection_sequences(SelectionConfig(source=str(text), sequence_length=50), model=model, tokenizer=Letters())
    with pytest.raises(DataError, match=r"selection text must be tokenized, got a model without a tokenizer"):
        selection_sequences(SelectionConfig(), model=model, tokenizer=None)


def test_a_text_that_calibrates_or_evaluates_is_refused(tmp_path):
    text = str(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text("words")
    selection = SelectionConfig(source=text)
    with pytest.raises(DataError, match=r"selection text must not be the calibration text, got '.*text.txt' for both"):
        check_selection_source(selection, calibration=CalibrationConfig(source=text), evaluation=None)
    with pytest.raises(DataError, match=r"selection text must not be the evaluation text"):
        check_selection_source(selection, calibration=None, evaluation=EvaluationConfig(source=text))
    check_selection_source(selection, calibration=CalibrationConfig(), evaluation=EvaluationConfig())
    check_selection_source(SelectionConfig(), calibration=CalibrationConfig(), evaluation=EvaluationConfig())
    # Splits of a dataset are different texts.
    check_selection_source(
        SelectionConfig(source="a/b"),
        calibration=CalibrationConfig(source="a/b"),
        evaluation=EvaluationConfig(source="a/b"),
    )


def test_calibration_text_in_other_windows_is_found():
    text = torch.randint(0, 1000, (400,), generator=torch.Generator().manual_seed(0))
    calibration = [{"input_ids": text[:200].view(2, 100)}]
    apart = split_selection(list(text[200:].view(4, 50)))
    check_selection_apart(apart, calibration)
    shifted = split_selection([*text[200:350].view(3, 50), text[13:63]])
    with pytest.raises(DataError, match=r"selection text must not be the calibration text, got a sequence"):
        check_selection_apart(shifted, calibration)


def is_apart(selection, other):
    try:
        check_selection_apart(split_selection(selection), [{"input_ids": ids[None]} for ids in other])
    except DataError:
        return False
    return True


@pytest.mark.parametrize(
    ("start", "length", "apart"),
    [
        (20, 20, False),  # a part of one sequence of 64
        (70, 50, False),
        (100, 64, False),  # half of one, half of the next
        (3, 300, False),
        (208, 64, False),  # most of the last
        (224, 64, True),
        (256, 300, True),
        (0, 15, True),  # too short to tell
    ],
)
def test_text_inside_of_the_selection_is_found_whatever_its_length(start, length, apart):
    text = torch.randint(0, 1000, (600,), generator=torch.Generator().manual_seed(0))
    assert is_apart(list(text[:256].view(4, 64)), [text[start : start + length]]) == apart


@pytest.mark.parametrize("length", [32, 48, 80, 120, 250, 512])
def test_a_selection_sequence_inside_of_a_longer_one_is_found_wherever_it_begins(length):
    text = torch.randint(0, 1000, (9000,), generator=torch.Generator().manual_seed(0))
    others = list(text[4 * length + 2000 :][: 3 * length].view(3, length))
    # Another sequence is longer than both.
    rows = [*others, text[4000:6000]]
    assert is_apart(rows, [text[: 4 * length]])
    for start in range(0, 3 * length, max(1, length // 32)):
        assert not is_apart([*rows, text[start : start + length]], [text[: 4 * length]]), start


def test_a_prompt_that_all_sequences_have_is_not_taken_for_common_text():
    text = torch.randint(0, 1000, (20, 200), generator=torch.Generator().manual_seed(0))
    for prompt, length in ((22, 30), (22, 40), (20, 80), (150, 180)):
        chats = text[:, :length].clone()
        chats[:, :prompt] = text[0, :prompt]
        assert is_apart(list(chats[:10]), list(chats[10:]))
        assert not is_apart(list(chats[:11]), list(chats[10:]))
    # A phrase at the end of a long sequence that one of the selection has too.
    rows = text[:10].clone()
    rows[3, 50:70] = text[15, -20:]
    assert is_apart(list(rows), list(text[10:]))


def test_padding_is_not_taken_for_common_text():
    text = torch.randint(1, 1000, (5, 40), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([text, torch.zeros(5, 216, dtype=torch.long)], dim=1)
    padded = [{"input_ids": row[None], "attention_mask": (row != 0).long()[None]} for row in ids]
    check_selection_apart(split_selection(padded[:4]), padded[4:])
    assert is_apart(list(ids[:4]), [ids[4, :80]])
    with pytest.raises(DataError, match="must not be the calibration text"):
        check_selection_apart(split_selection(padded[:4]), padded[3:])


def test_a_file_is_found_under_another_name_and_as_a_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("one text\n" * 9)
    (tmp_path / "copy.txt").write_text("one text\n" * 9)
    (tmp_path / "other.txt").write_text("two text\n" * 9)
    (tmp_path / "link.txt").symlink_to("text.txt")
    calibration = CalibrationConfig(source="text.txt")
    for name in ("./text.txt", str(tmp_path / "text.txt"), "link.txt", "copy.txt"):
        with pytest.raises(DataError, match="selection text must not be the calibration text"):
            check_selection_source(SelectionConfig(source=name), calibration=calibration, evaluation=None)
    check_selection_source(SelectionConfig(source="other.txt"), calibration=calibration, evaluation=None)
