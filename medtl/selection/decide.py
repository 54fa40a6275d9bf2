"""Which model to keep, decided without a label of the target.

Two things can be known about a target without labels: how a model does on source validation, and what it
predicts for the target. A model that forgot the source, that no longer predicts one of the source's classes, or
that predicts one far too often, is vetoed. Of the remaining models, the one whose target predictions are the most
certain and diverse is kept (information maximisation: Shi and Sha 2012), because entropy alone rewards models that
collapsed onto one class (Musgrave et al. 2022). Methods that minimise entropy create their own evidence: TENT, SHOT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from medtl.selection.class_shares import class_shares, distance, fault_of
from medtl.selection.information import MIN_GAIN, information
from medtl.selection.source_validation import (
    MAX_SOURCE_LOSS,
    dice_loss_is_clear,
    loss_is_clear,
    validation_accuracy,
)

SOURCE_FIGURE = "Balanced accuracy on source validation (most probable class)"
TARGET_FIGURE = "Information in the target's predictions (nats)"
SHARE_FIGURE = "Distance of the target's predicted class shares from the source's labels"


@dataclass(frozen=True)
class Evidence:
    """One figure of every model, and its interpretation."""

    name: str
    values: dict[str, float]
    verdict: str


@dataclass(frozen=True)
class Decision:
    """The model to keep, the reason, and the evidence."""

    model: str
    reason: str
    evidence: tuple[Evidence, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as reports and `decision.json` hold them."""
        return {**asdict(self), "evidence": [asdict(e) for e in self.evidence]}


def recommend(
    predictions: pd.DataFrame, classes: tuple[str, ...], *, reference: str = "source_only"
) -> Decision:
    """Chooses between the reference and the adapted models of a predictions table.

    The target's labels are dropped before anything is computed. With several seeds each figure is their mean.

    Args:
        predictions: rows with `model`, `domain`, `split`, `label` and `logit_<class>`.
        classes: the classes, in the order of the logits.
        reference: the model that was not adapted.
    """
    source = predictions[(predictions.domain == "source") & (predictions.split == "validation")]
    target = predictions[predictions.domain == "target"].drop(columns="label")
    models = [reference, *sorted(set(predictions.model) - {reference})]
    expected = source[source.model == reference].label.value_counts(normalize=True)
    return _decide(
        _Figures(
            source_figure=SOURCE_FIGURE,
            target_figure=TARGET_FIGURE,
            measure="balanced accuracy",
            most="carry the most information",
            more="carry more information",
            unit=" nats",
            accuracy={
                m: _mean_over_seeds(source[source.model == m], classes, validation_accuracy) for m in models
            },
            information={
                m: _mean_over_seeds(target[target.model == m], classes, information) for m in models
            },
            shares={m: class_shares(target[target.model == m], classes) for m in models},
            expected={c: float(expected.get(c, 0.0)) for c in classes},
            num_patients=source.patient.nunique(),
            loss_is_clear=lambda m: loss_is_clear(source, m, reference, classes),
        ),
        reference,
    )


def recommend_masks(
    evidence: pd.DataFrame, structures: tuple[str, ...], *, reference: str = "source_only"
) -> Decision:
    """As `recommend`, for segmentation: from rows of one case, model and seed that no mask of the target enters.

    Args:
        evidence: columns `case, patient, domain, split, model, seed`, `dice` (mean over structures, of source cases),
            `certainty` and `share_<structure>`, as `medtl.prediction.mask_writer` gathers them, and
            `expected_<structure>`, the share of the source's masks.
        structures: their names.
        reference: the model that was not adapted.
    """
    source = evidence[(evidence.domain == "source") & (evidence.split == "validation")]
    target = evidence[evidence.domain == "target"]
    models = [reference, *sorted(set(evidence.model) - {reference})]
    own = source[source.model == reference]
    return _decide(
        _Figures(
            source_figure="Dice on source validation (mean over structures and cases)",
            target_figure="Certainty of the target's predictions (0 to 1)",
            measure="Dice",
            most="are the most certain",
            more="are more certain",
            unit="",
            accuracy={m: float(source[source.model == m].dice.mean()) for m in models},
            information={m: float(target[target.model == m].certainty.mean()) for m in models},
            shares={
                m: {c: float(target[target.model == m][f"share_{c}"].mean()) for c in structures}
                for m in models
            },
            expected={c: float(own[f"expected_{c}"].mean()) for c in structures},
            num_patients=source.patient.nunique(),
            loss_is_clear=lambda m: dice_loss_is_clear(source, m, reference),
        ),
        reference,
    )


