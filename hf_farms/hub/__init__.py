"""The Hub: download metadata, check a push before expensive work, and upload.

client.py            the Hub client, retries of calls, time limits
errors.py            errors of the client -> one sentence with a remedy
mistyped.py          a name that may be a missing folder or a mistyped name
request_retries.py   HTTP retries, Retry-After (429), slow and broken answers
failure_budget.py    limit the failed requests of a command
base_model.py        the dense model: commit, license, size
license_files.py     its license files
preflight.py         checks before a push
contents.py          select the files of a folder that are pushed
folders.py           check that a folder is complete, and compare it with the Hub
staging.py           a copy of the files to push, without private paths and secrets
upload.py            the upload, to a branch or a pull request
"""

from typing import TYPE_CHECKING

from hf_farms.files.moved_names import moved
from hf_farms.hub.contents import read_contents
from hf_farms.hub.folders import (
    PublishableFolder,
    check_folder,
    check_publishable,
    folder_report,
    replaced_weights,
)
from hf_farms.hub.preflight import PushPlan, create_repository, preflight
from hf_farms.hub.upload import plan_push, push

__all__ = [
    "PublishableFolder",
    "PushPlan",
    "check_folder",
    "check_publishable",
    "create_repository",
    "folder_report",
    "plan_push",
    "preflight",
    "push",
    "read_contents",
    "replaced_weights",
]

if not TYPE_CHECKING:
    __getattr__ = moved(
        __name__,
        {
            "check_dataset": "hf_farms.data.datasets.check_dataset",
            "weights_size": "hf_farms.loading.names.model_weights_size",
        },
    )
