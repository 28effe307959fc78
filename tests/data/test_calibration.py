import json

import pytest
import torch
from models import tiny, tiny_bert
from transformers import LlamaConfig, T5Config, T5ForConditionalGeneration

from hf_farms.config import CalibrationConfig
from hf_farms.data import generation
from hf_farms.data.calibration import calibration_sequences
from hf_farms.data.generation import can_write, rows_at_once
from hf_farms.demo import demo_model
from hf_farms.errors import DataError, ModelError


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model())


def sequences(tokenizer, *, model=None, **settings):
    model = model or tiny("llama", vocab_size=2048)
    batches, notes = calibration_sequences(CalibrationConfig(**settings), model=model, tokenizer=tokenizer)
    return torch.cat(batches), notes


def test_passages_come_from_the_text_once_each(tokenizer, tmp_path):
    text = " ".join(f"number {i}" for i in range(2000))
    (tmp_path / "text.txt").write_text(text)
    ids = tokenizer(text, verbose=False)["input_ids"]
    got, notes = sequences(tokenizer, source=str(tmp_path / "text.txt"), num_sequences=20, sequence_length=32)
    assert got.shape == (20, 32)
    assert not notes
    pieces = [ids[i * 32 : (i + 1) * 32] for i in range(len(ids) // 32)]
    chosen = [pieces.index(row) for row in got.tolist()]
    assert len(set(chosen)) == 20
    again, _ = sequences(tokenizer, source=str(tmp_path / "text.txt"), num_sequences=20, sequence_length=32)
    other, _ = sequences(tokenizer, source=str(tmp_path / "text.txt"), num_sequences=20, sequence_length=32, seed=1)
    assert torch.equal(got, again)
    assert not torch.equal(got, other)


def write_table(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_tables(tokenizer, tmp_path, suffix):
    rows = [{"body": f"This is row number {i} of the table.", "n": i} for i in range(60)]
    path = write_table(tmp_path / f"rows.{suffix}", rows)
    got, _ = sequences(tokenizer, source=path, column="body", num_sequences=4, sequence_length=16)
    assert got.shape == (4, 16)
    assert "row number" in tokenizer.decode(got[1])
    with pytest.raises(DataError, match=r"column must be one of body, n, got 'text' in .*rows"):
        sequences(tokenizer, source=path)
    with pytest.raises(DataError, match="column must hold text, got a number in row 1 of 'n'"):
        sequences(tokenizer, source=path, column="n")


def test_the_built_in_text_needs_no_file(tokenizer):
    got, _ = sequences(tokenizer, source="speeches", num_sequences=3, sequence_length=64)
    assert got.shape == (3, 64)


def test_a_short_text_gives_fewer_sequences_and_says_so(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five " * 30)
    got, notes = sequences(tokenizer, source=str(tmp_path / "text.txt"), num_sequences=500, sequence_length=16)
    assert 1 <= len(got) < 500
    assert f"has {len(got)} sequences of 16 tokens, 500 were requested" in notes[0]


def test_long_sequences_are_cut_to_the_models_context(tokenizer):
    got, notes = sequences(tokenizer, source="speeches", num_sequences=2, sequence_length=1000)
    assert got.shape == (2, 64)
    assert "64 tokens, the context length of the model" in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "^calibration text must not be empty"),
        ("short", r"calibration text must have at least 64 tokens, got \d in"),
        (b"\xff\xfe\xfa", "^calibration text must be readable as UTF-8"),
        (None, r"^calibration text must be an existing file, got .*text\.txt"),
    ],
)
def test_useless_text_is_refused(tokenizer, tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        sequences(tokenizer, source=str(path))


def test_a_folder_and_a_broken_table_are_refused(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"^calibration text must be a file or a dataset id, got the folder"):
        sequences(tokenizer, source=str(tmp_path))
    (tmp_path / "rows.json").write_text("{not json")
    with pytest.raises(DataError, match=r"^calibration table must be JSON, got an error in line 1 of .*rows\.json"):
        sequences(tokenizer, source=str(tmp_path / "rows.json"))


def test_an_unknown_dataset_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"^calibration text must be a readable file or dataset, got 'nobody/nothing'"):
        sequences(tokenizer, source="nobody/nothing")


def test_text_needs_a_tokenizer():
    with pytest.raises(DataError, match="calibration on text must have a tokenizer"):
        sequences(None, source="speeches")


def test_self_calibration_is_written_by_the_model(tokenizer):
    model = tiny("llama", vocab_size=2048).train()
    state = torch.get_rng_state()
    before = model.generation_config
    got, _ = sequences(tokenizer, model=model, source="self", num_sequences=5, sequence_length=33)
    assert got.shape == (5, 33)
    assert (got[:, 0] == tokenizer.bos_token_id).all()
    assert len({tuple(row) for row in got.tolist()}) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.generation_config is before
    again, _ = sequences(tokenizer, model=model, source="self", num_sequences=5, sequence_length=33)
    other, _ = sequences(tokenizer, model=model, source="self", num_sequences=5, sequence_length=33, seed=7)
    assert torch.equal(got, again)
    assert not torch.equal(got, other)


def test_continuations_start_inside_the_passages_and_are_written_by_the_model(tokenizer):
    model = tiny("llama", vocab_size=2048).train()
    options = {"model": model, "source": "speeches", "num_sequences": 3, "sequence_length": 40}
    text, _ = sequences(tokenizer, **options)
    state = torch.get_rng_state()
    got, notes = sequences(tokenizer, **options, num_continuations=7)
    assert not notes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.equal(got[:3], text)
    written = got[3:]
    assert written.shape == (7, 40)
    for i, row in enumerate(written):
        passage = text[i % 3].tolist()
        starts = [start for start in range(40 - 16 + 1) if passage[start : start + 16] == row[:16].tolist()]
        assert starts
        assert row[16:].tolist() != passage[starts[0] + 16 :][:24]
    again, _ = sequences(tokenizer, **options, num_continuations=7)
    other, _ = sequences(tokenizer, **options, num_continuations=7, seed=1)
    assert torch.equal(got, again)
    assert not torch.equal(got, other)


@pytest.mark.parametrize(("length", "prompt"), [(2, 1), (5, 2), (31, 15), (64, 16)])
def test_the_prompt_of_a_continuation_is_at_most_half_of_it(tokenizer, length, prompt):
    got, _ = sequences(tokenizer, source="speeches", num_sequences=1, sequence_length=length, num_continuations=2)
    assert got.shape == (3, length)
    text = got[0].tolist()
    for row in got[1:].tolist():
        assert any(text[start : start + prompt] == row[:prompt] for start in range(length - prompt + 1))


def test_models_that_can_write():
    assert can_write(tiny("llama"), 2)
    assert not can_write(tiny("llama"), 1)
    assert not can_write(tiny("llama").model, 16)
    assert not can_write(tiny_bert(), 16)
    assert not can_write(T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1)), 16)


