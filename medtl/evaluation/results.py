"""The tree of results: everything that a report shows, as one JSON document with a version.

Nothing here names a patient; cases are named only where the worst segmentations are listed.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtl.errors import DataError
from medtl.evaluation.context import RunContext
from medtl.evaluation.metrics.operating import OperatingPoint
from medtl.evaluation.statistics.compare import Comparison
from medtl.evaluation.statistics.estimate import Estimate
from medtl.files import atomic_write

SCHEMA = "medtl.results/1"


@dataclass(frozen=True)
class Measure:
    """One measure of one model on one group of cases.

    Attributes:
        name: a key of `medtl.evaluation.MEASURES`.
        estimate: the mean over training seeds, with its interval.
        cls: the class or structure it belongs to, or None (over all of them).
        stage: `before` or `after` recalibration, or None where that makes no difference.
        kind: `positive`, `top_label` or `classwise` for calibration errors; `median` for the median over cases.
        per_seed: the value of each training seed.
    """

    name: str
    estimate: Estimate
    cls: str | None = None
    stage: str | None = None
    kind: str | None = None
    per_seed: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A curve with its band.

    Attributes:
        name: `roc` or `reliability`.
        x: the grid.
        y: the curve; lo and hi are the limits of its band, point by point.
        cls: the class (ROC), or None.
        stage: `before` or `after` recalibration (reliability), or None.
        kind: as in `Measure`.
        histogram: shares of the predictions in ten equal bins of 0 to 1 (reliability), else empty.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    lo: tuple[float, ...]
    hi: tuple[float, ...]
    cls: str | None = None
    stage: str | None = None
    kind: str | None = None
    histogram: tuple[float, ...] = ()


@dataclass(frozen=True)
class CaseValues:
    """Values of single cases of a segmentation, without their names; the order is the same for every model.

    Attributes:
        structure: name of the structure.
        values: for `dice`, `hd95`, `nsd`, `volume_reference` and `volume_predicted` one value per case, mean over
            seeds; None where there is none.
    """

    structure: str
    values: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class WorstCase:
    """One of a model's worst segmentations in external testing (internal, where there is none).

    Attributes:
        model: name of the model.
        seed: the training seed with the lowest Dice on this case.
        case: name of the case, as the table has it; site likewise.
        domain: `source` or `target`.
        structure: name of the structure.
        status: as `Block.statuses`, of that seed.
        dice: of that seed; the others likewise, None where there is none.
    """

    model: str
    seed: str
    case: str
    site: str
    domain: str
    structure: str
    status: str
    dice: float | None
    hd95: float | None
    nsd: float | None
    volume_reference: float | None
    volume_predicted: float | None


@dataclass(frozen=True)
class SegmentationRules:
    """The rules behind the numbers of a segmentation.

    Attributes:
        unit: of distances, `mm` or `px`.
        volume_unit: of volumes, `ml` or `px`.
        tolerance: of the surface Dice (NSD), by structure, in `unit`.
        empty: what an empty mask counts, in words.
        band: the voxels that calibration is about, in words; "" where there are none.
        void: whether the masks have voxels that are not judged.
        mixed_units: cases without a voxel size beside cases with one: their distances and volumes are left out.
    """

    unit: str
    volume_unit: str
    tolerance: dict[str, float]
    empty: str
    band: str = ""
    void: bool = False
    mixed_units: int = 0


@dataclass(frozen=True)
class Block:
    """All results of one model on one group of cases.

    Attributes:
        model: name of the model.
        domain: `source` (internal) or `target` (external).
        split: `validation` or `test`.
        site: name of the site, or None for all sites together.
        finding: name of the finding (multi-label), or None.
        num_cases: cases, labelled or not.
        num_patients: patients.
        num_labelled: cases with a reference standard.
        class_cases: labelled cases of each class; cases whose reference holds each structure.
        class_patients: patients with such a case.
        seeds: training seeds that are averaged.
        measures: the numbers.
        curves: ROC and reliability curves (only of the largest group of a domain and split).
        confusion: rows = reference standard, columns = called, cases, mean over seeds; or None.
        statuses: by structure, how many masks (cases times seeds) are `ok`, `both_empty`, `ref_empty`,
            `pred_empty` or `no_reference`; empty for classification.
        cases: values of single cases by structure (only of the largest group of a domain and split).
    """

    model: str
    domain: str
    split: str
    site: str | None
    finding: str | None
    num_cases: int
    num_patients: int
    num_labelled: int
    class_cases: dict[str, int]
    class_patients: dict[str, int]
    seeds: tuple[str, ...]
    measures: tuple[Measure, ...]
    curves: tuple[Curve, ...] = ()
    confusion: tuple[tuple[float, ...], ...] | None = None
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    cases: tuple[CaseValues, ...] = ()

    def get(self, name: str, **where: str | None) -> Measure | None:
        """The first measure called `name` whose other fields are as given."""
        return next((m for m in self.measures if m.name == name and _matches(m, where)), None)


@dataclass(frozen=True)
class Difference:
    """A model minus the reference model on the same resamples of the same patients.

    Attributes:
        model: name of the model.
        reference: name of the reference model.
        domain: group of cases, as in `Block`; split, site and finding likewise.
        name: the measure; cls, stage and kind as in `Measure`.
        estimate: model minus reference.
        better: `higher` or `lower`.
        verdict: `gain`, `harm`, `no clear difference` or `not estimable`.
        per_seed: difference of the runs with the same training seed, where both models have it.
    """

    model: str
    reference: str
    domain: str
    split: str
    site: str | None
    finding: str | None
    name: str
    estimate: Estimate
    better: str
    verdict: str
    cls: str | None = None
    stage: str | None = None
    kind: str | None = None
    per_seed: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Settings of one model and training seed, fitted on the source's validation cases and then frozen.

    Attributes:
        model: name of the model.
        seed: training seed.
        finding: name of the finding or structure, or None.
        temperature: the temperature, or None.
        temperature_status: `fitted`, `at_bound`, `separated` (all called right: 1 stands), `no_validation`,
            `one_class` or `no_probabilities`.
        temperature_cases: cases that it was fitted on.
        operating_point: the threshold (binary), or None (the most probable class is called).
        operating_status: `fitted`, `no_validation`, `one_class` or `most_probable_class`.
    """

    model: str
    seed: str
    finding: str | None
    temperature: float | None
    temperature_status: str
    temperature_cases: int
    operating_point: OperatingPoint | None
    operating_status: str


