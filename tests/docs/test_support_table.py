"""The tables of families say what works, on a tiny model of each."""

import pytest
from support_table import PAGES, ROOT, rows, shown


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
def test_the_tables_of_families_are_up_to_date(undrawn):
    found = rows()
    for page, table in PAGES.items():
        assert table(found) == shown(page), f"{page}: run python tests/support/support_table.py"
