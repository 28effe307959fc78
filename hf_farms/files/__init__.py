"""Files: how all of them are written, and how those of users are read.

writing.py          a complete file or none; never a device, a link or somebody's file
own_files.py        files that belong to a folder, and links out of it
shards.py           the index of a sharded checkpoint
documents.py        JSON and text of users, within limits
yaml_documents.py   YAML of users, within limits
structures.py       plain data -> dataclasses, by their annotations
"""
