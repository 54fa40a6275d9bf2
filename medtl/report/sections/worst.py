"""The worst segmentations, case by case."""

from __future__ import annotations

from medtl.report.parts import Section, TableBuilder, plain
from medtl.report.tables import STATUS_WORDS
from medtl.report.view import SIDES, View

ORDER = 100


def section(view: View) -> Section | None:
    """Values of the cases with the lowest Dice, and pictures of them on request."""
    results, rules = view.results, view.results.segmentation
    if not results.worst or rules is None:
        return None
    volume, unit = "Area" if rules.unit == "px" else "Volume", rules.volume_unit
    numbers = ("Dice", f"HD95 ({rules.unit})", f"{volume}, reference ({unit})", f"{volume}, mask ({unit})")
    table = TableBuilder(
        f"Worst cases of each model, {SIDES[results.worst[0].domain]} testing",
        ("Model", "Case", "Site", "Training seed", "Structure", "The structure is", *numbers),
    )
    last = ""
    for w in (w for m in view.models for w in results.worst if w.model == m):
        values = [plain(v) for v in (w.dice, w.hd95, w.volume_reference, w.volume_predicted)]
        name = view.name(w.model, again=w.model == last)
        table.row(name, w.case, w.site, w.seed, w.structure, STATUS_WORDS[w.status], *values)
        last = w.model
    shown = (
        "Pictures of these cases were asked for and show patients' scans: take care who sees this page. Reference: "
        "solid; segmentation: dashed; the slice where the two disagree most."
        if view.overlays
        else "Pictures of the scans are left out unless they are asked for (--overlays)."
    )
    text = (
        "Cases with the lowest Dice of any structure, mean over training seeds; the values are those of the seed that "
        f"did worst. Cases are named as in the table. {shown}",
    )
    return Section("worst", "Worst cases", text=text, tables=(table.build(),), overlays=view.overlays)
