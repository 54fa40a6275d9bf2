"""Simulate a table of predictions of two models on 120 patients, in the columns `medtl report` reads."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

# Per domain: patients, and per model how far the classes lie apart, the offset, and the factor on the logits.
# A factor above 1 is over-confidence; an offset is a threshold that does not travel.
DOMAINS = {
    "source": (48, {"source_only": (2.2, 0.0, 2.2), "adapted": (2.1, 0.1, 1.8)}),
    "target": (72, {"source_only": (1.1, 1.6, 3.0), "adapted": (1.8, 0.2, 2.2)}),
}


def write_predictions(path: Path, rng: np.random.Generator) -> None:
    """Write the table; every tenth patient has two scans, and both models share what is hard about a scan."""
    columns = ["case", "patient", "split", "domain", "site", "model", "label", "logit_lesion", "logit_normal"]
    rows: list[list[object]] = []
    patient = 0
    for domain, (patients, models) in DOMAINS.items():
        split, site = ("validation", "site_a") if domain == "source" else ("test", "site_b")
        for n in range(patients):
            patient += 1
            label = "lesion" if n % 2 else "normal"
            sex, age = rng.choice(["F", "M"]), rng.choice(["under 50", "50 and over"])
            own = rng.normal(0, 0.5)
            for scan in range(2 if patient % 10 == 0 else 1):
                shared = own + rng.normal(0, 0.6)
                for model, (distance, offset, factor) in models.items():
                    side = distance / 2 if label == "lesion" else -distance / 2
                    # With unit variance and classes `distance` apart, distance * score is the log odds.
                    score = side + shared + rng.normal(0, 0.62) + offset
                    logit = factor * distance * score
                    case = f"s{patient:03d}_{scan + 1}"
                    keys = [case, f"SIM-P-{patient:04d}", split, domain, site, model, label]
                    rows.append([*keys, f"{logit / 2:.4f}", f"{-logit / 2:.4f}", sex, age])
    rows.sort(key=lambda row: (str(row[5]), str(row[0])))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*columns, "group_sex", "group_age"])
        table.writerows(rows)
