"""Small files that ask for much time or memory."""

import json

import pytest

from hf_farms.errors import OutputError
from hf_farms.files.documents import DocumentError, dump_json, load_json
from hf_farms.hub.contents import read_contents
from hf_farms.hub.folders import check_publishable
from hf_farms.output.code_references import drop_code_references


def test_a_shard_of_a_trillion(tmp_path):
    from safetensors.torch import save_file
    from torch import ones

    (tmp_path / "config.json").write_text("{}")
    save_file({"a": ones(1)}, tmp_path / "model-00001-of-1000000000000.safetensors")
    with pytest.raises(OutputError, match=r"^model-00002-of-1000000000000\.safetensors must be a file of "):
        check_publishable(tmp_path)


def test_a_repeated_key_after_a_hundred_thousand_others():
    text = json.dumps({str(number): 0 for number in range(100_000)})[:-1] + ', "99999": 1}'
    with pytest.raises(DocumentError, match="key '99999' occurs twice"):
        load_json(text)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 400 + "0" + "}" * 400], ids=["cut", "deep", "nested"])
def test_configs_that_cannot_be_cleaned_stay_as_they_are(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert drop_code_references(tmp_path) == ()
    assert (tmp_path / "tokenizer_config.json").read_text() == text


@pytest.mark.parametrize("reference", [5, True, "x", [None], {"a": 5}])
def test_references_to_code_of_other_types(tmp_path, reference):
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": reference}))
    assert "config.json" in read_contents(tmp_path).files


def test_half_a_surrogate_pair_stays_escaped():
    assert dump_json({"a": "\ud800é"}) == '{\n  "a": "\\ud800\\u00e9"\n}\n'
    assert dump_json({"a": "é"}) == '{\n  "a": "é"\n}\n'
