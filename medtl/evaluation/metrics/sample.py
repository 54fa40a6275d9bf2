"""The input of classification metrics: one trained model on a group of cases, and its resamples.

The same code gives the value (every patient drawn once) and its replicates, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from medtl.evaluation.metrics.operating import OperatingPoint
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, log_odds
from medtl.evaluation.statistics.resample import Support

T = TypeVar("T")


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

    @property
    def present(self) -> Ints:
        """The classes that have a case."""
        return np.unique(self.label[self.labelled])

    def cases_with(self, column: int) -> int:
        """Number of cases of one class."""
        return int((self.label == column).sum())

    def patients_with(self, column: int) -> int:
        """Number of patients with a case of one class."""
        return len(np.unique(self.patient[self.label == column]))

    def patients_by_class(self) -> list[int]:
        """Number of patients with a case of each class that is present; `[0]` where none is."""
        return [self.patients_with(int(c)) for c in self.present] or [0]

    def support(self) -> Support:
        """The support of a number that uses all labelled cases."""
        patients = len(np.unique(self.patient[self.labelled]))
        events = None if self.positive is None else self.cases_with(self.positive)
        return Support(int(self.labelled.sum()), patients, events, min(self.patients_by_class()), patients)

    def support_of(self, column: int) -> Support:
        """The support of a number that uses only the cases of one class."""
        n, k = self.cases_with(column), self.patients_with(column)
        return Support(n, k, n, k, k)


class Sample:
    """One model, one training seed, one group of cases.

    Args:
        cases: the group.
        logits: (n, K) in the order of `cases`.
        operating_point: the frozen threshold (binary); None calls the most probable class.
        temperature: the frozen temperature, or None.
        prevalence: for predictive values (binary), or None.

    Attributes:
        called: (n,) class that each case is called.
        label: (m,) class of the labelled cases; `patient`, `weight` and `scores` (m, K), their logits, likewise.
    """

    def __init__(
        self,
        cases: Cases,
        logits: Floats,
        operating_point: OperatingPoint | None,
        temperature: float | None,
        prevalence: float | None,
    ) -> None:
        self.cases, self.temperature, self.prevalence = cases, temperature, prevalence
        if cases.positive is not None and operating_point is not None:
            called = operating_point.apply(log_odds(logits, cases.positive))
            self.called: Ints = np.where(called, cases.positive, 1 - cases.positive).astype(np.int64)
        else:
            self.called = logits.argmax(axis=1).astype(np.int64)
        use = cases.labelled
        self.label, self.patient, self.weight = cases.label[use], cases.patient[use], cases.weight[use]
        self.scores = logits[use]
        self._prepared: dict[Any, Any] = {}

    @property
    def stages(self) -> dict[str, Floats]:
        """Logits of the labelled cases `before` recalibration, and `after` it if there is a temperature."""
        after = {} if self.temperature is None else {"after": self.scores / self.temperature}
        return {"before": self.scores} | after

    def prepared(self, make: Callable[[Sample], T]) -> T:
        """The result of `make` for this sample, computed once for all metrics and resamples."""
        if make not in self._prepared:
            self._prepared[make] = make(self)
        found: T = self._prepared[make]
        return found


class Draw:
    """A sample on some resamples of its patients.

    Args:
        sample: the sample.
        counts: (b, P) how often each patient is drawn.
    """

    def __init__(self, sample: Sample, counts: Floats) -> None:
        self.sample, self.counts = sample, counts
        self._shared: dict[Any, Any] = {}

    def shared(self, make: Callable[[Draw], T]) -> T:
        """The result of `make` for these resamples, computed once for all metrics."""
        if make not in self._shared:
            self._shared[make] = make(self)
        found: T = self._shared[make]
        return found
