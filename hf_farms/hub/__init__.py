"""The Hub: checks before the work, the upload after it.

explained.py  what goes wrong, in a sentence
checks.py     may this be pushed there? asked before hours of work
contents.py   what of a folder belongs to a model
folders.py    is the folder complete? what of it is on the Hub?
staging.py    the files as they are sent
upload.py     the upload, into a branch or a pull request
sizes.py      what a model takes on disk, and whether a dataset is there
"""

from hf_farms.hub.checks import PushPlan, create_repository, preflight
from hf_farms.hub.contents import read_contents
from hf_farms.hub.folders import check_folder, folder_report, published_files, replaced_weights
from hf_farms.hub.sizes import check_dataset, weights_size
from hf_farms.hub.upload import plan_push, push

__all__ = [
    "PushPlan",
    "check_dataset",
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
