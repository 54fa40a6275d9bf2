"""The value of a case if a structure is missing from the reference, from a model's mask, or from both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medtl.errors import ConfigError

MASK_STATUSES = {
    "ok": "the structure is in the reference and in the mask",
    "both_empty": "the structure is in neither",
    "ref_empty": "the mask shows a structure that the reference does not have (false positive)",
    "pred_empty": "the mask misses the structure of the reference altogether",
    "no_reference": "the case has no reference standard",
}
"""The meaning of each status."""


@dataclass(frozen=True)
class EmptyPolicy:
    """The value of a case if a structure is missing from the reference, from the mask, or from both.

    `worst` stands for overlap and surface Dice 0 and every distance the diagonal of the image, the largest that could
    occur in it: finite, so that means exist, and never better than any true value. `exclude` gives no value; the row
    stays, with its status, and is counted. `perfect` stands for overlap and surface Dice 1 and distances 0.

    Sensitivity without a reference and precision without a call are undefined (nan) whatever the policy.

    Attributes:
        both_empty: `exclude` or `perfect`.
        reference_empty: `worst` or `exclude`. Excluding lets false positives vanish.
        prediction_empty: `worst` or `exclude`. Excluding lets a model score better by finding less.
    """

    both_empty: str = "exclude"
    reference_empty: str = "worst"
    prediction_empty: str = "worst"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("both_empty", ("exclude", "perfect")),
            ("reference_empty", ("worst", "exclude")),
            ("prediction_empty", ("worst", "exclude")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"The policy {name} is {' or '.join(map(repr, allowed))}; got {getattr(self, name)!r}."
                )

    def choice(self, status: str) -> str:
        """`exclude`, `perfect` or `worst` for a status other than `ok`."""
        named = {
            "both_empty": self.both_empty,
            "ref_empty": self.reference_empty,
            "pred_empty": self.prediction_empty,
        }
        return named.get(status, "exclude")

    def value(self, status: str, rule: str, diagonal: float) -> float:
        """The value of a row that is not `ok`.

        Args:
            status: of the row.
            rule: `share` or `distance`, as in `MaskMetric.empty`.
            diagonal: of the image, in its unit.
        """
        share, distance = {
            "exclude": (math.nan, math.nan),
            "perfect": (1.0, 0.0),
            "worst": (0.0, diagonal),
        }[self.choice(status)]
        return distance if rule == "distance" else share

    def describe(self) -> str:
        """The policy in words, for a report."""
        words = {
            "exclude": "no value (counted apart)",
            "perfect": "Dice 1 and distance 0",
            "worst": "Dice 0 and, as distance, the diagonal of the image",
        }
        return (
            f"A structure in neither mask: {words[self.both_empty]}. In the model's mask alone: "
            f"{words[self.reference_empty]}. In the reference alone: {words[self.prediction_empty]}."
        )
