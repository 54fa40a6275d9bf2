"""All measures of one trained model on one group of cases, on any resample of its patients.

The same code gives the value (every patient drawn once) and its replicates, so they cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medtl.evaluation.metrics.calibration import (
    BinnedGap,
    calibration_intercept,
    calibration_slope,
    equal_mass_edges,
    equal_width_edges,
)
from medtl.evaluation.metrics.discrimination import RankedScores
from medtl.evaluation.metrics.operating import OperatingPoint, ppv_npv
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, log_odds, log_softmax, sum_by_patient
from medtl.evaluation.statistics.resample import Support


@dataclass(frozen=True)
class Key:
    """Name of one number; fields as in `medtl.evaluation.results.Measure`."""

    name: str
    cls: str | None = None
    stage: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Cases:
    """A group of cases, the same for every model: labels, patients and weights in one order.

    Attributes:
        label: (n,) class, -1 without a reference standard.
        patient: (n,) index of the patient.
        num_patients: P.
        weight: (n,) weights.
        classes: names of the classes.
        positive: column of the positive class (binary), else None.
    """

    label: Ints
    patient: Ints
    num_patients: int
    weight: Floats
    classes: tuple[str, ...]
    positive: int | None

    @property
    def labelled(self) -> Bools:
        """(n,) whether a case has a reference standard."""
        return np.asarray(self.label >= 0)

    def patients_with(self, column: int) -> int:
        """Number of patients with a case of one class."""
        return len(np.unique(self.patient[self.label == column]))

    def support(self, key: Key) -> Support:
        """What a measure of this group rests on."""
        k = [self.patients_with(c) for c in range(len(self.classes))]
        cases = [int((self.label == c).sum()) for c in range(len(self.classes))]
        labelled = self.labelled
        n, patients = int(labelled.sum()), len(np.unique(self.patient[labelled]))
        present = [x for x in k if x > 0] or [0]
        events: int | None = None if self.positive is None else cases[self.positive]
        smaller = min(present)
        effective: float = patients
        if key.name == "predicted_share":
            n, patients, smaller = len(self.label), self.num_patients, self.num_patients
            effective, events = patients, None
        elif key.name in ("class_auroc", "observed_share") and key.cls is not None:
            column = self.classes.index(key.cls)
            events = cases[column]
            smaller = min(k[column], len(np.unique(self.patient[labelled & (self.label != column)])))
            smaller = patients if key.name == "observed_share" else smaller
        elif key.name in ("sensitivity", "specificity", "recall"):
            if key.cls is not None:
                column = self.classes.index(key.cls)
            else:
                assert self.positive is not None
                column = self.positive if key.name == "sensitivity" else 1 - self.positive
            n = events = cases[column]
            patients, smaller, effective = k[column], k[column], k[column]
        elif key.name == "balanced_accuracy":
            effective = len(present) ** 2 / sum(1 / x for x in present) if min(present) else 0.0
        elif key.name == "accuracy":
            smaller = patients
        return Support(n, patients, events, smaller, effective)


@dataclass(frozen=True)
class _Stage:
    """What the calibration measures of one stage need; `main` is the kind that is plotted."""

    main: str
    predicted: Floats
    observed: Floats
    sums: Floats
    binned: dict[str, tuple[BinnedGap, ...]]
    debiased: BinnedGap
    score: Floats | None


class Sample:
    """One model, one training seed, one group of cases.

    Args:
        cases: the group.
        logits: (n, K) in the order of `cases`.
        operating_point: the frozen threshold (binary); None calls the most probable class.
        temperature: the frozen temperature, or None.
        prevalence: for predictive values (binary), or None.
    """

    def __init__(
        self,
        cases: Cases,
        logits: Floats,
        operating_point: OperatingPoint | None,
        temperature: float | None,
        prevalence: float | None,
    ) -> None:
        self.cases = cases
        self.logits = logits
        self.temperature = temperature
        self._prevalence = prevalence
        if cases.positive is not None and operating_point is not None:
            called = operating_point.apply(log_odds(logits, cases.positive))
            self.called = np.where(called, cases.positive, 1 - cases.positive).astype(np.int64)
        else:
            self.called = logits.argmax(axis=1).astype(np.int64)
        k, p = len(cases.classes), cases.num_patients
        self._calls = sum_by_patient(np.eye(k)[self.called] * cases.weight[:, None], cases.patient, p)
        use = cases.labelled
        self._label, self._patient, self._weight = cases.label[use], cases.patient[use], cases.weight[use]
        self.any_labels = bool(use.any())
        if not self.any_labels:
            return
        cells = np.eye(k * k)[self._label * k + self.called[use]]
        self._cells = sum_by_patient(cells * self._weight[:, None], self._patient, p)
        self.ranked = {
            c: RankedScores(log_odds(logits[use], c), self._label == c, self._patient, self._weight)
            for c in range(k)
            if 0 < (self._label == c).sum() < len(self._label)
            and (cases.positive is None or c == cases.positive)
        }
        scaled = {"before": logits[use]}
        if temperature is not None:
            scaled["after"] = logits[use] / temperature
        self._stages = {stage: self._prepare(z) for stage, z in scaled.items()}

    def _prepare(self, logits: Floats) -> _Stage:
        """Sums by patient for the calibration measures of one stage."""
        cases, label, p, own = self.cases, self._label, self.cases.num_patients, self._weight
        logp = log_softmax(logits)
        probability = np.exp(logp)
        truth = np.eye(len(cases.classes))[label]
        square = ((probability - truth) ** 2).sum(axis=1) * (1.0 if cases.positive is None else 0.5)
        nll = -logp[np.arange(len(label)), label]
        top = probability.argmax(axis=1)
        events = {"top_label": [(probability.max(axis=1), (top == label).astype(float))]}
        if cases.positive is None:
            main = "top_label"
            events["classwise"] = [(probability[:, c], truth[:, c]) for c in range(len(cases.classes))]
        else:
            main = "positive"
            events["positive"] = [(probability[:, cases.positive], truth[:, cases.positive])]
        predicted, observed = events[main][0]
        width, mass = equal_width_edges(), equal_mass_edges(predicted)
        return _Stage(
            main=main,
            predicted=predicted,
            observed=observed,
            sums=sum_by_patient(np.stack([own, own * square, own * nll], axis=1), self._patient, p),
            binned={
                kind: tuple(BinnedGap(q, y, self._patient, p, width, own) for q, y in pairs)
                for kind, pairs in events.items()
            },
            debiased=BinnedGap(predicted, observed, self._patient, p, mass, own),
            score=None if cases.positive is None else log_odds(logits, cases.positive),
        )

    def shares(self, counts: Floats) -> dict[Key, Floats]:
        """Shares called each class, and shares by the reference standard."""
        out: dict[Key, Floats] = {}
        calls = counts @ self._calls
        for c, name in enumerate(self.cases.classes):
            out[Key("predicted_share", name)] = _ratio(calls[:, c], calls.sum(axis=1))
        if self.any_labels:
            k = len(self.cases.classes)
            truth = (counts @ self._cells).reshape(-1, k, k).sum(axis=2)
            for c, name in enumerate(self.cases.classes):
                out[Key("observed_share", name)] = _ratio(truth[:, c], truth.sum(axis=1))
        return out

    def confusion(self, counts: Floats) -> Floats:
        """(b, K, K) weights of the cases: rows = reference standard, columns = called."""
        k = len(self.cases.classes)
        return (counts @ self._cells).reshape(-1, k, k)

    def measures(self, counts: Floats) -> dict[Key, Floats]:
        """Every measure that needs a reference standard, (b,) each; empty without one."""
        if not self.any_labels:
            return {}
        out: dict[Key, Floats] = {}
        self._discrimination(counts, out)
        self._decisions(counts, out)
        for stage, prepared in self._stages.items():
            self._calibration(counts, stage, prepared, out)
        return out

    def _discrimination(self, counts: Floats, out: dict[Key, Floats]) -> None:
        each = {c: ranked.auroc(counts) for c, ranked in self.ranked.items()}
        if self.cases.positive is None:
            for c, values in each.items():
                out[Key("class_auroc", self.cases.classes[c])] = values
        nothing = np.full(len(counts), np.nan)
        out[Key("auroc")] = np.mean(list(each.values()), axis=0) if each else nothing

    def _decisions(self, counts: Floats, out: dict[Key, Floats]) -> None:
        cells = self.confusion(counts)
        right, truth = np.diagonal(cells, axis1=1, axis2=2), cells.sum(axis=2)
        recall = _ratio(right, truth)
        present = np.unique(self._label)
        out[Key("balanced_accuracy")] = (
            recall[:, present].mean(axis=1) if len(present) > 1 else np.full(len(counts), np.nan)
        )
        out[Key("accuracy")] = _ratio(right.sum(axis=1), truth.sum(axis=1))
        if self.cases.positive is None:
            for c in present:
                out[Key("recall", self.cases.classes[c])] = recall[:, c]
            return
        positive = self.cases.positive
        out[Key("sensitivity")], out[Key("specificity")] = recall[:, positive], recall[:, 1 - positive]
        if self._prevalence is not None:
            ppv, npv = ppv_npv(recall[:, positive], recall[:, 1 - positive], self._prevalence)
            out[Key("ppv")], out[Key("npv")] = ppv, npv

    def _calibration(self, counts: Floats, stage: str, prepared: _Stage, out: dict[Key, Floats]) -> None:
        sums = counts @ prepared.sums
        out[Key("brier", stage=stage)] = _ratio(sums[:, 1], sums[:, 0])
        out[Key("nll", stage=stage)] = _ratio(sums[:, 2], sums[:, 0])
        debiased = prepared.debiased.debiased_squared(counts)
        out[Key("debiased_squared_error", stage=stage, kind=prepared.main)] = debiased
        for kind, gaps in prepared.binned.items():
            out[Key("ece", stage=stage, kind=kind)] = np.mean([g.error(counts) for g in gaps], axis=0)
        if prepared.score is None:
            return
        before = out.get(Key("calibration_slope", stage="before"))
        if before is not None and self.temperature is not None:
            # Dividing the log odds by T multiplies the slope by T, exactly.
            slope = before * self.temperature
        else:
            slope = calibration_slope(prepared.score, prepared.observed, self._patient, counts, self._weight)
        out[Key("calibration_slope", stage=stage)] = slope
        intercept = calibration_intercept(
            prepared.score, prepared.observed, self._patient, counts, self._weight
        )
        out[Key("calibration_intercept", stage=stage)] = intercept

    def reliability_pair(self, stage: str) -> tuple[str, Floats, Floats]:
        """Kind, predicted probabilities and observed events of the main calibration question at one stage."""
        prepared = self._stages[stage]
        return prepared.main, prepared.predicted, prepared.observed

    @property
    def stages(self) -> tuple[str, ...]:
        """`before`, and `after` where there is a temperature."""
        return tuple(self._stages) if self.any_labels else ()

    @property
    def labelled_rows(self) -> tuple[Ints, Floats]:
        """Patient and weight of the labelled cases."""
        return self._patient, self._weight


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))
