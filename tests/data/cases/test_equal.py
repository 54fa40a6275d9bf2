"""Equal scans under other names, ids and formats; scans without numbers; scans of one grey value."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from medtl.data.cases.collect import collect_cases
from medtl.data.cohort import Cohort
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError
from tests.scans.make_scans import write_dicom, write_image, write_nifti, write_site

COLOUR = Preprocess(16, channels=3, intensity="unit")


def grey(seed: int):
    return np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)


def site(folder, num, *, first=0, labels=("x", "y"), patients=None):
    """Grey images, and their CSV beside the folder."""
    rows = ["case,label,patient"]
    for number in range(num):
        name = f"{folder.name}{number:03d}"
        write_image(folder / f"{name}.png", grey(first + number))
        rows.append(f"{name},{labels[number % len(labels)]},{(patients or {}).get(number, name)}")
    table = folder.parent / f"{folder.name}.csv"
    table.write_text("\n".join(rows) + "\n")
    return folder, table


def prepared(tmp_path, spec=None, **given):
    table = collect_cases(**given)
    return Cohort.prepare(table, spec or Preprocess(16, intensity="unit"), tmp_path / "cache").table


def status(table):
    return {case.case: (case.status, case.reason) for case in table.cases}


def test_a_copied_folder_is_no_other_site(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    shutil.copytree(source, tmp_path / "b")
    for path in sorted((tmp_path / "b").iterdir()):
        path.rename(path.with_name(path.name.replace("a", "other")))
    with pytest.raises(
        DataError, match=r"12 of the 12 target scans are scans of the source .* of 'b' is 'a000' of 'a'"
    ):
        prepared(tmp_path, source=[source], labels=labels, target=tmp_path / "b")


def test_equal_pixels_are_found_in_another_format(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    for number in range(12):
        write_dicom(
            tmp_path / "b" / f"{number}.dcm",
            grey(number),
            modality="CR",
            series=f"1.{number}",
            patient_id=f"N{number}",
        )
    with pytest.raises(DataError, match="12 of the 12 target scans"):
        prepared(tmp_path, source=[source], labels=labels, target=tmp_path / "b")


def test_equal_volumes_are_found_without_their_geometry(tmp_path):
    spec = Preprocess(16, 4)
    volumes = np.random.default_rng(0).integers(0, 900, (8, 4, 12, 10)).astype(np.int16)
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows([["case", "label"], *([f"s{n}", "xy"[n % 2]] for n in range(8))])
    for number, volume in enumerate(volumes):
        write_nifti(tmp_path / "a" / f"s{number}.nii.gz", volume, np.diag([1, 1, 3, 1]))
        write_nifti(tmp_path / "b" / f"t{number}.nii", volume, np.diag([-2, 1, 5, 1]))
    with pytest.raises(DataError, match="8 of the 8 target scans"):
        prepared(tmp_path, spec, source=[tmp_path / "a"], labels=tmp_path / "a.csv", target=tmp_path / "b")


def test_a_few_equal_scans_are_left_out_of_the_target_and_said(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    target, _ = site(tmp_path / "b", 20, first=100)
    write_image(target / "b005.png", grey(3))
    write_image(target / "b009.png", grey(4))
    table = prepared(tmp_path, source=[source], labels=labels, target=target)
    assert status(table)["b005"] == ("excluded", "duplicate")
    assert status(table)["a003"] == ("used", "")
    assert len(table.select(domain="target")) == 18
    assert any(
        "2 target scans are also in the source" in text and "'b005', 'b009'" in text
        for text in table.warnings
    )
    (first, _) = [r for r in table.rejections["b"] if r.code == "duplicate"]
    assert "'a003' of 'a'" in first.detail


def test_equal_scans_in_two_splits_stay_in_the_first(tmp_path):
    source, labels = site(tmp_path / "a", 24)
    before = {
        c.case: c.split for c in collect_cases(source=[source], labels=labels, test_fraction=0.25).cases
    }
    names = {split: [n for n, s in before.items() if s == split] for split in ("train", "validation", "test")}
    for old, new in (
        (names["train"][0], names["validation"][0]),
        (names["validation"][1], names["test"][0]),
    ):
        (source / f"{new}.png").write_bytes(re_encoded(source / f"{old}.png"))
    table = prepared(tmp_path, source=[source], labels=labels, test_fraction=0.25)
    left_out = {name for name, (state, _) in status(table).items() if state == "excluded"}
    assert left_out == {names["validation"][0], names["test"][0]}
    assert any("2 scans are also in another split" in text for text in table.warnings)


def test_a_validation_that_is_all_training_is_one_error(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    cases = collect_cases(source=[source], labels=labels).cases
    train = next(c.case for c in cases if c.split == "train" and c.label == "x")
    for case in cases:
        if case.split == "validation" and case.label == "x":
            (source / f"{case.case}.png").write_bytes(
                re_encoded(source / f"{train}.png") + case.case.encode()
            )
    message = (
        rf"left out, and nothing is left of class 'x' in validation.* has the pixels of case '{train}' of 'a'"
    )
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, source=[source], labels=labels)


def test_an_equal_scan_of_the_few_labelled_is_not_tested_on(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    target, _ = site(tmp_path / "b", 12, first=100)
    (tmp_path / "few.csv").write_text("case,label,patient\nb000,x,b000\nb001,y,b001\n")
    (target / "b007.png").write_bytes(re_encoded(target / "b000.png"))
    table = prepared(tmp_path, source=[source], labels=labels, target=target, few_labels=tmp_path / "few.csv")
    assert status(table)["b007"] == ("excluded", "duplicate")
    assert len(table.select(domain="target", split="train")) == 2


def test_what_is_left_out_is_counted_once(tmp_path):
    source, labels = site(tmp_path / "a", 12)
    target, _ = site(tmp_path / "b", 20, first=100)
    write_image(target / "b005.png", grey(3))
    (target / "copy.png").write_bytes((target / "b006.png").read_bytes())
    table = collect_cases(source=[source], labels=labels, target=target)
    cohort = Cohort.prepare(table, Preprocess(16, intensity="unit"), tmp_path / "cache")
    assert [row["left out"] for row in cohort.summary() if row["site"] == "b"] == ["2 duplicate"]


def re_encoded(path):
    """The same pixels in other bytes."""
    return path.read_bytes() + b"\0"


def test_equal_scans_of_two_patients_in_one_split_and_labels_that_differ_are_said(tmp_path):
    source, labels = site(tmp_path / "a", 24)
    before = {c.case: (c.split, c.label) for c in collect_cases(source=[source], labels=labels).cases}
    one, two = [n for n, (split, label) in before.items() if split == "train" and label == "x"][:2]
    other = next(n for n, (split, label) in before.items() if split == "train" and label == "y")
    for name in (two, other):
        (source / f"{name}.png").write_bytes(re_encoded(source / f"{one}.png") + name.encode())
    table = prepared(tmp_path, source=[source], labels=labels)
    assert all(state == "used" for state, _ in status(table).values())
    assert any(
        "3 cases of several patients are one scan" in text and repr(one) in text for text in table.warnings
    )
    assert any("labels of equal scans differ" in text for text in table.warnings)


def test_equal_scans_of_one_patient_are_no_doubt(tmp_path):
    source, labels = site(tmp_path / "a", 12, patients={2: "P", 4: "P"})
    (source / "a004.png").write_bytes(re_encoded(source / "a002.png"))
    table = prepared(tmp_path, source=[source], labels=labels)
    assert not [text for text in table.warnings if "equal" in text]


def test_masks_are_served_alike(tmp_path):
    for name in ("a", "b"):
        for number in range(6):
            write_image(tmp_path / name / f"{name}{number}.png", grey(number))
            mask = (np.arange(12) < 3 + number).astype(np.uint8)[None].repeat(12, 0)
            write_image(tmp_path / f"{name}_masks" / f"{name}{number}.png", mask)
    with pytest.raises(DataError, match="6 of the 6 target scans"):
        prepared(
            tmp_path,
            source=[tmp_path / "a"],
            masks=[tmp_path / "a_masks"],
            target=tmp_path / "b",
            structures=["s=1"],
        )


def test_constant_scans_are_used_and_said_and_are_no_copies(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 8)
    target, _ = write_site(tmp_path / "b", [None] * 8, first_seed=100)
    for path in (source / "a000.png", source / "a001.png", target / "b000.png", target / "b001.png"):
        write_image(path, np.full((8, 8, 3), 7, np.uint8) + np.uint8(int(path.stem[-1])))
    table = prepared(tmp_path, COLOUR, source=[source], labels=labels, target=target)
    assert len(table.select()) == 24
    said = {text for text in table.warnings if "one grey value everywhere" in text}
    assert said == {
        f"2 scans of {name!r} have one grey value everywhere after preprocessing: nothing can be seen in them "
        f"('{name}000', '{name}001')."
        for name in "ab"
    }


def test_scans_without_numbers_are_masked_and_said_or_left_out(tmp_path):
    labels = ["case,label"]
    for number in range(16):
        image = np.random.default_rng(number).normal(100, 20, (12, 12)).astype(np.float32)
        if number == 4:
            image[0, 0] = np.nan
        if number == 5:
            image[:] = np.nan
        if number == 6:
            image[3, 3] = 3e38
        write_image(tmp_path / "a" / f"s{number:02d}.tif", image)
        labels.append(f"s{number:02d},{'xy'[number % 2]}")
    (tmp_path / "a.csv").write_text("\n".join(labels))
    table = prepared(
        tmp_path, Preprocess(16, intensity="percentile"), source=[tmp_path / "a"], labels=tmp_path / "a.csv"
    )
    found = status(table)
    assert found["s04"] == ("used", "")
    assert found["s05"] == found["s06"] == ("excluded", "not_finite")
    assert (
        "1 scans of 'a' hold values that are no numbers (NaN): these count as background ('s04')."
        in table.warnings
    )
    details = {r.path: r.detail for r in table.rejections["a"]}
    assert "100 % of its values are no numbers" in details["s05.tif"]
    assert "exceed the range of 32-bit numbers" in details["s06.tif"]
