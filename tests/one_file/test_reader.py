"""Another format costs one file: its reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.one_file.conftest import Copy

READER = '''"""MetaImage: `.mha`, a header of text and the voxels in one file."""

from pathlib import Path
from typing import Any

import numpy as np

from medtl.scans.geometry import LPS_TO_RAS, as_affine
from medtl.scans.items import Rejection, Volume, VolumeItem
from medtl.scans.reader import AGAIN, FileReader

TYPES = {"MET_UCHAR": "<u1", "MET_SHORT": "<i2", "MET_FLOAT": "<f4"}


class MetaImage(FileReader):
    """Uncompressed three-dimensional MetaImage."""

    kind = "metaimage"
    suffixes = (".mha",)

    def header(self, root: Path, file: str, name: str) -> VolumeItem | Rejection:
        fields, offset = parse(root / file)
        i, j, k = map(int, fields["DimSize"].split())
        dtype = np.dtype(TYPES[fields["ElementType"]])
        if (root / file).stat().st_size < offset + i * j * k * dtype.itemsize:
            return Rejection.of(file, "truncated", "voxels are missing", AGAIN)
        matrix = np.eye(4)
        axes = np.array(fields["TransformMatrix"].split(), dtype=float).reshape(3, 3)
        matrix[:3, :3] = axes.T * np.array(fields["ElementSpacing"].split(), dtype=float)
        matrix[:3, 3] = np.array(fields["Offset"].split(), dtype=float)
        facts = {"bits": str(8 * dtype.itemsize)}
        place = as_affine(LPS_TO_RAS @ matrix)
        return VolumeItem(root, (file,), self.kind, name, file, shape=(k, j, i), affine=place, header=facts)

    def read(self, item: VolumeItem) -> Volume:
        path = item.root / item.files[0]
        fields, offset = parse(path)
        dtype = np.dtype(TYPES[fields["ElementType"]])
        array = np.fromfile(path, dtype, int(np.prod(item.shape)), offset=offset)
        return Volume.of(item, array.reshape(item.shape))


def parse(path: Path) -> tuple[dict[str, Any], int]:
    head, end, _ = path.read_bytes()[:4096].partition(b"ElementDataFile = LOCAL\\n")
    if not end:
        raise ValueError("no MetaImage")
    lines = [line.split(" = ", 1) for line in head.decode("ascii").splitlines()]
    return {key.strip(): value.strip() for key, value in lines}, len(head) + len(end)
'''
HEADER = """ObjectType = Image
NDims = 3
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 -20 30
ElementSpacing = 0.5 0.7 3
DimSize = {2} {1} {0}
ElementType = MET_{3}
ElementDataFile = LOCAL
"""
TYPES = {"uint8": "UCHAR", "int16": "SHORT"}


def write_mha(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = HEADER.format(*array.shape, TYPES[array.dtype.name])
    path.write_bytes(text.encode() + array.tobytes())


@pytest.fixture
def folder(copy: Copy) -> Path:
    """A site of three scans and their masks, a damaged one among the scans."""
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        scan = random.integers(-1000, 1000, (4, 8, 6)).astype(np.int16)
        write_mha(copy.root / "site" / f"{name}.mha", scan)
        write_mha(copy.root / "site" / "masks" / f"{name}.mha", (scan > 0).astype(np.uint8))
    (copy.root / "site" / "cut.mha").write_bytes((copy.root / "site" / "a.mha").read_bytes()[:-5])
    (copy.root / "site" / "text.mha").write_text("nothing")
    return copy.root / "site"


def test_without_its_reader_the_format_is_named_and_left_out(copy: Copy, folder: Path) -> None:
    found = json.loads(copy.medtl("inspect", str(folder), "--json"))["folders"][0]
    assert found["num_volumes"] == 0
    assert {(r["reason"], r["number"]) for r in found["rejected"]} == {("unsupported_format", 8)}


def test_one_file_reads_another_format_everywhere(copy: Copy, folder: Path) -> None:
    copy.add("medtl/scans/readers/metaimage.py", READER)
    found = json.loads(copy.medtl("inspect", str(folder), "--json"))["folders"][0]
    assert [(g["kind"], g["size (k x j x i)"], g["number"]) for g in found["groups"]] == [
        ("metaimage", "4 x 8 x 6", 3)
    ]
    assert {(r["reason"], r["number"]) for r in found["rejected"]} == {
        ("truncated", 1),
        ("unreadable", 1),
        ("mask", 3),
    }
    printed = copy.python(
        """
import tempfile
from pathlib import Path
import numpy as np
from medtl.data.cases.collect import collect_cases
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.scans import read_mask, read_volume, scan_folder, write_mask

table = collect_cases(source=[Path("site")], masks=[Path("site/masks")], structures=["bright=1"])
print([case.case for case in table.cases], table.classes)
for case in table.cases:
    volume = read_volume(case.item)
    mask = read_mask(case.mask_item, case.item, table.labels).array
    assert (mask == (volume.array > 0)).all()
    assert volume.affine == ((-0.5, 0, 0, -10), (0, -0.7, 0, 20), (0, 0, 3, 30), (0, 0, 0, 1))
    path = write_mask(Path("out") / case.case, mask, case.item, table.labels)
    print(path.name)
items = [case.item for case in table.cases]
spec = suggest_preprocess(items, image_size=8, num_slices=4)
with tempfile.TemporaryDirectory() as folder:
    print(VolumeCache(Path(folder), spec).get(items[0]).shape)
(item, *_), = [scan_folder(Path("out")).items]
print(item.kind, item.shape)
"""
    )
    assert printed.splitlines() == [
        "['a', 'b', 'c'] ('background', 'bright')",
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
        "(1, 4, 8, 8)",
        "nifti (4, 8, 6)",
    ]


def test_the_contract_of_readers_holds_for_it(copy: Copy) -> None:
    """Discovery finds it, in the order of trust, and its suffix is known."""
    copy.add("medtl/scans/readers/metaimage.py", READER)
    printed = copy.python(
        "from medtl.scans.reader import readers, without_suffix\n"
        "print([r.kind for r in readers()], without_suffix('a.b.mha'))"
    )
    assert printed.strip() == "['dicom', 'seg', 'image', 'metaimage', 'nifti'] a.b"


def test_a_module_without_a_reader_is_named(copy: Copy) -> None:
    copy.add("medtl/scans/readers/nothing.py", "VALUE = 1\n")
    printed = copy.python(
        "from medtl.scans.reader import readers\ntry:\n    readers()\nexcept TypeError as error:\n    print(error)"
    )
    assert printed.startswith("medtl.scans.readers.nothing defines 0 readers; expected one")
