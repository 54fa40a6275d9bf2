"""Folders of scans with what may lie in one: each ends in bounded time and memory, and what is good is used."""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medtl.data.cases.collect import collect_cases
from medtl.errors import DataError
from medtl.scans.catalog import scan_folder
from medtl.scans.masks import scan_masks
from tests.helpers.processes import run
from tests.scans.make_scans import write_dicom, write_image, write_nifti, write_series

TRIAL = """
import json, resource, signal, sys
from pathlib import Path
from medtl.cli.entry import main
from medtl.data.cases.collect import collect_cases
from medtl.data.cohort import Cohort
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.errors import MedtlError

signal.alarm(int(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
root, before = Path(sys.argv[2]), peak()
result = {"code": main(["inspect", str(root / "target"), "--out", str(root / "found"), "--json"])}
try:
    table = collect_cases(source=[root / "source"], labels=root / "labels.csv", target=root / "target")
    table = Cohort.prepare(table, suggest_preprocess(table.items(), 16), root / "cache").table
    table.to_csv(root / "cases.csv")
    result["cases"] = {c.case: c.reason or c.status for c in table.cases if c.domain == "target"}
    result["remarks"] = {c.case: c.remark for c in table.cases if c.remark}
    result["warnings"] = table.warnings
except MedtlError as error:
    result["error"] = str(error)
result["grown"] = (peak() - before) >> 10
(root / "result.json").write_text(json.dumps(result))
"""
SECONDS, MEMORY = 60, 700
"""What a trial may take: seconds, and MiB beyond those of the loaded libraries."""
GOOD = ("good0", "good1", "good2", "good3")

Make = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of hostile folder.

    Attributes:
        make: puts it into a folder that holds four good scans.
        left_out: reason of each file that is left out, by its path.
        cases: the outcome of each further case; a reason, or `used`.
        volumes: whether the good scans are volumes.
        says: a part of the warnings.
    """

    make: Make
    left_out: dict[str, str]
    cases: dict[str, str]
    volumes: bool = False
    says: str = ""


def image(seed: int, size: int = 12) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def volume(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 900, (4, 12, 12)).astype(np.int16)


def png(path: Path, width: int, height: int, data: bytes = b"", end: bool = True) -> Path:
    """A PNG that announces so many grey pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    text = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(text + chunk(b"IDAT", data) + (chunk(b"IEND", b"") if end else b""))
    return path


def sparse(path: Path, size: int) -> None:
    """Lengthens a file without writing to the disk."""
    with path.open("r+b") as file:
        file.truncate(size)


def nifti(
    path: Path, shape: tuple[int, int, int], *, kind: int = 4, bits: int = 16, **fields: tuple[int, bytes]
) -> bytes:
    """A NIfTI header that announces a shape; `fields` overwrite bytes at a place."""
    write_nifti(path.with_name("template.nii"), volume(51))
    data = bytearray(path.with_name("template.nii").read_bytes())
    path.with_name("template.nii").unlink()
    data[40:56] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1)
    data[70:74] = struct.pack("<2h", kind, bits)
    for place, text in fields.values():
        data[place : place + len(text)] = text
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return bytes(data)


def gzip_bomb(folder: Path) -> None:
    data = nifti(folder / "x.nii", (12, 12, 4))
    (folder / "x.nii").unlink()
    zeros = gzip.compress(bytes(64 << 20))
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(data) + zeros * 128)


def gzip_lie(folder: Path) -> None:
    nifti(folder / "lie.nii.gz", (1000, 1000, 900))


def deep(folder: Path) -> None:
    """A folder whose path is longer than the system takes at once, and a scan in it."""
    before = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(45):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        write_image(Path("lost.png"), image(77))
    finally:
        os.chdir(before)


def sockets(folder: Path) -> None:
    before = os.getcwd()
    try:
        os.chdir(folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("s.png")
    finally:
        os.chdir(before)


def links_at_each_other(folder: Path) -> None:
    (folder / "one.png").symlink_to(folder / "two.png")
    (folder / "two.png").symlink_to(folder / "one.png")


def series_with_a_lost_slice(folder: Path) -> None:
    paths = write_series(folder / "patient", volume(50).astype(np.uint16))
    paths[3].write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)


