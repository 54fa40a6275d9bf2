"""A cohort: cases with their preprocessed volumes, as a supply of data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medtl.data.cases.equal import settle_equal, voxel_warnings
from medtl.data.cases.splits import nested_patients
from medtl.data.cases.structures import mask_warnings, sided
from medtl.data.cases.table import Case, CaseTable
from medtl.data.seeds import derive_seed
from medtl.data.tensors.cache import ScanFacts, VolumeCache
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.patches import suggest_patch
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError


@dataclass(frozen=True)
class Cohort:
    """Cases that can all be read, and the cache that holds them.

    Attributes:
        table: all cases, used and excluded, with classes, rejections and warnings.
        cache: preprocessed volumes.
    """

    table: CaseTable
    cache: VolumeCache

    @classmethod
    def prepare(
        cls,
        table: CaseTable,
        preprocess: Preprocess,
        folder: Path,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cohort:
        """Preprocesses every used case once; those that cannot be read are excluded, with the reason.

        The same holds for the masks of the source, and of the target's few cases for training. Its others are not read.
        Scans with equal pixels are kept out of all but one split, and out of the target (`settle_equal`).

        Raises:
            DataError: Nothing is left to train on, a structure that no source mask in training holds, or a target of
                which more than a few scans are the source's.
        """
        cache = VolumeCache(folder, preprocess, table.labels)
        trained_on = [*table.select(domain="source"), *table.select(domain="target", split="train")]
        masked = [c for c in trained_on if c.mask_item is not None] if table.labels else []
        items = table.items()

        def report(before: int) -> Callable[[int, int], None] | None:
            if progress is None:
                return None
            return lambda done, _: progress(before + done, len(items) + len(masked))

        rejections = cache.prepare(items, progress=report(0))
        lost = {r.item for r in rejections}
        masked_left = [c for c in masked if c.item not in lost]
        before = len(items) + len(masked) - len(masked_left)
        rejections += cache.prepare_masks(masked_left, progress=report(before))
        table = table.exclude(rejections) if rejections else table
        table = _with_voxel_warnings(table, cache)
        return cls(_with_mask_warnings(table, cache) if table.labels else table, cache)

    def cases_per_batch(self, images: int, patch: Sequence[int] | None = None) -> int:
        """How many cases (or patches) contain about this many images or slices; at least 2."""
        depth = self.cache.preprocess.num_slices or 1
        if patch is not None:
            depth = patch[0] if len(patch) == 3 else 1
        return max(2, round(images / depth))

    def patch(self, image_size: int, *, cube: bool = False) -> tuple[int, ...]:
        """The size of patches that suits the scans, as `suggest_patch` chooses it."""
        depth: Literal["thin", "cube"] = "cube" if cube else "thin"
        return suggest_patch(self.table.items(), self.cache.preprocess, image_size, depth=depth)

    def voxel_counts(self, cases: Sequence[Case] | None = None) -> tuple[int, ...]:
        """Voxels of each class in the masks of cases, background first, void not counted.

        Args:
            cases: by default those that the source trains on.
        """
        chosen = self.select("source", "train") if cases is None else cases
        counts = [self.cache.counts(c).voxels for c in chosen if c.mask_item is not None]
        return tuple(map(sum, zip(*counts, strict=True))) if counts else (0,) * len(self.table.classes)

    def halves(self, domain: str = "target", seed: int = 0) -> tuple[tuple[tuple[Case, ...], ...], ...]:
        """Splits the domain's labelled cases in two by patient: ((half, rest), (rest, half)).

        Training on the domain's own labels gives an upper bound: every case is predicted by a model that has not
        seen its patient. Empty with fewer than two labelled patients. This reads the domain's labels.
        """
        cases = self.select(domain, "test") if domain == "target" else self.select(domain)
        if self.table.labels is None:
            cases = tuple(c for c in cases if c.label in self.table.classes)
        else:
            lost = {r.item for r in self.cache.prepare_masks(cases)}
            cases = tuple(c for c in cases if c.mask_item is not None and c.item not in lost)
        # Classes are shared out evenly: a half without one could not be trained on.
        kind = {c.draw: c.label or "" if self.table.labels is None else "" for c in cases}
        first: set[str] = set()
        odd = 0
        for label in sorted(set(kind.values())):
            patients = sorted(
                (p for p in kind if kind[p] == label), key=lambda p: derive_seed(seed, "halves", p)
            )
            first |= set(patients[: (len(patients) + odd) // 2])
            odd = (len(patients) + odd) % 2
        half = tuple(c for c in cases if c.draw in first)
        rest = tuple(c for c in cases if c.draw not in first)
        return ((half, rest), (rest, half)) if half else ()

    def subsets(self, sizes: Sequence[int], seed: int = 0) -> dict[int, tuple[Case, ...]]:
        """Nested training sets of the source by number of patients; the last one holds them all."""
        cases = self.select("source", "train")
        chosen = nested_patients([c.draw for c in cases], [c.label or "" for c in cases], sizes, seed=seed)
        return {n: tuple(c for c in cases if c.draw in patients) for n, patients in chosen.items()}

    def sites(self, domain: str) -> tuple[str, ...]:
        """Names of the domain's sites."""
        return tuple(sorted({case.site for case in self.select(domain)}))

    def summary(self) -> list[dict[str, Any]]:
        """One row per site: what was found, used, and left out, and why."""
        rows = []
        for site, found in self.table.flow().items():
            left_out = dict(Counter(found["rejected"]) + Counter(found["excluded"]))
            masks = {}
            if self.table.labels is not None:
                used = [c.mask_item for c in self.table.select() if c.site == site and c.mask_item]
                masks = {"masks": len(used)}
                left_out["mask"] = left_out.get("mask", 0) - sum(len(mask.files) for mask in used)
                left_out = {code: number for code, number in left_out.items() if number > 0}
            rows.append(
                {
                    "site": site,
                    "files": found["files"],
                    "cases": found["cases"],
                    "patients": found["patients"],
                    **masks,
                    "left out": ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "nothing",
                }
            )
        return rows

    def select(self, domain: str | None = None, split: str | None = None) -> tuple[Case, ...]:
        """Used cases of a domain and split."""
        return tuple(self.table.select(domain=domain, split=split))

    def dataset(
        self,
        domain: str,
        split: str,
        *,
        with_labels: bool = False,
        augment: str = "none",
        seed: int = 0,
        strong: bool = False,
        patch: Sequence[int] | None = None,
        cases: Sequence[Case] | None = None,
        stream: str | None = None,
    ) -> CaseDataset | None:
        """The cases of a domain and split as a data set, or None if there are none.

        Args:
            domain: `source` or `target`.
            split: `train`, `validation` or `test`; in `train` the target has the few cases whose labels may be used.
            with_labels: Whether samples carry labels; for the target's split `test`, only for the upper bound.
            augment: As for `CaseDataset`, like `seed`, `strong` and `patch`.
            seed: The run's seed.
            strong: Whether to add a second, strongly augmented view.
            patch: Size of the samples, for segmentation.
            cases: These instead of all of the domain and split.
            stream: Name of the random numbers; by default the domain.
        """
        chosen = self.select(domain, split) if cases is None else tuple(cases)
        if not chosen:
            return None
        return CaseDataset(
            chosen,
            self.cache,
            classes=self.table.classes,
            augment=augment,
            with_labels=with_labels,
            strong=strong,
            seed=seed,
            stream=stream or domain,
            sites=sorted({case.site for case in self.table.select()}),
            patch=patch,
        )


