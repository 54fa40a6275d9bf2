"""Checks of a predictions table: every fault is collected, with line numbers, and raised once by the caller.

No message holds a patient's identifier: rows are named by their line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import near_matches
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, Strings
from medtl.evaluation.tables.predictions import CLIP, ONLY_SEED, REQUIRED, SUM_TOLERANCE, PredictionTable
from medtl.evaluation.tables.rows import (
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
    read_weight,
    text_of,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Columns:
    """Which columns hold the scores: `kind` is `logit` or `prob`, `names` are the classes in column order."""

    kind: str
    names: tuple[str, ...]
    multilabel: bool


def check_columns(frame: pd.DataFrame, faults: list[str]) -> Columns | None:
    """Looks at the header alone; None where it is at fault."""
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
    return None if faults else Columns(kind, names, "finding" in header)


def parse(frame: pd.DataFrame, columns: Columns, faults: list[str]) -> PredictionTable:
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


def _classes(columns: Columns, label: Strings, faults: list[str]) -> tuple[tuple[str, ...], Ints]:
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
                    f"({', '.join(others[:4])}): give one column a class"
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


def check_rows(table: PredictionTable, faults: list[str]) -> None:
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
