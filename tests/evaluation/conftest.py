"""Small made-up tables of predictions, with a shift between the sites."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

Maker = Callable[..., pd.DataFrame]


def make_binary(
    *,
    seeds: tuple[str, ...] = ("0", "1"),
    sites: tuple[str, ...] = ("north", "south"),
    validation: int = 60,
    test: int = 60,
    external: int = 50,
    labelled: bool = True,
    models: tuple[str, ...] = ("source_only", "dann"),
    loss: float = 0.6,
) -> pd.DataFrame:
    """Two models; at the external sites the first keeps `1 - loss` of the signal, the others nearly all."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = []

    def add(split: str, domain: str, site: str, patients: int, first: int) -> None:
        for i in range(patients):
            patient, positive = f"q{first + i:04d}", bool(rng.random() < 0.4)
            for k in range(1 + int(rng.random() < 0.3)):
                signal = 2 * (positive - 0.5) + rng.normal()
                for model in models:
                    kept = 1.0 if domain == "source" else 1 - loss if model == models[0] else 0.9
                    for seed in seeds:
                        z = 2 * (kept * signal + (1 - kept) * rng.normal() + rng.normal(0, 0.2))
                        label = ("lesion" if positive else "normal") if labelled or domain == "source" else ""
                        rows.append(
                            {
                                "case": f"case-{patient}-{k}",
                                "patient": patient,
                                "split": split,
                                "domain": domain,
                            }
                            | {"site": site, "model": model, "seed": seed, "label": label}
                            | {"logit_lesion": z / 2, "logit_normal": -z / 2}
                        )

    if validation:
        add("validation", "source", "home", validation, 0)
    add("test", "source", "home", test, 1000)
    for k, site in enumerate(sites):
        add("test", "target", site, external, 2000 * (k + 1))
    return pd.DataFrame(rows)


def make_four(
    *, seeds: tuple[str, ...] = ("0", "1"), validation: int = 80, external: int = 100
) -> pd.DataFrame:
    """Four classes; the source has no separate test cases."""
    rng = np.random.default_rng(2)
    names = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    rows: list[dict[str, object]] = []
    for split, domain, site, n in (
        ("validation", "source", "a", validation),
        ("test", "target", "b", external),
    ):
        for i in range(n):
            label, noise = int(rng.integers(4)), rng.normal(size=4)
            for model in ("source_only", "dann"):
                kept = 2.5 if domain == "source" else 0.8 if model == "source_only" else 1.8
                for seed in seeds:
                    z = kept * np.eye(4)[label] + noise + rng.normal(0, 0.2, 4)
                    rows.append(
                        {"case": f"{site}{i}", "patient": f"{site}{i}", "split": split, "domain": domain}
                        | {"site": site, "model": model, "seed": seed, "label": names[label]}
                        | {f"logit_{name}": z[c] for c, name in enumerate(names)}
                    )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def binary() -> Maker:
    """Maker of binary tables."""
    return make_binary


@pytest.fixture(scope="session")
def four() -> Maker:
    """Maker of tables with four classes."""
    return make_four
