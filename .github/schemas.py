"""Write the JSON schemas of the reports from their dataclasses into hf_farms/reports/schemas: `make schemas`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hf_farms.reports import SCHEMA_VERSION, EvaluationReport, PruneReport, SpectralReport, TrainReport
from hf_farms.reports.comparison import SpectralComparison

FOLDER = Path(__file__).parents[1] / "hf_farms" / "reports" / "schemas"
REPORTS = {
    "spectral_report": SpectralReport,
    "prune_report": PruneReport,
    "evaluation_report": EvaluationReport,
    "spectral_comparison": SpectralComparison,
    "train_report": TrainReport,
}


def schema_of(report: type) -> dict[str, Any]:
    """Return the JSON schema of the output of `to_json`; all fields are required, no others are allowed."""
    schema = TypeAdapter(report).json_schema(mode="serialization")
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            part["additionalProperties"] = False
            # The rest of a docstring is for readers of Python.
            part["description"] = part["description"].splitlines()[0]
            for field in part["properties"].values():
                # As an argument None stands for a name, which the report holds.
                if field.get("type") == "string" and "default" in field and field["default"] is None:
                    del field["default"]
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def text_of(report: type) -> str:
    """Return the text of the schema file."""
    return json.dumps(schema_of(report), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, report in REPORTS.items():
        (FOLDER / f"{name}.schema.json").write_text(text_of(report), encoding="utf-8")
