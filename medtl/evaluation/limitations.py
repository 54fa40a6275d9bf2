"""Caveats for the reader, derived from the results alone."""

from __future__ import annotations

from collections.abc import Iterator

from medtl.evaluation.names import first_model, many
from medtl.evaluation.results import Block, Results
from medtl.evaluation.statistics.estimate import FEW_EVENTS, Estimate, format_estimate, join

ADVISED_EVENTS = 100
"""Patients with and without the event that external testing is advised to hold (Collins 2016)."""
ADVISED_PATIENTS = 50
"""Patients from which on percentile intervals of a mean Dice hold what they promise."""
WIDE_AUROC = 0.2
WIDE_DICE = 0.1
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
    if results.context.few_labels:
        yield (
            "A model learnt from a few labelled cases of the external site, which are not among the cases that it is "
            "tested on. The results are those of a site that has labelled as many cases."
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
    reference = results.reference_model
    if reference is not None and targets and not results.main_blocks(reference, "target"):
        yield (
            f"{reference}, with which the other models are compared, was not tested on the external cases: nothing is "
            "compared there."
        )
    masks = results.segmentation is not None
    yield from _masks(results, targets, sources) if masks else _size(results, targets)
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
    first = first_model(results, "target")
    for block in targets:
        if block.model == first and block.num_labelled and _is_main(results, block):
            yield from _few(block)
    auroc = [(b.model, m.estimate) for b in targets if (m := b.get("auroc")) and _is_main(results, b)]
    yield from _wide(results, "the external AUROC", [(m, e) for m, e in auroc if _width(e) > WIDE_AUROC])
    separated = list(dict.fromkeys(model for model, e in auroc if e.status == "separated"))
    for names in [separated] if many(results) and separated else [[m] for m in separated]:
        yield (
            f"{join(names)} separate{'s' if len(names) == 1 else ''} the external cases completely; with so few "
            "patients that can be chance, and an exact bound stands for the interval."
        )


def _is_main(results: Results, block: Block) -> bool:
    """Whether a block speaks for its domain and split."""
    return block is results.block(block.model, block.domain, block.split, finding=block.finding)


def _few(block: Block) -> Iterator[str]:
    about = f" ({block.finding})" if block.finding else ""
    few = {c: k for c, k in block.class_patients.items() if 0 < k < ADVISED_EVENTS}
    gone = [c for c, k in block.class_patients.items() if k == 0]
    if gone:
        yield f"External testing{about} has no case of {join(gone)}; nothing is said about it."
    if few:
        counts = ", ".join(f"{c} {k}" for c, k in few.items())
        hard = " (fewer than 10: a rough guide only)" if min(few.values()) < FEW_EVENTS else ""
        yield (
            f"External testing{about} holds fewer than the advised {ADVISED_EVENTS} patients of each "
            f"class: {counts}{hard}."
        )


def _wide(results: Results, what: str, found: list[tuple[str, Estimate]]) -> Iterator[str]:
    """Names the wide intervals; with many models, only the widest."""
    if not many(results):
        for name, e in found:
            yield f"The interval of {what} of {name} is wide: {format_estimate(e)}."
    elif found:
        name, e = max(found, key=lambda pair: _width(pair[1]))
        number = sum(any(n == m or n.startswith(f"{m} for ") for n, _ in found) for m in results.models)
        yield (
            f"The intervals of {what} are wide for {number} of {len(results.models)} models, the widest that of "
            f"{name}: {format_estimate(e)}."
        )


def _frozen(results: Results, sources: list[Block]) -> Iterator[str]:
    lacking = sorted({s.model for s in results.settings if s.temperature is None})
    if lacking:
        yield (
            f"No temperature could be fitted for {join(lacking)}: the source has no labelled validation "
            "cases of two classes."
        )
    bound = sorted({s.model for s in results.settings if s.temperature_status == "at_bound"})
    if bound:
        yield (
            f"The temperature of {join(bound)} ran into its bound, as when predictions say nothing of the validation "
            "cases; probabilities after recalibration are not to be trusted."
        )
    separated = sorted({s.model for s in results.settings if s.temperature_status == "separated"})
    if separated:
        yield (
            f"No temperature can be fitted for {join(separated)} where all tuning cases are called right, since ever "
            "surer probabilities fit them ever better: the probabilities stay as they are. More tuning patients "
            "would tell."
        )
    default = sorted(
        {s.model for s in results.settings if s.operating_status in ("no_validation", "one_class")}
    )
    if default:
        yield (
            f"No operating point could be fitted for {join(default)}: cases are called positive from a "
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
            f"{join(list(bounds))} was trained with labels of the external site: an upper bound that shows what is "
            "left to gain, not a candidate. It needs labels that a new site does not have."
        )
    adapted = [m for m in results.models if m != results.reference_model and m not in bounds]
    if results.context.target_seen_unlabelled and adapted:
        yield (
            f"{join(adapted)} saw the scans of the external site (without labels) in training. Results on "
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


def _masks(results: Results, targets: list[Block], sources: list[Block]) -> Iterator[str]:
    """Yields one sentence or two for each caveat about masks that applies."""
    rules = results.segmentation
    assert rules is not None
    main = [b for m in results.models for b in results.main_blocks(m, "target") if b.num_labelled]
    main = main or [b for m in results.models for b in results.main_blocks(m, "source") if b.num_labelled]
    if main and main[0].num_patients < ADVISED_PATIENTS:
        yield (
            f"{_place(main[0])} holds {main[0].num_patients} patients. Below about {ADVISED_PATIENTS} an interval of a "
            "mean Dice rests on few hard cases; it is widened for that, and still only a guide."
        )
    yield from _empty(results, main)
    dice = [
        (f"{b.model} for {c}", m.estimate)
        for b in main
        for c in results.classes
        if (m := b.get("dice", cls=c, kind=None))
    ]
    yield from _wide(results, "the Dice", [(name, e) for name, e in dice if _width(e) > WIDE_DICE])
    if rules.unit == "px":
        yield (
            "The images carry no pixel size: distances, areas and the tolerance are in pixels, and cannot be compared "
            "with images of another resolution."
        )
    if rules.mixed_units:
        yield (
            f"{rules.mixed_units} cases carry no voxel size. Their distances and volumes would be in pixels; they are "
            "left out of the means, overlaps are not."
        )
    if rules.void:
        yield "Some voxels are marked void in the reference: they are judged nowhere."
    yield from _probabilities(results)
    if sources and not any(b.split == "test" for b in sources):
        yield (
            "Internal results are those of the validation cases, on which the stopping of the training (and the "
            "temperatures) were chosen: they flatter."
        )


def _place(block: Block) -> str:
    return "External testing" if block.domain == "target" else "Internal testing"


def _empty(results: Results, main: list[Block]) -> Iterator[str]:
    for c in results.classes:
        if main and main[0].num_labelled and not main[0].class_cases[c]:
            yield (
                f"{_place(main[0])} has no case whose reference holds {c}: nothing is said about how well it is found."
            )
        elif main and main[0].num_labelled > main[0].class_cases[c]:
            absent = main[0].num_labelled - main[0].class_cases[c]
            yield (
                f"The reference holds no {c} in {absent} of {main[0].num_labelled} cases. There a mask can only be "
                "right (and is left out of the means) or a false positive (and counts as Dice 0)."
            )
        missed = [(b.model, b.statuses[c]["pred_empty"], sum(b.statuses[c].values())) for b in main]
        shown = [f"{model} in {n} of {total} masks" for model, n, total in missed if n]
        if shown:
            yield (
                f"{c} is missed altogether by {'; '.join(shown)}. These count as Dice 0 and with the largest distance."
            )


def _probabilities(results: Results) -> Iterator[str]:
    statuses = {s.temperature_status for s in results.settings}
    if statuses == {"no_probabilities"}:
        yield (
            "No probabilities of voxels stand beside the table (voxels.csv): nothing is said about calibration, and no "
            "temperature is fitted."
        )
        return
    bounds = results.context.target_trained
    lacking = sorted({s.model for s in results.settings if s.temperature is None and s.model not in bounds})
    if lacking:
        yield f"No temperature could be fitted for every structure of {', '.join(lacking)}: tuning cases are lacking."
    if any(s.temperature_status == "at_bound" for s in results.settings):
        yield "A temperature ran into its bound; probabilities after recalibration are not to be trusted there."
    if any(s.temperature is not None for s in results.settings):
        yield (
            "Temperatures were fitted at the source. They correct over-confidence there; a shift at the external site "
            "can undo that, as the calibration figures show."
        )


def _width(found: Estimate) -> float:
    """Width of an interval, 0 where there is none."""
    return 0.0 if found.lo is None or found.hi is None else found.hi - found.lo
