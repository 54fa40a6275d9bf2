"""The numbered sections of a report, built from the results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from medtl.evaluation.metrics.registry import KINDS, MEASURES
from medtl.evaluation.names import many
from medtl.evaluation.results import Block, Results
from medtl.evaluation.statistics.estimate import Estimate, format_number
from medtl.report.figures.figures import Drawing
from medtl.report.names import in_view, main_domain, ranked, role
from medtl.report.overlays import Overlay
from medtl.report.parts import BOUND_NOTE, TONES, Cell, Section, Table, TableBuilder, name_cell, plain
from medtl.report.sections.appendix import definitions_section, limitations_section, reproducibility_section
from medtl.report.sections.flow import data_section
from medtl.report.sections.manysections import (
    auroc_table,
    calibration_table,
    comparison_section,
    seeds_section,
    settings_section,
)
from medtl.report.sections.trainsections import costs_section, learning_section, methods_table, sizes_section

_DASH = "\N{EN DASH}"


def sections(
    results: Results, figures: dict[str, Drawing], overlays: Sequence[Overlay] = ()
) -> list[Section]:
    """Every section that the results have something to show for."""
    if results.segmentation is not None:
        from medtl.report.sections.segsections import segmentation_sections

        return segmentation_sections(results, figures, overlays)
    training = (sizes_section, costs_section, learning_section)
    effect = (_discrimination, _decisions, _effect, _calibration)
    makers: tuple[Callable[[Results, dict[str, Drawing]], Section | None], ...]
    makers = (data_section, _frozen, *effect, *training, _shares, _sites, _seeds)
    if many(results):
        quality = (_discrimination, _decisions, _calibration)
        rest = (settings_section, *quality, _shares, _sites, seeds_section)
        makers = (data_section, comparison_section, *training, *rest)
    made = [make(results, figures) for make in makers]
    return [
        *(s for s in made if s is not None),
        limitations_section(results),
        definitions_section(results),
        reproducibility_section(results),
    ]


def _figures(figures: dict[str, Drawing], name: str) -> tuple[Drawing, ...]:
    return (figures[name],) if name in figures else ()


def _name(results: Results, block: Block) -> Cell:
    return name_cell(results, block.model, f", {block.finding}" if block.finding else "")


def _main(results: Results, *, labelled: bool = True) -> Iterator[Block]:
    """The blocks that the tables show: for each domain, each model (and finding)."""
    for domain in ("target", "source"):
        for model in ranked(results) if many(results) else results.models:
            for block in results.main_blocks(model, domain):
                if block.num_labelled or not labelled:
                    yield block


def _estimate(
    block: Block, name: str, *, cls: str | None = None, stage: str | None = None, kind: str | None = None
) -> Estimate | None:
    found = block.get(name, cls=cls, stage=stage, kind=kind)
    return None if found is None else found.estimate


def _frozen(results: Results, figures: dict[str, Drawing]) -> Section:
    binary = results.positive is not None
    columns = ["Model", "Training seed", "Temperature", "Fitted on"]
    if binary:
        columns += ["Operating point", "Rule", "Sensitivity there", "Specificity there"]
    table = TableBuilder("Settings fitted at the source", tuple(columns), compact=True)
    words = {
        "no_validation": "no labelled tuning cases",
        "one_class": "tuning cases of one class only",
        "separated": "none: all called right",
    }
    for s in results.settings:
        name = name_cell(results, s.model, f", {s.finding}" if s.finding else "")
        cases = f"{s.temperature_cases} cases"
        if s.temperature_status != "fitted":
            cases = words.get(s.temperature_status, "at its bound")
        cells: list[Cell | str] = [name, s.seed, plain(s.temperature), cases]
        if binary and s.operating_point is not None:
            point = s.operating_point
            number = Cell(f"≥ {format_number(point.probability, 3)}", point.probability)
            rule = point.rule if s.operating_status == "fitted" else f"one half: {words[s.operating_status]}"
            cells += [number, rule, plain(point.sensitivity), plain(point.specificity)]
        table.row(*cells)
    done = {"fitted", "at_bound", "separated"}
    fitted = any(done & {s.temperature_status, s.operating_status} for s in results.settings)
    text = [
        "Everything in this table was fitted on tuning cases of the source and then frozen."
        if fitted
        else "The table of predictions holds no tuning cases to fit settings on: the defaults stand."
    ]
    if binary:
        text.append(
            "A case is called positive when its probability, before recalibration, is at or above the "
            "operating point."
            + (
                " Sensitivity and specificity here are those of the cases that the point was chosen on; they flatter."
                if fitted
                else ""
            )
        )
    else:
        text.append("The most probable class is called; there is no operating point.")
    return Section("settings", "Settings frozen before testing", text=tuple(text), tables=(table.build(),))


def _discrimination(results: Results, figures: dict[str, Drawing]) -> Section | None:
    blocks = list(_main(results))
    if not blocks:
        return None
    multi = results.task == "multiclass"
    if many(results) and not multi:
        drawn = _figures(figures, "roc")
        return Section("discrimination", "Discrimination", tables=(auroc_table(results),), figures=drawn)
    columns = ["Model", "Cases for", "AUROC"] + (
        [f"{c} against the rest" for c in results.classes] if multi else []
    )
    table = TableBuilder("Discrimination", tuple(columns))
    for block in blocks:
        cells = [table.number(_estimate(block, "auroc"))]
        if multi:
            cells += [table.number(_estimate(block, "class_auroc", cls=c)) for c in results.classes]
        table.row(_name(results, block), role(block), *cells)
    return Section(
        "discrimination", "Discrimination", tables=(table.build(),), figures=_figures(figures, "roc")
    )


def _decisions(results: Results, figures: dict[str, Drawing]) -> Section | None:
    blocks = list(_main(results))
    if not blocks:
        return None
    names = ["balanced_accuracy", "accuracy"]
    if results.positive is not None:
        names += ["sensitivity", "specificity"] + (["ppv", "npv"] if results.prevalence is not None else [])
    columns = ["Model", "Cases for", *(MEASURES[n].title for n in names)]
    if results.positive is None:
        columns += [f"Recall, {c}" for c in results.classes]
    title = "Calls at the frozen operating point" if results.positive else "Calls of the most probable class"
    tables: dict[str, TableBuilder] = {}
    for block in blocks:
        place = role(block) if many(results) else ""
        caption = f"{title}, {place.lower()}" if place else title
        head = [c for c in columns if c != "Cases for"] if place else columns
        table = tables.setdefault(place, TableBuilder(caption, tuple(head)))
        cells = [table.number(_estimate(block, n)) for n in names]
        if results.positive is None:
            cells += [table.number(_estimate(block, "recall", cls=c)) for c in results.classes]
        table.row(_name(results, block), *([] if place else [role(block)]), *cells)
    text: tuple[str, ...] = ()
    if results.prevalence is not None:
        text = (
            f"PPV and NPV hold at a stated prevalence of {100 * results.prevalence:g} %, not at the share in "
            "this sample.",
        )
    elif results.positive is not None:
        text = (
            "No prevalence was stated, so no PPV and NPV are given: those of the sample would not be those "
            "of a clinic.",
        )
    drawn = [b for b in blocks if b.confusion and b.model in in_view(results)]
    drawn = [b for b in drawn if b.domain == "target"] or drawn
    confusion = tuple(_confusion(results, b) for b in drawn)
    return Section(
        "calls",
        "Calls, sensitivity and specificity" if results.positive else "Calls and recalls",
        text=text,
        tables=(*(t.build() for t in tables.values()), *confusion),
    )


def _confusion(results: Results, block: Block) -> Table:
    averaged, model = len(block.seeds) > 1, _name(results, block)
    tag = f" ({model.tag})" if model.tag else ""
    table = TableBuilder(
        f"{model.text}{tag}, {role(block).lower()}: cases by reference standard (rows) and call (columns)"
        + (", mean over training seeds" if averaged else ""),
        ("", *results.classes),
        compact=True,
    )
    for name, row in zip(results.classes, block.confusion or (), strict=True):
        total = sum(row) or 1.0
        whole = all(float(v).is_integer() for v in row)
        table.row(name, *(Cell(format_number(v, 0 if whole else 1), v, heat=v / total) for v in row))
    if model.tag:
        table.notes.append(BOUND_NOTE)
    return table.build()


def _effect(results: Results, figures: dict[str, Drawing]) -> Section | None:
    if results.reference_model is None:
        return None
    rows = []
    for domain in ("target", "source"):
        main = {(b.split, b.site) for m in results.models for b in results.main_blocks(m, domain)}
        rows += [d for d in results.differences if d.domain == domain and (d.split, d.site) in main]
    rows = [d for d in rows if d.estimate.value is not None]
    recalibrated = any(d.stage == "after" for d in rows)
    rows = [d for d in rows if d.stage is None or (d.stage == "after") == recalibrated]
    if not rows:
        return None
    table = TableBuilder(
        f"Paired differences from {results.reference_model}",
        ("Measure", "Model", "Cases for", "Difference", "Better is", "Reads as"),
    )
    for d in rows:
        title = MEASURES[d.name].title + (f", {d.stage} recalibration" if d.stage else "")
        model = name_cell(results, d.model, f", {d.finding}" if d.finding else "")
        place = next(
            role(b)
            for b in results.blocks
            if (b.model, b.domain, b.split, b.site) == (d.model, d.domain, d.split, d.site)
        )
        tone = TONES[d.verdict]
        number = table.number(d.estimate, signed=True, tone=tone)
        table.row(title, model, place, number, d.better, Cell(d.verdict, tone=tone))
    text = (
        "Both models are taken on the same resampled patients. A difference reads as gain or harm when its "
        "interval leaves out 0. The intervals are not adjusted for the number of comparisons.",
    )
    return Section(
        "effect",
        "Effect of the adaptation" if results.reference_model == "source_only" else "Paired comparison",
        text=text,
        tables=(table.build(),),
        figures=_figures(figures, "differences"),
    )


def _calibration(results: Results, figures: dict[str, Drawing]) -> Section | None:
    blocks = list(_main(results))
    if not blocks:
        return None
    kinds = ("positive", "top_label") if results.positive is not None else ("top_label", "classwise")
    main = kinds[0]
    columns = ["Model", "Cases for", "Recalibration", "Log loss", "Brier score"]
    if results.positive is not None:
        columns += ["Slope", "In the large"]
    columns += ["Squared error, debiased", *(f"ECE, {k.replace('_', ' ')}" for k in kinds)]
    table = TableBuilder("Calibration before and after recalibration", tuple(columns))
    for block in () if many(results) else blocks:
        for stage in ("before", "after"):
            if block.get("nll", stage=stage) is None:
                continue
            names = ["nll", "brier"]
            if results.positive is not None:
                names += ["calibration_slope", "calibration_intercept"]
            cells = [table.number(_estimate(block, n, stage=stage)) for n in names]
            cells.append(table.number(_estimate(block, "debiased_squared_error", stage=stage, kind=main)))
            cells += [table.number(_estimate(block, "ece", stage=stage, kind=k)) for k in kinds]
            table.row(_name(results, block), role(block), stage, *cells)
    table.notes.append(
        f"The debiased error is about the {KINDS[main]} (10 bins of about equal numbers). ECE: L1, 10 bins "
        "of equal width; "
        + "; ".join(f"{k.replace('_', ' ')} = {KINDS[k]}" for k in kinds)
        + ". Biased upwards on few cases, so without intervals."
    )
    text = (
        "Recalibration divides the logits by one number, the temperature, fitted at the source. It changes "
        "no ranking and no call of the most probable class. Whether it helps at another site is seen here, "
        "not assumed.",
    )
    return Section(
        "calibration",
        "Calibration",
        text=text,
        tables=(calibration_table(results) if many(results) else table.build(), *methods_table(results)),
        figures=_figures(figures, "calibration"),
    )


def _shares(results: Results, figures: dict[str, Drawing]) -> Section:
    table = TableBuilder("Shares of the classes", ("Cases for", "Share", *results.classes))
    seen: set[tuple[str, str | None]] = set()
    for block in _main(results, labelled=False):
        if many(results) and block.domain != main_domain(results):
            continue
        about = f", {block.finding}" if block.finding else ""
        if block.num_labelled and (block.domain, block.finding) not in seen:
            seen.add((block.domain, block.finding))
            cells = [table.number(_estimate(block, "observed_share", cls=c)) for c in results.classes]
            table.row(role(block) + about, "by the reference standard", *cells)
        cells = [table.number(_estimate(block, "predicted_share", cls=c)) for c in results.classes]
        called = name_cell(results, block.model)
        table.row(role(block) + about, replace(called, text=f"called by {called.text}"), *cells)
    return Section(
        "shares",
        "Predicted and observed shares of the classes",
        tables=(table.build(),),
        figures=_figures(figures, "shares"),
    )


def _sites(results: Results, figures: dict[str, Drawing]) -> Section | None:
    blocks = [b for b in results.blocks if b.site is not None and b.split == "test" and b.num_labelled]
    places = {(b.domain, b.site) for b in blocks}
    if many(results):
        # One site a domain: the tables above have it already.
        blocks = [b for b in blocks if b.model in in_view(results)]
        places = places if len(places) > len({d for d, _ in places}) else set()
    if len(places) < 2:
        return None
    names = ["auroc", "balanced_accuracy"] + (["sensitivity", "specificity"] if results.positive else [])
    columns = ("Site", "Model", "Patients", "Cases", *(MEASURES[n].title for n in names))
    table = TableBuilder("Results by site", columns)
    for block in blocks:
        place = "external" if block.domain == "target" else "internal"
        cells = [table.number(_estimate(block, n)) for n in names]
        table.row(
            f"{block.site} ({place})",
            _name(results, block),
            block.num_patients,
            block.num_labelled,
            *cells,
        )
    text = ("Settings are the same at every site. With few sites their spread is shown, not estimated.",)
    return Section("sites", "Sites", text=text, tables=(table.build(),), figures=_figures(figures, "sites"))


def _seeds(results: Results, figures: dict[str, Drawing]) -> Section | None:
    if all(len(b.seeds) < 2 for b in results.blocks):
        return None
    names = ["auroc", "balanced_accuracy"] + (["sensitivity", "specificity"] if results.positive else [])
    table = TableBuilder(
        "Values of single training seeds",
        ("Model", "Cases for", "Training seed", *(MEASURES[n].title for n in names)),
        compact=True,
    )
    for block in _main(results):
        for seed in block.seeds:
            found = [block.get(n) for n in names]
            cells = [plain(m.per_seed.get(seed)) if m else Cell(_DASH, tone="muted") for m in found]
            table.row(_name(results, block), role(block), seed, *cells)
    text = ("Intervals elsewhere are about patients; the spread over training seeds is not part of them.",)
    return Section(
        "seeds", "Training seeds", text=text, tables=(table.build(),), figures=_figures(figures, "seeds")
    )
