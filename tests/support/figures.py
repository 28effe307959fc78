"""Figures of cards, for tests that do not look at them."""

from contextlib import contextmanager

import pytest


@contextmanager
def one_pixel():
    """Figures have one pixel: drawing takes longer than the work on a tiny model."""
    from hf_farms_cards import card
    from hf_farms_cards.figures import training
    from PIL import Image

    def draw(record, path, **options):
        Image.new("RGB", (1, 1)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_blocks", "draw_training", "draw_selection"):
            patch.setattr(card, name, draw)
        patch.setattr(training, "draw_training", draw)
        yield
