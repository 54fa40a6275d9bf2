"""The contract of a reader, tested on every one that is found."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from medtl.errors import DataError
from medtl.labelmap import LabelMap
from medtl.scans.catalog import scan_folder
from medtl.scans.items import VolumeItem
from medtl.scans.masks import read_mask, scan_masks
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import HEAD_BYTES, Reader, reader_of, readers, suffix_of, without_suffix
from medtl.scans.readers.dicom_seg import write_seg
from medtl.scans.volume import read_volume
from tests.scans.make_scans import write_image, write_nifti, write_series

AFFINE = ((-0.7, 0.0, 0.1, 5.0), (0.0, 0.0, 3.0, -7.0), (0.02, 0.9, 0.0, 11.0), (0.0, 0.0, 0.0, 1.0))
LABELS = LabelMap.parse(["lesion=1", "organ=2"])
MASK = np.random.default_rng(0).integers(0, 3, (3, 6, 5)).astype(np.uint8)
FOREIGN = {
    "notes.txt": b"Dear colleague, " * 20,
    "labels.csv": b"case,label\n",
    "a.zip": b"PK\3\4" + bytes(200),
}


def placed(shape: tuple[int, int, int], kind: str = "none") -> VolumeItem:
    """A scan that exists as an item alone; one slice without a place in the patient, or several with one."""
    place = None if shape[0] == 1 else AFFINE
    return VolumeItem(Path("nowhere"), ("x",), kind, "x", "x", shape=shape, affine=place)


ITEMS = (placed((3, 6, 5)), placed((1, 6, 5)))


def each(wanted: Callable[[Reader], bool] = lambda reader: True) -> pytest.MarkDecorator:
    """A test of every reader of which `wanted` says yes."""
    found = [reader for reader in readers() if wanted(reader)]
    return pytest.mark.parametrize("reader", found, ids=lambda reader: reader.kind)


def samples(reader: Reader, folder: Path) -> list[Path]:
    """Files of the reader's format; none for a format that neither writes nor is made here."""
    if reader.kind == "dicom":
        return write_series(folder / "series", MASK.astype(np.int16))
    if reader.kind == "seg":
        write_series(folder / "from" / "series", MASK.astype(np.int16), FrameOfReferenceUID="1.2.9")
        (item,) = scan_folder(folder / "from").items
        (folder / "seg").mkdir()
        return [write_seg(folder / "seg" / "s.dcm", MASK, item, LABELS)]
    written = []
    for item in filter(reader.writes, ITEMS):
        size = item.shape[0]
        written.append(reader.write(folder / f"m{size}", MASK[:size], item, LABELS))
    return written


def reading(item: VolumeItem) -> str:
    """What the error says that reading an item raises, or nothing."""
    try:
        assert read_volume(item).array.shape[:3] == item.shape
    except DataError as error:
        return str(error)
    return ""


def relative(root: Path, paths: list[Path]) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in paths)


@each()
def test_only_files_of_the_format_are_taken(reader: Reader, tmp_path: Path) -> None:
    for name, content in FOREIGN.items():
        assert not reader.sniff(content[:HEAD_BYTES], name)
    assert not reader.sniff(b"", "empty")
    for path in samples(reader, tmp_path):
        head = path.read_bytes()[:HEAD_BYTES]
        for purpose in ("scans", "masks"):
            first = [r for r in readers() if getattr(r, purpose) and r.sniff(head, path.name.lower())]
            if getattr(reader, purpose):
                assert first == [reader]


@each()
def test_damaged_files_are_rejections_and_never_errors(reader: Reader, tmp_path: Path) -> None:
    chance = random.Random(0)
    root = tmp_path / "damaged"
    root.mkdir()
    good = [path.read_bytes() for path in samples(reader, tmp_path)] or [b"format" * 100]
    files = []
    for number in range(60):
        data = bytearray(chance.choice(good))
        if number % 3 == 0:
            data = data[: chance.randrange(1, len(data))]
        elif number % 3 == 1:
            for _ in range(chance.randrange(1, 40)):
                data[chance.randrange(min(len(data), 1000))] = chance.randrange(256)
        else:
            data = bytearray(chance.randbytes(chance.randrange(1, 3000)))
        files.append(f"{number:02d}{chance.choice(reader.suffixes)}")
        (root / files[-1]).write_bytes(data)
    with quiet_readers():
        for wanted, find in ((reader.scans, reader.items), (reader.masks, reader.mask_items)):
            if not wanted:
                continue
            found = find(root, files)
            held = [f for thing in (*found.items, *found.rejections) for f in thing.files]
            assert sorted(held) == files
            assert all(rejection.detail and rejection.next_step for rejection in found.rejections)
            read = [said for item in found.items if isinstance(item, VolumeItem) and (said := reading(item))]
            assert not [said for said in read if str(root) in said]


