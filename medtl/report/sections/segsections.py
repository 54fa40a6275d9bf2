"""The numbered sections of a segmentation's report, built from the results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block, Difference, Results, SegmentationRules, Settings
from medtl.evaluation.statistics.estimate import Estimate
from medtl.report.figures.figures import Drawing
from medtl.report.names import role
from medtl.report.overlays import Overlay
from medtl.report.parts import TONES, Cell, Section, Table, TableBuilder, name_cell, plain
from medtl.report.sections.appendix import definitions_section, limitations_section, reproducibility_section
from medtl.report.sections.trainsections import costs_section, learning_section, methods_table, sizes_section

_DASH = "\N{EN DASH}"
WHOLE = "mean"
"""Where a number is the mean over the structures."""
STATUS_WORDS = {
    "ok": "in both",
    "pred_empty": "missed",
    "ref_empty": "false",
    "both_empty": "in neither",
    "no_reference": "no reference",
}
STATUS_NOTE = (
    "Masks: cases times training seeds. In both: the structure is in the reference and in the mask. Missed: in the "
    "reference alone. False: in the mask alone. In neither: left out of all means."
)
_EFFECT = ("dice", "nsd", "hd95", "volume_error", "voxel_nll")
MOST_COLUMNS = 4
"""Structures that stand side by side as columns; with more, their mean alone does."""


def segmentation_sections(
    results: Results, figures: dict[str, Drawing], overlays: Sequence[Overlay]
) -> list[Section]:
    """Every section that the results have something to show for."""
    training = (sizes_section, costs_section, learning_section)
    makers = (_data, _overlap, _surfaces, _volumes, _effect, _calibration, *training, _sites, _seeds)
    made = [make(results, figures) for make in makers]
    return [s for s in (*made, _worst(results, overlays)) if s is not None] + [
        limitations_section(results),
        definitions_section(results),
        reproducibility_section(results),
    ]


def _rules(results: Results) -> SegmentationRules:
    assert results.segmentation is not None
    return results.segmentation


def title_of(results: Results, name: str) -> str:
    """The title of a measure with its unit."""
    rules = _rules(results)
    if name == "nsd":
        widths = {f"{t:g}" for t in rules.tolerance.values()}
        at = f" ({widths.pop()} {rules.unit})" if len(widths) == 1 else ""
        return MEASURES[name].title + at
    if name in ("hd95", "assd"):
        return f"{MEASURES[name].title} ({rules.unit})"
    if name.startswith("volume_"):
        title = MEASURES[name].title
        title = title.replace("Volume", "Area").replace("volume", "area") if rules.unit == "px" else title
        return f"{title} ({rules.volume_unit})"
    return MEASURES[name].title


def status_text(block: Block, structure: str) -> str:
    """`240: 228 in both, 12 missed`."""
    counts = block.statuses.get(structure, {})
    shown = [f"{n} {STATUS_WORDS[status]}" for status, n in counts.items() if n]
    return f"{sum(counts.values())}: {', '.join(shown)}" if shown else _DASH


def _figures(figures: dict[str, Drawing], *names: str) -> tuple[Drawing, ...]:
    return tuple(figures[name] for name in names if name in figures)


def _main(results: Results, *, labelled: bool = True) -> Iterator[tuple[str, list[Block]]]:
    """For each domain, the block of each model."""
    for domain in ("target", "source"):
        found = [b for m in results.models for b in results.main_blocks(m, domain)]
        found = [b for b in found if b.num_labelled or not labelled]
        if found:
            yield domain, found


def _lines(results: Results) -> list[str | None]:
    """The structures, and None for the mean over them where there are several."""
    return [*results.classes, *([None] if len(results.classes) > 1 else [])]


def _get(
    block: Block, name: str, cls: str | None, *, stage: str | None = None, kind: str | None = None
) -> Estimate | None:
    found = block.get(name, cls=cls, stage=stage, kind=kind)
    return None if found is None else found.estimate


def _data(results: Results, figures: dict[str, Drawing]) -> Section:
    from medtl.report.sections.flow import flow_table

    tables: list[Table] = [flow_table(results)] if results.context.flow else []
    held = [f"{c} in the reference" for c in results.classes]
    table = TableBuilder(
        "Cases in this evaluation",
        ("Cases for", "Site", "Patients", "Cases", "With reference standard", *held),
    )
    for block in results.blocks:
        if block.model == results.models[0]:
            counts = [str(block.class_cases[c]) if block.num_labelled else _DASH for c in results.classes]
            site = block.site if block.site is not None else "all sites"
            table.row(role(block), site, block.num_patients, block.num_cases, block.num_labelled, *counts)
    tables.append(table.build())
    text = (
        "External testing: patients of a site that gave no masks to training. Internal testing: patients of the source "
        "site(s) who were not trained on. Tuning cases: patients of the source on whom the stopping of the training "
        "and the temperatures were chosen. A patient belongs to one of these only.",
    )
    return Section("data", "Data and flow", text=text, tables=tuple(tables))


def _by_structure(results: Results, caption: str, names: Sequence[tuple[str, str | None]]) -> list[Table]:
    """One table for each domain: structures and models down, measures across, status counts at the end."""
    tables = []
    several = len(results.classes) > 1
    for _, blocks in _main(results):
        columns = [title_of(results, n) if kind is None else "Median Dice" for n, kind in names]
        table = TableBuilder(
            f"{caption}, {role(blocks[0]).lower()}", ("Structure", "Model", *columns, "Masks")
        )
        table.notes.append(STATUS_NOTE)
        for c in _lines(results):
            if c is None and all(n.startswith("volume_") for n, _ in names):
                continue
            for k, block in enumerate(blocks):
                cells = [table.number(_get(block, n, c, kind=kind)) for n, kind in names]
                masks = status_text(block, c) if c is not None else ""
                first = Cell((c or WHOLE) if several or k == 0 else c or "", tone="again" if k else "")
                table.row(first, name_cell(results, block.model), *cells, masks)
        tables.append(table.build())
    return tables


def _overlap(results: Results, figures: dict[str, Drawing]) -> Section | None:
    names = [("dice", None), ("dice", "median"), ("iou", None), ("voxel_sensitivity", None)]
    tables = _by_structure(results, "Overlap with the reference", [*names, ("voxel_precision", None)])
    if not tables:
        return None
    text = (
        f"Means over cases with intervals from resampled patients; medians describe. {_rules(results).empty}",
    )
    return Section("overlap", "Overlap", text=text, tables=tuple(tables), figures=_figures(figures, "dice"))


def _surfaces(results: Results, figures: dict[str, Drawing]) -> Section | None:
    rules = _rules(results)
    tables = _by_structure(
        results, "Distances between surfaces", [("nsd", None), ("hd95", None), ("assd", None)]
    )
    if not tables:
        return None
    widths = ", ".join(f"{c} {t:g} {rules.unit}" for c, t in rules.tolerance.items())
    text = (
        f"Tolerance of the surface Dice (NSD): {widths}. HD95 is the larger of the two directed 95th percentiles.",
    )
    return Section("surfaces", "Surfaces", text=text, tables=tuple(tables))


def _volumes(results: Results, figures: dict[str, Drawing]) -> Section | None:
    names = ("volume_reference", "volume_bias", "volume_lower", "volume_upper", "volume_error")
    if not any(b.get("volume_bias") for b in results.blocks):
        return None
    what = "Areas" if _rules(results).unit == "px" else "Volumes"
    tables = _by_structure(results, what, [(n, None) for n in names])
    text = (
        "Bias is the mean of segmented minus reference; 95 % of the cases are expected between the limits of "
        "agreement. An empty mask is a volume of 0 and counts.",
    )
    return Section("volumes", what, text=text, tables=tuple(tables), figures=_figures(figures, "volumes"))


def _effect(results: Results, figures: dict[str, Drawing]) -> Section | None:
    if results.reference_model is None:
        return None
    tables = [t for domain in ("target", "source") if (t := _difference_table(results, domain)) is not None]
    if not tables:
        return None
    text = (
        "Both models are taken on the same resampled patients. A difference reads as gain (green) or harm (red, "
        "bold) when "
        "its interval leaves out 0; a method can gain on one structure and harm another. The intervals are not "
        "adjusted "
        "for the number of comparisons.",
    )
    return Section(
        "effect",
        "Effect of the adaptation" if results.reference_model == "source_only" else "Paired comparison",
        text=text,
        tables=tuple(tables),
        figures=_figures(figures, "differences"),
    )


def _difference_table(results: Results, domain: str) -> Table | None:
    """Structures and models down, measures across; the verdict in words is that of Dice."""
    main = {(b.split, b.site): b for m in results.models for b in results.main_blocks(m, domain)}
    rows = [
        d
        for d in results.differences
        if d.domain == domain
        and (d.split, d.site) in main
        and d.estimate.value is not None
        and d.stage in (None, "after")
    ]
    names = [n for n in _EFFECT if any(d.name == n for d in rows)]
    if "dice" not in names:
        return None
    several = any(len(d.per_seed) > 1 for d in rows)
    heads = [
        title_of(results, n)
        + (", recalibrated" if n.startswith("voxel") else "")
        + (", lower is better" if MEASURES[n].better == "lower" else "")
        for n in names
    ]
    place = role(next(iter(main.values())))
    table = TableBuilder(
        f"Paired differences from {results.reference_model}, {place.lower()}",
        ("Structure", "Model", "Dice reads as", *heads, *(["Seeds alike"] if several else [])),
    )
    for c in _lines(results):
        found = {(d.model, d.name): d for d in rows if d.cls == c}
        for k, model in enumerate(m for m in results.models if (m, "dice") in found):
            dice = found[model, "dice"]
            cells: list[Cell | str] = []
            for n in names:
                d = found.get((model, n))
                tone = TONES[d.verdict] if d else ""
                cells.append(table.number(d.estimate if d else None, signed=True, tone=tone))
            if several:
                cells.append(_alike(dice))
            first = Cell(c or WHOLE, tone="again" if k else "")
            reads = Cell(dice.verdict, tone=TONES[dice.verdict])
            table.row(first, name_cell(results, model), reads, *cells)
    if several:
        table.notes.append("Seeds alike: training seeds whose difference in Dice has the sign of the mean.")
    return table.build()


def _alike(d: Difference) -> str:
    known = [v for v in d.per_seed.values() if v is not None]
    same = sum((v > 0) == ((d.estimate.value or 0.0) > 0) for v in known)
    return f"{same} of {len(known)}"


def _calibration(results: Results, figures: dict[str, Drawing]) -> Section | None:
    names = ("voxel_nll", "voxel_brier", "voxel_ece")
    if not any(b.get("voxel_nll") for b in results.blocks):
        return None
    stages = [s for s in ("before", "after") if any(b.get("voxel_nll", stage=s) for b in results.blocks)]
    tables = []
    for _, blocks in _main(results):
        table = TableBuilder(
            f"Calibration of voxels {' and '.join(stages)} recalibration, {role(blocks[0]).lower()}",
            ("Structure", "Model", *(f"{MEASURES[n].title}, {s}" for n in names for s in stages)),
        )
        for c in _lines(results):
            for k, block in enumerate(b for b in blocks if b.get("voxel_nll", cls=c)):
                cells = [table.number(_get(block, n, c, stage=s)) for n in names for s in stages]
                first = Cell(c or WHOLE, tone="again" if k else "")
                table.row(first, name_cell(results, block.model), *cells)
        tables.append(table.build())
    fitted = TableBuilder(
        "Temperatures fitted at the source",
        ("Model", "Training seed", *results.classes, "Fitted on"),
        compact=True,
    )
    words = {"no_validation": "no tuning cases", "one_class": "voxels of one kind"}
    found: dict[tuple[str, str], list[Settings]] = {}
    for setting in results.settings:
        found.setdefault((setting.model, setting.seed), []).append(setting)
    for (model, seed), own in found.items():
        numbers = [
            plain(s.temperature) if s.temperature is not None else words.get(s.temperature_status, _DASH)
            for s in own
        ]
        fitted.row(
            name_cell(results, model), seed, *numbers, f"{max(s.temperature_cases for s in own)} cases"
        )
    text = (
        f"Band: {_rules(results).band}. Far from the structure every voxel is easy, and would flatter. Every "
        "case weighs "
        "the same. Recalibration divides a structure's log odds by one number, the temperature, fitted on tuning cases "
        "of the source; it moves no contour. Whether it helps at another site is seen here, not assumed.",
    )
    return Section(
        "calibration",
        "Calibration of voxels",
        text=text,
        tables=(*tables, fitted.build(), *methods_table(results)),
        figures=_figures(figures, "calibration"),
    )


def _columns(results: Results) -> list[str | None]:
    return list(results.classes) if len(results.classes) <= MOST_COLUMNS else [None]


def _sites(results: Results, figures: dict[str, Drawing]) -> Section | None:
    blocks = [b for b in results.blocks if b.site is not None and b.split == "test" and b.num_labelled]
    if len({(b.domain, b.site) for b in blocks}) < 2:
        return None
    shown = _columns(results)
    heads = [f"{title_of(results, n)}, {c or WHOLE}" for n in ("dice", "nsd") for c in shown]
    table = TableBuilder("Results by site", ("Site", "Model", "Patients", "Cases", *heads))
    last = ""
    for block in blocks:
        place = f"{block.site} ({'external' if block.domain == 'target' else 'internal'})"
        cells = [table.number(_get(block, n, c)) for n in ("dice", "nsd") for c in shown]
        first = Cell(place, tone="again" if place == last else "")
        table.row(first, name_cell(results, block.model), block.num_patients, block.num_labelled, *cells)
        last = place
    text = ("With few sites their spread is shown, not estimated.",)
    return Section("sites", "Sites", text=text, tables=(table.build(),), figures=_figures(figures, "sites"))


def _seeds(results: Results, figures: dict[str, Drawing]) -> Section | None:
    if all(len(b.seeds) < 2 for b in results.blocks):
        return None
    shown = _columns(results)
    heads = [f"Dice, {c or WHOLE}" for c in shown]
    table = TableBuilder(
        "Values of single training seeds", ("Model", "Cases for", "Training seed", *heads), compact=True
    )
    for _, blocks in _main(results):
        for block in blocks:
            for k, seed in enumerate(block.seeds):
                found = [block.get("dice", cls=c, kind=None) for c in shown]
                cells = [plain(m.per_seed.get(seed)) if m else Cell(_DASH, tone="muted") for m in found]
                name = name_cell(results, block.model)
                table.row(Cell(name.text, tag=name.tag, tone="again" if k else ""), role(block), seed, *cells)
    text = ("Intervals elsewhere are about patients; the spread over training seeds is not part of them.",)
    return Section(
        "seeds", "Training seeds", text=text, tables=(table.build(),), figures=_figures(figures, "seeds")
    )


def _worst(results: Results, overlays: Sequence[Overlay]) -> Section | None:
    if not results.worst:
        return None
    rules = _rules(results)
    volume = "Area" if rules.unit == "px" else "Volume"
    unit = rules.volume_unit
    heads = ("Dice", f"HD95 ({rules.unit})", f"{volume}, reference ({unit})", f"{volume}, mask ({unit})")
    place = "external" if results.worst[0].domain == "target" else "internal"
    table = TableBuilder(
        f"Worst cases of each model, {place} testing",
        ("Model", "Case", "Site", "Training seed", "Structure", "The structure is", *heads),
    )
    last = ""
    for w in results.worst:
        name = name_cell(results, w.model)
        numbers = [plain(v) for v in (w.dice, w.hd95, w.volume_reference, w.volume_predicted)]
        first = Cell(name.text, tag=name.tag, tone="again" if w.model == last else "")
        table.row(first, w.case, w.site, w.seed, w.structure, STATUS_WORDS[w.status], *numbers)
        last = w.model
    shown = (
        "Pictures of these cases were asked for and show patients' scans: take care who sees this page. Reference: "
        "solid; segmentation: dashed; the slice of the largest disagreement."
        if overlays
        else "Pictures of the scans are left out unless they are asked for (--overlays)."
    )
    text = (
        "Cases with the lowest Dice of any structure, mean over training seeds; the values are those of the seed that "
        f"did worst. Cases are named as in the table. {shown}",
    )
    return Section("worst", "Worst cases", text=text, tables=(table.build(),), overlays=tuple(overlays))
