"""What a reader must keep in mind, written from the results alone."""

from __future__ import annotations

from collections.abc import Iterator

from medtl.evaluation.names import first_model, many
from medtl.evaluation.results import Block, Results
from medtl.evaluation.seglimitations import mask_limitations
from medtl.evaluation.statistics.estimate import FEW_EVENTS, Estimate, format_estimate

ADVISED_EVENTS = 100
"""Patients with and without the event that external testing is advised to hold (Collins 2016)."""
WIDE_AUROC = 0.2
ADVISED_SEEDS = 3


def limitations(results: Results) -> Iterator[str]:
    """Yields one sentence or two for each caveat that applies."""
    targets = [b for b in results.blocks if b.domain == "target"]
    sources = [b for b in results.blocks if b.domain == "source"]
    if results.context.oracle:
        yield (
            "Labels of the external site were read to choose a model or a setting (an oracle run). Such "
            "results are upper bounds and cannot be expected at a new site."
        )
    if not targets:
        yield "There is no external site in this table: nothing is said about other hospitals."
    elif not any(b.num_labelled for b in targets):
        yield (
            "The external site has no reference standard. Nothing here measures how well a model does there; "
            + (
                "its masks are counted and not judged."
                if results.segmentation is not None
                else "only the shares of the classes called are shown."
            )
        )
    elif any(b.num_labelled < b.num_cases for b in targets):
        worst = next(b for b in targets if b.num_labelled < b.num_cases)
        yield (
            f"Only {worst.num_labelled} of {worst.num_cases} external cases have a reference standard; if "
            "they were not picked at random, the results need not hold for the others."
        )
    masks = results.segmentation is not None
    yield from mask_limitations(results, targets, sources) if masks else _size(results, targets)
    if not results.patients_known:
        yield (
            "The table names no patients: each case was taken as a patient of its own. If patients have "
            "several cases, the intervals are too narrow."
        )
    if not masks:
        yield from _frozen(results, sources)
    if results.num_clipped:
        yield (
            f"{results.num_clipped} rows held a probability of 0 or 1, which was clipped; log loss, slope "
            "and temperature depend on where. Logits would avoid this."
        )
    yield from _training(results)
    sites = {b.site for b in targets if b.site}
    if len(sites) == 1:
        yield "One external site was tested: the spread between hospitals cannot be seen."
    if any(m.estimate.num_degenerate for b in results.blocks for m in b.measures):
        yield "Some resamples gave no value for a measure; they were left out, and results.json counts them."


def _size(results: Results, targets: list[Block]) -> Iterator[str]:
    for block in targets:
        if block.model != first_model(results, "target") or not block.num_labelled:
            continue
        main = results.block(block.model, block.domain, block.split, finding=block.finding)
        if block is not main:
            continue
        about = f" ({block.finding})" if block.finding else ""
        few = {c: k for c, k in block.class_patients.items() if 0 < k < ADVISED_EVENTS}
        gone = [c for c, k in block.class_patients.items() if k == 0]
        if gone:
            yield f"External testing{about} has no case of {_names(gone)}; nothing is said about it."
        if few:
            counts = ", ".join(f"{c} {k}" for c, k in few.items())
            hard = " (fewer than 10: a rough guide only)" if min(few.values()) < FEW_EVENTS else ""
            yield (
                f"External testing{about} holds fewer than the advised {ADVISED_EVENTS} patients of each "
                f"class: {counts}{hard}."
            )
    wide: list[tuple[str, Estimate]] = []
    separated: list[str] = []
    for block in targets:
        measure = block.get("auroc")
        if measure and block is results.block(block.model, "target", block.split, finding=block.finding):
            e = measure.estimate
            if e.lo is not None and e.hi is not None and e.hi - e.lo > WIDE_AUROC:
                wide.append((block.model, e))
            if e.status == "separated":
                separated.append(block.model)
    if many(results) and wide:
        model, e = max(wide, key=lambda pair: (pair[1].hi or 0) - (pair[1].lo or 0))
        number = len(dict.fromkeys(m for m, _ in wide))
        wide = []
        yield (
            f"The intervals of the external AUROC are wide for {number} of {len(results.models)} models, the widest "
            f"that of {model}: {format_estimate(e)}."
        )
    for model, e in wide:
        yield f"The interval of the external AUROC of {model} is wide: {format_estimate(e)}."
    for names in [list(dict.fromkeys(separated))] if many(results) else [[m] for m in separated]:
        if names:
            yield (
                f"{_names(names)} separate{'s' if len(names) == 1 else ''} the external cases completely; with so few "
                "patients that can be chance, and an exact bound stands for the interval."
            )


