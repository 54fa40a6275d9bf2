"""Small made-up tables of predictions, with a shift between the sites."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medtl.evaluation.metrics.voxels import CENTRES
from medtl.evaluation.tables.voxels import VoxelTable

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


def measured(
    rng: np.random.Generator, z: float, truth: float, gone: bool, referenced: bool
) -> dict[str, object]:
    """The measures of one structure; `z` says how well it was found."""
    nothing = dict.fromkeys(
        ("dice", "iou", "hd95", "hd", "assd", "nsd", "sensitivity", "precision"), float("nan")
    )
    if not referenced:
        volumes = {"volume_reference": float("nan"), "volume_predicted": truth}
        return {"status": "no_reference"} | nothing | volumes
    if gone:
        found = rng.random() < 0.5
        status = "ref_empty" if found else "both_empty"
        zero = {"dice": 0.0, "iou": 0.0, "nsd": 0.0, "hd95": 60.0, "assd": 60.0} if found else {}
        volumes = {"volume_reference": 0.0, "volume_predicted": 0.05 if found else 0.0}
        return {"status": status} | nothing | zero | volumes
    if z < 0.1:
        zero = {"dice": 0.0, "iou": 0.0, "nsd": 0.0, "hd95": 60.0, "assd": 60.0, "sensitivity": 0.0}
        return (
            {"status": "pred_empty"} | nothing | zero | {"volume_reference": truth, "volume_predicted": 0.0}
        )
    dice = float(1 / (1 + np.exp(-z)))
    far = float(np.exp(2.2 - 1.1 * z + rng.normal(0, 0.2)))
    return {
        "status": "ok",
        "dice": dice,
        "iou": dice / (2 - dice),
        "hd95": far,
        "hd": 1.5 * far,
        "assd": far / 4,
        "nsd": float(np.clip(dice + 0.04, 0, 1)),
        "sensitivity": float(np.clip(dice - 0.04 + rng.normal(0, 0.02), 0, 1)),
        "precision": float(np.clip(dice + 0.04 + rng.normal(0, 0.02), 0, 1)),
        "volume_reference": truth,
        "volume_predicted": truth * float(0.72 + 0.3 * dice + rng.normal(0, 0.05)),
    }


def make_segmented(
    *,
    models: tuple[str, ...] = ("source_only", "dann", "mean_teacher"),
    seeds: tuple[str, ...] = ("0", "1", "2"),
    structures: tuple[str, ...] = ("nucleus", "cytoplasm"),
    cases: int = 40,
    internal: int = 25,
    validation: int = 0,
    sites: tuple[str, ...] = ("lab_b",),
    per_patient: int = 1,
    referenced: bool = True,
    unit: str = "mm",
) -> pd.DataFrame:
    """Measured cases; away from home `dann` gains on the first structure and harms the second, the third is mixed."""
    rng = np.random.default_rng(5)
    shift = {"source_only": (-0.7, -0.5), "dann": (0.5, -1.4), "mean_teacher": (-0.2, -0.45)}
    rows: list[dict[str, object]] = []

    def add(split: str, domain: str, site: str, number: int) -> None:
        for i in range(number):
            case, hard = f"{site}-{split}-{i:03d}", rng.normal(0, 0.5)
            truth = [float(np.exp(rng.normal(0.3 - k, 0.4))) for k in range(len(structures))]
            gone = [k == 1 and rng.random() < 0.06 for k in range(len(structures))]
            for model in models:
                for seed in seeds:
                    for k, structure in enumerate(structures):
                        away = shift.get(model, (0.9, 0.9))[k % 2] if domain == "target" else 0.4
                        z = 1.6 + away + hard + rng.normal(0, 0.3) + 0.1 * int(seed)
                        row = {
                            "case": case,
                            "patient": f"{site}-{split}-p{i // per_patient:03d}",
                            "site": site,
                            "domain": domain,
                            "split": split,
                            "model": model,
                            "seed": seed,
                            "structure": structure,
                            "unit": unit,
                        }
                        rows.append(
                            row | measured(rng, z, truth[k], gone[k], referenced or domain == "source")
                        )

    if validation:
        add("validation", "source", "lab_a", validation)
    if internal:
        add("test", "source", "lab_a", internal)
    for site in sites:
        add("test", "target", site, cases)
    return pd.DataFrame(rows)


def make_voxels(frame: pd.DataFrame) -> VoxelTable:
    """Histograms of voxel probabilities that are too extreme: the temperature that mends them is 2 at home."""
    rng = np.random.default_rng(6)
    bins = np.arange(8, len(CENTRES), 16)
    score = CENTRES[bins]
    rows = []
    known = frame[frame.status != "no_reference"]
    for case, domain, model, seed, structure in known[
        ["case", "domain", "model", "seed", "structure"]
    ].itertuples(index=False):
        divisor = 2.0 if domain == "source" else 3.0
        n = rng.poisson(20 * np.exp(-0.5 * (np.abs(score) - 4) ** 2 / 9))
        k = rng.binomial(n, 1 / (1 + np.exp(-score / divisor)))
        for b in np.flatnonzero(n):
            rows.append((case, model, seed, structure, int(bins[b]), int(n[b]), int(k[b])))
    table = pd.DataFrame(rows, columns=["case", "model", "seed", "structure", "bin", "n", "k"])
    return VoxelTable.from_frame(
        table, SimpleNamespace(case=frame.case, model=frame.model, seed=frame.seed, labels=None)
    )


@pytest.fixture(scope="session")
def segmented() -> Maker:
    """Maker of measured segmentations."""
    return make_segmented


@pytest.fixture(scope="session")
def voxels() -> Callable[[pd.DataFrame], VoxelTable]:
    """Maker of histograms of voxel probabilities."""
    return make_voxels
