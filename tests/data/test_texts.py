"""Texts for calibration and evaluation: what a file is, what is read of it, and what is refused in a sentence."""

import bz2
import csv
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import datasets
import pyarrow
import pytest
from hf_farms_cli.app import app
from pyarrow import ipc, parquet
from typer.testing import CliRunner

from hf_farms import evaluate_checkpoint
from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig, SelectionConfig
from hf_farms.data.selection import selection_sequences
from hf_farms.data.texts import check_source, check_text, read_text
from hf_farms.errors import DataError
from hf_farms.output.recipe import Recipe
from hf_farms.workflows.texts import evaluation_tokens

ROWS = [{"id": i, "text": f"Row {i}, with words."} for i in range(1, 4)]
TEXT = "\n\n".join(row["text"] for row in ROWS)
LINES = "\n".join(json.dumps(row) for row in ROWS)
CSV = "id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in ROWS)
TSV = "id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in ROWS)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def arrow(path, *, stream):
    table = pyarrow.Table.from_pylist(ROWS)
    make = ipc.new_stream if stream else ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table)
    return str(path)


def refused(source, match, **options):
    """Both the check and the reading refuse it."""
    for call in (check_text, read_text):
        with pytest.raises(DataError, match=match):
            call(source, **options)


# -- tables

