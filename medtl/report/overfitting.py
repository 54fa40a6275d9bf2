"""When a gap between training and validation is large, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medtl.evaluation.context import LearningCurve
from medtl.evaluation.statistics.estimate import format_number, join
from medtl.evaluation.statistics.resample import wilson
from medtl.report.view import View, in_text

LARGE_GAP = 0.10
"""Balanced accuracy (Dice) on training cases minus that on validation cases from which a gap can be large. By
convention: nothing in theory says where a gap begins to matter."""
NAMED = 3
"""Models that a sentence names one by one, those with the largest gaps."""
RULE = (
    f"Large: training is at least {LARGE_GAP:.2f} above validation and above the upper limit of validation's interval, "
    "which covers the choice of patients. Within the noise: only the first holds. The epoch was also chosen on "
    "validation, so validation is slightly optimistic."
)
WHAT_IT_MEANS = (
    "Such a network has memorised its training patients along with the task: for new patients, expect what validation "
    "shows, not what training shows. A gap is not a fault in itself: of two models, the one with the better validation "
    "figure is better, whatever its gap. What may help, mildest first: early stopping, more weight decay, stronger "
    "augmentation, fewer trained layers (the strategies probe, last:1 or lp_ft) and, above all, more labelled patients."
)


@dataclass(frozen=True)
class Gap:
    """Training against validation for one model, means over its training seeds.

    Attributes:
        model: name of the model.
        train: balanced accuracy (Dice) of the kept weights on training cases without augmentation.
        validation: the same on validation cases; lo and hi are its limits, None = unknown.
        reads: `large`, `within the noise`, `small`, or "" where there is nothing to compare.
        kept: the epochs that were kept, and how many were run, by seed.
    """

    model: str
    train: float | None
    validation: float | None
    lo: float | None
    hi: float | None
    reads: str
    kept: tuple[tuple[int | None, int], ...]
    unfinished: bool

    @property
    def size(self) -> float | None:
        """Training minus validation."""
        return None if self.train is None or self.validation is None else self.train - self.validation


def gaps(view: View) -> list[Gap]:
    """The gap of each model that has a learning curve, in the order of the models."""
    curves: dict[str, list[LearningCurve]] = {}
    for curve in view.results.context.learning:
        curves.setdefault(curve.model, []).append(curve)
    models = view.results.models
    ordered = [*(m for m in models if m in curves), *(m for m in curves if m not in models)]
    return [_gap(view, model, curves[model]) for model in ordered]


def _gap(view: View, model: str, curves: list[LearningCurve]) -> Gap:
    pairs = [
        (c.train_accuracy, c.validation_accuracy)
        for c in curves
        if c.train_accuracy is not None and c.validation_accuracy is not None
    ]
    kept = tuple((c.kept_epoch, max(c.epochs, default=0)) for c in curves)
    unfinished = all(
        c.kept_epoch == max(c.epochs, default=0)
        and len(known := [v for v in c.validation_loss if v is not None]) > 2
        and c.validation_loss[-1] == min(known)
        for c in curves
    )
    if not pairs:
        return Gap(model, None, None, None, None, "", kept, unfinished)
    train, validation = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    lo, hi = _limits(view, model, validation, min(c.validation_patients for c in curves))
    if train - validation < LARGE_GAP:
        reads = "small"
    else:
        reads = "within the noise" if hi is not None and train <= hi else "large"
    return Gap(model, train, validation, lo, hi, reads, kept, unfinished)


def _limits(view: View, model: str, validation: float, patients: int) -> tuple[float | None, float | None]:
    """Limits of the validation figure: those of the table, which resamples patients, else Wilson's."""
    block = view.results.block(model, "source", "validation")
    found = block.get(view.headlines[0], cls=view.whole) if block is not None and view.headlines else None
    e = found.estimate if found else None
    if e is not None and e.value is not None and e.lo is not None and e.hi is not None:
        return max(0.0, validation - (e.value - e.lo)), min(1.0, validation + (e.hi - e.value))
    return wilson(validation, patients, view.results.level) if patients else (None, None)


def sentences(view: View, found: list[Gap]) -> Iterator[str]:
    """Describes the gaps in plain words."""
    large = [g for g in found if g.reads == "large"]
    noise = [g.model for g in found if g.reads == "within the noise"]
    judged = [g for g in found if g.reads]
    measure = in_text(view.headline_title)
    if large:
        parts = [
            f"{g.model} {format_number(g.train, 2)} on its training cases and {format_number(g.validation, 2)} on "
            "validation"
            for g in sorted(large, key=lambda g: -(g.size or 0))[:NAMED]
        ]
        if len(large) > NAMED:
            parts.append(f"and {len(large) - NAMED} more")
        yield f"Large gap between training and validation ({measure}): {'; '.join(parts)}. {WHAT_IT_MEANS}"
    elif judged:
        yield f"No gap between training and validation is large ({measure}, at the kept weights)."
    if noise:
        yield (
            f"The gap of {join(noise)} is {LARGE_GAP:.2f} or more, but lies within the interval of the validation "
            "figure: with so few validation patients it may be chance."
        )
    if unfinished := [g.model for g in found if g.unfinished]:
        yield (
            f"{join(unfinished)}: the loss on validation was lowest in the last epoch, so training had not finished. "
            "More epochs or a higher learning rate may give a better model."
        )


def in_short(view: View) -> Iterator[str]:
    """One sentence for the summary if a gap is large."""
    large = sorted((g for g in gaps(view) if g.reads == "large"), key=lambda g: -(g.size or 0))
    if large:
        names = [g.model for g in large[:NAMED]] + (
            [f"{len(large) - NAMED} more"] if len(large) > NAMED else []
        )
        yield f"Large gap between training and validation: {join(names)}; see the learning curves."
