"""Makes an evaluation report from any tool's predictions or masks: medtl report TABLE --out DIR [--json]."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from medtl.cli.flags import parse
from medtl.cli.terminal import progress, say, table
from medtl.errors import ConfigError
from medtl.files import output_folder

if TYPE_CHECKING:
    from medtl.evaluation import Results
    from medtl.scans.items import VolumeItem


@dataclass(frozen=True)
class Options:
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
    """Segmentations: draw this many of the worst cases on their scans, from --scans or the column image; the page
    then shows patients' scans."""

    scans: tuple[Path, ...] = ()
    """Segmentations: folders of the scans, for --overlays; of a run, its --source and --target."""

    jobs: int = 1
    """Segmentations: number of cases measured in parallel; -1 for all cores."""

    replicates: int = 2000
    """Resamples of patients."""

    seed: int = 0
    """Seed of the resampling."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def main(words: list[str]) -> None:
    """Makes the report and prints the main numbers."""
    options = parse(Options, words)
    results, page = make_report(options, progress=progress("Measuring masks"))
    if options.json:
        say(results.to_json().rstrip())
        return

    from medtl.report.terminal import summary_rows

    say(table(summary_rows(results)))
    say(f"\nReport: {page}")


def make_report(
    options: Options, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Results, str]:
    """Evaluates a table of predictions or of segmentations and writes the report.

    Args:
        options: what to evaluate, and where the report goes.
        progress: called with (done, all) cases while masks are measured.

    Returns:
        The results, and the path of the page.

    Raises:
        ConfigError: options that do not fit the table, or a folder that is not empty.
        DataError: the table cannot be used.
    """
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
    hide = images.hide if isinstance(images, _Scans) else str
    with output_folder(options.out, options, shown=hide(options.out.name)):
        page = str(write_report(results, options.out, overlays=overlays))
    return results, hide(page)


class _Scans(Mapping[str, Any]):
    """Scans of folders by the name of their case, read when they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        from medtl.scans.catalog import scan_folder
        from medtl.scans.privacy import Identifiers, site_names

        self._items: dict[str, VolumeItem] = {}
        catalogs = [scan_folder(folder) for folder in folders]
        known = Identifiers()
        for catalog in catalogs:
            known.update(catalog.identifiers)
        self.hide = known.safe_path
        for site, catalog in zip(site_names(folders, known), catalogs, strict=True):
            for item in catalog.items:
                # Cases of equal names at two sites are called by their site too.
                self._items[item.name] = self._items[f"{site}/{item.name}"] = item

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
        try:
            header = {name.strip() for name in next(csv.reader([file.readline(1 << 20)]), [])}
        except csv.Error:
            return False
    return {"mask", "reference"} <= header
