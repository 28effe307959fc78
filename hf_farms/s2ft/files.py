"""Old place of `hf_farms.s2ft.saving`."""

from __future__ import annotations

from hf_farms.files.moved_names import moved

__getattr__ = moved(__name__, {name: f"hf_farms.s2ft.saving.{name}" for name in ("load_selection", "save_selection")})
