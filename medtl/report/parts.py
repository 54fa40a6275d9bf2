"""The parts of a report, before any markup: cells, tables, sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from medtl.evaluation.statistics.estimate import STATUSES, Estimate, decimals, format_estimate, format_number
from medtl.report.kit import Drawing
from medtl.report.overlays import Overlay

DASH = "\N{EN DASH}"
_QUIET = ("ok", "point_only", "fixed", "description")
TONES = {"gain": "gain", "harm": "harm", "no clear difference": "even", "not estimable": "muted"}
"""The tone of each verdict."""
BOUND = "upper bound"
BOUND_NOTE = "Upper bound: uses target labels; not a candidate."


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is printed.
        value: the number behind it as results.json holds it, or None; lo and hi likewise.
        mark: letter of a note below the table.
        tone: `gain`, `harm`, `even`, `muted` or "".
        heat: 0 to 1, the shade of a confusion table's cell; None elsewhere.
        tag: a word that belongs to the text and is set apart from it.
    """

    text: str
    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    mark: str = ""
    tone: str = ""
    heat: float | None = None
    tag: str = ""


NOTHING = Cell(DASH, tone="muted")
"""Shown in place of a missing number."""


@dataclass(frozen=True)
class Table:
    """A table with its caption and notes; the first column holds the names of the rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    compact: bool = False

    @property
    def wide(self) -> bool:
        """Whether there are so many columns that intervals go below their values."""
        return any(sum(cell.lo is not None for cell in row) > 4 for row in self.rows)


@dataclass(frozen=True)
class Section:
    """A numbered section."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Drawing, ...] = ()
    overlays: tuple[Overlay, ...] = ()


@dataclass
class TableBuilder:
    """Collects rows, and one note for each status that a number in them has."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compact: bool = False
    _marks: dict[str, str] = field(default_factory=dict)

    def row(self, *cells: Cell | str | int) -> None:
        """Adds a row; text and counts become plain cells. A note below the table explains an upper bound."""
        if BOUND_NOTE not in self.notes and any(isinstance(c, Cell) and c.tag == BOUND for c in cells):
            self.notes.append(BOUND_NOTE)
        self.rows.append(tuple(c if isinstance(c, Cell) else Cell(str(c)) for c in cells))

    def number(self, estimate: Estimate | None, *, signed: bool = False, tone: str = "") -> Cell:
        """A cell with an estimate and its interval, marked if its status needs a note."""
        if estimate is None:
            return NOTHING
        mark = ""
        if estimate.status not in _QUIET:
            mark = self._marks.setdefault(estimate.status, chr(ord("a") + len(self._marks)))
        text = format_estimate(estimate, signed=signed)
        return Cell(text, estimate.value, estimate.lo, estimate.hi, mark, tone)

    def build(self) -> Table:
        """The finished table."""
        marked = [f"{mark}: {STATUSES.get(status, status)}." for status, mark in self._marks.items()]
        return Table(self.caption, self.columns, tuple(self.rows), (*self.notes, *marked), self.compact)


def plain(value: float | None) -> Cell:
    """A cell with a number that has no interval.

    Args:
        value: the number, or None where there is none.
    """
    if value is None:
        return NOTHING
    return Cell(format_number(value, decimals(value, None, None)), value)
