"""Result folders: create and resume them, write the checkpoint, and protect other files.

folder.py            a result folder, and its unfinished work in DIR.partial
allowed_paths.py     refuse output paths that would overwrite inputs or a home folder
existing_results.py  recognize earlier results; only these may be replaced
fingerprint.py       recognize unfinished work of the same run
checkpoint.py        write a transformers checkpoint block by block
merging.py          merge its shards into files of up to 5 GB
recipe.py            recipe.yaml: the settings that reproduce a run
local_paths.py       remember the local paths behind published names
code_references.py   remove references to custom code (auto_map) from configs
"""

from hf_farms.files.atomic_writes import replacing, writing
from hf_farms.output.folder import OutputFolder

__all__ = ["OutputFolder", "replacing", "writing"]
