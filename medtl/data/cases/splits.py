"""Splits by patient, stratified by label and site."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medtl.data.seeds import derive_seed
from medtl.errors import ConfigError

CONFOUNDED = 0.5
"""A warning is given if Cramer's V of label and site is at least this."""


def split_patients(
    patients: Sequence[str],
    labels: Sequence[str],
    sites: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Assigns each case to `train`, `validation` or `test`; all cases of a patient go together.

    Args:
        patients: Patient of each case.
        labels: Label of each case; every class must have a patient for each split.
        sites: Site of each case.
        val_fraction: Share of the patients for validation.
        test_fraction: Share of the patients for test; 0 for none.
        seed: The run's seed.

    Returns:
        The split of each case, in order. Every class is in every split that is asked for.
    """
    result = ["train"] * len(patients)
    rest = list(range(len(patients)))
    share = 1.0
    for name, fraction in (("test", test_fraction), ("validation", val_fraction)):
        if fraction <= 0:
            continue
        chosen = _hold_out(
            [patients[i] for i in rest],
            [labels[i] for i in rest],
            [sites[i] for i in rest],
            fraction / share,
            derive_seed(seed, "split", name),
        )
        for place in chosen:
            result[rest[place]] = name
        rest = [index for place, index in enumerate(rest) if place not in chosen]
        share -= fraction
    return result


def _hold_out(
    patients: Sequence[str], labels: Sequence[str], sites: Sequence[str], fraction: float, seed: int
) -> set[int]:
    """Indices of the cases to hold out: one fold of several, repaired until each class is on both sides."""
    folds = max(2, min(round(1 / fraction), len(set(patients))))
    strata = _strata(patients, labels, sites, folds)
    folds = min(folds, max(Counter(strata).values()))  # what the splitter asks for
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed % 2**32)
    empty = np.zeros(len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of strata smaller than the number of folds: the repair below looks after them
        options = [set(test.tolist()) for _, test in splitter.split(empty, strata, patients)]
    wanted = fraction * len(labels)
    best = min(options, key=lambda held: (len(_lacking(held, labels)), abs(len(held) - wanted)))
    return _repair(best, patients, labels, np.random.default_rng(seed))


def _strata(patients: Sequence[str], labels: Sequence[str], sites: Sequence[str], folds: int) -> list[str]:
    """Label x site where enough patients share it, else the label."""
    pairs = list(zip(labels, sites, strict=True))
    counts: Counter[Hashable] = Counter(pair for pair, _ in set(zip(pairs, patients, strict=True)))
    return [f"{label}\0{site}" if counts[label, site] >= folds else label for label, site in pairs]


def _lacking(held: set[int], labels: Sequence[str]) -> list[tuple[bool, str]]:
    """(is it the held-out side, class) for every class that one side lacks."""
    sides = {True: {labels[i] for i in held}, False: {name for i, name in enumerate(labels) if i not in held}}
    return [
        (side, label) for label in sorted(set(labels)) for side in (True, False) if label not in sides[side]
    ]


def _repair(
    held: set[int], patients: Sequence[str], labels: Sequence[str], generator: np.random.Generator
) -> set[int]:
    """Moves single patients until every class with two patients is on both sides."""
    of_patient: dict[str, set[int]] = {}
    for place, patient in enumerate(patients):
        of_patient.setdefault(patient, set()).add(place)
    order = [str(p) for p in generator.permutation(sorted(of_patient))]
    for side, label in _lacking(held, labels):
        lacking = len(_lacking(held, labels))
        for patient in order:
            places = of_patient[patient]
            if not any(labels[i] == label for i in places) or (next(iter(places)) in held) == side:
                continue
            moved = held | places if side else held - places
            if len(_lacking(moved, labels)) < lacking:
                held = moved
                break
    return held


def confounding(labels: Sequence[str], places: Sequence[str]) -> list[str]:
    """Warns if label and site of the cases are nearly equivalent."""
    sites, names = sorted(set(places)), sorted(set(labels))
    if len(sites) < 2 or len(names) < 2:
        return []
    table = np.zeros((len(names), len(sites)))
    for label, site in zip(labels, places, strict=True):
        table[names.index(label), sites.index(site)] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    strength = float(
        np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / (min(table.shape) - 1))
    )
    if strength < CONFOUNDED:
        return []
    rows = "; ".join(
        f"{name}: " + ", ".join(f"{site} {int(n)}" for site, n in zip(sites, row, strict=True))
        for name, row in zip(names, table, strict=True)
    )
    return [
        f"Label and site are confounded (Cramer's V {strength:.2f}; {rows}): a model can tell the label "
        f"from the scanner."
    ]


def nested_patients(
    patients: Sequence[str], labels: Sequence[str], sizes: Sequence[int], *, seed: int = 0
) -> dict[int, frozenset[str]]:
    """Nested sets of patients, drawn from the classes in turn so that each set is as balanced as possible.

    A patient belongs to the rarest class of its cases.

    Args:
        patients: Patient of each case.
        labels: Label of each case.
        sizes: How many patients; what exceeds their number stands for all of them, which are always the last set.
        seed: The run's seed.

    Raises:
        ConfigError: A size that holds fewer patients than there are classes.
    """
    frequency = Counter(labels)
    rarest: dict[str, str] = {}
    for patient, label in zip(patients, labels, strict=True):
        if patient not in rarest or (frequency[label], label) < (frequency[rarest[patient]], rarest[patient]):
            rarest[patient] = label
    if too_small := [n for n in sizes if n < len(frequency)]:
        raise ConfigError(
            f"{min(too_small)} training patients cannot show {len(frequency)} classes: ask for at least one of each, "
            f"{len(frequency)}."
        )
    queues = [
        sorted((p for p, c in rarest.items() if c == label), key=lambda p: derive_seed(seed, "subset", p))
        for label in sorted(frequency)
    ]
    order = [p for turn in itertools.zip_longest(*queues) for p in turn if p is not None]
    counts = sorted({min(n, len(order)) for n in sizes} | {len(order)})
    return {n: frozenset(order[:n]) for n in counts}
