"""What a reader of a segmentation's report must keep in mind, written from the results alone."""

from __future__ import annotations

from collections.abc import Iterator

from medtl.evaluation.results import Block, Results
from medtl.evaluation.statistics.estimate import format_estimate

ADVISED_PATIENTS = 50
"""Patients from which on percentile intervals of a mean Dice hold what they promise."""
WIDE_DICE = 0.1


def mask_limitations(results: Results, targets: list[Block], sources: list[Block]) -> Iterator[str]:
    """Yields one sentence or two for each caveat about masks that applies."""
    rules = results.segmentation
    assert rules is not None
    main = [b for m in results.models for b in results.main_blocks(m, "target") if b.num_labelled]
    main = main or [b for m in results.models for b in results.main_blocks(m, "source") if b.num_labelled]
    if main and main[0].num_patients < ADVISED_PATIENTS:
        yield (
            f"{_place(main[0])} holds {main[0].num_patients} patients. Below about {ADVISED_PATIENTS} an "
            "interval of a mean "
            "Dice rests on few hard cases; it is widened for that, and still only a guide."
        )
    yield from _empty(results, main)
    for block in main:
        for c in results.classes:
            measure = block.get("dice", cls=c, kind=None)
            e = measure.estimate if measure else None
            if e and e.lo is not None and e.hi is not None and e.hi - e.lo > WIDE_DICE:
                yield f"The interval of the Dice of {block.model} for {c} is wide: {format_estimate(e)}."
    if rules.unit == "px":
        yield (
            "The images carry no pixel size: distances, areas and the tolerance are in pixels, and cannot be "
            "compared with "
            "images of another resolution."
        )
    if rules.mixed_units:
        yield (
            f"{rules.mixed_units} cases carry no voxel size. Their distances and volumes would be in pixels; "
            "they are left "
            "out of the means, overlaps are not."
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
                f"The reference holds no {c} in {absent} of {main[0].num_labelled} cases. There a mask can only "
                "be right "
                "(and is left out of the means) or a false positive (and counts as Dice 0)."
            )
        missed = [(b.model, b.statuses[c]["pred_empty"], sum(b.statuses[c].values())) for b in main]
        shown = [f"{model} in {n} of {total} masks" for model, n, total in missed if n]
        if shown:
            yield (
                f"{c} is missed altogether by {'; '.join(shown)}. These count as Dice 0 and with the largest "
                "distance."
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
            "Temperatures were fitted at the source. They correct over-confidence there; a shift at the "
            "external site can "
            "undo that, as the calibration figures show."
        )
