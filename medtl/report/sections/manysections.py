"""Sections of a report on many models: one row a model, the best first, with limits that hold for all at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import sizes_of, split_name
from medtl.evaluation.results import HEADLINES, Block, Results, Settings
from medtl.evaluation.statistics.compare import Compared, Comparison
from medtl.evaluation.statistics.estimate import decimals, format_estimate, format_number
from medtl.report.figures.figures import Drawing
from medtl.report.names import main_block, main_comparison, main_domain, place_of, ranked
from medtl.report.parts import TONES, Cell, Section, Table, TableBuilder, join, name_cell, plain
from medtl.report.sections.trainsections import PLACES, count, duration, growth, sizes_table

_DASH = Cell("\N{EN DASH}", tone="muted")


def findings_of(results: Results) -> Iterator[Cell]:
    """What testing shows, in a sentence or two for each headline measure."""
    if sizes_of(results):
        yield from (Cell(text, tone="even") for text in growth(results))
        return
    place = place_of(results).lower()
    for name in HEADLINES:
        found = main_comparison(results, name)
        if found is None:
            continue
        words = {"gain": "better", "harm": "worse", "no clear difference": "not clearly different"}
        groups = {
            word: [r.model for r in found.rows if r.verdict == verdict] for verdict, word in words.items()
        }
        parts = [f"{len(models)} {word}" for word, models in groups.items()]
        yield Cell(
            f"{MEASURES[name].title} in {place}: of {len(found.rows) - 1} models compared with "
            f"{results.reference_model}, "
            f"{join(parts)}.",
            tone="even",
        )
        best, title = found.rows[0], title_in_text(name)
        yield Cell(
            f"Highest {title} of {len(found.rows)} models, {best.model}: {format_estimate(best.estimate)}",
            best.estimate.value,
            best.estimate.lo,
            best.estimate.hi,
            tone=TONES.get(best.verdict, "even"),
        )


def title_in_text(name: str) -> str:
    """A measure's title inside a sentence."""
    title = MEASURES[name].title
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def ranked_table(results: Results, kept: str = "") -> Table:
    """Every model in one row: quality, difference from the reference, quality at home, cost."""
    domain = main_domain(results)
    if sizes_of(results):
        return sizes_table(results, domain)
    comparison = main_comparison(results)
    rows: dict[str, Compared] = {} if comparison is None else {r.model: r for r in comparison.rows}
    costs = {c.model: c for c in results.context.costs}
    title = MEASURES[HEADLINES[0]].title
    columns = ["Model", title]
    if comparison is not None:
        columns.append(f"Difference from {results.reference_model}")
    columns.append(MEASURES[HEADLINES[1]].title)
    home = domain == "target" and any(b.domain == "source" for b in results.blocks)
    columns += [f"{title}, internal testing"] if home else []
    columns += ["Training", "Trained parameters"] if costs else []
    table = TableBuilder(f"{place_of(results, domain)}, the best first", tuple(columns))
    for model in ranked(results):
        marks = [
            w
            for w, true in (("kept", model == kept), ("reference", model == results.reference_model))
            if true
        ]
        cells = [name_cell(results, model, f" ({', '.join(marks)})" if marks else "")]
        block = main_block(results, model, domain)
        cells.append(_measure(table, block, HEADLINES[0]))
        if comparison is not None:
            cells.append(_difference(table, rows.get(model)))
        cells.append(_measure(table, block, HEADLINES[1]))
        if home:
            cells.append(_measure(table, main_block(results, model, "source"), HEADLINES[0]))
        if costs:
            cost = costs.get(model)
            cells.append(Cell(duration(cost.train_seconds if cost else None)))
            cells.append(Cell(count(cost.trained_parameters if cost else None)))
        table.row(*cells)
    table.notes.append(
        f"Value ({format_number(100 * results.level, 0)} % interval over patients"
        + ("; mean over training seeds)." if any(len(b.seeds) > 1 for b in results.blocks) else ").")
        + (" Limits of differences hold for all models at once." if comparison is not None else "")
    )
    return table.build()


def _measure(table: TableBuilder, block: Block | None, name: str, **where: str | None) -> Cell:
    found = block.get(name, **{"cls": None, **where}) if block is not None else None
    return table.number(found.estimate if found else None)


def _difference(table: TableBuilder, row: Compared | None) -> Cell:
    if row is None or row.difference is None:
        return _DASH
    return table.number(row.difference, signed=True, tone=TONES[row.verdict])