TABLES = {
    "a.json": json.dumps(ROWS),
    "b.JSON": json.dumps(ROWS, indent=2),
    "lines.json": LINES,
    "a.jsonl": LINES,
    "a.JSONL": LINES + "\n",
    "a.ndjson": LINES.replace("\n", "\n\n"),
    "a.NDJson": LINES.replace("\n", "\r\n"),
    "a.jsonlines": "\ufeff" + LINES,
    "list.jsonl": json.dumps(ROWS),
    "a.csv": CSV,
    "b.CSV": "\ufeff" + CSV.replace("\n", "\r\n"),
    "a.tsv": TSV,
    "a.Tsv": TSV,
    "a.tab": TSV.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_text(name, tmp_path):
    source = write(tmp_path / name, TABLES[name])
    assert read_text(source) == TEXT
    check_text(source)
    refused(source, "column must be one of id, text, got 'body' in", column="body")


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("BZ2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("name", ["a.json", "a.JSONL", "a.csv", "a.tsv", "a.txt", "a"])
def test_compressed(name, suffix, pack, tmp_path):
    content = TABLES.get(name, TEXT)
    packed = pack(content.encode())
    assert read_text(write(tmp_path / f"{name}.{suffix}", packed)) == TEXT
    refused(write(tmp_path / f"cut.{name}.{suffix}", packed[:-9]), "text must be a readable file, got .*cut")
    refused(write(tmp_path / f"plain.{name}.{suffix}", content), "text must be a readable file, got .*plain")


def test_parquet_and_arrow(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    for name in ("a.parquet", "a.PARQUET", "a.pq"):
        parquet.write_table(table, tmp_path / name)
        assert read_text(str(tmp_path / name)) == TEXT
    packed = gzip.compress((tmp_path / "a.pq").read_bytes())
    assert read_text(write(tmp_path / "a.parquet.gz", packed)) == TEXT
    for name, stream in (("file.arrow", False), ("stream.arrow", True), ("a.FEATHER", False)):
        assert read_text(arrow(tmp_path / name, stream=stream)) == TEXT
        refused(str(tmp_path / name), "column must be one of id, text, got 'body'", column="body")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read_text(str(next((tmp_path / "saved").glob("*.arrow")))) == TEXT


def test_a_table_is_read_without_a_copy_in_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert read_text(write(tmp_path / "a.jsonl", LINES)) == TEXT


def test_fields_are_text_as_they_stand(tmp_path):
    """Nothing is taken for a number or for a missing value, and long fields are not cut."""
    long = "word " * 60_000
    fields = ["NA", "None", "1.10", "", 'say "yes"', "two\nlines", long]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(fields)])
    limit = csv.field_size_limit()
    assert read_text(str(tmp_path / "a.csv")) == "\n\n".join(fields)
    assert csv.field_size_limit() == limit


def test_separators_of_lines_inside_of_texts(tmp_path):
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a\u2028b\x85c", "\U0001f600")]
    assert read_text(write(tmp_path / "a.jsonl", "\n".join(lines))) == "a\u2028b\x85c\n\n\U0001f600"


# -- what is wrong with a row, and which

WRONG = {"null": None, "a number": 3, "a boolean": True, "a list": ["x"], "an object": {"a": 1}}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson.gz"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_row_without_text_is_named(name, kind, tmp_path):
    rows = [*ROWS, {"text": WRONG[kind]}, *ROWS]
    content = json.dumps(rows) if name == "a.json" else "\n\n".join(json.dumps(row) for row in rows)
    data = gzip.compress(content.encode()) if name.endswith("gz") else content
    refused(write(tmp_path / name, data), rf"column must hold text, got {kind} in row 4 of 'text' in .*{name}")


@pytest.mark.parametrize("kind", ["null", "a number", "a list"])
def test_a_row_of_parquet_without_text_is_named(kind, tmp_path):
    values = [WRONG[kind]] * 2 if kind != "null" else ["x", None]
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    row = 2 if kind == "null" else 1
    refused(str(tmp_path / "a.parquet"), rf"column must hold text, got {kind} in row {row} of 'text' in .*a\.parquet")


CONTENTS = {
    "a row without the column": ("a.jsonl", LINES + '\n{"id": 4}', "column must hold text, got no 'text' in row 4 of"),
    "texts alone": ("a.json", '["a", "b"]', "rows must be objects with columns, got a text in row 1 of"),
    "half a character": ("a.jsonl", LINES + '\n{"text": "a\\ud800b"}', r"\(a lone surrogate\) in row 4 of 'text'"),
    "a bad line": ("a.jsonl", LINES + '\n\n{"text": "x', r"table must be JSON, got an error in line 5 of .* \(Unterm"),
    "a bad first line": ("a.jsonl", '{"text": x}\n' + LINES, r"an error in line 1 of .*\(Expecting value\)"),
    "a bad line of a list": ("a.json", '[\n{"text": "a"},\n{"text": "b"\n]', "an error in line 4 of"),
    "a bad line of one object": ("a.json", '{\n"text": "a",\n"b" 3}', "an error in line 3 of"),
    "a key twice": ("a.jsonl", '{"text": "a", "text": "b"}', r"line 1 of .*\('text' twice in one object\)"),
    "too deep": ("a.jsonl", '{"text":' + "[" * 100_000 + "]" * 100_000 + "}", "line 1 of .*(recursion|overflow)"),
    "no lines": ("a.jsonl", "", r"table must have rows, got none in .*a\.jsonl"),
    "blank lines": ("a.NDJSON", "\n \n\n", "table must have rows, got none"),
    "an empty list": ("a.json", "[]", "table must have rows, got none"),
    "an empty file": ("a.csv", "", "table must have rows, got none"),
    "columns only": ("a.csv", "id,text\n", "table must have rows, got none"),
    "empty rows": ("a.csv", "id,text\n1,\n2,\n", "text must not be empty"),
    "another separator": ("a.csv", "id;text\n1;a\n", "column must be one of id;text, got 'text'"),
    "a column twice": ("a.tsv", "text\ttext\na\tb\n", "column must be unique, got 'text' twice"),
    "more fields": ("a.csv", "id,text\n1,a\n\n2,b,c\n", r"as the first one \(2\), got 3 in line 4 of"),
    "fewer fields": ("a.tsv", 'id\ttext\n1\t"a\nb"\n2\n', r"as the first one \(2\), got 1 in line 4 of"),
    "an open quotation": ("a.csv", 'id,text\n1,a\n2,"b\n3,c\n', r"table must be CSV, got an error in line 3 of"),
    "bytes in a table": ("a.csv", b"id,text\n1,caf\xe9\n", r"got the byte 0xe9 in line 2 of .*a\.csv"),
    "not parquet": ("a.parquet", LINES, r"table must be parquet, got .*a\.parquet', which cannot be read \(\w+"),
    "nothing as parquet": ("a.parquet", "", "table must be parquet"),
    "not Arrow": ("a.arrow", LINES, "table must be Arrow"),
    "nothing as Arrow": ("a.arrow", "", "table must be Arrow"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_table_that_is_not_one(case, tmp_path):
    name, content, match = CONTENTS[case]
    refused(write(tmp_path / name, content), match)


def test_a_column_of_numbers_is_no_text(tmp_path):
    refused(write(tmp_path / "a.csv", CSV), "column must hold text, got numbers only in 'id' of", column="id")


def test_a_column_twice_in_parquet(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    refused(str(tmp_path / "a.parquet"), "column must be unique, got 'text' twice")


def test_many_and_long_names_of_columns_are_cut(tmp_path):
    wide = json.dumps({f"column{i}": "x" for i in range(30)} | {"y" * 500: ""})
    with pytest.raises(DataError, match=r"column11 and 19 more, got 'text'") as caught:
        read_text(write(tmp_path / "a.jsonl", wide))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# -- plain text


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "a", "a.py", "v1.2"])
def test_plain_text(name, tmp_path):
    assert read_text(write(tmp_path / name, "\ufeffwords,\r\nand more\rof them\n")) == "words,\nand more\nof them\n"


@pytest.mark.parametrize(
    "text", ["{not} JSON\n", "[1] a note\n[2] another\n", "text, tables\nand, more\n", '"text"\n', "BZh\n", "PK\n"]
)
def test_plain_text_that_only_begins_like_something_else(text, tmp_path):
    assert read_text(write(tmp_path / "a.txt", text)) == text


def test_a_very_long_line(tmp_path):
    assert len(read_text(write(tmp_path / "a.txt", "word " * 400_000))) == 2_000_000


NO_TEXT = {
    "nothing": (b"", "text must not be empty, got"),
    "blank": (b"\n \r\n\n", "text must not be empty, got"),
    "UTF-16": ("words".encode("utf-16"), "text must be readable as UTF-8, got UTF-16 in"),
    "UTF-16 without a mark": ("words".encode("utf-16-le"), "got binary data in"),
    "UTF-32": ("words".encode("utf-32"), "got UTF-16 in|got binary data in"),
    "Latin-1": ("a\ncaf\xe9".encode("latin1"), "got the byte 0xe9 in line 2 of .*Save it as UTF-8"),
    "half a character": (b"a\xed\xa0\x80b", "got the byte 0xed in line 1 of"),
    "zeros": (b"a\x00b", "got binary data in"),
    "gzip": (gzip.compress(b"words"), "got gzip data in"),
    "zip": (b"PK\x03\x04\xff\x00", "got a zip archive in"),
    "JSON lines": (LINES.encode(), "got JSON in"),
    "a JSON list": (json.dumps(ROWS, indent=1).encode(), "got JSON in"),
    "a table": (CSV.encode(), r"got a table in .* For example, a column is read from files that end in \.jsonl"),
}


@pytest.mark.parametrize("case", NO_TEXT)
@pytest.mark.parametrize("name", ["a.txt", "a", "a.text.gz"])
def test_what_is_no_plain_text(case, name, tmp_path):
    content, match = NO_TEXT[case]
    refused(write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content), match)


@pytest.mark.parametrize(
    "name",
    [
        "a.xlsx",
        "a.XLS",
        "a.zip",
        "a.tar.gz",
        "a.jsonl.zst",
        "a.json5",
        "a.geojson",
        "a.ipynb",
        "a.psv",
        "a.yaml",
        "a.YML",
        "a.xml",
        "a.orc",
        "a.pdf",
    ],
)
def test_kinds_that_are_not_read(name, tmp_path):
    refused(write(tmp_path / name, CSV), rf"text must be of a known format, got .*{name}")


# -- what is no file


@pytest.mark.parametrize("name", ["gone.txt", "gone.CSV", "gone.ndjson", "gone.txt.gz", "gone"])
def test_a_file_that_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match=rf"text must be an existing file, got .*{name}'\. Check the path"):
        check_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["pipe", "pipe.txt", "pipe.JSONL"])
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    refused(str(tmp_path / name), f"text must be a regular file, .* got the pipe or device .*{name}")


