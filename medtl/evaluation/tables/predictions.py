"""The predictions table, which any tool can write to be evaluated: checked once, as a whole.

One row is one case as seen by one model (and one training seed; and, for multi-label tasks, one finding).
Columns: `case, patient, split, domain, site, model, label` and `logit_<class>` or `prob_<class>`; optional
`seed, finding, weight, group_*`. An empty label means that there is no reference standard for the case; it never means
"negative".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import near_matches
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, Strings, log_softmax
from medtl.evaluation.tables.rows import (
    ONLY_SEED,
    CaseRows,
    check_constant,
    check_fields,
    check_header,
    check_leaks,
    check_pairs,
    check_repeats,
    codes,
    first_clash,
    lines,
    numbers,
    odd,
    read_table,
    read_weight,
    table_fault,
    text_of,
)

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("case", "patient", "split", "domain", "site", "model", "label")
CLIP = 1e-7
"""Smaller probabilities are clipped to this before the logarithm, and counted."""
SUM_TOLERANCE = 0.01
"""Probabilities of a row may miss a sum of 1 by this much: tables are written with two or three decimals."""


@dataclass(frozen=True)
class PredictionTable(CaseRows):
    """A validated table of predictions; make one with `from_csv` or `from_frame`.

    Attributes:
        case: (n,) name of the case; patient, split, domain, site, model, seed likewise.
        finding: (n,) name of the finding, "" for tasks without.
        label: (n,) index into `classes`, -1 where there is no reference standard.
        logits: (n, K) float64; logarithms of the probabilities where the table holds probabilities.
        weight: (n,) weight of the case.
        classes: names of the classes, in the order of the columns.
        task: `binary`, `multiclass` or `multilabel` (each finding is then a binary task of its own).
        num_clipped: rows with a probability of (nearly) 0 or 1, which had to be clipped.
        warnings: remarks that belong into the report.
    """

    case: Strings = field(repr=False)
    patient: Strings = field(repr=False)
    split: Strings = field(repr=False)
    domain: Strings = field(repr=False)
    site: Strings = field(repr=False)
    model: Strings = field(repr=False)
    seed: Strings = field(repr=False)
    finding: Strings = field(repr=False)
    label: Ints = field(repr=False)
    logits: Floats = field(repr=False)
    weight: Floats = field(repr=False)
    classes: tuple[str, ...]
    task: str
    num_clipped: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_csv(cls, path: Path | str) -> PredictionTable:
        """Reads and validates a CSV file (UTF-8, all columns as text) or a parquet file.

        Raises:
            DataError: the file cannot be read, or its content is at fault; all faults are named at once.
        """
        path = Path(path)
        return cls.from_frame(read_table(path, "predictions table"), name=path.name)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, name: str = "predictions") -> PredictionTable:
        """Validates a data frame.

        Args:
            frame: the columns named at the head of this module.
            name: what to call the table in messages.

        Raises:
            DataError: with every fault found. Rows are named by their line in a CSV file with one header
                line.
        """
        faults: list[str] = []
        columns = _check_columns(frame, faults)
        if columns is None:
            raise table_fault(f"predictions table {name!r}", faults)
        parsed = _parse(frame, columns, faults)
        if not faults:
            _check_rows(parsed, faults)
        if faults:
            raise table_fault(f"predictions table {name!r}", faults)
        return parsed

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings in the order of their first row; `("",)` for other tasks."""
        return tuple(dict.fromkeys(self.finding.tolist()))

    def probabilities(self) -> Floats:
        """(n, K) softmax of the logits."""
        return np.exp(log_softmax(self.logits))


@dataclass(frozen=True)
class _Columns:
    """The score columns: `kind` is `logit` or `prob`, `names` are the classes in column order."""

    kind: str
    names: tuple[str, ...]
    multilabel: bool


def _check_columns(frame: pd.DataFrame, faults: list[str]) -> _Columns | None:
    """Checks the header alone; None if it is faulty."""
    header = [str(c) for c in frame.columns]
    check_header(header, REQUIRED, faults)
    found = {k: [c[len(k) + 1 :] for c in header if c.startswith(f"{k}_")] for k in ("logit", "prob")}
    kind = "logit" if found["logit"] else "prob"
    names = tuple(found[kind])
    if not names:
        faults.append("no column with scores: expected logit_<class> or prob_<class> for each class")
    elif found["logit"] and found["prob"]:
        faults.append(
            "scores stand both as logit_ and as prob_ columns: keep one kind (logits are the better one)"
        )
    if not all(n.strip() for n in names):
        faults.append(f"a column is called '{kind}_' without the name of a class")
    if any(odd(n) for n in names):
        faults.append("the name of a score column holds control characters")
    if "finding" in header and len(names) > 2:
        faults.append(
            f"with a column 'finding' one or two score columns are expected; there are {len(names)}"
        )
    if len(frame) == 0 and not faults:
        faults.append("there are no rows below the header")
    return None if faults else _Columns(kind, names, "finding" in header)


