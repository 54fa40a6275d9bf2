"""Operating points: a threshold fitted once, on internal validation, and then only applied.

A threshold tuned on the test set flatters: on 150 cases Youden's index comes out .51 where .45 is the true
maximum.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from medtl.errors import ConfigError, DataError
from medtl.evaluation.statistics.arrays import Bools, Floats

_RULE = re.compile(r"^(sens|spec)>=(0?\.\d+|1|1\.0+|0)$")


def check_rule(rule: str) -> str:
    """The rule in its plain spelling, or a `ConfigError` that lists the rules."""
    plain = rule.strip().lower().replace(" ", "")
    if plain != "youden" and not _RULE.match(plain):
        raise ConfigError(
            f"Unknown rule {rule!r} for the operating point: expected 'youden', 'sens>=x' or 'spec>=x' with "
            "x between 0 and 1, for instance 'sens>=0.95'."
        )
    return plain


@dataclass(frozen=True)
class OperatingPoint:
    """A frozen threshold: a case is called positive when its score is at or above it.

    Attributes:
        rule: `youden`, `sens>=x`, `spec>=x`, or `default` (probability one half; nothing was fitted).
        threshold: on the score, which is the log odds of the positive class before recalibration.
        probability: the same threshold as a probability.
        positive: name of the positive class.
        num_cases: cases that it was fitted on.
        num_events: positive cases among them.
        sensitivity: on the cases that it was fitted on.
        specificity: on the cases that it was fitted on.
        data_hash: fingerprint of the scores and labels that it was fitted on.
    """

    rule: str
    threshold: float
    probability: float
    positive: str
    num_cases: int = 0
    num_events: int = 0
    sensitivity: float | None = None
    specificity: float | None = None
    data_hash: str = ""

    @classmethod
    def on_validation(
        cls, scores: Floats, labels: Bools, *, rule: str = "youden", positive: str = "positive"
    ) -> OperatingPoint:
        """Fits the threshold on the validation cases of the source.

        Args:
            scores: (n,) log odds of the positive class.
            labels: (n,) whether the case has the event.
            rule: `youden` (largest sensitivity + specificity), `sens>=x` (highest specificity whose
                sensitivity is at least x) or `spec>=x` (highest sensitivity whose specificity is at least x).
            positive: name of the positive class.

        Returns:
            The operating point. The threshold lies midway between two observed scores; of equally good ones
            the lowest is taken, which has the higher sensitivity.

        Raises:
            ConfigError: an unknown rule.
            DataError: a class is absent.
        """
        rule = check_rule(rule)
        num_events, n = int(labels.sum()), len(labels)
        if num_events in (0, n):
            raise DataError(
                f"An operating point needs both classes among the validation cases; got {num_events} of {n} "
                f"cases with {positive!r}. Leave it at the default of one half, or validate on more patients."
            )
        values = np.unique(scores)
        cuts = np.concatenate([[values[0] - 1.0], (values[:-1] + values[1:]) / 2, [values[-1] + 1.0]])
        # Of two neighbours in float64 the midpoint can be the lower one: then take the higher score.
        cuts[1:-1] = np.where(cuts[1:-1] <= values[:-1], values[1:], cuts[1:-1])
        below = np.searchsorted(np.sort(scores[labels]), cuts, side="left")
        sensitivity = 1.0 - below / num_events
        specificity = np.searchsorted(np.sort(scores[~labels]), cuts, side="left") / (n - num_events)
        if rule == "youden":
            chosen = int(np.argmax(np.round(sensitivity + specificity, 12)))
        else:
            kind, _, bound = rule.partition(">=")
            if kind == "sens":
                chosen = int(np.flatnonzero(sensitivity >= float(bound) - 1e-12)[-1])
            else:
                chosen = int(np.flatnonzero(specificity >= float(bound) - 1e-12)[0])
        threshold = float(cuts[chosen])
        order = np.lexsort((labels, scores))
        content = scores[order].astype("<f8").tobytes() + labels[order].tobytes()
        return cls(
            rule=rule,
            threshold=threshold,
            probability=float(1 / (1 + np.exp(-threshold))) if threshold > -700 else 0.0,
            positive=positive,
            num_cases=n,
            num_events=num_events,
            sensitivity=float(sensitivity[chosen]),
            specificity=float(specificity[chosen]),
            data_hash=hashlib.blake2b(content, digest_size=8).hexdigest(),
        )

    @classmethod
    def default(cls, positive: str) -> OperatingPoint:
        """Probability one half, if nothing could be fitted."""
        return cls(rule="default", threshold=0.0, probability=0.5, positive=positive)

    def apply(self, scores: Floats) -> Bools:
        """Which cases (n,) are called positive."""
        return np.asarray(scores >= self.threshold)

    def fit(self, *_: object, **__: object) -> NoReturn:
        """Refuses: an operating point is fitted once.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"This operating point is frozen: it was fitted by the rule {self.rule!r} on {self.num_cases} "
            "validation cases, and refitting it on the cases that it is tested on would flatter the result. "
            "Apply it with `apply`, or fit a new one on validation cases with `OperatingPoint.on_validation`."
        )


def ppv_npv(
    sensitivity: Floats | float, specificity: Floats | float, prevalence: float
) -> tuple[Floats, Floats]:
    """Predictive values at a stated prevalence (Bayes' rule); nan where nobody is called positive (negative).

    Args:
        sensitivity: in [0, 1].
        specificity: in [0, 1].
        prevalence: share of positive patients where the model is used.

    Example:
        >>> [round(float(x), 4) for x in ppv_npv(0.9, 0.8, 0.9)]
        [0.9759, 0.4706]
    """
    sensitivity, specificity = np.asarray(sensitivity, dtype=float), np.asarray(specificity, dtype=float)
    true_positive, false_positive = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    true_negative, false_negative = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        ppv = true_positive / (true_positive + false_positive)
        npv = true_negative / (true_negative + false_negative)
    return np.asarray(ppv), np.asarray(npv)