def test_what_else_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        refused("socket.txt", "text must be a regular file")
    refused("/dev/zero", "text must be a regular file")
    for folder in ("", ".", "folder.csv"):
        Path("folder.csv").mkdir(exist_ok=True)
        refused(folder, "text must be a file or a dataset id, got the folder")
    Path("loop.txt").symlink_to("loop.txt")
    Path("loop").symlink_to("loop")
    for name in ("loop.txt", "loop"):
        refused(name, "text must be a readable file, got .*loop")
    Path("dangling.txt").symlink_to("nowhere")
    refused("dangling.txt", "text must be an existing file")
    refused("w" * 5000, "text must be a readable file, got 'w{300}…'")
    refused("a\0b", "text must be a readable file")
    write(Path("link.csv"), CSV)
    Path("link").symlink_to("link.csv")
    refused("link", "got a table in")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    source = write(tmp_path / "a.txt", TEXT)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", source)

    monkeypatch.setattr(Path, "open", denied)
    refused(source, r"text must be a readable file, got .*a\.txt' \(Permission denied\)")


# -- datasets of the Hub


def hub(monkeypatch, rows):
    asked = []

    def load_dataset(source, **options):
        asked.append((source, options))
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_dataset_is_asked_for_by_subset_and_split(monkeypatch):
    asked = hub(monkeypatch, ROWS)
    assert read_text("ada/texts", subset="en", split="validation") == TEXT
    options = {"name": "en", "split": "validation", "streaming": True}
    assert asked == [("ada/texts", options)]
    check_text("ada/texts", column="body")  # which is left for later
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([*ROWS, {"id": 4, "text": None}], "column must hold text, got null in row 4 of 'text' in 'ada/texts'"),
        ([{"id": 4, "body": "a"}], "column must be one of id, body, got 'text' in 'ada/texts'"),
        ([], "table must have rows, got none in 'ada/texts'"),
    ],
)
def test_rows_of_a_dataset(rows, match, monkeypatch):
    hub(monkeypatch, rows)
    with pytest.raises(DataError, match=match):
        read_text("ada/texts")


