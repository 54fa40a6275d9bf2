"""The table of cases: which are used, in which split, and which were left out and why."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medtl.cells import guarded_row
from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import LabelMap
from medtl.scans.items import MASK_CODES, MaskItem, Rejection, VolumeItem
from medtl.scans.privacy import Identifiers

COLUMNS = (
    "case",
    "patient",
    "site",
    "domain",
    "path",
    "label",
    "mask",
    "split",
    "status",
    "reason",
    "remark",
)


@dataclass(frozen=True)
class Case:
    """One unit of prediction: a volume or image with its patient, site, label or mask, and split.

    Attributes:
        case: Its name, unique within the table.
        patient: Pseudonym, `p7k2mq4xa`; the same for all cases of a person, and in every run of a project.
        site: Name of the site.
        domain: `source` or `target`.
        path: Display-safe path inside the site's folder.
        label: Name of its class, or None.
        mask: Display-safe path of its mask inside the masks' folder, or None.
        split: `train`, `validation` or `test`; empty if excluded.
        status: `used` or `excluded`.
        reason: Why it is excluded.
        remark: Doubts about the scan, such as slices that could not be opened.
        groups: The labels' `group_*` columns, for subgroup figures.
        item: The scan. In memory only.
        mask_item: Its mask. In memory only.
        draw: Names the patient wherever something is drawn at random: unlike the pseudonym it is the same in every
            project. In memory only.
    """

    case: str
    patient: str
    site: str
    domain: str
    path: str
    label: str | None = None
    mask: str | None = None
    split: str = ""
    status: str = "used"
    reason: str = ""
    remark: str = ""
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    item: VolumeItem | None = field(default=None, repr=False, compare=False)
    mask_item: MaskItem | None = field(default=None, repr=False, compare=False)
    draw: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.draw:
            object.__setattr__(self, "draw", self.patient)


@dataclass(frozen=True)
class CaseTable:
    """All cases of a run, used and excluded, and the fate of every file.

    Attributes:
        cases: Sorted by domain, site and `VolumeItem.order`.
        classes: Names of the classes in the order of the network's outputs.
        rejections: By site.
        warnings: What a user should know before trusting the result.
        files: Number of files by site.
        labels: Names and values of the structures in the masks; None if the task is classification. The
            classes are then the map's: the background and the structures.
        identifiers: Identifiers of the patients, to make other paths safe to show. In memory only.
    """

    cases: tuple[Case, ...]
    classes: tuple[str, ...]
    rejections: Mapping[str, tuple[Rejection, ...]]
    warnings: tuple[str, ...]
    files: Mapping[str, int]
    labels: LabelMap | None = None
    identifiers: Identifiers = field(default_factory=Identifiers, repr=False, compare=False)

    def hide(self, path: str) -> str:
        """A path, or a name, without the parts that name a patient as a header does."""
        return self.identifiers.safe_path(path)

    def select(
        self, *, domain: str | None = None, split: str | None = None, status: str | None = "used"
    ) -> tuple[Case, ...]:
        """The cases that match every argument that is not None."""
        wanted = {"domain": domain, "split": split, "status": status}
        return tuple(
            case for case in self.cases if all(v is None or getattr(case, k) == v for k, v in wanted.items())
        )

    def items(self) -> tuple[VolumeItem, ...]:
        """The scans of all used cases."""
        return tuple(case.item for case in self.select() if case.item is not None)

    def exclude(self, rejections: Sequence[Rejection]) -> CaseTable:
        """The table without the cases whose scans or masks failed at reading, as `VolumeCache.prepare` returns them.

        A target case whose mask failed stays: it is used without one, and evaluation leaves it out.

        Raises:
            DataError: No case is left, or a class has none left in training or validation.
        """
        lost: dict[VolumeItem | None, Rejection] = {r.item: r for r in rejections if r.item is not None}
        blind = {
            c.item
            for c in self.cases
            if c.domain == "target" and c.item in lost and lost[c.item].code in MASK_CODES
        }
        cases = tuple(_without(case, lost.get(case.item), case.item in blind) for case in self.cases)
        rejected = dict(self.rejections)
        for case in self.cases:
            if case.item in lost and case.item not in blind:
                rejected[case.site] = (*rejected.get(case.site, ()), lost[case.item])
        warnings = list(self.warnings)
        for where, found in (
            ("source cases have a mask that cannot be used and are left out", self._of(lost, "source")),
            (
                "target cases have a mask that cannot be used: they are used, but not evaluated",
                self._of(lost, "target"),
            ),
        ):
            if found:
                first = found[0]
                name = first.item.name if first.item is not None else ""
                warnings.append(
                    f"{len(found)} {where}; for example case {name!r}: {first.detail.rstrip('.')}. {first.next_step}"
                )
        table = replace(self, cases=cases, rejections=rejected, warnings=tuple(warnings))
        gone = {
            f"class {name!r} in {split}": own
            for split in ("train", "validation")
            for name in self.classes
            if (own := [c for c in self.select(domain="source", split=split) if c.label == name])
            and not any(c.label == name for c in table.select(domain="source", split=split))
        }
        parts = [(f"the split {split!r}", "source", split) for split in ("train", "validation")]
        parts = [
            *(parts if self.labels is not None else []),
            ("source", "source", ""),
            ("target", "target", ""),
        ]
        for what, domain, split in parts:
            before = self.select(domain=domain, split=split or None)
            if before and not table.select(domain=domain, split=split or None):
                gone[what] = list(before)
        if gone:
            example = next(c.item for own in gone.values() for c in own)
            what = "scans" if self.labels is None else "scans or masks"
            left = f"is left of {', '.join(gone)}" if self.select(domain="source") else "else is there"
            why = "are left out" if any(r.code == "duplicate" for r in rejections) else "could not be decoded"
            raise DataError(
                f"{len(lost)} {what} {why}, and nothing {left}. The first: {lost[example].detail}"
            )
        return table

    def _of(self, lost: Mapping[VolumeItem | None, Rejection], domain: str) -> list[Rejection]:
        """The rejections of a domain's masks."""
        cases = [c for c in self.select(domain=domain) if c.item in lost]
        return [lost[c.item] for c in cases if lost[c.item].code in MASK_CODES]

    def to_csv(self, path: Path) -> None:
        """Writes `cases.csv`; it holds no identifier and no path outside the sites' folders."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case in self.cases:
            writer.writerow(guarded_row(getattr(case, column) or "" for column in COLUMNS))
        atomic_write(path, buffer.getvalue(), private=True)

    def flow(self) -> dict[str, dict[str, Any]]:
        """Counts by site: files, volumes, cases used, patients, rejected and excluded by reason."""
        result: dict[str, dict[str, Any]] = {}
        for site in self.files:
            cases = [case for case in self.cases if case.site == site]
            used = [case for case in cases if case.status == "used"]
            codes: Counter[str] = Counter()
            for rejection in self.rejections.get(site, ()):
                codes[rejection.code] += len(rejection.files) if rejection.item is None else 0
            result[site] = {
                "files": self.files[site],
                "volumes": len(cases),
                "cases": len(used),
                "patients": len({case.patient for case in used}),
                "rejected": {code: count for code, count in sorted(codes.items()) if count},
                "excluded": dict(sorted(Counter(c.reason for c in cases if c.status == "excluded").items())),
            }
        return result


def _without(case: Case, rejection: Rejection | None, keep: bool) -> Case:
    """The case without its mask, or left out."""
    if rejection is None:
        return case
    if keep:
        return replace(case, mask=None, mask_item=None)
    return replace(case, split="", status="excluded", reason=rejection.code)
