"""Applies a finished run to new scans, with all settings that the run froze."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtl.cells import csv_text
from medtl.errors import CheckpointError, ConfigError, DataError, NotFiniteError, near_matches
from medtl.files import atomic_write, file_name, output_folder, private_cache
from medtl.record import Record
from medtl.runs import shareable_path, weight_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medtl.adapters import Adapter
    from medtl.data.cohort import Cohort
    from medtl.prediction.trained import Trained


@dataclass(frozen=True)
class Finished:
    """One model of a finished run, in all its seeds.

    Attributes:
        name: of the model.
        paths: weights by seed.
        frozen: settings fitted at the source, by seed.
    """

    name: str
    paths: dict[str, Path]
    frozen: dict[str, Any]


def find_model(run: Path, name: str | None) -> Finished:
    """The model of a run by its name in the report, or the one that the run decided to keep.

    Raises:
        CheckpointError: no finished run.
        ConfigError: the run has no such model, or several and none was named.
    """
    from medtl.checkpoints import read_header

    if not (run / "DONE").is_file():
        raise CheckpointError(
            f"{shareable_path(run)} is not a finished run (DONE is absent). Expected: a folder that "
            "`medtl run` made; continue one that was stopped with --resume."
        )
    decision, calibration = run / "decision.json", run / "calibration.json"
    Record(run).check(path for path in (decision, calibration) if path.is_file())
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(run.glob("checkpoints/*-seed*/model.safetensors")):
        folder, _, seed = path.parent.name.rpartition("-seed")
        # Halves of a bound that learnt from the target's own labels are not for use.
        if not folder.startswith("target_trained_"):
            found.setdefault(read_header(path).get("name") or folder, {})[seed] = path
    if not found:
        raise CheckpointError(f"{shareable_path(run)} holds no weights.")
    if name is None and decision.is_file():
        name = str(_read(decision).get("model"))
    if name is None and len(found) > 1:
        raise ConfigError(
            f"The run holds {len(found)} models and does not say which of them to keep: choose one with --model. "
            f"There are: {', '.join(sorted(found))}."
        )
    name = name or next(iter(found))
    if name not in found:
        raise ConfigError(f"The run has no model {name!r}. {near_matches(name, sorted(found))}")
    frozen = _read(calibration).get("models")
    settings = frozen.get(name, {}) if isinstance(frozen, dict) else None
    seeds = found[name]
    if not isinstance(settings, dict) or not all(map(_sane, settings.values())):
        raise CheckpointError(
            f"calibration.json does not hold what the run froze for {name} (temperature, operating point): restore it "
            "from a copy of the run."
        )
    for path in seeds.values():
        Record(run).check(weight_files(path.parent))
    return Finished(name, seeds, settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} of the run cannot be read ({type(error).__name__}): restore it from a copy of the run."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} of the run was changed: restore it from a copy of the run.")
    return found


def _sane(settings: Any) -> bool:
    """Whether settings of one seed are such as a run freezes: of a classifier, or of each structure."""
    if not isinstance(settings, dict):
        return False
    if "operating_point" not in settings:  # of structures
        return all(isinstance(one, dict) and _temperate(one.get("temperature")) for one in settings.values())
    point = settings["operating_point"]
    if point is not None and not (
        isinstance(point, dict)
        and isinstance(point.get("positive"), str)
        and _number(point.get("probability"))
        and 0 <= point["probability"] <= 1
    ):
        return False
    return _temperate(settings.get("temperature"))


def _temperate(value: Any) -> bool:
    return value is None or (_number(value) and 1e-3 <= value <= 1e3)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def apply_run(
    run: Path,
    scans: Path,
    out: Path,
    *,
    site: str | None = None,
    model: str | None = None,
    method: str | None = None,
    rules: Sequence[str] = (),
    maps: bool = False,
    seg: bool = False,
    flips: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predicts for every scan of a folder; several seeds are averaged.

    Args:
        run: folder of a finished run.
        scans: folder of scans.
        out: a new folder for the tables and masks.
        site: name of the site in the tables; by default the folder's, unless it names a patient.
        model: name of the model; by default the one that the run keeps.
        method: your own file of the method, if the model needs it: a run holds no code.
        rules: rules that clean the masks, in order, see `medtl.prediction.rules`.
        maps: also write a probability map of each structure.
        seg: also write a DICOM SEG of each DICOM series.
        flips: average over flipped images.
        progress: called with (done, total) as scans are prepared.

    Raises:
        CheckpointError: no finished run, or no scan that can be read.
        ConfigError: an unknown model or rule, or options for masks with a classifier.
    """
    from medtl.data.cases.collect import collect_cases
    from medtl.data.cohort import Cohort
    from medtl.prediction.rules import check_rules
    from medtl.prediction.trained import load_adapter

    finished = find_model(run, model)
    table = collect_cases(source=(), labels=None, target=scans, sites=[site] if site else ())
    trained = {seed: load_adapter(path, method) for seed, path in finished.paths.items()}
    first, _ = next(iter(trained.values()))
    if first.labels is None and (rules or maps or seg or flips):
        raise ConfigError(
            "--rules, --maps, --seg and --flips are for masks, and this run is of a classifier."
        )
    check_rules(rules)
    told = (os.path.realpath(run), os.path.realpath(scans), model, method, rules, maps, seg, flips)
    with output_folder(out, *told, shown=table.hide(out.name)), _copies(os.path.realpath(out)) as cache:
        cohort = Cohort.prepare(table, first.preprocess, cache, progress=progress)
        if not cohort.select("target"):
            raise CheckpointError("No scan of the folder could be read.")
        if first.labels is None:
            found = _classify(finished, trained, cohort, out)
        else:
            found = _segment(finished, trained, cohort, out, rules=rules, maps=maps, seg=seg, flips=flips)
        cohort.table.to_csv(out / "cases.csv")
    recorded = {} if Record(run).exists else {"unchecked": "the run has no record.json to check its files by"}
    return {
        "model": finished.name,
        "seeds averaged": len(trained),
        "cases": len(cohort.select("target")),
        **found,
        **recorded,
        **({"doubts": " ".join(warnings)} if (warnings := cohort.table.warnings) else {}),
        "left out": cohort.summary()[0]["left out"],
    }


