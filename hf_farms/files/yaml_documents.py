"""Read YAML files of users: the subset of YAML that settings need, with limits on depth."""

from __future__ import annotations

from typing import Any

import yaml

from hf_farms.files.documents import Document, DocumentError, Key, short_repr

__all__ = ["load_yaml"]

MAX_DEPTH = 20
TAGS = "tag:yaml.org,2002:"


class _Composer(yaml.SafeLoader):
    """A loader that is only used to compose nodes, not to construct objects."""

    # A date is text: it may be the name of a branch.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the parent
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAGS}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        # Nested aliases grow exponentially ("billion laughs").
        if isinstance(event, yaml.AliasEvent):
            raise DocumentError(f"alias *{event.anchor} must be written out", line=line)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise DocumentError(f"it is nested more than {MAX_DEPTH} deep", line=line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load_yaml(text: str) -> Document:
    """Parse one YAML document of mappings with text keys, lists, strings, numbers, booleans and nulls.

    Raises:
        DocumentError: the text is not YAML, has several documents, or contains aliases, merge keys, tags of other
            types, or duplicate keys.
    """
    try:
        node = _Composer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(f"character {chr(error.character)!r} is not allowed", line=line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(" ".join(reason.split()), line=None if mark is None else mark.line + 1) from error
    except yaml.YAMLError as error:
        raise DocumentError(" ".join(str(error).split())) from error
    lines: dict[tuple[Key, ...], int] = {}
    return Document(None if node is None else _construct(node, (), lines), lines)


def _construct(node: yaml.Node, path: tuple[Key, ...], lines: dict[tuple[Key, ...], int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = node.tag.removeprefix(TAGS)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _construct_mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_construct(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in ("str", "null", "bool", "int", "float"):
        return _construct_scalar(node, kind, line)
    raise DocumentError(f"tag {node.tag!r} is not allowed in settings", line=line)


def _construct_mapping(
    node: yaml.MappingNode, path: tuple[Key, ...], lines: dict[tuple[Key, ...], int]
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise DocumentError("a key must be text", line=line)
        if key.tag == f"{TAGS}merge":
            raise DocumentError("merge key << must be written out", line=line)
        name = str(key.value)
        if name in entries:
            first = lines[*path, name]
            raise DocumentError(f"key {short_repr(name)} occurs twice, first in line {first}", line=line)
        lines[*path, name] = line
        entries[name] = _construct(value, (*path, name), lines)
    return entries


def _construct_scalar(node: yaml.ScalarNode, kind: str, line: int) -> Any:
    """Convert a scalar; base-60 numbers of YAML 1.1, such as 2:4, are text."""
    text = str(node.value)
    if kind == "str" or ":" in text:
        return text
    constructor = {
        "null": yaml.SafeLoader.construct_yaml_null,
        "bool": yaml.SafeLoader.construct_yaml_bool,
        "int": yaml.SafeLoader.construct_yaml_int,
        "float": yaml.SafeLoader.construct_yaml_float,
    }[kind]
    try:
        return constructor(yaml.SafeLoader(""), node)
    except (ValueError, KeyError, IndexError) as error:  # a tag that does not fit the value, or thousands of digits
        raise DocumentError(f"{short_repr(text)} is no {kind}", line=line) from error
