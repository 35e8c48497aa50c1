"""The table of layouts. A new layout is one file beside this one and one line here."""

from __future__ import annotations

from laco_export.layouts import genai, transformersjs
from laco_export.layouts.base import Layout

LAYOUTS: dict[str, Layout] = {one.name: one for one in (transformersjs.LAYOUT, genai.LAYOUT)}
"""Layouts by name."""

__all__ = ["LAYOUTS", "Layout"]
