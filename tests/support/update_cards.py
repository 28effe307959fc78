"""Write tests/cards/golden again: python tests/support/update_cards.py. Read what changed before you commit it."""

from pathlib import Path

from cards import EXAMPLES
from hf_farms_cards import render_card

GOLDEN = Path(__file__).parents[1] / "cards" / "golden"

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (report, repo_id, checkpoint) in EXAMPLES.items():
        text = render_card(report(), repo_id=repo_id, checkpoint=checkpoint)
        (GOLDEN / f"{name}.md").write_text(text, encoding="utf-8")
