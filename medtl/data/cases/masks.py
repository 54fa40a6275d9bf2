"""The masks of a cohort: which scans have a usable mask, and what its values mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtl.data.cases.pairing import Pairs, Place, pair_masks
from medtl.data.cases.structures import label_file, resolve_labels
from medtl.errors import ConfigError
from medtl.labelmap import LabelMap
from medtl.scans.items import Catalog, MaskItem, Rejection


@dataclass
class Joined:
    """Masks and their meaning.

    Attributes:
        labels: names and values of the structures; None after a fault.
        masks: the mask of each scan that has one, by site and index in its catalogue.
        refused: why the mask of a scan is not used.
    """

    labels: LabelMap | None = None
    masks: dict[Place, MaskItem] = field(default_factory=dict)
    refused: dict[Place, Rejection] = field(default_factory=dict)


def join_masks(
    sources: Mapping[str, Catalog],
    targets: Mapping[str, Catalog],
    roots: Mapping[str, Path],
    *,
    masks: Sequence[Path],
    target_masks: Path | None,
    structures: Sequence[str],
    faults: list[str],
    warnings: list[str],
) -> Joined:
    """Pairs the masks of source and target with scans, and determines the label map from the sources alone.

    Args:
        sources: catalogues by site.
        targets: the target's catalogue.
        roots: folder of each site.
        masks: folders of the sources' masks.
        target_masks: folder of the target's masks.
        structures: as in `structures.resolve_labels`.
        faults: receives the reasons why a run is impossible.
        warnings: receives what was left out or assumed.
    """
    joined = Joined()
    pairs = Pairs()
    alike = target_masks is not None and target_masks.resolve().name in {f.resolve().name for f in masks}
    flag, target_flag = (" (--masks)", " (--target-masks)") if alike else ("", "")
    if sources:
        if not masks:
            faults.append("the sources have no masks: give --masks DIR")
        before = len(faults)
        own = {site: roots[site] for site in sources}
        pairs = pair_masks(masks, own, sources, faults, warnings, flag=flag)
        _tell(pairs, sources, "source", faults, warnings, told=len(faults) > before)
    places = [place for site in sources for folder in pairs.folders.get(site, ()) for place in _near(folder)]
    pairings = [
        (mask, sources[site].items[index]) for (site, index), mask in sorted(pairs.masks.items(), key=_order)
    ]
    if not faults or pairings:
        places += [roots[site] for site in sources]
        joined.labels = resolve_labels(structures, places, pairings, faults, warnings)
    if not sources and joined.labels is None and not faults:
        faults.append("masks of the target alone do not say what they mean: give --structures NAME=VALUE")
    joined.masks, joined.refused = dict(pairs.masks), dict(pairs.refused)
    if targets and target_masks is not None:
        before = len(faults)
        own = {site: roots[site] for site in targets}
        found = pair_masks([target_masks], own, targets, faults, warnings, flag=target_flag)
        _tell(found, targets, "target", faults, warnings, told=len(faults) > before)
        _compare(target_masks, joined.labels, warnings)
        joined.masks |= found.masks
        joined.refused |= found.refused
    return joined


def _order(entry: tuple[Place, MaskItem]) -> Place:
    return entry[0]


def _near(folder: Path) -> list[Path]:
    """The folders that may hold the label file of a masks folder."""
    folder = Path(folder).resolve()
    return [folder.parent] if folder.is_file() else [folder, folder.parent]


def _tell(
    pairs: Pairs,
    catalogs: Mapping[str, Catalog],
    domain: str,
    faults: list[str],
    warnings: list[str],
    *,
    told: bool,
) -> None:
    """Reports how many scans have no usable mask, and why."""
    places = [(site, index) for site, catalog in catalogs.items() for index in range(len(catalog.items))]
    total = len(places)
    what = "are left out" if domain == "source" else "are used, but not evaluated"
    without = [place for place in places if place not in pairs.masks and place not in pairs.refused]
    refused = sorted(pairs.refused.items(), key=lambda entry: entry[0])
    reasons = ""
    if refused:
        codes = Counter(rejection.code for _, rejection in refused)
        listed = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
        (site, index), first = refused[0]
        reasons = (
            f"{len(refused)} of {total} {domain} cases have a mask that cannot be used ({listed}); for example case "
            f"{catalogs[site].items[index].name!r}, {first.detail}. {first.next_step}"
        ).rstrip(".")
    if total and not pairs.masks:
        if reasons or not told:
            faults.append(reasons or f"no {domain} case has a mask")
        return
    if refused:
        warnings.append(f"{reasons}. They {what}.")
    if without and pairs.masks:
        site, index = without[0]
        warnings.append(
            f"{len(without)} of {total} {domain} cases have no mask and {what}, for example case "
            f"{catalogs[site].items[index].name!r}."
        )


def _compare(target_masks: Path, labels: LabelMap | None, warnings: list[str]) -> None:
    """Warns if the target's label file disagrees; it is not used otherwise."""
    try:
        found = [label for place in _near(target_masks) if (label := label_file(place)) is not None]
    except ConfigError:
        return
    if labels is not None and found and not labels.within(found[0]):
        warnings.append(
            f"The label file with the target's masks ({found[0].text()}) disagrees with the label map in use "
            f"({labels.text()}), which is applied to them: check that the values mean the same."
        )
