"""A reported number: its value, its interval, the method of the interval, and the amount of data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEW_EVENTS = 10
"""Below this many patients with (or without) the event, a rate is reported with the status `few_events`."""

STATUSES = {
    "ok": "no remark",
    "few_events": f"fewer than {FEW_EVENTS} patients in the smaller class: the interval is only a rough "
    "guide",
    "boundary": "the value is 0 or 1, where a bootstrap interval would collapse; a Wilson bound stands "
    "instead",
    "separated": "the classes are separated completely; an exact bound stands instead of a bootstrap "
    "interval",
    "degenerate": "more than 5 % of the resamples gave no value; they were left out and counted",
    "class_missing": "a class has no case here; the average is over the classes that have",
    "point_only": "no interval: this measure is biased in resamples",
    "fixed": "the value is the same in every resample",
    "few_patients": f"fewer than {FEW_EVENTS} patients: the interval is only a rough guide",
    "one_patient": "no interval: a single patient",
    "structure_missing": "a structure has no value here; the average is over the structures that have",
    "description": "without an interval: a description of these cases",
    "one_class": "not estimable: all labelled cases belong to one class",
    "no_labels": "not estimable: no case has a reference standard here",
    "no_cases": "not estimable: no case to count",
    "undefined": "not estimable on these data",
}
"""The meaning of each status of an `Estimate`, as worded in the report."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate on all cases, or None where it cannot be had (`status` says why).
        lo: lower limit of the interval, or None.
        hi: upper limit of the interval, or None.
        method: how the interval was made.
        level: confidence level, for instance 0.95.
        n: number of cases that the value is computed on.
        num_patients: number of patients among them; they are what is resampled.
        num_events: number of cases with the event (the positive class, or the class named), or None.
        status: a key of `STATUSES`.
        num_degenerate: resamples that gave no value.
    """

    value: float | None
    lo: float | None
    hi: float | None
    method: str
    level: float
    n: int
    num_patients: int
    num_events: int | None
    status: str
    num_degenerate: int = 0


def finite(value: float | None) -> float | None:
    """The number, or None if it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def verdict_of(found: Estimate, better: str) -> str:
    """The verdict on a difference: `gain` or `harm` if its interval excludes 0.

    Args:
        found: the difference.
        better: `higher` or `lower`.
    """
    if found.value is None or found.lo is None or found.hi is None:
        return "not estimable"
    if found.lo <= 0 <= found.hi:
        return "no clear difference"
    return "gain" if (found.lo > 0) == (better == "higher") else "harm"


def join(names: Sequence[str], last: str = "and") -> str:
    """Joins names for a sentence: `a`, `a and b`, `a, b and c`; `last` stands before the last one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def decimals(value: float | None, lo: float | None, hi: float | None) -> int:
    """Decimals worth printing: two significant digits of the interval's width, or three of the value."""
    if lo is not None and hi is not None and hi > lo:
        return max(0, min(4, 1 - math.floor(math.log10(hi - lo))))
    if value is None or value == 0:
        return 2
    return max(0, min(3, 2 - math.floor(math.log10(abs(value)))))


def format_number(value: float | None, places: int, *, signed: bool = False) -> str:
    """`value` with `places` decimals, a true minus sign, and a dash where there is no value."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def format_estimate(estimate: Estimate, *, signed: bool = False) -> str:
    """`0.81 (0.72 to 0.89)`, rounded by the width of the interval.

    Args:
        estimate: the value and its interval.
        signed: write a plus before positive numbers.

    Example:
        >>> format_estimate(Estimate(0.8123, 0.7211, 0.8904, "", 0.95, 90, 80, 30, "ok"))
        '0.81 (0.72 to 0.89)'
    """
    places = decimals(estimate.value, estimate.lo, estimate.hi)
    value = format_number(estimate.value, places, signed=signed)
    if estimate.lo is None or estimate.hi is None:
        return value
    lo, hi = (format_number(x, places, signed=signed) for x in (estimate.lo, estimate.hi))
    return f"{value} ({lo} to {hi})"
