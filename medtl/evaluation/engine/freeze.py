"""Settings fitted on the source and then frozen: the positive class, temperatures and operating points."""

from __future__ import annotations

import numpy as np

from medtl.errors import ConfigError, near_matches
from medtl.evaluation.metrics.calibration import MAX_LOG_TEMPERATURE, fit_temperature
from medtl.evaluation.metrics.operating import OperatingPoint
from medtl.evaluation.results import Settings
from medtl.evaluation.statistics.arrays import Floats, Ints, log_odds
from medtl.evaluation.tables.predictions import PredictionTable

NEGATIVE_NAMES = frozenset(
    [
        "0",
        "absent",
        "benign",
        "clear",
        "control",
        "controls",
        "false",
        "healthy",
        "neg",
        "negative",
        "no",
        "no_finding",
        "non",
        "none",
        "normal",
        "without",
    ]
)
"""Names of classes without a finding."""


def choose_positive(table: PredictionTable, positive: str | None) -> tuple[int | None, str]:
    """The column of the positive class of a binary task, and the reason.

    Args:
        table: the predictions.
        positive: the user's choice, or None: the class whose counterpart is called `normal`, `negative` and
            the like, else the last column.

    Raises:
        ConfigError: the class is not in the table, or the task is not binary.
    """
    if len(table.classes) != 2:
        if positive is not None:
            raise ConfigError(
                f"A positive class ({positive!r}) was named, but the table has {len(table.classes)} classes: "
                "it is for tasks with two. Leave it out."
            )
        return None, ""
    if positive is not None:
        if positive not in table.classes:
            hint = near_matches(positive, table.classes)
            raise ConfigError(f"The positive class {positive!r} is not a class of the table. {hint}")
        return table.classes.index(positive), "as chosen"
    plain = [name.lower().replace(" ", "_").replace("-", "_") for name in table.classes]
    negative = [n in NEGATIVE_NAMES or n.startswith(("not_", "no_", "non_")) for n in plain]
    if sum(negative) == 1:
        column = negative.index(False)
        return column, f"its counterpart is called {table.classes[1 - column]}"
    return 1, "it is the last of the two score columns"


def freeze(
    table: PredictionTable, model: str, seed: str, finding: str, *, rule: str, positive: int | None
) -> Settings:
    """Fits temperature and operating point of one trained model on the source's labelled validation cases.

    Where the source has a split `calibration`, the temperature is fitted there and the operating point on
    `validation`, so that they do not share cases. If all cases are called right, the likelihood asks for ever surer
    probabilities and has no maximum: the temperature is 1 then, and the status says so.
    """
    name = finding or None
    where = {"model": model, "seed": seed, "finding": finding, "domain": "source"}
    validation = table.rows(split="validation", **where)
    validation = validation[table.label[validation] >= 0]
    held = table.rows(split="calibration", **where)
    held = held[table.label[held] >= 0]
    held = held if len(held) else validation
    temperature: float | None = None
    if len(held) == 0:
        status = "no_validation"
    elif len(np.unique(table.label[held])) < 2:
        status = "one_class"
    elif _all_right(table.logits[held], table.label[held]):
        temperature, status = 1.0, "separated"
    else:
        temperature = fit_temperature(table.logits[held], table.label[held], table.weight[held])
        at_bound = abs(np.log(temperature)) > MAX_LOG_TEMPERATURE - 1e-3
        status = "at_bound" if at_bound else "fitted"
    if positive is None:
        return Settings(model, seed, name, temperature, status, len(held), None, "most_probable_class")
    label = table.label[validation] == positive
    if len(label) == 0 or label.all() or not label.any():
        point = OperatingPoint.default(table.classes[positive])
        reason = "no_validation" if len(label) == 0 else "one_class"
        return Settings(model, seed, name, temperature, status, len(held), point, reason)
    scores = log_odds(table.logits[validation], positive)
    point = OperatingPoint.on_validation(scores, label, rule=rule, positive=table.classes[positive])
    return Settings(model, seed, name, temperature, status, len(held), point, "fitted")


def _all_right(logits: Floats, label: Ints) -> bool:
    """Whether every case is classified correctly, without ties."""
    own = logits[np.arange(len(label)), label]
    others = logits.copy()
    others[np.arange(len(label)), label] = -np.inf
    return bool((own > others.max(axis=1)).all())