def settings_section(results: Results, figures: dict[str, Drawing]) -> Section:
    """Temperatures and operating points, one row a model."""
    binary = results.positive is not None
    columns = ["Model", "Temperature"]
    columns += ["Operating point", "Sensitivity there", "Specificity there"] if binary else []
    table = TableBuilder(
        "Settings fitted at the source, mean over training seeds", tuple(columns), compact=True
    )
    groups: dict[str, list[Settings]] = {}
    for s in results.settings:
        groups.setdefault(s.model + (f", {s.finding}" if s.finding else ""), []).append(s)
    for name, settings in groups.items():
        cells = [_spread([s.temperature for s in settings])]
        if binary:
            points = [s.operating_point for s in settings if s.operating_point is not None]
            cells.append(_spread([p.probability for p in points]))
            cells += [_spread([getattr(p, kind) for p in points]) for kind in ("sensitivity", "specificity")]
        table.row(name_cell(results, settings[0].model, name.removeprefix(settings[0].model)), *cells)
    table.notes.append("In brackets: lowest and highest of the training seeds. Single seeds: results.json.")
    text = ["Everything here was fitted on tuning cases of the source and then frozen."]
    if binary:
        text.append(
            f"A case is called positive when its probability, before recalibration, is at or above the operating point "
            f"(rule: {results.rule}). Sensitivity and specificity here are those of the cases that the point was "
            "chosen on; they flatter."
        )
    else:
        text.append("The most probable class is called; there is no operating point.")
    return Section("settings", "Settings frozen before testing", text=tuple(text), tables=(table.build(),))


def _spread(values: list[float | None]) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return _DASH
    places = decimals(max(known), None, None)
    mean, low, high = (format_number(float(f(known)), min(places, 2)) for f in (np.mean, min, max))
    return Cell(mean if len(known) == 1 else f"{mean} ({low} to {high})")


def comparison_section(results: Results, figures: dict[str, Drawing]) -> Section | None:
    """All models against the reference: figure, table, encoders by strategies, other measures."""
    findings = list(dict.fromkeys(b.finding for b in results.blocks))
    domain, tables = main_domain(results), []
    for finding in findings:
        found = [
            c for name in HEADLINES if (c := main_comparison(results, name, domain, finding)) is not None
        ]
        if found:
            tables.append(_comparison_table(results, found, finding))
            tables += _matrix(found[0])
            tables += _others(results, domain, finding)
    if not tables:
        return None
    num = max(len(c.rows) for c in results.comparisons)
    text = (
        f"All models are taken on the same resampled patients. With {num - 1} comparisons some would leave out 0 by "
        f"chance alone, so these limits hold at {100 * results.level:g} % for all of them at once (single-step max-t "
        "from the patient bootstrap: Westfall and Young 1993; Romano and Wolf 2005), and so do the adjusted p-values. "
        "Since the models share patients, this asks less than Bonferroni's or Holm's correction. Training seeds are "
        "averaged; their spread is not part of the limits.",
        "The model on top was found on the patients that rank it, so its value flatters, the more so the more models "
        "there are. To choose by this table is to choose by these labels: confirm the choice on other patients.",
    )
    drawn = (figures["ranked"],) if "ranked" in figures else ()
    return Section(
        "effect", "All models against the reference", text=text, tables=tuple(tables), figures=drawn
    )


def _comparison_table(results: Results, found: list[Comparison], finding: str | None) -> Table:
    columns = ["Model"]
    for c in found:
        columns += [f"{MEASURES[c.name].title}, difference", "Adjusted p", "First in"]
    about = f", {finding}" if finding else ""
    table = TableBuilder(
        f"Differences from {results.reference_model}, {place_of(results).lower()}{about}",
        tuple(columns),
    )
    for row in found[0].rows:
        cells = [name_cell(results, row.model, " (reference)" if row.difference is None else "")]
        for c in found:
            own = next((r for r in c.rows if r.model == row.model), None)
            cells.append(_difference(table, own))
            cells.append(_p_value(None if own is None else own.p_value))
            cells.append(_DASH if own is None else Cell(_share(own.first)))
        table.row(*cells)
    table.notes.append("First in: share of the resamples in which no other model has a higher value.")
    return table.build()


def _share(first: float) -> str:
    return "< 1 %" if first < 0.005 else f"{100 * first:.0f} %"


def _p_value(p: float | None) -> Cell:
    if p is None:
        return _DASH
    return Cell("< 0.001") if p < 0.001 else Cell(format_number(p, 3 if p < 0.1 else 2))


def _matrix(comparison: Comparison) -> Iterator[Table]:
    """Encoders by strategies, where the names have both."""
    names = {row.model: split_name(row.model) for row in comparison.rows}
    encoders = list(dict.fromkeys(n.encoder for n in names.values()))
    strategies = list(dict.fromkeys(n.strategy for n in names.values()))
    plain_names = any(n.size is not None or not n.encoder for n in names.values())
    if plain_names or len(encoders) < 2 or len(strategies) < 2:
        return
    rows = {(names[r.model].encoder, names[r.model].strategy): r for r in comparison.rows}
    values = [r.estimate.value or 0.0 for r in comparison.rows]
    low, span = min(values), max(max(values) - min(values), 1e-9)
    title = MEASURES[comparison.name].title
    table = TableBuilder(f"{title}: encoders and strategies", ("Encoder", *strategies), compact=True)
    for encoder in encoders:
        cells = []
        for strategy in strategies:
            row = rows.get((encoder, strategy))
            value = row.estimate.value if row is not None else None
            shade = None if value is None else (value - low) / span
            text = format_number(value, 2)
            cells.append(Cell(text, value, heat=shade, tone="" if value is not None else "muted"))
        table.row(encoder, *cells)
    yield table.build()