def _parse(frame: pd.DataFrame, columns: _Columns, faults: list[str]) -> PredictionTable:
    """Turns the columns into arrays; faults of single fields are collected."""
    text = {name: text_of(frame[name]) for name in REQUIRED}
    for name in ("seed", "finding"):
        default = ONLY_SEED if name == "seed" else ""
        text[name] = (
            text_of(frame[name]) if name in frame.columns else np.full(len(frame), default, dtype=object)
        )
    filled = [n for n in text if n != "label" and not (n == "finding" and not columns.multilabel)]
    check_fields(text, filled, faults)
    before = len(faults)
    raw = np.stack(
        [numbers(frame[f"{columns.kind}_{n}"], f"{columns.kind}_{n}", faults) for n in columns.names], axis=1
    )
    # What is no number stands as one half by now: its sum would be a second fault for the same cell.
    logits, clipped = _logits(raw, columns.kind, faults) if len(faults) == before else (raw, 0)
    names, labels = _classes(columns, text["label"], faults)
    task = "multilabel" if columns.multilabel else "binary" if len(names) == 2 else "multiclass"
    return PredictionTable(
        case=text["case"],
        patient=text["patient"],
        split=text["split"],
        domain=text["domain"],
        site=text["site"],
        model=text["model"],
        seed=text["seed"],
        finding=text["finding"],
        label=labels,
        logits=logits,
        weight=read_weight(frame, faults),
        classes=names,
        task=task,
        num_clipped=clipped,
    )


def _classes(columns: _Columns, label: Strings, faults: list[str]) -> tuple[tuple[str, ...], Ints]:
    """Names of the classes and the index of each label; one score column is the probability of its class."""
    names = columns.names
    seen = set(label.tolist()) - {""}
    if len(names) == 1:
        if seen <= {"0", "1"} and names[0] not in seen:
            names = (f"not {names[0]}", names[0])
            label = np.array([names[int(v)] if v else "" for v in label], dtype=object)
        else:
            others = sorted(seen - {names[0]})
            if len(others) > 1:
                faults.append(
                    f"there is one score column, for {names[0]!r}, but the labels name several other classes "
                    f"({', '.join(others[:4])}): give one column per class"
                )
            names = (others[0] if others else f"not {names[0]}", names[0])
    index = {name: k for k, name in enumerate(names)}
    unknown = np.array([v not in index and v != "" for v in label], dtype=bool)
    if unknown.any():
        got = sorted(set(label[unknown].tolist()))
        hint = near_matches(got[0], names).rstrip(".")
        faults.append(f"label {got[0]!r} has no score column at {lines(unknown)} ({hint})")
    return names, np.array([index.get(v, -1) for v in label], dtype=np.int64)


def _logits(raw: Floats, kind: str, faults: list[str]) -> tuple[Floats, int]:
    if kind == "logit":
        if raw.shape[1] == 1:
            raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
        return raw, 0
    outside: Bools = np.any((raw < 0) | (raw > 1), axis=1)
    if outside.any():
        faults.append(
            f"probabilities lie outside 0 to 1 at {lines(outside)} (if they are logits, call the columns "
            "logit_<class>)"
        )
        return raw, 0
    if raw.shape[1] == 1:
        raw = np.concatenate([1 - raw, raw], axis=1)
    total = raw.sum(axis=1)
    off = np.abs(total - 1) > SUM_TOLERANCE
    if off.any():
        worst = float(total[np.argmax(np.abs(total - 1))])
        faults.append(
            f"probabilities of a row must sum to 1; they do not at {lines(off)} (worst: {worst:.4g})"
        )
        return raw, 0
    raw = raw / total[:, None]
    return np.log(np.maximum(raw, CLIP)), int((raw < CLIP).any(axis=1).sum())


def _check_rows(table: PredictionTable, faults: list[str]) -> None:
    """Checks across rows: duplicates, leaks between splits, contradictions, models on unequal cases."""
    cases = codes(table.case, table.finding)
    check_repeats(codes(table.case, table.finding, table.model, table.seed), faults)
    check_leaks(table.patient, table.split, table.domain, faults)
    what = {"patient": table.patient, "site": table.site, "split": table.split, "domain": table.domain}
    check_constant(table.case, what, faults)
    clash = first_clash(cases, table.label)
    if len(clash):
        faults.append(f"one case has two labels, at {lines(clash)}")
    check_pairs(cases, codes(table.domain, table.split), table.model, table.seed, faults)
