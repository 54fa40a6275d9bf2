"""The result of ranking encoders: rows for the terminal, files, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from medtl.cells import csv_text
from medtl.encoders.advice import Advice
from medtl.encoders.distance import Distance
from medtl.encoders.ranking import SCORES, Ranking
from medtl.evaluation import format_estimate
from medtl.report import Drawing, Section, TableBuilder, interval_figure, plain

SURE = 0.9
"""An order (or a depth) that holds in this share of the random halves is called clear: a convention."""


def verdict(ranking: Ranking, advice: Advice) -> tuple[str, ...]:
    """The finding, in two or three sentences."""
    best, name = ranking.rows[0], SCORES[ranking.score]
    if len(ranking.rows) == 1:
        found = f"{best.name} is the only candidate."
    else:
        sure = "The order is clear" if best.first >= SURE else "The order is not clear"
        found = (
            f"{best.name} comes first by {name}, and in {100 * best.first:.0f} % of {ranking.replicates} random halves "
            f"of the patients. {sure} ({100 * SURE:.0f} % and more counts as clear)."
        )
    others = [
        SCORES[key]
        for key in best.scores
        if any(
            (row.scores[key].value or 0) > (best.scores[key].value or 0)
            for row in ranking.rows
            if key in row.scores
        )
    ]
    doubt = (f"By {' and '.join(others)} another candidate leads.",) if others else ()
    return (found, *doubt, f"Strategy to try first: {advice.strategy}.")


def table_rows(ranking: Ranking, distances: Mapping[str, Distance]) -> list[dict[str, Any]]:
    """One row per candidate, for the terminal."""
    rows = []
    for row in ranking.rows:
        found: dict[str, Any] = {
            "rank": row.rank,
            "candidate": row.name,
            "first in halves": f"{row.first:.2f}",
        }
        found |= {SCORES[k]: format_estimate(row.scores[k]) for k in SCORES if k in row.scores}
        if row.name in distances:
            found["domain AUC"] = format_estimate(distances[row.name].auc)
        rows.append(found)
    return rows


def table_csv(ranking: Ranking, distances: Mapping[str, Distance]) -> str:
    """`ranking.csv`: one row per candidate, each number with its interval."""
    rows = []
    for row in ranking.rows:
        found: dict[str, Any] = {"rank": row.rank, "candidate": row.name, "first": row.first}
        numbers = dict(row.scores)
        if row.name in distances:
            numbers |= {"domain_auc": distances[row.name].auc, "a_distance": distances[row.name].a_distance}
        for key, e in numbers.items():
            found |= {key: e.value, f"{key}_lo": e.lo, f"{key}_hi": e.hi}
        rows.append(found)
    return csv_text(pd.DataFrame(rows), float_format="%.6g")


def ranking_json(ranking: Ranking) -> dict[str, Any]:
    """The ranking as plain values."""
    found = asdict(ranking)
    found["agreement"] = {f"{a} and {b}": tau for (a, b), tau in ranking.agreement.items()}
    return found


DEPTHS = {
    "labels": "Features of earlier layers are more general. If they score clearly better, the task is far from the "
    "pretraining.",
    "masks": "A decoder takes the maps of all stages: early ones show where, late ones what. Which one scores best "
    "says how large the structures are rather than how far the task lies.",
}
"""What the scores by depth say, by task."""


def sections(
    ranking: Ranking,
    by_depth: Mapping[str, Ranking],
    distances: Mapping[str, Distance],
    advice: Advice,
    scored: Sequence[str],
    task: str,
) -> list[Section]:
    """The sections of the page.

    Args:
        ranking: of the candidates.
        by_depth: of the depths of each.
        distances: of the sites, by candidate.
        advice: what to try first.
        scored: sentences that say what was scored.
        task: `labels` or `masks`.
    """
    keys = [k for k in SCORES if any(k in row.scores for row in ranking.rows)]
    heads = [SCORES[k] for k in keys]
    order = TableBuilder("Candidates, best first", ("Candidate", "Rank", "First in halves", *heads))
    for row in ranking.rows:
        order.row(row.name, row.rank, plain(row.first), *(order.number(row.scores.get(k)) for k in keys))
    order.notes.append(
        "Intervals: 95 %, from random halves of the patients. Higher is better in every column."
    )
    agreement = TableBuilder("Do the scores agree? Kendall's tau between their orders", ("Scores", "tau"))
    for (a, b), tau in ranking.agreement.items():
        agreement.row(f"{SCORES[a]} and {SCORES[b]}", plain(tau))
    text = list(scored)
    if ranking.stability is not None:
        text.append(
            f"The order on a random half of the patients has a mean Kendall's tau of {ranking.stability:.2f} with this "
            "one (1: the same, 0: no relation)."
        )
    depth_table = TableBuilder("Scores by depth", ("Candidate", "Depth", "Best in halves", *heads[:3]))
    for name, found in by_depth.items():
        for row in found.rows:
            numbers = (depth_table.number(row.scores[k]) for k in keys[:3])
            depth_table.row(name, row.name, plain(row.first), *numbers)
    parts = [
        Section(
            "order",
            "Order",
            tuple(text),
            tables=(order.build(), *([agreement.build()] if len(ranking.rows) > 1 else [])),
            figures=(figure(ranking),),
        ),
        Section(
            "depths",
            "Depth",
            (DEPTHS[task],),
            tables=(depth_table.build(),),
        ),
    ]
    if distances:
        apart = TableBuilder("Source and target", ("Candidate", "Domain AUC", "Proxy A-distance"))
        for name, distance in distances.items():
            apart.row(name, apart.number(distance.auc), apart.number(distance.a_distance))
        note = (
            "A logistic regression on the features separates source from target, on patients that it has not seen: an "
            "AUC of 0.5 means no difference, 1 complete separation. It sees every difference, including those that do "
            "not matter for the task and differences in class shares."
        )
        parts.append(Section("distance", "Distance", (note,), tables=(apart.build(),)))
    parts.append(Section("advice", f"Advice: {advice.strategy}", items=advice.reasons))
    return parts


def figure(ranking: Ranking) -> Drawing:
    """The score that orders the candidates, with its intervals."""
    found = [(row.name, row.scores[ranking.score]) for row in ranking.rows]
    return interval_figure(
        "ranking",
        [(name, e.value or 0.0, e.lo, e.hi) for name, e in found],
        xlabel=SCORES[ranking.score],
        caption=f"{SCORES[ranking.score]} with 95 % intervals; right is better.",
    )
