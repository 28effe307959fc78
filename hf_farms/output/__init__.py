"""Results: the folder, the checkpoint in it, and where neither may go.

folder.py            a result folder, and its unfinished work
allowed_paths.py      where a result may be written
existing_results.py   recognize earlier results, which alone may be replaced
fingerprint.py       how unfinished work is recognised
checkpoint.py        write a model block by block
code_references.py   configs without custom code
"""

from hf_farms.files.atomic_writes import replacing, writing
from hf_farms.output.folder import OutputFolder

__all__ = ["OutputFolder", "replacing", "writing"]
