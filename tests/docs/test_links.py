"""Links of README and docs to pages, their headings, this repository and its site lead somewhere."""

import re

import pytest
from snippets import ROOT, name_of, pages

REPOSITORY = "https://github.com/hf-farms/hf-farms"
SITE = "https://hf-farms.github.io/hf-farms/"
RAW = "https://raw.githubusercontent.com/hf-farms/hf-farms/main/"
TARGET = re.compile(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"')


def anchors(path):
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain}


def place_of(target):
    """File and anchor of a link to the repository or the site; None for another one."""
    url, _, anchor = target.partition("#")
    for start in (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", RAW):
        if url.startswith(start):
            return ROOT / url.removeprefix(start), anchor
    if url.startswith(SITE):
        page = url.removeprefix(SITE).strip("/") or "index"
        return next(
            (p for p in (ROOT / "docs" / f"{page}.md", ROOT / "docs" / page / "README.md") if p.exists()), None
        ), anchor
    return None


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")
@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_own_links_lead_somewhere(page):
    targets = [one or other for one, other in TARGET.findall(page.read_text(encoding="utf-8"))]
    for target in targets:
        url, _, below = target.partition("#")
        # Between pages; a link within a page has an anchor only.
        place = (page.parent / url if url else page, below) if "://" not in target else place_of(target)
        if place is None:
            continue
        path, anchor = place
        assert path is not None, target
        assert path.exists(), target
        assert not anchor or path.suffix != ".md" or anchor in anchors(path), target


def test_readme_has_such_links():
    targets = [one or other for one, other in TARGET.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert sum(place_of(target) is not None for target in targets) > 15


def test_a_link_to_nothing_is_seen():
    path, anchor = place_of(f"{REPOSITORY}/blob/main/BENCHMARKS.md#no-such-heading")
    assert path.exists()
    assert anchor not in anchors(path)
    assert place_of(f"{SITE}no-such-page/")[0] is None
