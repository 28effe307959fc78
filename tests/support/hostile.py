"""Files that somebody else wrote: valid ones with faults, by hypothesis, and the two outcomes that they may have."""

import copy
import json
import os
import re
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hf_farms.errors import HfFarmsError

# The same examples in every run, on every machine, however slow it is.
files = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SENTENCE = re.compile(r".+ must .+, got .+", re.DOTALL)

TEXTS = [
    *("", " ", ".", "..", "/", "../../outside", "/tmp/outside", "C:\\outside", "a\\..\\..\\outside", "~", "file:///x"),
    *("\x00", "\x1b[31m", "a\nb", "\u202e", "\ud800", "\ufeff", "é", "🦙", "x" * 5000, "null", "nan", "1e3", "2:4"),
    *("{{ 7 * 7 }}", "{name}", "%s", "<script>", "| a | b |", "```", "---", "model", "demo", "self", "none", "auto"),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.5, 1.5, 1e308, 5e-324, -0.0),
    *(float("nan"), float("inf"), float("-inf")),
]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = [
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"a": {"b": []}},
    [0] * 100,
    nested(60),
]
# Texts of which only a few are documents.
TEXT_FAULTS = [
    *("", "null", "[]", "{}", "0", '"text"', "nul", "{", "[" * 100_000, '{"a":' * 100_000, "\x00" * 64, "\ufeff{}"),
    *('{"a": 1, "a": 2}', "9" * 10_000, "[1e999]", "[NaN]", '"\\ud800"', "version https://git-lfs.github.com/spec/v1"),
    *("- &a [1]\n- *a", "a: !!python/object:os.system {}", "<<: {a: 1}", "a: b: c", "\ta: 1", "---\n---\n", "? []"),
]


def paths_of(value, path=()):
    """All entries of a document, the document itself first."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from paths_of(item, (*path, key))


def parent_of(document, path):
    for key in path[:-1]:
        document = document[key]
    return document


@st.composite
def faulty(draw, document, values=VALUES):
    """The document with one to three entries replaced, removed, renamed, repeated, or copied from another place."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path in paths_of(document) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        parent, key = parent_of(document, path), path[-1]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat", "copy"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(st.sampled_from(values)))
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(TEXTS))] = parent.pop(key)
            case "repeat" if isinstance(parent, list):
                parent.extend([copy.deepcopy(parent[key])] * draw(st.integers(1, 3)))
            case "copy":
                other = draw(st.sampled_from(paths))
                parent[key] = copy.deepcopy(parent_of(document, other)[other[-1]])
    return document


@st.composite
def faulty_bytes(draw, content):
    """The bytes of a file: cut off, with bytes changed, or something else altogether."""
    match draw(st.sampled_from(["cut", "change", "insert", "other", "random"])):
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "change":
            changed = bytearray(content)
            for _ in range(draw(st.integers(1, 4))):
                changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
            return bytes(changed)
        case "insert":
            place = draw(st.integers(0, len(content)))
            return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
        case "other":
            return draw(st.sampled_from(TEXT_FAULTS)).encode("utf-8", "surrogatepass")
        case _:
            return draw(st.binary(max_size=64))


def faulty_json(document, values=VALUES):
    """A JSON file with faults of its content or of its text."""
    valid = json.dumps(document).encode()
    return st.one_of(faulty(document, values).map(json_bytes), faulty_bytes(valid))


def json_bytes(document):
    return json.dumps(document).encode()


def is_own(error):
    """Whether an error is one of the project, with its sentence."""
    if isinstance(error, HfFarmsError):
        return bool(str(error))
    return isinstance(error, ValueError) and not isinstance(error, UnicodeError) and bool(SENTENCE.match(str(error)))


def valid_or_refused(read):
    """Return what `read` returns, None if it refuses the input; any other error fails the test."""
    try:
        return read()
    except Exception as error:
        if not is_own(error):
            raise
        return None


@contextmanager
def nothing_written_outside(folder):
    """Nothing may change beside the folder."""
    before = _entries(folder)
    yield
    assert _entries(folder) == before


def _entries(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in folder.parent.rglob("*")
        if folder not in (path, *path.parents) and not path.is_dir()
    }


def write(path, content):
    """Write bytes, and tell whoever compares dates that the file is another one."""
    path.write_bytes(content)
    os.utime(path)
