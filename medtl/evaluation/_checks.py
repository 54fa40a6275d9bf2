"""Checks of a predictions table: every fault is collected, with line numbers, and raised once by the caller.

No message holds a patient's identifier: rows are named by their line.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medtl.errors import near_matches
from medtl.evaluation._arrays import Bools, Floats, Ints, Strings
from medtl.evaluation.table import (
    CLIP,
    DOMAINS,
    ONLY_SEED,
    REQUIRED,
    SPLITS,
    SUM_TOLERANCE,
    PredictionTable,
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
    for name in REQUIRED:
        if name not in header:
            hint = near_matches(name, header) if header else "The table has no columns."
            faults.append(f"the column {name!r} is missing ({hint.rstrip('.')})")
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        faults.append(f"columns appear twice: {', '.join(twice)}")
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
    if any(_odd(n) for n in names):
        faults.append("the name of a score column holds control characters")
    if "finding" in header and len(names) > 2:
        faults.append(
            f"with a column 'finding' one or two score columns are expected; there are {len(names)}"
        )
    if len(frame) == 0 and not faults:
        faults.append("there are no rows below the header")
    return None if faults else Columns(kind, names, "finding" in header)


def _odd(name: str) -> bool:
    """Whether a name holds characters that neither a page nor a drawing may hold."""
    return any(unicodedata.category(ch)[0] == "C" for ch in name)


def _text(values: Any) -> Strings:
    """A column as stripped text; missing values are empty, and 1.0 read from a column with gaps is "1"."""

    def plain(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value).strip()

    return np.array([plain(v) for v in np.asarray(values, dtype=object)], dtype=object)


def _lines(bad: Ints | Bools) -> str:
    """`lines 3, 8, 9 and 12 more`: the line numbers of rows in a CSV file with one header line."""
    rows = np.flatnonzero(bad) if bad.dtype == bool else np.unique(bad)
    shown = ", ".join(str(int(r) + 2) for r in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"line{'s' if len(rows) > 1 else ''} {shown}{more}"


def _numbers(values: Any, column: str, faults: list[str]) -> Floats:
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(np.asarray(values, dtype=object)), errors="coerce").to_numpy(
        dtype=float
    )
    bad = ~np.isfinite(numbers)
    if bad.any():
        faults.append(f"{column} holds something that is not a finite number at {_lines(bad)}")
    return np.asarray(np.where(bad, 0.5, numbers), dtype=np.float64)


def parse(frame: pd.DataFrame, columns: Columns, faults: list[str]) -> PredictionTable:
    """Turns the columns into arrays; faults of single fields are collected."""
    text = {name: _text(frame[name]) for name in REQUIRED}
    for name in ("seed", "finding"):
        default = ONLY_SEED if name == "seed" else ""
        text[name] = (
            _text(frame[name]) if name in frame.columns else np.full(len(frame), default, dtype=object)
        )
    filled = [n for n in text if n != "label" and not (n == "finding" and not columns.multilabel)]
    for name in filled:
        empty = text[name] == ""
        if empty.any():
            faults.append(f"{name} is empty at {_lines(empty)}")
    for name in ("site", "model", "seed", "finding"):
        odd = np.array([_odd(v) for v in text[name]], dtype=bool)
        if odd.any():
            faults.append(f"{name} holds control characters at {_lines(odd)}")
    for name, allowed in (("split", SPLITS), ("domain", DOMAINS)):
        bad = ~np.isin(text[name], allowed) & (text[name] != "")
        if bad.any():
            got = sorted(set(text[name][bad].tolist()))[:3]
            faults.append(f"{name} must be one of {', '.join(allowed)}; got {got} at {_lines(bad)}")
    before = len(faults)
    raw = np.stack(
        [_numbers(frame[f"{columns.kind}_{n}"], f"{columns.kind}_{n}", faults) for n in columns.names], axis=1
    )
    # What is no number stands as one half by now: its sum would be a second fault for the same cell.
    logits, clipped = _logits(raw, columns.kind, faults) if len(faults) == before else (raw, 0)
    names, labels = _classes(columns, text["label"], faults)
    weight = np.ones(len(frame))
    if "weight" in frame.columns:
        weight = _numbers(frame["weight"], "weight", faults)
        if (weight <= 0).any():
            faults.append(f"weight must be above 0; it is not at {_lines(weight <= 0)}")
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
        weight=weight,
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
        faults.append(f"label {got[0]!r} has no score column at {_lines(unknown)} ({hint})")
    return names, np.array([index.get(v, -1) for v in label], dtype=np.int64)


def _logits(raw: Floats, kind: str, faults: list[str]) -> tuple[Floats, int]:
    if kind == "logit":
        if raw.shape[1] == 1:
            raw = np.concatenate([np.zeros_like(raw), raw], axis=1)
        return raw, 0
    outside: Bools = np.any((raw < 0) | (raw > 1), axis=1)
    if outside.any():
        faults.append(
            f"probabilities lie outside 0 to 1 at {_lines(outside)} (if they are logits, call the columns "
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
            f"probabilities of a row must sum to 1; they do not at {_lines(off)} (worst: {worst:.4g})"
        )
        return raw, 0
    raw = raw / total[:, None]
    return np.log(np.maximum(raw, CLIP)), int((raw < CLIP).any(axis=1).sum())


def _codes(*columns: Strings) -> Ints:
    """One number for each distinct combination of the columns."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        own = np.unique(column.astype(str), return_inverse=True)[1]
        code = np.unique(code * (own.max() + 1) + own, return_inverse=True)[1].astype(np.int64)
    return code


