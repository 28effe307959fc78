"""Files: read those of users within limits, and write files atomically.

paths.py             the kind of a path, whether two are the same
path_checks.py       refuse a path that must not be written
atomic_writes.py     write a complete file or none
own_files.py         symlinks: which files belong to a folder, and which lead out of it
shards.py            the index of a sharded checkpoint
documents.py         JSON and text of users, within limits
yaml_documents.py    YAML of users, within limits
dataclass_parsing.py JSON or YAML -> dataclasses, by their annotations
moved_names.py       keep old names of functions and classes, with a warning
"""