def _others(results: Results, domain: str, finding: str | None) -> Iterator[Table]:
    """Differences in other measures, with limits for each alone."""
    stage = "after" if any(d.stage == "after" for d in results.differences) else "before"
    names = ["sensitivity", "specificity"] if results.positive is not None else ["accuracy"]
    keys = [(name, None) for name in names] + [("brier", stage), ("nll", stage)]
    heads = [MEASURES[n].title + (f", {s} recalibration" if s else "") for n, s in keys]
    table = TableBuilder("Differences in other measures, each limit for itself", ("Model", *heads))
    place = {(b.split, b.site) for m in results.models if (b := main_block(results, m, domain, finding))}
    for model in ranked(results):
        found = {
            (d.name, d.stage): d
            for d in results.differences
            if (d.model, d.domain, d.finding, d.cls) == (model, domain, finding, None)
            and (d.split, d.site) in place
        }
        own = [found.get(key) for key in keys]
        if any(own):
            cells = [
                table.number(d.estimate, signed=True, tone=TONES[d.verdict]) if d else _DASH for d in own
            ]
            table.row(name_cell(results, model), *cells)
    table.notes.append(
        "Not adjusted for the number of comparisons. Lower is better for log loss and Brier score."
    )
    if table.rows:
        yield table.build()


def calibration_table(results: Results) -> Table:
    """Calibration in the main place of testing, one row a model, before and after recalibration."""
    domain = main_domain(results)
    kind = "positive" if results.positive is not None else "top_label"
    names: list[tuple[str, str, dict[str, str | None]]] = [
        (f"{MEASURES[name].title}, {stage}", name, {"stage": stage})
        for name in ("nll", "brier")
        for stage in ("before", "after")
    ]
    if results.positive is not None:
        names += [(f"Slope, {s}", "calibration_slope", {"stage": s}) for s in ("before", "after")]
    names += [(f"ECE, {s}", "ece", {"stage": s, "kind": kind}) for s in ("before", "after")]
    findings = list(dict.fromkeys(b.finding for b in results.blocks))
    blocks = [
        (m, b)
        for m in ranked(results)
        for f in findings
        if (b := main_block(results, m, domain, f)) is not None and b.num_labelled
    ]
    names = [n for n in names if any(b.get(n[1], **n[2]) for _, b in blocks)]
    table = TableBuilder(
        f"Calibration before and after recalibration, {place_of(results, domain).lower()}",
        ("Model", *(n[0] for n in names)),
    )
    for model, block in blocks:
        about = f", {block.finding}" if block.finding else ""
        cells = [_measure(table, block, name, **where) for _, name, where in names]
        table.row(name_cell(results, model, about), *cells)
    return table.build()


def auroc_table(results: Results) -> Table:
    """AUROC of every model, one column a place."""
    blocks = {(m, d): results.main_blocks(m, d) for m in ranked(results) for d in PLACES}
    domains = [d for d in PLACES if any(b.num_labelled for m in results.models for b in blocks[m, d])]
    table = TableBuilder("AUROC", ("Model", *(place_of(results, d) for d in domains)))
    for model in ranked(results):
        for finding in dict.fromkeys(b.finding for b in results.blocks):
            cells = [_measure(table, main_block(results, model, d, finding), "auroc") for d in domains]
            table.row(name_cell(results, model, f", {finding}" if finding else ""), *cells)
    return table.build()


def seeds_section(results: Results, figures: dict[str, Drawing]) -> Section | None:
    """Values of single training seeds, one row a model."""
    domain = main_domain(results)
    blocks = [(m, b) for m in ranked(results) if (b := main_block(results, m, domain)) is not None]
    seeds = list(dict.fromkeys(s for _, b in blocks for s in b.seeds))
    if len(seeds) < 2:
        return None
    title = MEASURES[HEADLINES[0]].title
    table = TableBuilder(
        f"{title} of single training seeds, {place_of(results, domain).lower()}",
        ("Model", *(f"Seed {s}" for s in seeds)),
        compact=True,
    )
    for model, block in blocks:
        measure = block.get(HEADLINES[0], cls=None)
        table.row(
            name_cell(results, model), *(plain(measure.per_seed.get(s) if measure else None) for s in seeds)
        )
    text = ("Intervals elsewhere are about patients; the spread over training seeds is not part of them.",)
    drawn = (figures["seeds"],) if "seeds" in figures else ()
    return Section("seeds", "Training seeds", text=text, tables=(table.build(),), figures=drawn)