def _with_voxel_warnings(table: CaseTable, cache: VolumeCache) -> CaseTable:
    """The table with what the voxels told: equal scans, voxels without a number, and scans of one grey value."""
    facts = {c.case: cache.facts(c.item) for c in table.select() if c.item is not None}
    table = settle_equal(table, {case: found.pixels for case, found in facts.items()})
    used = [c for c in table.select() if c.case in facts]
    missing = [c for c in used if facts[c.case].missing]
    warnings = voxel_warnings(missing, [c for c in used if facts[c.case].constant])
    cases = tuple(_remarked(c, facts[c.case]) if c.case in facts else c for c in table.cases)
    return replace(table, cases=cases, warnings=(*table.warnings, *warnings))


def _remarked(case: Case, facts: ScanFacts) -> Case:
    notes = [case.remark] if case.remark else []
    if facts.missing:
        notes.append(f"{facts.missing} voxels are no numbers")
    if facts.constant:
        notes.append("one grey value everywhere")
    return replace(case, remark="; ".join(notes))


def _with_mask_warnings(table: CaseTable, cache: VolumeCache) -> CaseTable:
    assert table.labels is not None
    cases = [c for c in table.select(domain="source") if c.mask_item is not None]
    if not cases:
        return table
    warnings, faults = mask_warnings(cases, [cache.counts(c) for c in cases], table.labels)
    if faults:
        raise DataError(f"The masks cannot be trained on: {'; '.join(faults)}.")
    if sides := sided(table.classes):
        shown = ", ".join(map(repr, sides[:3])) + ", ..." * (len(sides) > 3)
        warnings += (
            f"Structures are named by their side ({shown}): left and right are not swapped in augmentation.",
        )
    return replace(table, warnings=(*table.warnings, *warnings))
