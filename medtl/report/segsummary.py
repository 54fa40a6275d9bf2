"""The box on top of a segmentation's report: gain and harm, structure by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medtl.evaluation.results import Block, Difference, Results
from medtl.evaluation.statistics.estimate import format_estimate, format_number
from medtl.report.parts import BOUND, BOUND_NOTE, TONES, Cell, Table, TableBuilder, join
from medtl.report.sections.segsections import STATUS_WORDS, WHOLE


@dataclass(frozen=True)
class Tile:
    """What became of one structure.

    Attributes:
        structure: its name.
        word: the verdict.
        tone: of the verdict.
        number: the paired difference of Dice.
        change: Dice of the reference model and of this one.
    """

    structure: str
    word: str
    tone: str
    number: Cell
    change: str


@dataclass(frozen=True)
class Box:
    """What external testing shows of one model.

    Attributes:
        model: its name; `tag` says that it is an upper bound.
        sentence: the verdicts, structure by structure.
        tiles: one a structure.
    """

    model: str
    tag: str
    sentence: str
    tiles: tuple[Tile, ...]


def dice_differences(results: Results, model: str) -> list[Difference]:
    """Paired differences of Dice on the main external cases, one for each structure."""
    main = {(b.split, b.site) for m in results.models for b in results.main_blocks(m, "target")}
    found = [
        d
        for d in results.differences
        if d.model == model and d.domain == "target" and (d.split, d.site) in main and d.name == "dice"
    ]
    return sorted((d for d in found if d.cls is not None), key=lambda d: results.classes.index(d.cls or ""))


def verdict_sentence(found: list[Difference]) -> str:
    """`nucleus gain, cytoplasm harm`; one word where all structures agree."""
    words = {d.verdict for d in found}
    if len(found) > 1 and len(words) == 1:
        return f"{words.pop()} in {'both' if len(found) == 2 else 'all'} structures"
    return ", ".join(f"{d.cls} {d.verdict}" for d in found)


def boxes(results: Results) -> tuple[Box, ...]:
    """One box a model that is compared; upper bounds last, and named so."""
    out = []
    for model in results.models:
        found = dice_differences(results, model)
        if not found:
            continue
        tiles = []
        for d in found:
            e = d.estimate
            number = Cell(
                f"Dice: {format_estimate(e, signed=True)}", e.value, e.lo, e.hi, tone=TONES[d.verdict]
            )
            ends = [_dice(results, m, d.cls) for m in (d.reference, model)]
            change = " to ".join(format_number(v, 2) for v in ends)
            tiles.append(Tile(d.cls or "", d.verdict, TONES[d.verdict], number, change))
        bound = model in results.context.target_trained
        out.append(Box(model, BOUND if bound else "", verdict_sentence(found), tuple(tiles)))
    return tuple(out)


def _dice(results: Results, model: str, structure: str | None) -> float | None:
    for block in results.main_blocks(model, "target"):
        measure = block.get("dice", cls=structure, kind=None)
        if measure is not None:
            return measure.estimate.value
    return None


def conflict(results: Results, kept: str) -> str:
    """Says where the rule, which saw no external masks, and external testing disagree."""
    if not kept:
        return ""
    harmed = [d.cls or "" for d in dice_differences(results, kept) if d.verdict == "harm"]
    if harmed:
        return (
            f"The rule would keep {kept}, but external testing shows that it harms {join(harmed)} there (against "
            f"{results.reference_model}). The rule was wrong here."
        )
    if kept != results.reference_model:
        return ""
    for model in results.models:
        verdicts = [d.verdict for d in dice_differences(results, model)]
        if model not in results.context.target_trained and "gain" in verdicts and "harm" not in verdicts:
            return (
                f"The rule would keep {kept}, but external testing shows that {model} is better there and harms no "
                "structure. The rule was cautious here."
            )
    return ""


def side_by_side(results: Results, kept: str, domain: str) -> Table:
    """Dice of every structure (down) and model (across)."""
    place = "External testing" if domain == "target" else "Internal testing"
    heads = []
    for model in results.models:
        marks = [
            word
            for word, true in (
                ("kept", model == kept),
                ("reference", model == results.reference_model),
                (BOUND, model in results.context.target_trained),
            )
            if true
        ]
        heads.append(model + (f" ({', '.join(marks)})" if marks else ""))
    table = TableBuilder(f"Dice, {place.lower()}", ("Structure", *heads))
    blocks = {m: next(iter(results.main_blocks(m, domain)), None) for m in results.models}
    for c in (*results.classes, *([None] if len(results.classes) > 1 else [])):
        cells = []
        for block in blocks.values():
            measure = block.get("dice", cls=c, kind=None) if block else None
            cells.append(table.number(measure.estimate if measure else None))
        table.row(c or WHOLE, *cells)
    table.notes.append(
        f"Mean over cases ({format_number(100 * results.level, 0)} % interval over patients"
        + ("; mean over training seeds)." if any(len(b.seeds) > 1 for b in results.blocks) else ").")
    )
    for c in results.classes:
        odd = [f"{m} {text}" for m, b in blocks.items() if b and (text := _odd(b, c))]
        if odd:
            table.notes.append(f"Masks where {c} is not in both mask and reference: {'; '.join(odd)}.")
    if results.context.target_trained:
        table.notes.append(BOUND_NOTE)
    return table.build()


def _odd(block: Block, structure: str) -> str:
    """The statuses other than `ok`, with the number of masks that they are among."""
    counts = block.statuses.get(structure, {})
    shown = [f"{n} {STATUS_WORDS[s]}" for s, n in counts.items() if n and s != "ok"]
    return f"{', '.join(shown)} of {sum(counts.values())}" if shown else ""


def facts(results: Results) -> Iterator[str]:
    """What the summary's numbers rest on."""
    rules = results.segmentation
    if rules is None:
        return
    widths = sorted({f"{t:g}" for t in rules.tolerance.values()})
    yield f"Structures: {join(results.classes)}. Distances in {rules.unit}, NSD tolerance {join(widths)} {rules.unit}."
    yield rules.empty