@dataclass(frozen=True)
class _Figures:
    """Everything that is known about each model without a label of the target."""

    source_figure: str
    target_figure: str
    measure: str
    most: str
    more: str
    unit: str
    accuracy: dict[str, float]
    information: dict[str, float]
    shares: dict[str, dict[str, float]]
    expected: dict[str, float]
    num_patients: int
    loss_is_clear: Callable[[str], bool]


def _decide(figures: _Figures, reference: str) -> Decision:
    shares, expected, values = figures.shares, figures.expected, figures.information
    models, classes = list(figures.accuracy), tuple(expected)
    apart = {m: distance(shares[m], expected) for m in models}
    vetoes: dict[str, str] = {}
    unclear: dict[str, str] = {}
    for m in models[1:]:
        loss = figures.accuracy[reference] - figures.accuracy[m]
        if loss > MAX_SOURCE_LOSS:
            text = f"it lost {loss:.2f} of {figures.measure} on source validation"
            if figures.loss_is_clear(m):
                vetoes[m] = text
            else:
                unclear[m] = (
                    f"{text}, but {figures.num_patients} patients leave doubt that this is more than is tolerated"
                )
        if fault := fault_of(shares[m], shares[reference], expected):
            vetoes.setdefault(m, fault)
        if values[m] == values[reference] and apart[m] == apart[reference]:
            vetoes.setdefault(m, "it predicts the same as the reference")
    least = {m: values[m] - (0.0 if m == reference else MIN_GAIN) for m in models if m not in vetoes}
    kept = max(least, key=lambda m: (least[m], m == reference))
    evidence = (
        Evidence(
            figures.source_figure,
            figures.accuracy,
            _text({**vetoes, **unclear}, figures.measure, "no model lost much"),
        ),
        Evidence(figures.target_figure, values, f"highest: {max(values, key=lambda m: values[m])}"),
        Evidence(SHARE_FIGURE, apart, _text(vetoes, "at the target", "no class was lost")),
        *(
            Evidence(
                f"Predicted share of {c} at the target",
                {m: shares[m][c] for m in models},
                f"source: {expected[c]:.{2 if expected[c] >= 0.05 else 4}f}",
            )
            for c in classes
        ),
    )
    return Decision(kept, _reason(kept, reference, vetoes, unclear, figures), evidence)


def _reason(
    kept: str,
    reference: str,
    vetoes: Mapping[str, str],
    unclear: Mapping[str, str],
    known: _Figures,
) -> str:
    values = known.information
    others = ", ".join(f"{m} {v:.2f}" for m, v in values.items() if m != kept and m not in vetoes)
    figures = f"({values[kept]:.2f}{known.unit}{'; ' + others if others else ''})"
    refused = [f"{m} is not kept: {text}" for m, text in vetoes.items()]
    if kept == reference:
        why = list(refused)
        if len(vetoes) < len(values) - 1:
            whose = "no other adapted model's" if vetoes else "no adapted model's"
            why.append(f"{whose} predictions for the target {known.more} {figures}")
        text = "; ".join(why)
        return f"{text.replace('no adapted', 'No adapted') if text.startswith('no') else text}."
    source = unclear.get(kept, "it kept its accuracy on source validation")
    vetoed = f" {'; '.join(refused)}." if refused else ""
    return (
        f"Its predictions for the target {known.most} {figures}; {source}; it lost no class.{vetoed} "
        "No label of the target was used, so this is evidence, not proof."
    )


def _text(vetoes: Mapping[str, str], part: str, otherwise: str) -> str:
    return "; ".join(f"{m}: {why}" for m, why in vetoes.items() if part in why) or otherwise


def _mean_over_seeds(rows: pd.DataFrame, classes: tuple[str, ...], figure: Any) -> float:
    return float(np.mean([figure(r, classes) for _, r in rows.groupby("seed")]))