@contextmanager
def _copies(out: str) -> Iterator[Path]:
    """A private folder for the prepared scans, gone afterwards; one that was left by a kill is used again.

    It is that of one output folder, which belongs to one process.
    """
    name = hashlib.blake2b(out.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    cache = private_cache(f"predict-{name}")
    try:
        yield cache
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _classify(
    finished: Finished, trained: dict[str, tuple[Trained, Adapter]], cohort: Cohort, out: Path
) -> dict[str, Any]:
    """Writes predictions.csv: mean probabilities at the frozen temperature, and the call that the seeds vote for."""
    import numpy as np
    from scipy.special import softmax

    from medtl.prediction.classify import predict_adapted, prediction_rows

    data = cohort.dataset("target", "test")
    if data is None:
        raise CheckpointError("No scan of the folder could be read.")
    probabilities, calls, classes, remarks = [], [], tuple[str, ...](), dict[str, None]()
    for seed, (one, adapter) in trained.items():
        classes = one.classes
        logits = predict_adapted(adapter, data, must_adapt=False)
        remarks |= dict.fromkeys(getattr(adapter, "remarks", ()))
        if seed not in finished.frozen:
            raise CheckpointError(
                f"calibration.json of the run says nothing of {finished.name}, seed {seed}."
            )
        settings = finished.frozen[seed]
        probabilities.append(softmax(logits / (settings["temperature"] or 1.0), axis=1))
        calls.append(_calls(softmax(logits, axis=1), settings["operating_point"], classes))
    cases = cohort.select("target")
    answered = np.asarray(np.isfinite(np.stack(probabilities)).all(axis=(0, 2)))
    if not answered.all():
        failed = [case.case for case, fine in zip(cases, answered, strict=True) if not fine]
        remarks |= {_unanswered(finished, failed, len(cases)): None}
        cases = tuple(case for case, fine in zip(cases, answered, strict=True) if fine)
    mean = np.mean(probabilities, axis=0)[answered]
    rows = prediction_rows(cases, mean, classes, finished.name, kind="prob")
    # The seeds vote; a tie goes to the more probable class.
    called = (np.mean(calls, axis=0)[answered] + 1e-6 * mean).argmax(1)
    rows.insert(list(rows.columns).index("label") + 1, "predicted", [classes[k] for k in called])
    atomic_write(out / "predictions.csv", csv_text(rows))
    return {
        "predicted": ", ".join(f"{c} {int((rows.predicted == c).sum())}" for c in classes),
        **({"remarks": " ".join(remarks)} if remarks else {}),
        "table": f"{cohort.table.hide(shareable_path(out))}/predictions.csv",
    }


def _calls(
    probabilities: NDArray[np.float64], point: dict[str, Any] | None, classes: tuple[str, ...]
) -> NDArray[np.float64]:
    """One-hot calls (N, K) as the run's report made them: at the frozen operating point, else the most probable."""
    import numpy as np

    if point is None:
        return np.asarray(np.eye(len(classes))[probabilities.argmax(1)])
    if point["positive"] not in classes or len(classes) != 2:
        raise CheckpointError("calibration.json and the weights of the run name different classes.")
    positive = classes.index(point["positive"])
    is_positive = probabilities[:, positive] >= point["probability"]
    return np.asarray(np.eye(2)[np.where(is_positive, positive, 1 - positive)])


def _segment(
    finished: Finished,
    trained: dict[str, tuple[Trained, Adapter]],
    cohort: Cohort,
    out: Path,
    *,
    rules: Sequence[str],
    maps: bool,
    seg: bool,
    flips: bool,
) -> dict[str, Any]:
    """Writes a mask of each scan in its own grid, and volumes.csv with the size of each structure."""
    import numpy as np
    import pandas as pd

    from medtl.prediction.rules import apply_rules
    from medtl.scans.geometry import voxel_spacing
    from medtl.scans.readers.dicom_seg import write_seg
    from medtl.scans.write import write_map, write_mask

    labels = next(iter(trained.values()))[0].labels
    if labels is None:
        raise CheckpointError("The weights do not say what the values of masks mean.")
    rows, warnings, failed = [], [], list[str]()
    runs = [_segmentations(*one, cohort, flips, failed) for one in trained.values()]
    for first in runs[0]:
        case, grid = first.case, first.grid
        mean = first.probabilities
        for done, run in enumerate(runs[1:], start=1):  # one seed's volume is in memory at a time
            mean = mean + (next(run).probabilities - mean) / np.float16(done + 1)
        if case.item is None or case.case in failed:
            continue
        mask = apply_rules(grid.argmax_native(mean), rules, len(labels.classes))
        write_mask(out / "masks" / case.case, mask, case.item, labels)
        if seg and case.item.kind == "dicom":
            try:
                write_seg(out / "seg" / f"{case.case}.dcm", mask, case.item, labels)
            except DataError as error:  # a series of an old scanner may lack what a SEG has to refer to
                warnings.append(str(error))
        for number, name in enumerate(labels.structures if maps else (), start=1):
            values = _calibrated(grid.to_native(mean[number : number + 1])[0].numpy(), finished.frozen, name)
            write_map(out / "maps" / file_name(name) / case.case, values, case.item)
        sizes = np.bincount(mask.reshape(-1), minlength=len(labels.classes))
        voxel = None if case.item.affine is None else float(np.prod(voxel_spacing(case.item.affine)))
        for number, name in enumerate(labels.structures, start=1):
            ml = "" if voxel is None else f"{sizes[number] * voxel / 1000:.3f}"
            rows.append({"case": case.case, "structure": name, "voxels": int(sizes[number]), "ml": ml})
    if failed:
        warnings.append(_unanswered(finished, failed, len(cohort.select("target"))))
    atomic_write(out / "volumes.csv", csv_text(pd.DataFrame(rows)))
    empty = {n: sum(r["voxels"] == 0 for r in rows if r["structure"] == n) for n in labels.structures}
    missed = ", ".join(f"no {n} in {count} cases" for n, count in empty.items() if count)
    return {
        "found": missed or "every structure in every case",
        **({"remarks": " ".join(warnings)} if warnings else {}),
        "masks": f"{cohort.table.hide(shareable_path(out))}/masks",
    }


def _unanswered(finished: Finished, failed: Sequence[str], total: int) -> str:
    """What is said of cases for which the model gives no number.

    Raises:
        NotFiniteError: these are all.
    """
    names = sorted(set(failed))
    if len(names) == total:
        raise NotFiniteError(
            f"{finished.name} gives no number for any of the {total} scans: its weights are damaged, or these scans "
            "are unlike those that it was trained on. Look at them with `medtl inspect`."
        )
    return f"{len(names)} cases have no prediction: the model gives no number for {', '.join(names)}."


def _segmentations(
    trained: Trained, adapter: Adapter, cohort: Cohort, flips: bool, failed: list[str]
) -> Iterator[Any]:
    """Cases of one seed's network, adapted to the new scans again if its method does so."""
    from medtl.prediction.segment import adapt_cases

    data = cohort.dataset("target", "test")
    if data is None:
        raise CheckpointError("No scan of the folder could be read.")
    yield from adapt_cases(adapter, data, patch=trained.header["patch"], flips=flips, failed=failed)


def _calibrated(
    probability: NDArray[np.float32], frozen: dict[str, Any], structure: str
) -> NDArray[np.float32]:
    """Probabilities of one structure at its temperature of the source, averaged over seeds."""
    import numpy as np
    from scipy.special import expit, logit

    known = [t for seed in frozen.values() if (t := seed.get(structure, {}).get("temperature"))]
    if not known:
        return probability
    return np.asarray(expit(logit(probability.clip(1e-6, 1 - 1e-6)) / np.mean(known)), dtype=np.float32)
