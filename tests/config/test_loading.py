"""How a model is loaded: wrong options are refused before torch is there."""

import pytest

from hf_farms.config import LoadOptions


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "int8", r"^dtype must be auto, float32, bfloat16 or float16, got 'int8'\.$"),
        ("dtype", None, "^dtype must be auto, float32, bfloat16 or float16, got None"),
        ("device", "", r"^device must be None or a name such as 'cpu' or 'cuda:0', got ''"),
        ("device", 0, r"^device must be None or a name such as 'cpu' or 'cuda:0', got 0"),
        ("stream", "no", "^stream must be True, False or None, got 'no'"),
        ("allow_pickle", None, "^allow_pickle must be True or False, got None"),
        ("revision", " ", "^revision must be None, or the name of a branch, a tag or a commit, got ' '"),
        ("revision", 1, "^revision must be None, or the name"),
    ],
)
def test_options_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        LoadOptions(**{field: value})


def test_options_are_keywords_and_do_not_change():
    with pytest.raises(TypeError, match="positional"):
        LoadOptions("auto")
    with pytest.raises(AttributeError, match="cannot assign"):
        LoadOptions().dtype = "float32"
    assert LoadOptions(dtype="half", device="cuda:1", stream=False, allow_pickle=True, revision="v1").stream is False
