"""Imported by Python at its start where this folder is in PYTHONPATH."""

import json
import os

from moment import Moment

if "HF_FARMS_TEST_MOMENT" in os.environ:
    Moment(**json.loads(os.environ.pop("HF_FARMS_TEST_MOMENT")))
