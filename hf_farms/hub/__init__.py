"""The Hub: what is asked of it, what is checked before a push, and the upload.

client.py          the client, retries, errors in one sentence
errors.py          what the client raises -> one sentence
request_retries.py HTTP retries, Retry-After, slow and broken answers
failure_budget.py  limit the failed requests of a command
base_model.py      the dense model: commit, licence, size
licence_files.py   its licence files
preflight.py       checks before a push
contents.py        which files of a folder belong to a model
folders.py         whether a folder is complete, and what the Hub has of it
staging.py         the files as they are sent
upload.py          the upload, to a branch or a pull request
"""

from hf_farms.hub.base_model import weights_size
from hf_farms.hub.contents import read_contents
from hf_farms.hub.folders import check_folder, folder_report, published_files, replaced_weights
from hf_farms.hub.preflight import PushPlan, create_repository, preflight
from hf_farms.hub.upload import plan_push, push

__all__ = [
    "PushPlan",
    "check_folder",
    "create_repository",
    "folder_report",
    "plan_push",
    "preflight",
    "published_files",
    "push",
    "read_contents",
    "replaced_weights",
    "weights_size",
]