def _frozen(results: Results, sources: list[Block]) -> Iterator[str]:
    lacking = sorted({s.model for s in results.settings if s.temperature is None})
    if lacking:
        yield (
            f"No temperature could be fitted for {_names(lacking)}: the source has no labelled validation "
            "cases of two classes."
        )
    bound = sorted({s.model for s in results.settings if s.temperature_status == "at_bound"})
    if bound:
        yield (
            f"The temperature of {_names(bound)} ran into its bound, as when predictions say nothing of the validation "
            "cases; probabilities after recalibration are not to be trusted."
        )
    separated = sorted({s.model for s in results.settings if s.temperature_status == "separated"})
    if separated:
        yield (
            f"No temperature can be fitted for {_names(separated)} where all tuning cases are called right, since ever "
            "surer probabilities fit them ever better: the probabilities stay as they are. More tuning patients "
            "would tell."
        )
    default = sorted(
        {s.model for s in results.settings if s.operating_status in ("no_validation", "one_class")}
    )
    if default:
        yield (
            f"No operating point could be fitted for {_names(default)}: cases are called positive from a "
            "probability of one half."
        )
    few = [
        s.operating_point for s in results.settings if s.operating_status == "fitted" and s.operating_point
    ]
    if few and min(min(p.num_events, p.num_cases - p.num_events) for p in few) < FEW_EVENTS:
        p = min(few, key=lambda q: min(q.num_events, q.num_cases - q.num_events))
        yield (
            f"Operating points rest on few validation cases ({p.num_events} positive, "
            f"{p.num_cases - p.num_events} negative); sensitivity and specificity elsewhere will differ from "
            "those they were chosen for."
        )
    if sources and not any(b.split == "test" for b in sources):
        yield (
            "Internal results are those of the validation cases, on which temperature and operating point "
            "(and perhaps the stopping of the training) were chosen: they flatter."
        )
    if any(s.temperature is not None for s in results.settings):
        yield (
            "Temperatures were fitted at the source. They correct over-confidence there; a shift at the "
            "external site can undo that, as the calibration figures show."
        )


def _training(results: Results) -> Iterator[str]:
    bounds = results.context.target_trained
    if bounds:
        yield (
            f"{_names(list(bounds))} was trained with labels of the external site: an upper bound that shows what is "
            "left to gain, not a candidate. It needs labels that a new site does not have."
        )
    adapted = [m for m in results.models if m != results.reference_model and m not in bounds]
    if results.context.target_seen_unlabelled and adapted:
        yield (
            f"{_names(adapted)} saw the scans of the external site (without labels) in training. Results on "
            "patients of that site who were not among them may be lower."
        )
    elif results.context.target_seen_unlabelled is None and results.reference_model == "source_only":
        yield (
            "If adapted models were trained on these external scans (without labels), results on new "
            "patients of that site may be lower."
        )
    fewest = min(len({s.seed for s in results.settings if s.model == m}) for m in results.models)
    if fewest < ADVISED_SEEDS and len(results.models) > 1:
        runs = "one training run" if fewest == 1 else f"{fewest} training runs"
        yield (
            f"Models are compared on {runs} each. Intervals cover the choice of patients, not the luck of a "
            f"training run; at least {ADVISED_SEEDS} seeds are advised."
        )
    elif len(results.models) > 1 and fewest > 1:
        yield (
            "Intervals cover the choice of patients; the luck of a training run shows in the values of the "
            "single seeds."
        )


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