def test_few_sequences_of_a_large_model_are_written_together(monkeypatch):
    model = tiny("llama")
    config = model.config
    # Keys and values of a token, in float32.
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert rows_at_once(model, 512) == 64
    monkeypatch.setattr(generation, "CACHE_BYTES", 3 * 512 * size)
    assert [rows_at_once(model, length) for length in (512, 513, 10_000)] == [3, 2, 1]
    assert rows_at_once(model.half(), 512) == 6
    # Without heads in its config.
    assert rows_at_once(torch.nn.Linear(2, 2), 512) == 64


def test_configs_with_another_number_for_each_layer_are_measured_by_their_width(monkeypatch):
    class Mixed(LlamaConfig):
        @property
        def head_dim(self):
            raise RuntimeError("'head_dim' is a per-layer attribute")

    model = tiny("llama")
    config = model.config
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    monkeypatch.setattr(generation, "CACHE_BYTES", 3 * 512 * size)
    config.hidden_size *= 2
    config.__class__ = Mixed
    assert rows_at_once(model, 512) == 1


def test_continuations_need_a_model_that_writes(tokenizer):
    with pytest.raises(
        DataError,
        match=r"`num_continuations` must have a model that generates text, got BertForMaskedLM",
    ):
        sequences(tokenizer, model=tiny_bert(), source="speeches", sequence_length=16, num_continuations=1)
    # Nothing is to be written.
    sequences(tokenizer, model=tiny_bert(), source="speeches", sequence_length=16)


def test_self_calibration_follows_the_models_distribution(tokenizer):
    """A model whose head allows two tokens only writes those two, about equally often."""
    model = tiny("llama", vocab_size=2048, tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    model.lm_head = torch.nn.Linear(32, 2048)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data.fill_(-100)
    model.lm_head.bias.data[[0, 9]] = 0.0
    got, _ = sequences(tokenizer, model=model, source="self", num_sequences=40, sequence_length=50)
    assert set(got[:, 1:].flatten().tolist()) == {0, 9}
    assert 0.4 < (got[:, 1:] == 9).float().mean() < 0.6


def test_self_calibration_needs_a_model_that_writes(tokenizer):
    with pytest.raises(DataError, match="self-calibration must have a model that generates text, got BertForMaskedLM"):
        sequences(tokenizer, model=tiny_bert(), source="self")


def test_a_model_that_predicts_nan_is_refused(tokenizer):
    model = tiny("llama", vocab_size=2048)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="the model must predict finite probabilities"):
        sequences(tokenizer, model=model, source="self", num_sequences=1)
