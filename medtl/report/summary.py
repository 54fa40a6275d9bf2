"""The box on top of a report: what would be kept and why, and what external testing showed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import first_model, many, sizes_of
from medtl.evaluation.results import HEADLINES, Block, Difference, Results
from medtl.evaluation.statistics.estimate import format_estimate, format_number
from medtl.report import segsummary
from medtl.report.names import place_of
from medtl.report.overfitting import in_short
from medtl.report.parts import TONES, Cell, Table, TableBuilder, join, name_cell, plain
from medtl.report.sections.manysections import findings_of, ranked_table
from medtl.report.sections.trainsections import PLACES


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
    boxes: tuple[segsummary.Box, ...] = ()


def summarise(results: Results) -> Summary:
    """Builds the summary box from the results."""
    keep = results.context.keep or {}
    kept = str(keep.get("model", ""))
    measured = any(b.domain == "target" and b.num_labelled for b in results.blocks)
    domain = "target" if measured else "source"
    masks = results.segmentation is not None
    crowd = many(results) and len({b.finding for b in results.blocks}) == 1
    side_by_side = segsummary.side_by_side if masks else _side_by_side
    shown = [*findings_of(results), *_external(results)] if crowd else _findings(results)
    return Summary(
        verdict=kept,
        reason=str(keep.get("reason", "")),
        evidence=_evidence(results, keep),
        heading=f"What {(place_of(results) if crowd else PLACES['target']).lower()} shows",
        finding=tuple(shown),
        remarks=tuple(in_short(results)),
        warning=segsummary.conflict(results, kept) if masks else _warning(results, kept),
        table=ranked_table(results, kept) if crowd else side_by_side(results, kept, domain),
        facts=(*_facts(results), *segsummary.facts(results)),
        boxes=segsummary.boxes(results) if masks else (),
    )


def headline_differences(results: Results, name: str) -> list[Difference]:
    """Paired differences of one measure on the main external cases, one for each model and finding."""
    main = {(b.split, b.site) for m in results.models for b in results.main_blocks(m, "target")}
    return [
        d
        for d in results.differences
        if d.domain == "target" and (d.split, d.site) in main and d.name == name and d.cls is None
    ]


def _evidence(results: Results, keep: dict[str, object]) -> Table | None:
    evidence = keep.get("evidence")
    if not isinstance(evidence, (list, tuple)) or not evidence:
        return None
    models = [m for m in results.models if m not in results.context.target_trained]
    if many(results):
        tall = TableBuilder(
            "", ("Evidence, without external labels", *(str(e.get("name", "")) for e in evidence))
        )
        for model in models:
            given = [(entry.get("values") or {}).get(model) for entry in evidence]
            tall.row(model, *(plain(None if v is None else float(v)) for v in given))
        said = [(str(e.get("name", "")), str(e.get("verdict", ""))) for e in evidence]
        tall.notes += [f"{name} speaks for: {verdict}." for name, verdict in said if verdict]
        return tall.build()
    table = TableBuilder("", ("Evidence, without external labels", *models, "Speaks for"))
    for entry in evidence:
        values = entry.get("values") or {}
        cells = [plain(None if values.get(m) is None else float(values[m])) for m in models]
        table.row(str(entry.get("name", "")), *cells, str(entry.get("verdict", "")))
    return table.build()


def _findings(results: Results) -> list[Cell]:
    out = []
    for name in HEADLINES if results.segmentation is None else ():
        for d in headline_differences(results, name):
            e = d.estimate
            about = f" for {d.finding}" if d.finding else ""
            what = f"{MEASURES[name].title}{about}"
            text = format_estimate(e, signed=True)
            sentences = {
                "gain": f"Gain: {d.model} is better than {d.reference}. {what}: {text}.",
                "harm": f"Harm: {d.model} is worse than {d.reference}. {what}: {text}.",
                "no clear difference": f"No clear difference between {d.model} and {d.reference}. {what}: "
                f"{text}.",
                "not estimable": f"{what}: the difference between {d.model} and {d.reference} cannot be "
                "estimated.",
            }
            sentence, tone = sentences[d.verdict], TONES[d.verdict]
            if d.model in results.context.target_trained:
                sentence, tone = f"Upper bound (uses target labels, not a candidate). {sentence}", "muted"
            out.append(Cell(sentence, e.value, e.lo, e.hi, tone=tone))
    return out or list(_external(results))


def _external(results: Results) -> Iterator[Cell]:
    """Says where external testing has nothing to show."""
    targets = [b for b in results.blocks if b.domain == "target"]
    if targets and not any(b.num_labelled for b in targets):
        yield Cell(
            "The external site has no reference standard: gain or harm there is unknown.", tone="muted"
        )
    elif not targets:
        yield Cell("There was no external testing.", tone="muted")


def _warning(results: Results, kept: str) -> str:
    """Says where the rule, which saw no external labels, and external testing disagree."""
    if not kept:
        return ""
    for d in headline_differences(results, HEADLINES[0]):
        if d.model == kept and d.verdict == "harm":
            return (
                f"The rule would keep {kept}, but external testing shows that it is worse than {d.reference} "
                "there. The rule was wrong here."
            )
        if d.model in results.context.target_trained:
            continue
        if d.reference == kept and d.verdict == "gain":
            return (
                f"The rule would keep {kept}, but external testing shows that {d.model} is better there. The "
                "rule was cautious here."
            )
    return ""


def _side_by_side(results: Results, kept: str, domain: str) -> Table:
    names = ["balanced_accuracy", "auroc"]
    if results.positive is not None:
        names += ["sensitivity", "specificity"]
    names += ["nll"]
    stage = {"nll": "after"}
    several = len({b.finding for b in results.blocks}) > 1
    place = "External testing" if domain == "target" else "Internal testing"
    after = any(b.get("nll", stage="after") for b in results.blocks)
    columns = [MEASURES[n].title + (", recalibrated" if n == "nll" and after else "") for n in names]
    if results.reference_model and domain == "target":
        columns.append("Difference in balanced accuracy")
    table = TableBuilder(place, ("Model", *columns))
    for model in results.models:
        for block in results.main_blocks(model, domain):
            label = f"{model}, {block.finding}" if several else model
            marks = [
                word
                for word, true in (("kept", model == kept), ("reference", model == results.reference_model))
                if true
            ]
            rest = label.removeprefix(model) + (f" ({', '.join(marks)})" if marks else "")
            cells = [name_cell(results, model, rest)]
            for name in names:
                measure = block.get(name, stage=stage.get(name)) or block.get(name)
                cells.append(table.number(measure.estimate if measure else None))
            if results.reference_model and domain == "target":
                found = [d for d in headline_differences(results, HEADLINES[0]) if d.model == model]
                d = next((x for x in found if x.finding == block.finding), None)
                if d is None:
                    cells.append(Cell("\N{EN DASH}", tone="muted"))
                else:
                    cells.append(table.number(d.estimate, signed=True, tone=TONES[d.verdict]))
            table.row(*cells)
    table.notes.append(
        f"Value ({format_number(100 * results.level, 0)} % interval over patients"
        + ("; mean over training seeds)." if any(len(b.seeds) > 1 for b in results.blocks) else ").")
    )
    return table.build()


def _facts(results: Results) -> list[str]:
    facts = []
    for domain, word in (("target", "External testing"), ("source", "Internal testing")):
        blocks = results.main_blocks(first_model(results, domain) or "", domain)
        if blocks:
            facts.append(f"{word}: {_counts(results, blocks[0], domain)}")
    if results.positive is not None and results.task == "binary":
        facts.append(f"Positive class: {results.positive} ({results.positive_reason}).")
    if results.reference_model and not sizes_of(results):
        facts.append(f"Reference for comparisons: {results.reference_model} ({results.reference_reason}).")
    return facts


def _counts(results: Results, block: Block, domain: str) -> str:
    sites = sorted(
        {
            b.site
            for b in results.blocks
            if b.domain == domain and b.split == block.split and b.site is not None
        }
    )
    shown = join(sites) if len(sites) <= 4 else f"{len(sites)} sites"
    text = f"{block.num_patients} patients, {block.num_cases} cases, {shown}"
    if results.segmentation is not None:
        text += f"; {block.num_labelled} with a reference standard"
    elif results.task != "multilabel" and block.num_labelled:
        text += f"; {', '.join(f'{c} {k}' for c, k in block.class_cases.items())}"
    tuning = (
        ""
        if block.split == "test"
        else " These are the tuning cases: there is no separate internal test set."
    )
    return text + "." + tuning