def _first_clash(key: Ints, value: Ints) -> Ints:
    """Rows whose `value` differs from that of the first row with the same `key`."""
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return np.flatnonzero(value != value[first][inverse])


def check_rows(table: PredictionTable, faults: list[str]) -> None:
    """Checks across rows: duplicates, leaks between splits, contradictions, models on unequal cases."""
    runs = _codes(table.model, table.seed)
    cases = _codes(table.case, table.finding)
    _, first = np.unique(_codes(table.case, table.finding, table.model, table.seed), return_index=True)
    if len(first) < len(table):
        repeated = np.setdiff1d(np.arange(len(table)), first)
        faults.append(f"rows repeat a case, model and seed at {_lines(repeated)}: each may stand once")
    patients = _codes(table.patient)
    for name, column in (("splits", table.split), ("domains", table.domain)):
        clash = _first_clash(patients, _codes(column))
        if len(clash):
            count = len(np.unique(patients[clash]))
            faults.append(
                f"{count} patient(s) are in two {name}, first at {_lines(clash)}: a patient belongs to one "
                "(if two sites number their patients alike, put the site before the number)"
            )
    what = {"patient": table.patient, "site": table.site, "split": table.split, "domain": table.domain}
    for name, column in what.items():
        clash = _first_clash(_codes(table.case), _codes(column))
        if len(clash):
            faults.append(f"one case has two values of {name}, at {_lines(clash)}")
    clash = _first_clash(cases, table.label)
    if len(clash):
        faults.append(f"one case has two labels, at {_lines(clash)}")
    sizes = {int(run): cases[runs == run] for run in np.unique(runs)}
    union = np.unique(cases)
    for run, own in sizes.items():
        lacking = np.setdiff1d(union, own)
        if len(lacking):
            at = int(np.flatnonzero(runs == run)[0])
            row = int(np.flatnonzero(cases == lacking[0])[0])
            seed = "" if table.seed[at] == ONLY_SEED else f", seed {table.seed[at]}"
            faults.append(
                f"model {table.model[at]!r}{seed} lacks {len(lacking)} case(s) that other models have, for "
                f"instance that of line {row + 2}: models are compared on the same cases"
            )
