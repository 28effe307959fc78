"""Check a pruned folder as a reader would: the card is whole, the model loads, the zeros are there.

python .github/read_card.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_farms.reports import REPORT_NAME, PruneReport


def read_card(folder: Path) -> None:
    """Compare the card and the weights of a folder with its report."""
    card = ModelCard.load(folder / "README.md")
    report = PruneReport.load(folder / REPORT_NAME)
    assert "pruned" in card.data.tags, card.data.tags
    assert all(block.name in card.text for block in report.blocks), "a block is missing from the table"
    assert (folder / "figures" / "blocks.png").stat().st_size > 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    measured = zeros / model.num_parameters()
    assert abs(measured - report.parameter_sparsity) < 1e-9, (measured, report.parameter_sparsity)
    print(f"{folder}: card of {len(card.text)} characters, {100 * measured:.2f}% zeros, as reported")


if __name__ == "__main__":
    read_card(Path(sys.argv[1]))