def tiff_ring(folder: Path) -> None:
    """A TIFF whose list of pages leads back to its first."""
    path = write_image(folder / "ring.tif", image(60))
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack("<I", data[4:8])
    (number,) = struct.unpack("<H", data[first : first + 2])
    place = first + 2 + 12 * number
    data[place : place + 4] = struct.pack("<I", first)
    path.write_bytes(data)


def changed_dicom(path: Path, **elements: Any) -> Path:
    write_dicom(path, image(61), modality="CR")
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def deflated_bomb(folder: Path) -> None:
    path = changed_dicom(folder / "deflated.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[140:144])
    start, packer = 144 + length, zlib.compressobj(9, zlib.DEFLATED, -15)
    body = zlib.decompress(data[start:], -15)
    text = packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(64 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(data[:start] + text + zeros * 40 + packer.flush())


def long_pixels(folder: Path) -> None:
    """A DICOM file of 3 GiB (of a hole) for 144 pixels."""
    path = changed_dicom(folder / "long.dcm")
    data = bytearray(path.read_bytes())
    place = data.rindex(b"\xe0\x7f\x10\x00")
    data[place + 8 : place + 12] = struct.pack("<I", 3 << 30)
    path.write_bytes(data)
    sparse(path, place + 12 + (3 << 30))


def float_tiffs(folder: Path) -> None:
    for number, (name, value) in enumerate((("one_nan", np.nan), ("one_inf", np.inf), ("huge", 3e38))):
        array = image(62 + number).astype(np.float32)
        array[2, 3] = value
        write_image(folder / f"{name}.tif", array)
    write_image(folder / "all_nan.tif", np.full((12, 12), np.nan, np.float32))


def overflows(folder: Path) -> None:
    for number, slope in enumerate((1e38, 1e39)):
        write_dicom(
            folder / f"slope{number}.dcm",
            image(70 + number),
            modality="CR",
            slope=slope,
            series=f"1.{number}",
        )


def archives(folder: Path) -> None:
    for name in ("a.zip", "b.tar.gz", "c.7z"):
        (folder / name).write_bytes(b"PK\3\4")


def names(folder: Path) -> None:
    for number, name in enumerate(
        ("new\nline.png", "tab\tbell\a.png", "\u202egnp.x.png", 'comma,quote".png')
    ):
        write_image(folder / "x.png", image(80 + number)).rename(folder / name)
    data = (folder / "good0.png").read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(data + b"\0\0")


def not_what_they_say(folder: Path) -> None:
    for name in ("t.png", "t.dcm", "t.nii", "t.nii.gz", "t.tif"):
        (folder / name).write_text("This is a text.")


def empty(folder: Path) -> None:
    for name in ("e.png", "e.dcm", "e.nii.gz"):
        (folder / name).touch()


def rubbish(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for number in range(20):
        (folder / f"r{number}.dcm").write_bytes(bytes(128) + b"DICM" + rng.bytes(2000))


def many_small(folder: Path) -> None:
    for number in range(2000):
        (folder / f"n{number}.txt").write_text("x")


KINDS: dict[str, Kind] = {
    "a pipe": Kind(lambda f: os.mkfifo(f / "pipe.png"), {"pipe.png": "not_a_scan"}, {}),
    "a pipe in a folder of masks": Kind(
        lambda f: ((f / "masks").mkdir(), os.mkfifo(f / "masks" / "m.nii.gz")),
        {"masks/m.nii.gz": "not_a_scan"},
        {},
    ),
    "a socket": Kind(sockets, {"s.png": "not_a_scan"}, {}),
    "a device": Kind(lambda f: (f / "zero.png").symlink_to("/dev/zero"), {"zero.png": "not_a_scan"}, {}),
    "two links at each other": Kind(
        links_at_each_other, {"one.png": "unreadable", "two.png": "unreadable"}, {}
    ),
    "a link at itself": Kind(lambda f: (f / "me").symlink_to(f / "me"), {"me": "unreadable"}, {}),
    "a link at nothing": Kind(lambda f: (f / "x.png").symlink_to(f / "gone"), {"x.png": "unreadable"}, {}),
    "a link at its folder": Kind(lambda f: (f / "loop").symlink_to(f), {}, {}),
    "a link at all files": Kind(lambda f: (f / "up").symlink_to("/"), {"up": "not_a_scan"}, {}),
    "a link at all processes": Kind(lambda f: (f / "proc").symlink_to("/proc"), {"proc": "not_a_scan"}, {}),
    "a folder too deep": Kind(deep, {"*": "unreadable"}, {}),
    "empty files": Kind(empty, dict.fromkeys(("e.png", "e.dcm", "e.nii.gz"), "truncated"), {}),
    "files that are none": Kind(
        not_what_they_say, dict.fromkeys(("t.png", "t.dcm", "t.nii", "t.nii.gz", "t.tif"), "unreadable"), {}
    ),
    "rubbish as DICOM": Kind(rubbish, {f"r{n}.dcm": "unreadable" for n in range(20)}, {}),
    "odd names": Kind(names, {}, {"*": "used"}),
    "archives": Kind(archives, dict.fromkeys(("a.zip", "b.tar.gz", "c.7z"), "unsupported_format"), {}),
    "two thousand texts": Kind(many_small, {f"n{n}.txt": "not_a_scan" for n in range(2000)}, {}),
    "a gzip bomb": Kind(gzip_bomb, {}, {"bomb": "used"}, volumes=True),
    "a gzip file that lies": Kind(gzip_lie, {"lie.nii.gz": "truncated"}, {}, volumes=True),
    "a NIfTI file too large": Kind(
        lambda f: nifti(f / "big.nii", (30000, 30000, 30000)), {"big.nii": "too_large"}, {}, volumes=True
    ),
    "a NIfTI file without voxels": Kind(
        lambda f: nifti(f / "none.nii", (0, 12, 4)), {"none.nii": "bad_pixels"}, {}, volumes=True
    ),
    "a NIfTI header of petabytes": Kind(
        lambda f: nifti(f / "h.nii.gz", (12, 12, 4), offset=(108, struct.pack("<f", 1e15))),
        {"h.nii.gz": "unreadable"},
        {},
        volumes=True,
    ),
    "a matrix of NaN": Kind(
        lambda f: nifti(f / "m.nii", (12, 12, 4), sform=(280, struct.pack("<12f", *[np.nan] * 12))),
        {"m.nii": "bad_affine"},
        {},
        volumes=True,
    ),
    "a PNG bomb": Kind(lambda f: png(f / "big.png", 60000, 60000), {"big.png": "too_large"}, {}),
    "a PNG that lies": Kind(
        lambda f: png(f / "lie.png", 9000, 9000, zlib.compress(b"x")), {}, {"lie": "undecodable"}
    ),
    "a PNG with a hole": Kind(
        lambda f: sparse(png(f / "hole.png", 12, 12, end=False), 8 << 30), {"hole.png": "truncated"}, {}
    ),
    "a ring of TIFF pages": Kind(tiff_ring, {}, {"*": "used"}),
    "DICOM rows that lie": Kind(
        lambda f: changed_dicom(f / "rows.dcm", Rows=32000, Columns=32000), {"rows.dcm": "truncated"}, {}
    ),
    "a billion frames": Kind(
        lambda f: changed_dicom(f / "frames.dcm", NumberOfFrames="1000000000"),
        {"frames.dcm": "multi_frame"},
        {},
    ),
    "a deflated bomb": Kind(deflated_bomb, {"deflated.dcm": "too_large"}, {}),
    "pixels without end": Kind(long_pixels, {"long.dcm": "bad_pixels"}, {}),
    "values that are no numbers": Kind(
        float_tiffs,
        {},
        {"one_nan": "used", "one_inf": "used", "huge": "not_finite", "all_nan": "not_finite"},
        says="2 scans of 'target' hold values that are no numbers (NaN)",
    ),
    "slopes that overflow": Kind(overflows, {}, {"slope0": "not_finite", "slope1": "not_finite"}),
    "one grey value": Kind(
        lambda f: write_image(f / "flat.png", np.full((12, 12), 9, np.uint8)),
        {},
        {"flat": "used"},
        says="1 scans of 'target' have one grey value everywhere",
    ),
    "three of four slices": Kind(
        series_with_a_lost_slice,
        {"patient/003.dcm": "unreadable"},
        {"patient": "used"},
        volumes=True,
        says="1 scans of 'target' may lack slices (case 'patient': 1 file beside its 3 slices cannot be opened",
    ),
}


def sites(root: Path, kind: Kind) -> None:
    """A clean source with labels, and a target with good scans and the hostile ones."""
    rows = ["case,label"]
    for number in range(8):
        if kind.volumes:
            write_nifti(root / "source" / f"s{number}.nii", volume(number))
        else:
            write_image(root / "source" / f"s{number}.png", image(number))
        rows.append(f"s{number},{'xy'[number % 2]}")
    (root / "labels.csv").write_text("\n".join(rows))
    for number, name in enumerate(GOOD):
        if kind.volumes:
            write_nifti(root / "target" / f"{name}.nii", volume(20 + number))
        else:
            write_image(root / "target" / f"{name}.png", image(20 + number))
    kind.make(root / "target")


QUICK = (
    *(
        "a pipe",
        "two links at each other",
        "a folder too deep",
        "rubbish as DICOM",
        "odd names",
        "a gzip bomb",
    ),
    *("a NIfTI header of petabytes", "values that are no numbers", "three of four slices"),
)
"""Those that are tried in every run of the tests; the others in the long one."""


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_a_hostile_folder_is_told_and_what_is_good_in_it_is_used(tmp_path, name):
    kind = KINDS[name]
    sites(tmp_path, kind)
    done = run(["-c", TRIAL, str(SECONDS), str(tmp_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["code"] == 0, done.stderr
    assert "error" not in result, result["error"]
    assert "fault of medtl" not in done.stderr
    assert result["grown"] < MEMORY
    found = json.loads(done.stdout)["folders"][0]
    assert found["num_volumes"] >= len(GOOD)
    reasons = {row["reason"] for row in found["rejected"]}
    assert reasons == set(kind.left_out.values())
    if "*" not in kind.left_out:
        assert sum(row["number"] for row in found["rejected"]) == len(kind.left_out)
    cases = result["cases"]
    assert {case: cases.pop(case) for case in GOOD} == dict.fromkeys(GOOD, "used")
    if "*" in kind.cases:
        assert set(cases.values()) == {"used"}
    else:
        assert cases == kind.cases
    assert kind.says in " ".join(result["warnings"])


def test_three_of_four_slices_are_a_doubt_that_outputs_name(tmp_path):
    sites(tmp_path, KINDS["three of four slices"])
    done = run(["-c", TRIAL, str(SECONDS), str(tmp_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    doubt = "1 file beside its 3 slices cannot be opened: slices may be missing"
    assert json.loads(done.stdout)["folders"][0]["doubts"] == [{"doubt": doubt, "number": 1}]
    for table in ("found/volumes.csv", "cases.csv"):
        assert doubt in (tmp_path / table).read_text()


def test_a_folder_that_may_not_be_entered_does_not_hide_the_others(tmp_path, monkeypatch):
    sites(tmp_path, Kind(lambda f: write_image(f / "closed" / "c.png", image(90)), {}, {}))
    scandir = os.scandir

    def closed(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    table = collect_cases(
        source=[tmp_path / "source"], labels=tmp_path / "labels.csv", target=tmp_path / "target"
    )
    assert {c.case for c in table.select(domain="target")} == set(GOOD)
    (rejection,) = table.rejections["target"]
    assert (rejection.path, rejection.code) == ("closed", "unreadable")
    assert "Permission denied" in rejection.detail


def test_a_folder_that_is_a_link_at_itself_is_one_error(tmp_path):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    for given in ({"source": [], "target": tmp_path / "ring"}, {"source": [tmp_path / "ring"]}):
        with pytest.raises(DataError, match="'ring'"):
            collect_cases(**given)
    with pytest.raises(DataError, match="no folder 'ring'"):
        scan_folder(tmp_path / "ring")


def test_numbers_at_the_end_of_names_are_no_suffix(tmp_path):
    names = [f"IM.{number:04d}" for number in range(4)]
    paths = write_series(tmp_path / "p", volume(50).astype(np.uint16), names=names)
    paths[3].write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (item,) = scan_folder(tmp_path).items
    assert item.remark == "1 file beside its 3 slices cannot be opened: slices may be missing"


def test_masks_are_found_beside_pipes(tmp_path):
    write_image(tmp_path / "m.png", image(1))
    os.mkfifo(tmp_path / "pipe.png")
    (mask,), (rejection,) = scan_masks(tmp_path)
    assert (mask.name, rejection.path, rejection.code) == ("m", "pipe.png", "not_a_scan")


TABLES: dict[str, Callable[[Path], Any]] = {
    "a million columns": lambda p: p.write_text(",".join(f"c{n}" for n in range(1_000_000)) + "\n"),
    "a cell of a million characters": lambda p: p.write_text("case,label\ns0," + "x" * 1_000_000 + "\n"),
    "a quotation mark without an end": lambda p: p.write_text('case,label\ns0,"' + "x,y\n" * 100_000),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "a link at itself": lambda p: p.symlink_to(p),
    "NUL bytes": lambda p: p.write_bytes(b"case,label\n" + bytes(5000)),
    "nine thousand columns": lambda p: p.write_text(
        "case,label," + ",".join(f"c{n}" for n in range(9000)) + "\n"
    ),
    "a column of a hundred thousand characters": lambda p: p.write_text("label," + "x" * 100_000 + "\nx,1\n"),
    "a column of a million characters": lambda p: p.write_text(
        "case,label," + "x" * 1_000_000 + "\ns0,x,1\n"
    ),
    "UTF-16": lambda p: p.write_text("case,label\ns0,x\n", encoding="utf-16"),
    "nothing": Path.touch,
    "a hundred thousand sites": lambda p: p.write_text(
        "case,label,site\n" + "".join(f"s0,x,site{n}\n" for n in range(100_000))
    ),
    "a label a case": lambda p: p.write_text("case,label\n" + "".join(f"s{n},label {n}\n" for n in range(8))),
    "a hundred thousand strangers": lambda p: p.write_text(
        "case,label\n" + "".join(f"z{n},x\n" for n in range(100_000))
    ),
}


READ = """
import signal, sys
from pathlib import Path
from medtl.cli.report import main
from medtl.data.cases.collect import collect_cases
from medtl.errors import DataError
from medtl.evaluation.tables.predictions import PredictionTable

signal.alarm(60)
path = Path(sys.argv[2])
try:
    if sys.argv[1] == "labels":
        collect_cases(source=[path.parent / "source"], labels=path)
    elif sys.argv[1] == "report":
        main([str(path), "--out", "page"])
    else:
        PredictionTable.from_csv(path)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "reader", ["labels", *(pytest.param(r, marks=pytest.mark.slow) for r in ("predictions", "report"))]
)
@pytest.mark.parametrize("name", list(TABLES))
def test_a_hostile_table_is_told_in_a_short_message(tmp_path, name, reader):
    for number in range(8):
        write_image(tmp_path / "source" / f"s{number}.png", image(number))
    path = tmp_path / "table.csv"
    TABLES[name](path)
    done = run(["-c", READ, reader, str(path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "table.csv" in done.stdout or name == "a label a case"
    assert 20 < len(done.stdout) < 4000
    assert str(tmp_path) not in done.stdout