@each(lambda reader: reader.scans)
def test_items_and_voxels_agree(reader: Reader, tmp_path: Path) -> None:
    paths = samples(reader, tmp_path)
    found = reader.items(tmp_path, relative(tmp_path, paths))
    assert not found.rejections
    for item in found.items:
        assert item.kind == reader.kind
        volume = reader.read(item)
        assert volume.array.shape == item.shape
        assert volume.array.dtype in (np.uint8, np.int16, np.float32)
        assert volume.affine == item.affine
        assert {"kind", "modality", "bits", "inverted", "units"} <= set(volume.meta)
        np.testing.assert_array_equal(volume.array, MASK[: item.shape[0]])
        if item.affine is not None:
            assert all(isinstance(value, float) for row in item.affine for value in row)
            assert np.linalg.det(np.array(item.affine)[:3, :3]) != 0


@each(lambda reader: any(map(reader.writes, ITEMS)))
def test_what_is_written_is_read_again(reader: Reader, tmp_path: Path) -> None:
    """Through the folder and `read_mask`, as a mask of the scan in whose grid it was written."""
    for number, item in enumerate(filter(reader.writes, ITEMS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        mask = MASK[: item.shape[0]]
        path = reader.write(folder / "x", mask, item, LABELS)
        assert reader.sniff(path.read_bytes()[:HEAD_BYTES], path.name.lower())
        assert without_suffix(path.name) == "x"
        (found,), refused = scan_masks(folder)
        assert not refused
        assert (found.kind, found.shape) == (reader.kind, item.shape)
        if item.affine is not None:
            np.testing.assert_allclose(np.array(found.affine), np.array(item.affine), atol=1e-6)
        np.testing.assert_array_equal(read_mask(found, item, LABELS).array, mask)


def test_every_scan_has_a_format_for_its_masks() -> None:
    for item in ITEMS:
        assert any(reader.writes(item) for reader in readers())


def test_no_two_readers_take_one_suffix() -> None:
    for purpose in ("scans", "masks"):
        taken = [s for reader in readers() if getattr(reader, purpose) for s in reader.suffixes]
        assert len(taken) == len(set(taken))
        assert all(s.startswith(".") and s == s.lower() for s in taken)
    assert len({reader.kind for reader in readers()}) == len(readers())
    assert all(reader_of(reader.kind) is reader for reader in readers())


def test_content_decides_before_names(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "a", MASK[:1].astype(np.int16), names=["scan.png"])
    (item,) = scan_folder(tmp_path / "a").items
    assert (path.name, item.kind) == ("scan.png", "dicom")


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("Case.1.NII.GZ", ".nii.gz", "Case.1"),
        ("a.b.nii", ".nii", "a.b"),
        ("x.jpeg", ".jpeg", "x"),
        ("x.csv", ".csv", "x.csv"),
        ("IM0001", "", "IM0001"),
    ],
)
def test_suffixes(name: str, suffix: str, stem: str) -> None:
    assert suffix_of(name) == suffix
    assert without_suffix(name) == stem
    assert PurePosixPath(without_suffix(f"folder.nii/{name}")).name == stem


def test_a_compressed_header_cannot_make_the_reader_unpack_gigabytes(tmp_path: Path) -> None:
    import gzip
    import struct

    path = write_nifti(tmp_path / "m.nii", MASK)
    raw = bytearray(path.read_bytes())
    raw[108:112] = struct.pack("<f", 2e9)  # the voxels are said to begin after 2 GB
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(raw) + bytes(50_000_000)))
    (rejection,) = scan_folder(tmp_path).rejections
    assert (rejection.path, rejection.code) == ("bomb.nii.gz", "unreadable")
    assert "announces 2000000000 bytes before its voxels" in rejection.detail


def test_reading_scans_needs_neither_torch_nor_the_writer_of_segmentations(tmp_path: Path) -> None:
    write_series(tmp_path / "series", MASK.astype(np.int16))
    write_nifti(tmp_path / "n.nii.gz", MASK)
    write_image(tmp_path / "i.png", MASK[0])
    code = (
        "import sys; from pathlib import Path; from medtl.scans import read_volume, scan_folder, scan_masks\n"
        f"items = scan_folder(Path({str(tmp_path)!r})).items; [read_volume(item) for item in items]\n"
        f"scan_masks(Path({str(tmp_path)!r}))\n"
        "print(len(items), {'torch', 'monai', 'highdicom'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3 set()"
