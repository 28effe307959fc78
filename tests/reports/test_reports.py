import json
import os

import pytest
from reports import pruned, spectral

from hf_farms.config import FarmsConfig
from hf_farms.errors import DataError
from hf_farms.reports import (
    SCHEMA_VERSION,
    PruneReport,
    SpectralReport,
    base,
)


@pytest.mark.parametrize("config", [FarmsConfig(), FarmsConfig(window_rows=None), FarmsConfig(window_rows=7)])
def test_spectral_report_survives_json(config):
    report = spectral(config)
    assert SpectralReport.from_json(report.to_json()) == report


def test_prune_report_survives_a_file(tmp_path):
    report = pruned()
    report.save(tmp_path / "report.json")
    assert PruneReport.load(tmp_path / "report.json") == report


def test_json_is_plain_and_names_its_schema():
    data = json.loads(pruned().to_json())
    assert data["schema_version"] == SCHEMA_VERSION == 2
    assert data["before"]["blocks"][0]["layers"][0]["shape"] == [48, 32]
    assert data["versions"]["python"]


def test_versions_are_releases_whatever_build_is_installed(monkeypatch):
    monkeypatch.setattr(base, "version", lambda name: {"torch": "2.13.0+cu130"}.get(name, "1.0rc1"))
    found = base.versions()
    assert (found["torch"], found["transformers"]) == ("2.13.0", "1.0rc1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "report must be a JSON object"),
        ("[1]", "report must be a JSON object"),
        ('{"schema_version": 99}', "schema_version must be at most 2, got 99"),
        ('{"schema_version": 1}', "report must be a SpectralReport"),
    ],
)
def test_other_files_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        SpectralReport.from_json(text)


def changed(*path, value):
    """The JSON of a report with another value somewhere."""
    data = json.loads(pruned().to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


LAYER = ("before", "blocks", 0, "layers", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"report must be a JSON object, got '.*' \(line 1: Expecting value at column 1\)\."),
        ("[" * 100_000, r"report must be a JSON object, got '.*' \(it is nested too deeply\)\."),
        ('{"a": ' * 100_000, r"report must be a JSON object, got '.*' \(it is nested too deeply\)\."),
        ('{"schema_version": ' + "9" * 5000 + "}", r"JSON object, got '.*' \(it has a number with too many digits\)\."),
        ('{"schema_version": 1, "schema_version": 1}', r"\(key 'schema_version' occurs twice in one object\)\."),
        ('{"schema_version": NaN}', r"\(NaN is not a number that JSON has\)\."),
        ('{"schema_version": -Infinity}', r"\(-Infinity is not a number that JSON has\)\."),
        (
            '{"schema_version": ' + "[" * 900 + "]" * 900 + "}",
            r"schema_version must be at most 2, got \[+\.\.\.\]+\. Write the",
        ),
        (
            '{"schema_version": true}',
            r"report must be a PruneReport, got JSON of another form in '.*' \(model is missing",
        ),
        (changed("model", value=None), r"\(model must be text, got nothing\)\."),
        (changed("modell", value=1), r"\('modell' is no entry, did you mean 'model'\?\)\."),
        (changed("sparsity", value="0.5"), r"\(sparsity must be a number, got '0.5', which is text: write 0.5\)\."),
        (changed("sparsity", value=10**400), r"\(sparsity must be a number, got 1000"),
        (changed("num_parameters", value=1.5), r"\(num_parameters must be a whole number, got 1.5\)\."),
        (changed("num_parameters", value=True), r"\(num_parameters must be a whole number, got true\)\."),
        (
            changed(*LAYER, "shape", value=[1, "2"]),
            r"\(before.blocks.0.layers.0.shape.1 must be a whole number, got '2'",
        ),
        (changed(*LAYER, "window_shape", value=[1]), r"layers.0.window_shape must be a list of 2, got \[1\]\)\."),
        (changed(*LAYER, "alpha", value="x"), r"before.blocks.0.layers.0.alpha must be a number or null, got 'x'\)\."),
        (
            changed("before", "config", "fit", value="best"),
            r"\(before.config.fit must be one of mid, peak, goodness_of",
        ),
        (changed("config", "sparsity", value=2), r"\(sparsity must be at least 0 and below 1, got 2.0\. It is"),
        (changed("blocks", value={}), r"\(blocks must be a list, got \{\}\)\."),
        (changed("versions", value=["1"]), r"\(versions must be a mapping, got \['1'\]\)\."),
    ],
)
def test_what_is_wrong_with_a_report_is_one_sentence(text, message, tmp_path):
    (tmp_path / "r.json").write_text(text)
    for read in (lambda: PruneReport.load(tmp_path / "r.json"), lambda: PruneReport.from_json(text)):
        with pytest.raises(DataError, match=message) as raised:
            read()
        assert len(str(raised.value)) < 400
        assert "\n" not in str(raised.value)


def test_a_number_that_is_whole_is_still_a_number():
    report = PruneReport.from_json(changed("perplexity", "dense", value=10))
    assert isinstance(report.perplexity.dense, float)
    assert report == pruned()


def test_a_report_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"got '.*pipe.json' \(it is a named pipe and must be a file\)\."):
        PruneReport.load(tmp_path / "pipe.json")
    (tmp_path / "bytes.json").write_bytes(b'{\n"model": "\xfe"}')
    with pytest.raises(DataError, match=r"got '.*bytes.json' \(line 2: byte 0xfe is not utf-8\)\."):
        PruneReport.load(tmp_path / "bytes.json")


def test_a_report_of_another_kind_is_refused():
    with pytest.raises(DataError, match="report must be a SpectralReport"):
        SpectralReport.from_json(pruned().to_json())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"report must be a readable file, got .*none\.json"):
        PruneReport.load(tmp_path / "none.json")
