"""farms_lr.jsonl: one parser for a resumed training, the report and the figure."""

import json

import pytest

from hf_farms.config import FarmsLRConfig
from hf_farms.reports.lr_history import BlockFactor, LayerFactor, LRHistoryEntry, read_history
from hf_farms.reports.training import FarmsLRRecord

LINE = (
    '{"step": 4, "epoch": 0.5, "seconds": 0.25, "blocks": [{"name": "model.layers.0", "alpha": 2.5, "alpha_stderr": '
    'null, "factor": 1.1}], "layers": {"model.layers.0.q": {"alpha": null, "alpha_stderr": null, "factor": 1.0}, '
    '"model.layers.0.\\u00fc": {"alpha": 2.5, "alpha_stderr": 0.1, "factor": 1.2}}}'
)
# As the first version of the callback wrote it: layers without a standard error.
OLD = LINE.replace('"alpha_stderr": 0.1, ', "").replace('"alpha": null, "alpha_stderr": null, ', '"alpha": null, ')


def test_a_line_is_written_as_it_was_read():
    entry = LRHistoryEntry.from_line(LINE)
    assert entry == LRHistoryEntry(
        step=4,
        epoch=0.5,
        seconds=0.25,
        blocks=(BlockFactor(name="model.layers.0", alpha=2.5, alpha_stderr=None, factor=1.1),),
        layers=(
            LayerFactor(name="model.layers.0.q", alpha=None, factor=1.0),
            LayerFactor(name="model.layers.0.ü", alpha=2.5, alpha_stderr=0.1, factor=1.2),
        ),
    )
    assert entry.to_line() == LINE


def test_lines_of_older_versions_are_read():
    old = LRHistoryEntry.from_line(OLD)
    assert old.layers[1] == LayerFactor(name="model.layers.0.ü", alpha=2.5, alpha_stderr=None, factor=1.2)
    data = json.loads(LINE)
    del data["layers"]
    assert LRHistoryEntry.from_line(json.dumps(data)).layers == ()


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        '{"step": 1}',
        LINE.replace('"step": 4', '"step": "4"'),
        LINE.replace('"name"', '"title"'),
        LINE.replace('"factor": 1.2', '"factor": 1.2, "more": 0'),
    ],
)
def test_other_json_is_no_measurement(line, tmp_path):
    with pytest.raises(ValueError, match="line must be a measurement of FarmsLRCallback, got "):
        LRHistoryEntry.from_line(line)
    path = tmp_path / "farms_lr.jsonl"
    path.write_text(f"{LINE}\n{line}\n{LINE}\n")
    with pytest.raises(ValueError, match="line must be a measurement"):
        read_history(path)
    assert len(read_history(path, strict=False)) == 1


def test_a_history_is_read_up_to_a_step_and_to_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "farms_lr.jsonl"
    assert read_history(path) == []
    lines = [LINE.replace('"step": 4', f'"step": {step}') for step in (0, 4, 8)]
    path.write_text("\n".join(lines) + LINE[:30])
    assert [entry.step for entry in read_history(path)] == [0, 4]
    path.write_text("\n".join(lines))
    assert [entry.step for entry in read_history(path, up_to=4)] == [0, 4]


def test_a_report_keeps_the_layers_of_the_last_measurement_only():
    entries = [LRHistoryEntry.from_line(line) for line in (OLD, LINE)]
    record = FarmsLRRecord.from_history(entries, FarmsLRConfig(unit="layer"))
    assert record.layers == entries[1].layers
    assert [type(measurement).__name__ for measurement in record.measurements] == ["LRMeasurement"] * 2
    assert FarmsLRRecord.from_history(entries, FarmsLRConfig()).layers == ()
