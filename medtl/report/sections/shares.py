"""Predicted and observed shares of the classes."""

from __future__ import annotations

from dataclasses import replace

from medtl.report.parts import Section, TableBuilder
from medtl.report.view import View

ORDER = 85


def section(view: View) -> Section | None:
    """Predicted and observed shares of the classes."""
    results = view.results
    if view.masks:
        return None
    table = TableBuilder("Shares of the classes", ("Cases for", "Share", *results.classes))
    seen: set[tuple[str, str | None]] = set()
    for block in view.blocks(view.domain if view.many else "", labelled=False):
        place = view.role(block) + (f", {block.finding}" if block.finding else "")
        called, observed = (
            [
                table.number(m.estimate if (m := block.get(f"{who}_share", cls=c)) else None)
                for c in results.classes
            ]
            for who in ("predicted", "observed")
        )
        if block.num_labelled and (block.domain, block.finding) not in seen:
            seen.add((block.domain, block.finding))
            table.row(place, "by the reference standard", *observed)
        name = view.name(block.model)
        table.row(place, replace(name, text=f"called by {name.text}"), *called)
    title = "Predicted and observed shares of the classes"
    return Section("shares", title, tables=(table.build(),))
