"""Sections and figures are found by their files: `ORDER` and `section`, `SECTION` and `draw`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from types import ModuleType

from medtl.report.kit import Drawing
from medtl.report.parts import BOUND, Section
from medtl.report.svg import drawing
from medtl.report.view import View


def modules(folder: str) -> list[ModuleType]:
    """The modules of `sections` or `figures`, by name."""
    package = importlib.import_module(f"medtl.report.{folder}")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def make_sections(view: View) -> list[Section]:
    """Every section that has something to show, in order, each with the figures that name it."""
    figures: dict[str, list[Drawing]] = {}
    said = ", ".join(view.bounds)
    bound = f" {said}: uses target labels, an {BOUND} and not a candidate." if said else ""
    with drawing():
        for module in modules("figures"):
            found: Drawing | None = module.draw(view)
            if found is not None:
                figures.setdefault(module.SECTION, []).append(replace(found, caption=found.caption + bound))
    ordered = sorted(modules("sections"), key=lambda module: module.ORDER)
    made: list[Section] = [s for module in ordered if (s := module.section(view)) is not None]
    return [replace(s, figures=(*s.figures, *figures.get(s.key, ()))) for s in made]
