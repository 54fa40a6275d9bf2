"""The fine-tuning strategy that the number of patients, the task and the distance of two sites suggest.

The advice follows the textbook's table: few or many patients, a near or a far task. The thresholds are conventions,
defined below.
"""

from __future__ import annotations

from dataclasses import dataclass

from medtl.encoders.distance import Distance

FEW_PATIENTS = 25
"""Fewer patients than this in the rarest class: a convention for "small"."""
MANY_PATIENTS = 100
"""This many patients or more in the rarest class: a convention for "large"."""
NEAR_SKILL = 0.5
"""A task is "near" if nearest neighbours on frozen features get half way from chance to perfect: a convention."""
FAR_AUC = 0.8
"""Sites are "far apart" if a classifier separates them with this AUC: a convention."""

_FEW_FAR = (
    "last:1",
    "Few cases on features that fit badly: keep the early, general layers and train the last stage with the head.",
)
_UNFREEZE = "Enough cases to fine-tune with care: unfreeze the layers from the last to the first."
_ALL = "Many cases: all layers can be trained"
_TABLE = {
    "labels": {
        ("few", True): ("probe", "Few cases on good features: a linear probe overfits least."),
        ("few", False): _FEW_FAR,
        ("some", True): ("lp_ft", "Enough cases to fine-tune with care: first the head, then all layers."),
        ("some", False): ("gradual", _UNFREEZE),
        ("many", True): ("full", f"{_ALL}."),
        ("many", False): ("full", f"{_ALL}, for longer than on a near task."),
    },
    "masks": {
        ("few", True): (
            "head",
            "Few cases on good features: train the decoder alone, on a frozen encoder.",
        ),
        ("few", False): _FEW_FAR,
        ("some", True): ("gradual", _UNFREEZE),
        ("some", False): ("gradual", _UNFREEZE),
        ("many", True): ("full", f"{_ALL}."),
        ("many", False): ("full", f"{_ALL}, for longer than on a near task."),
    },
}
"""The strategy and the reason, by task, number of patients, and whether the task is near."""
_GENTLE = {
    "labels": (
        "lp_ft",
        "Full fine-tuning can distort features that still hold at the target; a probe first keeps more of them.",
    ),
    "masks": (
        "gradual",
        "Full fine-tuning can distort features that still hold at the target; unfreezing late keeps more of them.",
    ),
}
"""By task, the replacement of `full` if the target is far."""


@dataclass(frozen=True)
class Advice:
    """The strategy to try first.

    Attributes:
        strategy: a name that `medtl list strategies` shows.
        reasons: sentences.
    """

    strategy: str
    reasons: tuple[str, ...]


def skill(balanced_accuracy: float, num_classes: int) -> float:
    """Rescales a balanced accuracy to 0 for chance and 1 for perfect.

    Args:
        balanced_accuracy: in [0, 1].
        num_classes: K; chance is 1 / K.

    Example:
        >>> skill(0.75, 2)
        0.5
    """
    chance = 1 / num_classes
    return (balanced_accuracy - chance) / (1 - chance)


def advise(
    patients_per_class: int,
    task_skill: float,
    distance: Distance | None = None,
    *,
    depth: str | None = None,
    task: str = "labels",
) -> Advice:
    """The textbook's table of strategies by size of the data and distance of the task.

    Few and near: a probe. Few and far: keep the early layers and train the last stage. Many: all layers. In between:
    a probe first, then all layers. If the target is far, a probe precedes full fine-tuning, which could otherwise
    distort features that still hold there (Kumar et al. 2022). A decoder that segments cannot be probed: there, `head`
    and `gradual` stand in.

    Args:
        patients_per_class: labelled patients of the rarest class.
        task_skill: `skill` of the nearest neighbours on frozen features: how near the pretraining is to the task.
        distance: distance of source and target, if there is a target.
        depth: the earlier depth whose features are clearly better than the last, if there is one.
        task: `labels` or `masks`.
    """
    near = task_skill >= NEAR_SKILL and depth is None
    size, said = "some", f"neither few (fewer than {FEW_PATIENTS}) nor many ({MANY_PATIENTS} or more)"
    if patients_per_class < FEW_PATIENTS:
        size, said = "few", f"few (fewer than {FEW_PATIENTS})"
    elif patients_per_class >= MANY_PATIENTS:
        size, said = "many", f"many ({MANY_PATIENTS} or more)"
    lies = (
        f"On frozen features, nearest neighbours get {100 * max(0.0, task_skill):.0f} % of the way from chance to "
        f"perfect ({100 * NEAR_SKILL:.0f} % and more counts as near): the task lies "
        f"{'near' if near else 'far from'} what the encoder has learnt."
    )
    if depth is not None:
        lies = f"Features from {depth} suit the task better than the last ones: it lies far from the pretraining."
    strategy, reason = _TABLE[task][size, near]
    rarest = "class" if task == "labels" else "structure"
    reasons = [f"The rarest {rarest} has {patients_per_class} labelled patients: {said}.", lies, reason]
    auc = None if distance is None else distance.auc.value
    if auc is not None and auc >= FAR_AUC:
        reasons.append(
            f"A classifier separates source and target with an AUC of {auc:.2f} ({FAR_AUC:g} and more counts as far): "
            "expect losses at the target, test there, and try `medtl run adapt`."
        )
        if strategy == "full":
            strategy, reason = _GENTLE[task]
            reasons.append(reason)
    reasons.append(
        "The thresholds are conventions, not findings: compare with `medtl run compare` before you rely on it."
    )
    return Advice(strategy, tuple(reasons))
