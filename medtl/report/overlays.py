"""Draws the worst segmentations on their scans, on request only, since they show patients' images."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl.cells import plain_frame
from medtl.errors import ConfigError, DataError
from medtl.evaluation.statistics.arrays import Bools
from medtl.evaluation.statistics.estimate import format_number
from medtl.evaluation.tables.masks import read_label_map
from medtl.labelmap import VOID
from medtl.scans.items import Rejection, VolumeItem
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import file_reader
from medtl.scans.volume import read_volume

if TYPE_CHECKING:
    from medtl.evaluation.results import Results, WorstCase
    from medtl.evaluation.tables.segmentations import SegmentationTable

REFERENCE_INK, CALL_INK = (0, 214, 201), (255, 122, 26)
"""Colours of the reference (solid) and of the model's mask (dashed)."""
SIDE = 360
"""Approximate size in pixels of a picture's longer side."""
MARGIN = 0.35
"""Margin around the structure, as a share of its size."""


@dataclass(frozen=True)
class Overlay:
    """One picture of a case, cropped to the structure.

    Attributes:
        model: name of the model; case and structure likewise.
        caption: what it shows.
        png: the picture.
    """

    model: str
    case: str
    structure: str
    caption: str
    png: bytes = field(repr=False)

    @property
    def data_uri(self) -> str:
        """The picture as a data URI, for a self-contained page."""
        return "data:image/png;base64," + b64encode(self.png).decode()


def images_of(path: Path | str) -> dict[str, Path]:
    """The scan of each case, from the column `image` of a table of segmentations; paths are relative to the table.

    Args:
        path: the table, CSV or parquet.

    Raises:
        ConfigError: there is no such column.
    """
    import pandas as pd

    frame = plain_frame(pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig"))
    if "image" not in frame:
        raise ConfigError(
            "Overlays need the scans: give the table a column image with the path of each case's scan (NIfTI or PNG), "
            "relative to the table."
        )
    folder = Path(path).resolve().parent
    named = zip(frame["case"].str.strip(), frame["image"].str.strip(), strict=True)
    return {case: folder / image for case, image in named if image}


def worst_overlays(
    results: Results,
    table: SegmentationTable,
    images: Mapping[str, Path | NDArray[Any]],
    count: int,
) -> tuple[Overlay, ...]:
    """Draws the worst cases that the results list, at the slice where mask and reference differ most.

    Args:
        results: from `evaluate` on the same table.
        table: the masks.
        images: the scan of each case, in the grid of its masks: the path of a NIfTI, PNG, TIFF or JPEG file, or
            values (k, j, i) or (k, j, i, 3). Asked for the cases that are drawn alone.
        count: pictures, the lowest Dice first.

    Raises:
        ConfigError: no case among the worst has an image.
        DataError: an image cannot be read, or does not lie in the grid of its masks.
    """
    if count < 1:
        return ()
    wanted = sorted((w for w in results.worst if w.case in images), key=lambda w: w.dice or 0.0)
    if results.worst and not wanted:
        raise ConfigError(
            "Overlays need the scans, and none of the worst cases has one: name them in the column image of the table."
        )
    labels = table.labels
    if labels is None:
        raise ConfigError("Overlays need labels.json beside the table, with the names of the structures.")
    drawn = []
    for worst in wanted[:count]:
        row = table.rows(case=worst.case, model=worst.model, seed=worst.seed)[0]
        path = table.reference[row]
        if path is None:
            continue
        loaded = read_label_map(path)
        reference, called = labels.encode(loaded.array), labels.encode(read_label_map(table.mask[row]).array)
        index = labels.classes.index(worst.structure)
        given = images[worst.case]
        image = _read_image(given, reference.shape) if isinstance(given, Path) else given
        if image.shape[:3] != reference.shape:
            raise DataError(
                f"The scan of case {worst.case!r} has {image.shape[:3]} voxels (k, j, i), its masks have "
                f"{reference.shape}: overlays need the scan in the grid of the masks."
            )
        spacing = (1.0, 1.0) if loaded.spacing is None else loaded.spacing[1:]
        drawn.append(
            _draw(worst, image, reference == index, (called == index) & (reference != VOID), spacing)
        )
    return tuple(drawn)


def _read_image(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Grey values (k, j, i), or colours (1, j, i, 3)."""
    reader = file_reader(path)
    with quiet_readers():
        found = reader.look(path.parent, path.name) if reader is not None else None
    if reader is None or not isinstance(found, VolumeItem):
        why = found.detail if isinstance(found, Rejection) else f"files {path.suffix} are not read here"
        raise DataError(f"The image {path.name!r} cannot be read: {why}.")
    array = read_volume(found).array
    if reader.display and array.dtype == np.uint8 and array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=3)  # shown as it is, not stretched
    if array.shape[:3] != shape:
        raise DataError(
            f"The image {path.name!r} has {array.shape[:3]} voxels (k, j, i), its masks have {shape}: overlays need "
            "the scan in the grid of the masks."
        )
    return array


def _draw(
    worst: WorstCase, image: NDArray[Any], reference: Bools, called: Bools, spacing: tuple[float, float]
) -> Overlay:
    from PIL import Image

    k = int((reference != called).sum(axis=(1, 2)).argmax())
    rows, columns = (_window((reference | called)[k].any(axis=axis)) for axis in (1, 0))
    plane = _to_bytes(image[k])[rows, columns]
    # Pixels are made square, and large enough that a contour is thin beside them.
    size = np.array(spacing) / min(spacing) * np.array(plane.shape[:2])
    factor = max(1, round(SIDE / size.max()))
    height, width = (int(max(1, round(n * factor))) for n in size)
    picture = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)).copy()
    for mask, ink, dashed in ((reference, REFERENCE_INK, False), (called, CALL_INK, True)):
        enlarged = Image.fromarray(mask[k][rows, columns]).resize((width, height), Image.Resampling.NEAREST)
        picture[_contour(np.asarray(enlarged), dashed)] = ink
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    where = f", slice {k + 1} of {len(reference)}" if len(reference) > 1 else ""
    seed = "" if worst.seed == "single" else f", seed {worst.seed}"
    caption = (
        f"{worst.case}{where}. {worst.model}{seed}, {worst.structure}, Dice {format_number(worst.dice, 2)}"
    )
    return Overlay(worst.model, worst.case, worst.structure, caption, buffer.getvalue())


def _window(used: Bools) -> slice:
    found = np.flatnonzero(used)
    if len(found) == 0:
        return slice(0, len(used))
    margin = max(8, int(MARGIN * (found[-1] - found[0] + 1)))
    return slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1)


def _to_bytes(plane: NDArray[Any]) -> NDArray[np.uint8]:
    """(j, i, 3) colours; grey values between their 1st and 99th percentile."""
    if plane.ndim == 3:
        return np.asarray(plane, dtype=np.uint8)
    values = np.nan_to_num(plane.astype(np.float64))
    lo, hi = np.quantile(values, [0.01, 0.99])
    scaled = np.clip((values - lo) / max(hi - lo, 1e-12), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def _contour(mask: Bools, dashed: bool) -> Bools:
    import skimage.segmentation

    find_boundaries: Any = skimage.segmentation.find_boundaries
    edge = find_boundaries(mask, mode="thick", background=0)
    if dashed:
        row, column = np.indices(mask.shape)
        edge &= (row + column) // 5 % 2 == 0
    return np.asarray(edge, dtype=bool)