# -- at the command line, before a model is loaded


def no_model(*args, **kwargs):
    pytest.fail("the model was loaded")


@pytest.mark.filterwarnings("ignore:.*has no effect. it applies to tables")
@pytest.mark.parametrize("where", ["--calibration", "--evaluation", "recipe", "--text"])
@pytest.mark.parametrize(
    ("name", "content", "column", "match"),
    [
        ("a.JSONL", LINES + '\n{"text": null}', "text", "got null in row 4 of 'text' in 'a.JSONL'"),
        ("a.csv", CSV, "body", "column must be one of id, text, got 'body' in 'a.csv'"),
        ("a.xlsx", CSV, "text", "text must be of a known format, got 'a.xlsx'"),
        ("a.txt", b"\x00", "text", "got binary data in 'a.txt'"),
    ],
)
def test_commands_refuse_a_text_before_they_load_a_model(where, name, content, column, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_farms.workflows.prune_stages.load_model", no_model)
    monkeypatch.setattr("hf_farms.workflows.evaluation_scores.load_model", no_model)
    write(tmp_path / name, content)
    if where == "--text":
        command = ["eval", "demo", "--metrics", "perplexity", "--text", name, "--column", column]
    elif where == "recipe":
        recipe(name, column).save(tmp_path / "recipe.yaml")
        command = ["prune", "recipe.yaml", "-o", "out"]
    else:
        command = ["prune", "demo", where, name, f"{where}-column", column, "-o", "out"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert match in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_faults_inside_of_a_text_say_which_one_it_is(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", CSV)
    with pytest.raises(DataError, match=r"^evaluation column must be one of id, text, got 'body' in"):
        evaluate_checkpoint("demo", text=EvaluationConfig(source=str(tmp_path / "a.csv"), column="body"))
    hub(monkeypatch, [])
    with pytest.raises(DataError, match=r"^evaluation table must have rows, got none in 'ada/texts'"):
        evaluation_tokens(EvaluationConfig(source="ada/texts"), model=None, tokenizer=None)
    with pytest.raises(DataError, match=r"^selection table must have rows, got none in 'ada/texts'"):
        selection_sequences(SelectionConfig(source="ada/texts"), model=None, tokenizer=str.split)


def recipe(source, column):
    return Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=PruneConfig(),
        calibration=CalibrationConfig(source=source, column=column),
        evaluation=EvaluationConfig(source=None),
    )


@pytest.mark.filterwarnings("default::hf_farms.errors.NoEffectWarning")
def test_what_a_method_does_not_need_is_not_read(tmp_path, monkeypatch):
    """Magnitude pruning has no use for the calibration text."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", '{"text": null}')
    command = ["prune", "demo", "--method", "magnitude", "--evaluation", "none", "--dry-run", "--calibration"]
    done = CliRunner().invoke(app, [*command, "a.jsonl"])
    assert done.exit_code == 0, done.stderr
    assert "--calibration has no effect: it applies to method 'wanda', 'ria' or 'sparsegpt'" in " ".join(
        done.stderr.split()
    )