@dataclass(frozen=True)
class Results:
    """All results behind a report. `save` and `load` are exact inverses.

    Segmentation: `classes` are the structures, without the background, and `segmentation` is given.
    """

    task: str
    classes: tuple[str, ...]
    positive: str | None
    positive_reason: str
    rule: str
    prevalence: float | None
    replicates: int
    level: float
    seed: int
    models: tuple[str, ...]
    reference_model: str | None
    reference_reason: str
    blocks: tuple[Block, ...]
    differences: tuple[Difference, ...]
    settings: tuple[Settings, ...]
    limitations: tuple[str, ...]
    num_clipped: int
    patients_known: bool
    context: RunContext
    created: str
    segmentation: SegmentationRules | None = None
    worst: tuple[WorstCase, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    schema: str = SCHEMA

    def block(
        self,
        model: str,
        domain: str,
        split: str = "test",
        *,
        site: str | None = "",
        finding: str | None = None,
    ) -> Block | None:
        """One block; with `site=""` the largest group of the domain and split: all its sites together."""
        found = [
            b
            for b in self.blocks
            if (b.model, b.domain, b.split, b.finding) == (model, domain, split, finding)
            and (site == "" or b.site == site)
        ]
        return next((b for b in found if b.site is None), found[0] if found else None)

    def main_blocks(self, model: str, domain: str) -> list[Block]:
        """The block that speaks for a domain, for each finding: all sites; test, else validation cases."""
        findings = dict.fromkeys(b.finding for b in self.blocks)
        found = (
            self.block(model, domain, "test", finding=f) or self.block(model, domain, "validation", finding=f)
            for f in findings
        )
        return [block for block in found if block is not None]

    def calibration(self) -> dict[str, Any]:
        """What was frozen, by model and training seed (and finding or structure), ready for JSON."""
        out: dict[str, Any] = {}
        for s in self.settings:
            entry = dataclasses.asdict(s)
            for key in ("model", "seed"):
                entry.pop(key)
            place = out.setdefault(s.model, {})
            if s.finding is None:
                place[s.seed] = entry
            else:
                place.setdefault(s.seed, {})[s.finding] = entry
        return {"schema": SCHEMA, "task": self.task, "classes": list(self.classes), "models": out}

    def to_json(self) -> str:
        """The document; numbers that are not finite never occur."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: Path | str) -> Path:
        """Writes the document and returns its path."""
        atomic_write(Path(path), self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Results:
        """Reads what `save` wrote.

        Raises:
            DataError: not such a document, or one of another version.
        """
        name = Path(path).name
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"The results {name!r} cannot be read as JSON: {error}. Make them anew."
            ) from None
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise DataError(
                f"The results {name!r} have the schema {found!r}; this version of medtl reads {SCHEMA!r}. "
                "Make them anew from the predictions table."
            )
        try:
            if content["context"].get("oracle") is True:  # the stamp of documents before there were several
                content["context"]["stamps"] = ["oracle"]
            rebuilt: Results = _build(cls, content)
            return rebuilt
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"The results {name!r} are not complete ({error}). Make them anew from the predictions table."
            ) from None


def _matches(measure: Measure, where: dict[str, str | None]) -> bool:
    return all(getattr(measure, key) == value for key, value in where.items())


def _build(kind: Any, data: Any) -> Any:
    """Rebuilds `data`, as JSON gives it, into the annotated type `kind`.

    A field that has a default may be absent: documents of before the field existed stay readable.

    Raises:
        KeyError: a field without a default is absent.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _build(next(a for a in args if a is not type(None)), data)
    if origin is tuple:
        return tuple(_build(args[0], item) for item in data)
    if origin is dict:
        return {key: _build(args[1], item) for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        given = [f.name for f in dataclasses.fields(kind) if f.name in data or not _optional(f)]
        return kind(**{name: _build(hints[name], data[name]) for name in given})
    if kind is float:
        return float(data)
    return data


def _optional(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
