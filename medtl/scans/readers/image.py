"""Plain images: PNG, JPEG, TIFF and BMP, one slice a file, without a place in the patient; masks are written as PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import LabelMap
from medtl.scans.items import MAX_BYTES, MaskItem, Rejection, Volume, VolumeItem
from medtl.scans.reader import AGAIN, FileReader, PixelError, Stored, to_float32

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_INDEXED = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes in which a pixel is one number."""
_PIXEL, _EXTRAS = 9, 1 << 26
"""Bytes that a PNG may have: for each pixel, and for profiles and texts."""


class Image(FileReader):
    """PNG, JPEG, TIFF or BMP, in grey or in colour."""

    kind: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
    display: ClassVar[bool] = True

    def header(self, root: Path, file: str, name: str) -> VolumeItem | Rejection:
        """Reads one header and looks for the end of the file."""
        try:
            with Pillow.open(root / file, formats=_FORMATS) as image:
                width, height = _oriented_size(image)
                mode, frames = image.mode, int(getattr(image, "n_frames", 1))
                channels = 1 if mode in _GREY or (mode == "P" and _grey_palette(image)) else 3
                kind = image.format or ""
        except Pillow.DecompressionBombError:
            what = "more pixels than the image library accepts"
            return Rejection.of(file, "too_large", what, "Crop or tile the image.")
        if frames > 1 and kind == "TIFF":
            step = "Split it into images, or give the volume as NIfTI."
            return Rejection.of(file, "multi_frame", f"{frames} pages", step)
        if width * height * channels * 4 > MAX_BYTES:
            return Rejection.of(file, "too_large", f"{height} x {width} pixels", "Crop or tile the image.")
        if not _ends_well(root / file, kind, width * height):
            return Rejection.of(file, "truncated", "the end of the image is not there", AGAIN)
        bits = "16" if mode.startswith("I;16") else "32" if mode in ("I", "F") else "8"
        return VolumeItem(
            root,
            (file,),
            self.kind,
            name,
            file,
            shape=(1, height, width),
            channels=channels,
            header={"bits": bits, "mode": mode},
        )

    def read(self, item: VolumeItem) -> Volume:
        """Grey values or RGB, turned as EXIF says."""
        with Pillow.open(item.root / item.files[0]) as opened:
            image = ImageOps.exif_transpose(opened) if opened.format == "JPEG" else opened
            if item.channels == 3:
                array = np.asarray(image.convert("RGB"))
            elif image.mode in ("1", "P", "LA"):
                array = np.asarray(image.convert("L"))
            else:
                array = np.asarray(image)
        if array.shape[:2] != item.shape[1:]:
            raise PixelError(f"it has {array.shape[:2]} pixels, its header said {item.shape[1:]}")
        if array.dtype != np.uint8:
            array = to_float32(array)
        return Volume.of(item, array[None])

    def no_mask(self, item: VolumeItem) -> str:
        """JPEG changes values, and a colour is no label."""
        if item.files[0].lower().endswith((".jpg", ".jpeg")):
            return "a JPEG image, which changes values"
        mode = item.header["mode"]
        return "" if mode in _INDEXED else f"a colour image ({mode})"

    def stored(self, mask: MaskItem, item: VolumeItem | None) -> Stored:
        """Grey values, palette indices, or 0 and 1 of a one-bit image."""
        with Pillow.open(mask.root / mask.files[0]) as image:
            array: NDArray[Any] = np.asarray(image)
        return Stored((array.astype(np.uint8) if array.dtype == np.bool_ else array)[None])

    def writes(self, item: VolumeItem) -> bool:
        """Whether the scan is an image without a position in the patient."""
        return item.affine is None

    def write(self, path: Path, array: NDArray[Any], item: VolumeItem, labels: LabelMap | None) -> Path:
        """Writes PNG: labels of 8 or 16 bits, or a map of 16 bits, where 65535 is 1."""
        if labels is None:
            values = np.rint(array[0].clip(0, 1) * 65535).astype(np.uint16)
        else:
            values = labels.decode(array[0])
            if values.dtype != np.uint8 and (values.min(initial=0) < 0 or values.max(initial=0) > 65535):
                raise DataError(
                    f"The values of the masks run from {min(labels.values)} to {max(labels.values)}; a PNG holds 0 to "
                    "65535. Give the structures other values in labels.json."
                )
            values = values.astype(np.uint8 if values.dtype == np.uint8 else np.uint16)
        buffer = io.BytesIO()
        Pillow.fromarray(values).save(buffer, format="PNG")
        target = path.with_name(path.name + ".png")
        atomic_write(target, buffer.getvalue())
        return target


def _oriented_size(image: Pillow.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation of a JPEG, which swaps them for values of 5 and more.

    Pillow turns TIFF by itself; asking a PNG would decode it, and cameras do not write PNG.
    """
    width, height = image.size
    if image.format != "JPEG":
        return width, height
    turned = image.getexif().get(0x0112, 1)
    return (height, width) if isinstance(turned, int) and turned >= 5 else (width, height)


def _grey_palette(image: Pillow.Image) -> bool:
    colours = np.array(image.getpalette() or [0, 0, 0], dtype=np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _ends_well(path: Path, kind: str, pixels: int) -> bool:
    """Whether the end marker is there; for formats without one, decoding will tell.

    Anything may follow the marker: a PNG is searched as far as its pixels could reach before it is called truncated.
    """
    marker = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(kind)
    if marker is None:
        return True
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1024))
        if marker in file.read():
            return True
        if kind != "PNG":
            return False
        file.seek(0)
        before = b""
        while file.tell() < min(size, _PIXEL * pixels + _EXTRAS) and (block := file.read(1 << 20)):
            if marker in before + block:
                return True
            before = block[-len(marker) :]
    return False
