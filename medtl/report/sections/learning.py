"""Learning curves, and how far training is ahead of validation."""

from __future__ import annotations

from medtl.evaluation.statistics.estimate import format_number
from medtl.report.overfitting import RULE, Gap, gaps, sentences
from medtl.report.parts import DASH, NOTHING, Cell, Section, TableBuilder
from medtl.report.view import View

ORDER = 80
READS = {"large": "harm", "within the noise": "even", "small": "", "": "muted"}


def section(view: View) -> Section | None:
    """One row per model: the kept epoch, training, validation, and the gap between them."""
    found = gaps(view)
    if not found:
        return None
    what = "of the kept weights, on cases without augmentation, mean over training seeds"
    heads = ("Model", "Kept epoch", "Training", "Validation", "Gap", "Reads as")
    table = TableBuilder(f"{view.headline_title} {what}", heads)
    for g in found:
        limits = "" if g.lo is None else f" ({format_number(g.lo, 2)} to {format_number(g.hi, 2)})"
        validation = Cell(format_number(g.validation, 2) + limits)
        cells = (_number(g.train), validation, _number(g.size), Cell(g.reads or DASH, tone=READS[g.reads]))
        table.row(view.name(g.model), _kept(g), *cells)
    table.notes.append(RULE)
    return Section("learning", "Learning curves", text=tuple(sentences(view, found)), tables=(table.build(),))


def _number(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(format_number(value, 2))


def _kept(gap: Gap) -> str:
    kept = ", ".join(DASH if epoch is None else str(epoch) for epoch, _ in gap.kept)
    return f"{kept} of {', '.join(dict.fromkeys(str(ran) for _, ran in gap.kept))}"
