"""Sections about training: learning curves, numbers of labelled patients, cost beside quality."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from medtl.evaluation.names import sizes_of
from medtl.evaluation.results import Results
from medtl.evaluation.statistics.compare import Compared
from medtl.evaluation.statistics.estimate import format_estimate, format_number
from medtl.report.figures.figures import Drawing
from medtl.report.figures.trainfigures import headline, headline_title
from medtl.report.names import main_comparison, main_domain, place_of
from medtl.report.overfitting import RULE, Gap, gaps, sentences
from medtl.report.parts import TONES, Cell, Section, Table, TableBuilder, join, name_cell

_DASH = "\N{EN DASH}"
_SPACE = "\N{NO-BREAK SPACE}"
READS = {"large": "harm", "within the noise": "even", "small": "", "": "muted"}
PLACES = {"target": "External testing", "source": "Internal testing"}


def learning_section(results: Results, figures: dict[str, Drawing]) -> Section | None:
    """Losses by epoch, and how far training is ahead of validation."""
    found = gaps(results)
    if not found:
        return None
    table = TableBuilder(
        f"{headline_title(results)} of the kept weights, on cases without augmentation, mean over training seeds",
        ("Model", "Kept epoch", "Training", "Validation", "Gap", "Reads as"),
    )
    for g in found:
        cells = (
            _number(g.train),
            Cell(_validation(g)),
            _number(g.size),
            Cell(g.reads or _DASH, tone=READS[g.reads]),
        )
        table.row(name_cell(results, g.model), _kept(g), *cells)
    table.notes.append(RULE)
    drawn = (figures["learning"],) if "learning" in figures else ()
    text = tuple(sentences(results, found))
    return Section("learning", "Learning curves", text=text, tables=(table.build(),), figures=drawn)


def _number(value: float | None) -> Cell:
    return Cell(_DASH, tone="muted") if value is None else Cell(format_number(value, 2))


def _validation(gap: Gap) -> str:
    limits = "" if gap.lo is None else f" ({format_number(gap.lo, 2)} to {format_number(gap.hi, 2)})"
    return format_number(gap.validation, 2) + limits


def _kept(gap: Gap) -> str:
    kept = ", ".join(_DASH if epoch is None else str(epoch) for epoch, _ in gap.kept)
    return f"{kept} of {', '.join(dict.fromkeys(str(ran) for _, ran in gap.kept))}"


def sizes_section(results: Results, figures: dict[str, Drawing]) -> Section | None:
    """Quality over the number of labelled training patients."""
    groups = sizes_of(results)
    if not groups:
        return None
    tables = [sizes_table(results, domain) for domain in PLACES]
    tables += [_same_size(results, groups), _steps(results, groups)]
    text = list(growth(results))
    if results.comparisons:
        text.append(
            "All models are tested on the same resampled patients; the limits of differences hold for a whole table at "
            "once (single-step max-t from the patient bootstrap: Westfall and Young 1993; Romano and Wolf 2005). They "
            "are about the tested patients; which patients were drawn for training shows in the spread of the seeds."
        )
    drawn = (figures["sizes"],) if "sizes" in figures else ()
    shown = tuple(t for t in tables if t.rows)
    return Section("sizes", "How many labelled patients", text=tuple(text), tables=shown, figures=drawn)


def sizes_table(results: Results, domain: str) -> Table:
    """One row a number of labelled patients, one column a strategy."""
    groups = sizes_of(results)
    place = place_of(results, domain).lower()
    table = TableBuilder(f"{headline_title(results)}, {place}", ("Labelled training patients", *groups))
    for n in sorted({n for by in groups.values() for n in by}):
        found = [headline(results, by[n], domain) if n in by else None for by in groups.values()]
        if any(found):
            table.row(str(n), *(table.number(m.estimate if m else None) for m in found))
    return table.build()


def _same_size(results: Results, groups: dict[str, dict[int, str]]) -> Table:
    """Every strategy against one of them at the same number of patients."""
    rows, place = _compared(results, "same_size"), place_of(results).lower()
    others = [g for g, by in groups.items() if any(m in rows for m in by.values())]
    home = next((g for g in groups if g not in others), "")
    table = TableBuilder(
        f"{headline_title(results)}, {place}: differences from {home} with as many patients",
        ("Labelled training patients", *others),
    )
    for n in sorted({n for by in groups.values() for n in by}):
        cells = [_difference(table, rows.get(groups[g].get(n, ""))) for g in others]
        if any(c.value is not None for c in cells):
            table.row(str(n), *cells)
    return table.build()


def _steps(results: Results, groups: dict[str, dict[int, str]]) -> Table:
    """What each step to more patients brought."""
    rows, place = _compared(results, "previous_size"), place_of(results).lower()
    table = TableBuilder(
        f"{headline_title(results)}, {place}: what more patients brought",
        ("Labelled training patients", *groups),
    )
    steps = [step for by in groups.values() for step in pairwise(by)]
    for before, n in sorted(dict.fromkeys(steps), key=lambda step: (step[1], step[0])):
        stepped = [by.get(n, "") if (before, n) in pairwise(by) else "" for by in groups.values()]
        table.row(f"{before} to {n}", *(_difference(table, rows.get(m)) for m in stepped))
    return table.build() if rows else Table("", (), ())


def _compared(results: Results, kind: str) -> dict[str, Compared]:
    found = main_comparison(results, kind=kind)
    return {r.model: r for r in found.rows if r.difference is not None} if found is not None else {}


def _difference(table: TableBuilder, row: Compared | None) -> Cell:
    if row is None:
        return Cell(_DASH, tone="muted")
    return table.number(row.difference, signed=True, tone=TONES[row.verdict])


def growth(results: Results) -> Iterator[str]:
    """What more labelled patients bring, and whether the best strategy depends on their number."""
    domain, groups = main_domain(results), sizes_of(results)
    value = {
        (group, n): measure.estimate
        for group, by in groups.items()
        for n, model in by.items()
        if (measure := headline(results, model, domain)) is not None
    }
    steps = _compared(results, "previous_size")
    words = {"gain": "more patients still help", "harm": "more patients made it worse"}
    for group, by in groups.items():
        have = [n for n in by if (group, n) in value]
        if len(have) < 2:
            continue
        text = (
            f"{group}: {headline_title(results).lower()} {format_estimate(value[group, have[0]])} with {have[0]} "
            f"labelled patients, {format_estimate(value[group, have[-1]])} with {have[-1]}."
        )
        last = steps.get(by[have[-1]])
        if last is not None and last.difference is not None:
            reads = words.get(last.verdict, "no clear change")
            change = format_estimate(last.difference, signed=True)
            text += f" The last step, from {have[-2]} to {have[-1]}, brought {change}: {reads}."
        yield text
    best: dict[str, list[int]] = {}
    for n in sorted({n for _, n in value}):
        at = {group: value[group, n].value or 0.0 for group in groups if (group, n) in value}
        if len(at) > 1:
            best.setdefault(max(at, key=lambda group: at[group]), []).append(n)
    if len(best) > 1:
        parts = [f"{group} with {join([str(n) for n in ns])}" for group, ns in best.items()]
        yield f"Highest value: {'; '.join(parts)} labelled patients. The table of differences says how sure that is."


def costs_section(results: Results, figures: dict[str, Drawing]) -> Section | None:
    """What training and prediction cost, beside quality."""
    costs = results.context.costs
    if not costs:
        return None
    domain = main_domain(results)
    quality = {c.model: headline(results, c.model, domain) for c in costs}
    value = {
        m: q.estimate.value for m, q in quality.items() if q is not None and q.estimate.value is not None
    }
    table = TableBuilder(
        f"Cost beside quality, {place_of(results, domain).lower()}",
        (
            "Model",
            headline_title(results),
            "Training",
            "Prediction, a case",
            "Peak memory",
            "Parameters",
            "Trained",
        ),
    )
    for cost in sorted(costs, key=lambda c: -value.get(c.model, -1.0)):
        measure = quality[cost.model]
        table.row(
            name_cell(results, cost.model),
            table.number(measure.estimate if measure else None),
            duration(cost.train_seconds),
            duration(cost.predict_seconds_per_case),
            memory(cost.peak_memory_mb),
            count(cost.parameters),
            count(cost.trained_parameters),
        )
    table.notes.append(
        "Mean over training seeds, on the machine of this run. Trained: parameters that training changed."
    )
    seconds = {c.model: c.train_seconds for c in costs if c.train_seconds is not None and c.model in value}
    front = [
        m
        for m in seconds
        if not any(seconds[o] <= seconds[m] and value[o] > value[m] for o in seconds if o != m)
    ]
    front.sort(key=lambda m: seconds[m])
    text = (
        (
            f"No model that trains as fast has a higher value than {join(front)}. Differences may be chance: see the "
            "paired comparison.",
        )
        if len(seconds) > 1
        else ()
    )
    drawn = (figures["costs"],) if "costs" in figures else ()
    return Section("costs", "Cost beside quality", text=text, tables=(table.build(),), figures=drawn)


def methods_table(results: Results) -> Iterator[Table]:
    """How each model was trained and what that does to its probabilities; models with one note share a row."""
    shared: dict[str, list[str]] = {}
    for model, note in results.context.methods.items():
        shared.setdefault(note, []).append(model)
    if not shared:
        return
    table = TableBuilder("How the models were trained, and what that does to calibration", ("Models", "Note"))
    for note, models in shared.items():
        everyone = len(shared) == 1 and len(models) > 1
        table.row("all models" if everyone else ", ".join(models), note)
    yield table.build()


def duration(seconds: float | None) -> str:
    """Seconds for people.

    Example:
        >>> [duration(s).replace(_SPACE, " ") for s in (0.0123, 4.2, 312, 7500)]
        ['12 ms', '4.2 s', '5 min 12 s', '2 h 5 min']
    """
    if seconds is None:
        return _DASH
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 1:
        text = f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    elif seconds < 59.5:
        text = f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    else:
        text = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return text.replace(" ", _SPACE)


def memory(megabytes: float | None) -> str:
    """Megabytes for people.

    Example:
        >>> [memory(m).replace(_SPACE, " ") for m in (312.4, 2048)]
        ['312 MB', '2.0 GB']
    """
    if megabytes is None:
        return _DASH
    text = f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"
    return text.replace(" ", _SPACE)


def count(number: int | None) -> str:
    """A count for people.

    Example:
        >>> [count(n).replace(_SPACE, " ") for n in (4098, 23_500_000, 0)]
        ['4.1 k', '23.5 M', '0']
    """
    if number is None:
        return _DASH
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{_SPACE}{unit}"
    return str(number)
