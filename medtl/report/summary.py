"""The summary box of a report: the model to keep and why, and the results of external testing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block, Difference
from medtl.evaluation.statistics.estimate import format_estimate, format_number, join
from medtl.report.overfitting import in_short
from medtl.report.parts import BOUND, BOUND_NOTE, NOTHING, TONES, Cell, Table, TableBuilder, plain
from medtl.report.sections.costs import count, duration
from medtl.report.sections.many_models import compared_cell
from medtl.report.sections.sizes import growth, sizes_table
from medtl.report.tables import STATUS_WORDS
from medtl.report.view import PLACES, WHOLE, Column, View, in_text


@dataclass(frozen=True)
class Tile:
    """The result for one structure.

    Attributes:
        structure: its name.
        word: the verdict.
        tone: of the verdict.
        number: the paired difference of the first headline metric.
        change: its value of the reference model and of this one.
    """

    structure: str
    word: str
    tone: str
    number: Cell
    change: str


@dataclass(frozen=True)
class Box:
    """The results of external testing for one model.

    Attributes:
        model: its name; `tag` says that it is an upper bound.
        sentence: the verdicts, structure by structure.
        tiles: one a structure.
    """

    model: str
    tag: str
    sentence: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Summary:
    """The summary box.

    Attributes:
        verdict: what the rule keeps, or "" where no rule was applied.
        reason: why, in one sentence.
        evidence: what the rule looked at.
        heading: of the findings.
        finding: what external testing showed, one sentence for each model and headline measure.
        remarks: what else must not be missed, such as a large gap between training and validation.
        warning: where the rule and external testing disagree, or "".
        table: models side by side.
        facts: numbers of patients and cases, the positive class, the reference.
        boxes: segmentation: each model's gain and harm, structure by structure.
    """

    verdict: str
    reason: str
    evidence: Table | None
    heading: str
    finding: tuple[Cell, ...]
    remarks: tuple[str, ...]
    warning: str
    table: Table
    facts: tuple[str, ...]
    boxes: tuple[Box, ...]


def summarise(view: View) -> Summary:
    """Builds the summary box."""
    keep = view.results.context.keep or {}
    crowd = view.many and (view.masks or len(view.parts) == 1)
    if crowd:
        finding, table = [*_ranking(view), *_external(view)], ranked_table(view)
    elif view.masks:
        finding, table = [*_external(view)], _structures(view)
    else:
        finding, table = [*_findings(view)] or [*_external(view)], _side_by_side(view)
    return Summary(
        verdict=view.kept,
        reason=str(keep.get("reason", "")),
        evidence=_evidence(view, keep.get("evidence")),
        heading=f"What {(view.place() if crowd else PLACES['target']).lower()} shows",
        finding=tuple(finding),
        remarks=tuple(in_short(view)),
        warning=_warning(view),
        table=table,
        facts=tuple(_facts(view)),
        boxes=() if crowd or not view.masks else tuple(_boxes(view)),
    )


def _headline_differences(view: View, name: str, model: str = "") -> list[Difference]:
    """Paired differences of a headline metric on the main external cases: of each finding, or of each structure."""
    found = [
        d
        for d in view.differences("target", blank=True)
        if d.name == name and model in ("", d.model) and (d.cls is not None) == view.masks
    ]
    order = {part: k for k, part in enumerate(view.parts)}
    return sorted(found, key=lambda d: order[view.part_of(d)]) if view.masks else found


def _evidence(view: View, evidence: object) -> Table | None:
    """The evidence that the rule used; with many models, one below the other."""
    if not isinstance(evidence, (list, tuple)) or not evidence:
        return None
    models = [m for m in view.results.models if m not in view.bounds]
    heads = [str(e.get("name", "")) for e in evidence]
    said = [str(e.get("verdict", "")) for e in evidence]
    numbers = [
        [plain(None if (v := (e.get("values") or {}).get(m)) is None else float(v)) for m in models]
        for e in evidence
    ]
    first = "Evidence, without external labels"
    if view.many:
        table = TableBuilder("", (first, *heads))
        for model, *cells in zip(models, *numbers, strict=True):
            table.row(model, *cells)
        table.notes += [f"{name} speaks for: {word}." for name, word in zip(heads, said, strict=True) if word]
    else:
        table = TableBuilder("", (first, *models, "Speaks for"))
        for name, cells, word in zip(heads, numbers, said, strict=True):
            table.row(name, *cells, word)
    return table.build()


def _findings(view: View) -> Iterator[Cell]:
    """A sentence for each model and headline metric."""
    for name in view.headlines:
        for d in _headline_differences(view, name):
            what = f"{MEASURES[name].title}{f' for {d.finding}' if d.finding else ''}"
            text = format_estimate(d.estimate, signed=True)
            sentence, tone = (
                {
                    "gain": f"Gain: {d.model} is better than {d.reference}. {what}: {text}.",
                    "harm": f"Harm: {d.model} is worse than {d.reference}. {what}: {text}.",
                    "no clear difference": f"No clear difference between {d.model} and {d.reference}. {what}: {text}.",
                }.get(
                    d.verdict,
                    f"{what}: the difference between {d.model} and {d.reference} cannot be estimated.",
                ),
                TONES[d.verdict],
            )
            if d.model in view.bounds:
                sentence, tone = f"Upper bound (uses target labels, not a candidate). {sentence}", "muted"
            yield Cell(sentence, d.estimate.value, d.estimate.lo, d.estimate.hi, tone=tone)


def _ranking(view: View) -> Iterator[Cell]:
    """Describes the results of many models, in a sentence or two per headline metric."""
    if view.sizes:
        yield from (Cell(text, tone="even") for text in growth(view))
        return
    words = {"gain": "better", "harm": "worse", "no clear difference": "not clearly different"}
    for name in view.headlines:
        found = view.comparison(name)
        if found is None:
            continue
        counts = {word: sum(r.verdict == verdict for r in found.rows) for verdict, word in words.items()}
        parts = join([f"{number} {word}" for word, number in counts.items()])
        title, best = MEASURES[name].title, found.rows[0]
        title = f"Mean {title}" if view.masks else title
        yield Cell(
            f"{title} in {view.place().lower()}: of {len(found.rows) - 1} models compared with {view.reference}, "
            f"{parts}.",
            tone="even",
        )
        e, tone = best.estimate, TONES.get(best.verdict, "even")
        text = f"Highest {in_text(title)} of {len(found.rows)} models, {best.model}: {format_estimate(e)}"
        yield Cell(text, e.value, e.lo, e.hi, tone=tone)


def _external(view: View) -> Iterator[Cell]:
    """Says if external testing has no results."""
    targets = [b for b in view.results.blocks if b.domain == "target"]
    if targets and not any(b.num_labelled for b in targets):
        text = "The external site has no reference standard: whether a model helps or harms there is unknown."
        yield Cell(text, tone="muted")
    elif not targets:
        yield Cell("There was no external testing.", tone="muted")


def _boxes(view: View) -> Iterator[Box]:
    """One box per compared model; upper bounds come last and are marked."""
    for model in view.models:
        found = _headline_differences(view, view.headlines[0], model) if view.headlines else []
        tiles = []
        for d in found:
            e, tone = d.estimate, TONES[d.verdict]
            text = f"{MEASURES[d.name].title}: {format_estimate(e, signed=True)}"
            ends = [view.headline(m, "target", part=d.cls) for m in (d.reference, model)]
            change = " to ".join(format_number(m.estimate.value if m else None, 2) for m in ends)
            number = Cell(text, e.value, e.lo, e.hi, tone=tone)
            tiles.append(Tile(d.cls or "", d.verdict, tone, number, change))
        if tiles:
            yield Box(model, BOUND if model in view.bounds else "", _verdicts(found), tuple(tiles))


def _verdicts(found: list[Difference]) -> str:
    """`nucleus gain, cytoplasm harm`; one word if all structures agree."""
    words = {d.verdict for d in found}
    if len(found) > 1 and len(words) == 1:
        return f"{words.pop()} in {'both' if len(found) == 2 else 'all'} structures"
    return ", ".join(f"{d.cls} {d.verdict}" for d in found)


def _warning(view: View) -> str:
    """Says if the rule, which saw no external labels, and external testing disagree."""
    if not view.kept or not view.headlines:
        return ""
    start = f"The rule would keep {view.kept}, but external testing shows that"
    harmed = [d for d in _headline_differences(view, view.headlines[0], view.kept) if d.verdict == "harm"]
    if harmed:
        what = f"it is worse than {view.reference} there"
        if view.masks:
            what = f"it harms {join([d.cls or '' for d in harmed])} there (against {view.reference})"
        return f"{start} {what}. The rule was wrong here."
    for model in (m for m in view.models if m not in view.bounds) if view.kept == view.reference else ():
        verdicts = [d.verdict for d in _headline_differences(view, view.headlines[0], model)]
        if "gain" in verdicts and "harm" not in verdicts:
            harmless = " and harms no structure" if view.masks else ""
            return f"{start} {model} is better there{harmless}. The rule was cautious here."
    return ""


def _side_by_side(view: View) -> Table:
    """One row per model (and finding): the main metrics, and the difference from the reference."""
    columns = [
        c
        for s in ("calls", "discrimination", "calibration")
        for c in view.columns(s)
        if MEASURES[c.name].main
    ]
    stage = {m.name: m.stage for b in view.results.blocks for m in b.measures if m.stage != "before"}
    heads = [c.head + (", recalibrated" if stage.get(c.name) else "") for c in columns]
    first = view.headlines[0] if view.headlines else ""
    compared = bool(view.reference) and view.domain == "target" and bool(first)
    last = [f"Difference in {in_text(MEASURES[first].title)}"] if compared else []
    table = TableBuilder(PLACES[view.domain], ("Model", *heads, *last))
    differences = {(d.model, d.finding): d for d in _headline_differences(view, first)} if compared else {}
    for block in view.blocks(view.domain, labelled=False):
        finding = block.finding if len(view.parts) > 1 else None
        cells = [replace(view.name(block.model), text=view.marked(block.model, finding))]
        for c in columns:
            found = view.get(block, c, stage=stage.get(c.name)) or block.get(c.name, cls=c.cls)
            cells.append(table.number(found.estimate if found else None))
        if compared:
            d = differences.get((block.model, block.finding))
            cells.append(table.number(d.estimate, signed=True, tone=TONES[d.verdict]) if d else NOTHING)
        table.row(*cells)
    table.notes.append(view.meaning())
    return table.build()


def _structures(view: View) -> Table:
    """The first headline metric of every structure (down) and model (across)."""
    heads = [view.marked(model, bound=True) for model in view.models]
    title = view.title(view.headlines[0]) if view.headlines else ""
    table = TableBuilder(f"{title}, {PLACES[view.domain].lower()}", ("Structure", *heads))
    for part in view.parts:
        found = [view.headline(m, part=part) for m in view.models]
        table.row(part or WHOLE, *(table.number(m.estimate if m else None) for m in found))
    table.notes.append(view.meaning())
    for c in view.results.classes:
        odd = [f"{b.model} {text}" for b in view.blocks(view.domain) if (text := _odd(b, c))]
        if odd:
            table.notes.append(f"Masks where {c} is not in both mask and reference: {'; '.join(odd)}.")
    if view.bounds:
        table.notes.append(BOUND_NOTE)
    return table.build()


def _odd(block: Block, structure: str) -> str:
    """The statuses other than `ok`, with the total number of masks."""
    counts = block.statuses.get(structure, {})
    shown = [f"{n} {STATUS_WORDS[s]}" for s, n in counts.items() if n and s != "ok"]
    return f"{', '.join(shown)} of {sum(counts.values())}" if shown else ""


def ranked_table(view: View) -> Table:
    """Every model in one row: quality, difference from the reference, quality at home, cost."""
    if view.sizes:
        return sizes_table(view, view.domain).build()
    comparison = view.comparison()
    compared = {} if comparison is None else {r.model: r for r in comparison.rows}
    costs = {c.model: c for c in view.results.context.costs}
    title = view.headline_title
    more: list[tuple[Column, str | None]] = [
        (Column(n, None, None, view.title(n)), view.whole) for n in view.headlines[1:]
    ]
    if view.masks and len(view.parts) > 1:
        more = [(c, p) for c, p in view.brief() if c.name == view.headlines[0] and p is not None]
    home = view.domain == "target" and any(b.domain == "source" for b in view.results.blocks)
    columns = ["Model", title]
    columns += [f"Difference from {view.reference}"] if comparison is not None else []
    columns += [c.head for c, _ in more]
    columns += [f"{title}, internal testing"] if home else []
    columns += ["Training", "Trained parameters"] if costs else []
    table = TableBuilder(f"{view.place()}, the best first", tuple(columns))
    for model in view.models:
        values = [view.headline(model)]
        values += [view.get(view.block(model), c, part) for c, part in more]
        values += [view.headline(model, "source")] if home else []
        cells = [table.number(m.estimate if m else None) for m in values]
        if comparison is not None:
            cells.insert(1, compared_cell(table, compared.get(model)))
        if costs:
            cost = costs.get(model)
            cells.append(Cell(duration(cost.train_seconds if cost else None)))
            cells.append(Cell(count(cost.trained_parameters if cost else None)))
        table.row(replace(view.name(model), text=view.marked(model)), *cells)
    limits = " Limits of differences hold for all models at once." if comparison is not None else ""
    table.notes.append(view.meaning() + limits)
    return table.build()


def _facts(view: View) -> Iterator[str]:
    results, rules = view.results, view.results.segmentation
    for domain, word in PLACES.items():
        blocks = [b for m in results.models for b in view.blocks_of(m, domain)]
        if blocks:
            block = next((b for b in blocks if b.split == "test"), blocks[0])
            yield f"{word}: {_counts(view, block)}"
    if results.positive is not None and results.task == "binary":
        yield f"Positive class: {results.positive} ({results.positive_reason})."
    if view.reference and not view.sizes:
        yield f"Reference for comparisons: {view.reference} ({results.reference_reason})."
    if rules is not None:
        widths = join(sorted({f"{t:g}" for t in rules.tolerance.values()}))
        yield (
            f"Structures: {join(results.classes)}. Distances in {rules.unit}, NSD tolerance {widths} {rules.unit}."
        )
        yield rules.empty


def _counts(view: View, block: Block) -> str:
    place = (block.domain, block.split)
    sites = sorted(
        {b.site for b in view.results.blocks if (b.domain, b.split) == place and b.site is not None}
    )
    shown = join(sites) if len(sites) <= 4 else f"{len(sites)} sites"
    text = f"{block.num_patients} patients, {block.num_cases} cases, {shown}"
    if view.masks:
        text += f"; {block.num_labelled} with a reference standard"
    elif view.results.task != "multilabel" and block.num_labelled:
        text += f"; {', '.join(f'{c} {k}' for c, k in block.class_cases.items())}"
    tuning = " These are the tuning cases: there is no separate internal test set."
    return f"{text}.{'' if block.split == 'test' else tuning}"
