from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from medtl.data.cases.collect import collect_cases
from medtl.data.cases.structures import mask_warnings
from medtl.errors import ConfigError, DataError
from medtl.labelmap import LabelMap
from medtl.scans.items import Rejection
from medtl.scans.masks import MaskCounts, read_mask
from tests.scans.make_scans import random_image, write_image, write_nifti, write_series, write_site


def write_masked(folder, count=8, *, values=(0, 1), first_seed=0, shape=(8, 8)):
    """A site of images with masks in folder/masks; every mask holds every value."""
    write_site(folder, [None] * count, first_seed=first_seed)
    for number in range(count):
        mask = np.array(values, np.uint8)[
            (np.arange(shape[0] * shape[1]) * len(values) // (shape[0] * shape[1]))
        ]
        write_image(folder / "masks" / f"{folder.name}{number:03d}.png", mask.reshape(shape))
    return folder, folder / "masks"


def faults_of(**arguments):
    with pytest.raises(DataError) as caught:
        collect_cases(**arguments)
    return str(caught.value)


def by_case(table):
    return {case.case: case for case in table.cases}


def test_the_whole_way(tmp_path):
    source, masks = write_masked(tmp_path / "a", 12, values=(0, 1, 2))
    target, target_masks = write_masked(tmp_path / "b", 4, values=(0, 1, 2), first_seed=50)
    (masks / "a011.png").unlink()
    write_image(masks / "a010.png", random_image(1, (8, 8, 3)))
    write_image(masks / "a009.png", np.zeros((8, 9), np.uint8))
    (target_masks / "b003.png").unlink()
    write_image(target_masks / "b002.png", np.zeros((4, 9), np.uint8))
    (tmp_path / "a" / "labels.json").write_text('{"cell": 1, "nucleus": 2}')
    table = collect_cases(source=[source], masks=[masks], target=target, target_masks=target_masks)
    cases = by_case(table)
    assert table.classes == table.labels.classes == ("background", "cell", "nucleus")
    assert (cases["a000"].mask, cases["a000"].label, cases["a000"].status) == ("a000.png", None, "used")
    assert cases["a000"].mask_item.files == ("a000.png",)
    assert {name: (c.status, c.reason, c.mask, c.split) for name, c in cases.items() if c.reason} == {
        "a009": ("excluded", "mask_geometry", None, ""),
        "a010": ("excluded", "mask_values", None, ""),
        "a011": ("excluded", "no_mask", None, ""),
    }
    assert [len(table.select(domain="source", split=s)) for s in ("train", "validation")] == [7, 2]
    assert [(cases[f"b00{n}"].mask, cases[f"b00{n}"].split) for n in range(4)] == [
        ("b000.png", "test"),
        ("b001.png", "test"),
        (None, "test"),
        (None, "test"),
    ]
    flow = table.flow()
    assert flow["a"]["rejected"] == {"mask": 11, "not_a_scan": 1}
    assert flow["a"]["excluded"] == {"mask_geometry": 1, "mask_values": 1, "no_mask": 1}
    assert flow["b"]["excluded"] == {}
    text = " ".join(table.warnings)
    assert (
        "2 of 12 source cases have a mask that cannot be used (1 mask_geometry, 1 mask_values); for example case "
        "'a009', mask 'a009.png': the mask has 8 x 9 voxels, the scan 8 x 8. Resample" in text
    )
    assert "1 of 12 source cases have no mask and are left out, for example case 'a011'." in text
    assert "1 of 4 target cases have a mask that cannot be used (1 mask_geometry)" in text
    assert "1 of 4 target cases have no mask and are used, but not evaluated" in text
    table.to_csv(tmp_path / "cases.csv")
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert [row["mask"] for row in rows[:2]] == ["a000.png", "a001.png"]
    assert str(tmp_path) not in repr(table)


def test_target_masks_decide_nothing(tmp_path):
    source, masks = write_masked(tmp_path / "a", values=(0, 1))
    target, target_masks = write_masked(tmp_path / "b", values=(0, 7, 9), first_seed=50)
    (target_masks / "labels.json").write_text('{"other": 7, "foreground": 9}')
    blind = collect_cases(source=[source], masks=[masks], target=target)
    seeing = collect_cases(source=[source], masks=[masks], target=target, target_masks=target_masks)
    assert blind.labels == seeing.labels
    for one, two in zip(blind.cases, seeing.cases, strict=True):
        assert (one.case, one.patient, one.split, one.status) == (
            two.case,
            two.patient,
            two.split,
            two.status,
        )
    assert any(
        "label file with the target's masks (background 0, other 7, foreground 9) disagrees with the label map"
        in w
        for w in seeing.warnings
    )


def test_patients_and_groups_come_from_the_csv_without_labels(tmp_path):
    source, masks = write_masked(tmp_path / "a", 12)
    rows = [f"a{n:03d},q{n // 3},{'FM'[n % 2]}" for n in range(12)]
    (tmp_path / "l.csv").write_text("case,patient,group_sex\n" + "\n".join(rows))
    for seed in range(4):
        table = collect_cases(
            source=[source], masks=[masks], labels=tmp_path / "l.csv", test_fraction=0.25, seed=seed
        )
        splits = {}
        for case in table.cases:
            splits.setdefault(case.patient, set()).add(case.split)
        assert len(splits) == 4
        assert all(len(found) == 1 for found in splits.values())
        assert {s for found in splits.values() for s in found} == {"train", "validation", "test"}
    assert by_case(table)["a001"].groups == {"group_sex": "M"}
    # A column label is no matter either.
    (tmp_path / "l.csv").write_text("case,label\n" + "".join(f"a{n:03d},x\n" for n in range(12)))
    table = collect_cases(source=[source], masks=[masks], labels=tmp_path / "l.csv")
    assert {case.label for case in table.cases} == {None}


def test_two_sources_share_one_map(tmp_path):
    one, masks = write_masked(tmp_path / "a", values=(0, 1))
    two, more = write_masked(tmp_path / "b", values=(0, 1), first_seed=50)
    (masks / "labels.json").write_text('{"lesion": 1}')
    both = {"source": [one, two], "masks": [masks, more]}
    assert collect_cases(**both).labels == LabelMap({"lesion": (1,)})
    (more / "labels.json").write_text('{"lesion": [1], "background": 0}')
    assert collect_cases(**both).labels == LabelMap({"lesion": (1,)})
    (more / "labels.json").write_text('{"lesion": 2}')
    text = faults_of(**both)
    assert (
        "the label files of 'a/masks' (background 0, lesion 1) and 'b/masks' (background 0, lesion 2) disagree"
        in text
    )
    assert collect_cases(**both, structures=["lesion=1"]).labels == LabelMap({"lesion": (1,)})


@pytest.mark.parametrize("place", ["a/masks/labels.json", "a/labels.json", "a/masks/dataset.json"])
def test_where_the_label_file_may_lie(tmp_path, place):
    source, masks = write_masked(tmp_path / "a", values=(0, 3, 4))
    (tmp_path / place).write_text(json.dumps({"labels": {"background": 0, "x": 4, "y": 3}}))
    assert collect_cases(source=[source], masks=[masks]).classes == ("background", "x", "y")
    table = collect_cases(source=[source], masks=[masks], structures=["y"])
    assert table.labels == LabelMap({"y": (3,)}, background=(0, 4))
    table = collect_cases(source=[source], masks=[masks], structures=["z=3", "void=4"])
    assert table.labels == LabelMap({"z": (3,)}, void=(4,))


def test_a_site_folder_may_hold_the_label_file_of_masks_elsewhere(tmp_path):
    source, masks = write_masked(tmp_path / "a", values=(0, 3))
    elsewhere = tmp_path / "deep" / "down"
    elsewhere.parent.mkdir()
    masks.rename(elsewhere)
    (source / "labels.json").write_text('{"x": 3}')
    assert collect_cases(source=[source], masks=[elsewhere]).classes == ("background", "x")


@pytest.mark.parametrize(
    ("values", "classes"),
    [((0, 255), ("background", "foreground")), ((0, 1, 2), ("background", "label_1", "label_2"))],
)
def test_without_names_the_values_are_used_and_it_is_said(tmp_path, values, classes):
    source, masks = write_masked(tmp_path / "a", values=values)
    table = collect_cases(source=[source], masks=[masks])
    assert table.classes == classes
    (warning,) = [w for w in table.warnings if "Nothing names the values" in w]
    assert "8 of 8 were read" in warning
    assert table.labels.text() in warning


def test_a_few_strange_voxels_of_one_mask_are_no_structure(tmp_path):
    source, masks = write_masked(tmp_path / "a", 12, values=(0, 1), shape=(30, 30))
    for number in range(12):
        write_image(source / f"a{number:03d}.png", random_image(number, (30, 30, 3)))
    mask = np.zeros((30, 30), np.uint8)
    mask[:20], mask[0, :5] = 1, 77
    write_image(masks / "a003.png", mask)
    table = collect_cases(source=[source], masks=[masks])
    assert table.classes == ("background", "foreground")
    assert any("the values 77, each in a few voxels of one mask, are left out" in w for w in table.warnings)


@pytest.mark.parametrize(
    ("structures", "text"),
    [
        (["lesion"], "names lesion without values, and there is no labels.json"),
        (["lesion=1", "other"], "NAME=VALUE pairs or names, not both"),
        (["lesion=x"], "takes NAME=VALUE, got 'lesion=x'"),
        (["lesion=1", "other=1"], "value 1 stands for both"),
    ],
)
def test_structures_that_cannot_be(tmp_path, structures, text):
    source, masks = write_masked(tmp_path / "a")
    assert text in faults_of(source=[source], masks=[masks], structures=structures)


def test_label_files_that_cannot_be(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    (masks / "labels.json").write_text('{"lesion": "one"}')
    assert "'lesion' is 'one'; expected an integer" in faults_of(source=[source], masks=[masks])
    (masks / "labels.json").write_text('{"lesion": 1}')
    assert "no structure 'lesions'. Perhaps you meant 'lesion'" in faults_of(
        source=[source], masks=[masks], structures=["lesions"]
    )


def test_grey_images_are_no_masks(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    for number in range(8):
        write_image(masks / f"a{number:03d}.png", random_image(number, (8, 8)))
    assert "these look like grey values, not labels" in faults_of(source=[source], masks=[masks])
    for number in range(8):
        write_image(masks / f"a{number:03d}.png", np.zeros((8, 8), np.uint8))
    assert "hold 0 alone" in faults_of(source=[source], masks=[masks])


def test_faults_are_reported_together(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    write_image(masks / "a000_seg.png", np.ones((8, 8), np.uint8))
    (tmp_path / "l.csv").write_text("case,patient\nghost,1\n")
    text = faults_of(
        source=[source],
        masks=[masks, tmp_path / "nowhere"],
        labels=tmp_path / "l.csv",
        target=source / "masks",
        target_masks=tmp_path / "no",
    )
    assert text.startswith("The data cannot be used for ")
    assert "labels 1 cases for which there is no scan" in text
    assert "more than one mask (case 'a000' of 'a'" in text
    assert "no masks folder 'nowhere'" in text
    assert "no masks folder 'no'" in text
    assert str(tmp_path) not in text


def test_no_mask_at_all_is_usable(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    for number in range(8):
        write_image(masks / f"a{number:03d}.png", np.zeros((8, 9), np.uint8))
    text = faults_of(source=[source], masks=[masks])
    assert text.startswith(
        "The data cannot be used: 8 of 8 source cases have a mask that cannot be used (8 mask_geometry)"
    )
    assert "the sources have no masks: give --masks DIR" in faults_of(source=[source], structures=["x=1"])


def test_too_few_patients(tmp_path):
    source, masks = write_masked(tmp_path / "a", 4)
    (tmp_path / "l.csv").write_text("case,patient\n" + "".join(f"a00{n},q{n // 2}\n" for n in range(4)))
    text = faults_of(source=[source], masks=[masks], labels=tmp_path / "l.csv", test_fraction=0.2)
    assert "the source cases with masks are of 2 patients, 3 or more are needed" in text


def test_arguments_that_exclude_each_other(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    with pytest.raises(ConfigError, match="give --structures instead of --classes"):
        collect_cases(source=[source], masks=[masks], classes=["x"])


def test_a_target_alone_takes_the_structures_that_are_given(tmp_path):
    target, masks = write_masked(tmp_path / "b")
    table = collect_cases(source=[], target=target, target_masks=masks, structures=["lesion=1"])
    assert table.classes == ("background", "lesion")
    assert all(case.mask for case in table.cases)
    assert "masks of the target alone do not say what they mean" in faults_of(
        source=[], target=target, target_masks=masks
    )


def test_a_series_and_its_nifti_mask_in_another_order_of_axes(tmp_path):
    for number in range(4):
        volume = random_image(number, (4, 6, 5)).astype(np.uint16)
        write_series(
            tmp_path / "a" / f"s{number}", volume, series=f"1.5.{number}", patient_id=f"MRN5512{number}"
        )
    scans = collect_cases(source=[], target=tmp_path / "a").items()
    for item in scans:
        truth = np.zeros(item.shape, np.uint8)
        truth[1, 2, 3] = 1
        # As ITK-SNAP or dcm2niix would store it: RAS, the first two axes reversed.
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
        matrix[:3, 3] = (4, 5, 0)
        write_nifti(
            tmp_path / "m" / f"{item.name}.nii.gz",
            truth[:, ::-1, ::-1].copy(),
            np.array(item.affine) @ matrix,
        )
    table = collect_cases(source=[tmp_path / "a"], masks=[tmp_path / "m"])
    assert len(table.select()) == 4
    for case in table.cases:
        assert np.argwhere(read_mask(case.mask_item, case.item, table.labels).array).tolist() == [[1, 2, 3]]


# --- after the masks were read


def test_excluding_by_mask(tmp_path):
    source, masks = write_masked(tmp_path / "a")
    target, target_masks = write_masked(tmp_path / "b", first_seed=50)
    table = collect_cases(source=[source], masks=[masks], target=target, target_masks=target_masks)
    cases = by_case(table)

    def reject(name, code="unknown_label"):
        item = cases[name].item
        return Rejection(item.path, code, f"the values of {name}", "Name them.", item.files, item=item)

    after = table.exclude([reject("a000"), reject("b000"), reject("b001", "undecodable")])
    found = by_case(after)
    assert (found["a000"].status, found["a000"].reason) == ("excluded", "unknown_label")
    assert (found["b000"].status, found["b000"].mask, found["b000"].mask_item) == ("used", None, None)
    assert found["b001"].status == "excluded"
    assert after.flow()["a"]["excluded"] == {"unknown_label": 1}
    assert after.flow()["b"]["excluded"] == {"undecodable": 1}
    assert any("1 source cases have a mask that cannot be used and are left out" in w for w in after.warnings)
    assert any("for example case 'b000': the values of b000. Name them." in w for w in after.warnings)
    validation = [reject(c.case) for c in table.select(domain="source", split="validation")]
    with pytest.raises(DataError, match="nothing is left of the split 'validation'"):
        table.exclude(validation)
    everything = [reject(c.case) for c in table.select(domain="target")]
    assert len(table.exclude(everything).select(domain="target")) == 8


def census(table, change):
    """Counts of every masked case: 90 background and 10 of each structure, changed by name."""
    cases = [c for c in table.select() if c.mask_item is not None]
    plain = MaskCounts((90, *(10 for _ in table.labels.structures)))
    return mask_warnings(cases, [change.get(c.case, plain) for c in cases], table.labels)


def test_what_the_voxels_say(tmp_path):
    source, masks = write_masked(tmp_path / "a", values=(0, 1, 2))
    target, target_masks = write_masked(tmp_path / "b", values=(0, 1, 2), first_seed=50)
    table = collect_cases(
        source=[source], masks=[masks], target=target, target_masks=target_masks, structures=["x=1", "y=2"]
    )
    assert census(table, {}) == ((), ())
    warnings, faults = census(
        table,
        {
            "a000": MaskCounts((100, 0, 0)),
            "a001": MaskCounts((88, 5, 5), void=2, unknown={7: 1, 9: 1}),
            "a002": MaskCounts((90, 5, 5), overlap=3),
            **{f"b00{n}": MaskCounts((90, 10, 0)) for n in range(8)},
        },
    )
    assert faults == ()
    assert warnings == (
        "1 of the 8 masks of 'a' hold no structure (for example case 'a000'): they count as cases without any.",
        "1 of the 8 masks of 'a' hold values that the label map does not name (7, 9; 2 voxels, for example in case "
        "'a001'): these voxels are neither trained on nor judged.",
        "Segments overlap in 1 of the 8 masks of 'a' (3 voxels, for example in case 'a002'): the segment of the higher "
        "number counts there.",
        "None of the 8 masks of 'b' holds the structure 'y'.",
    )


def test_a_structure_that_no_source_holds(tmp_path):
    source, masks = write_masked(tmp_path / "a", values=(0, 1))
    target, target_masks = write_masked(tmp_path / "b", values=(0, 1, 2), first_seed=50)
    table = collect_cases(
        source=[source], masks=[masks], target=target, target_masks=target_masks, structures=["x=1", "y=2"]
    )
    warnings, faults = census(table, {f"a00{n}": MaskCounts((90, 10, 0)) for n in range(8)})
    assert warnings == ()
    assert faults == (
        "no source mask holds the structure 'y' (value 2): leave it out, or correct its value in labels.json or "
        "--structures",
    )
    # Held by cases of one split alone.
    held = {
        split: {c.case for c in table.select(domain="source", split=split)}
        for split in ("train", "validation")
    }
    without = {name: MaskCounts((90, 10, 0)) for name in held["train"]}
    (fault,) = census(table, without)[1]
    assert "the structure 'y' is in 2 source cases, and in none of the split 'train'" in fault
    without = {name: MaskCounts((90, 10, 0)) for name in held["validation"]}
    (warning,), faults = census(table, without)
    assert faults == ()
    assert "in none of the split 'validation'" in warning
    alone = replace(table, cases=table.select(domain="target"))
    assert census(alone, {})[1] == ()
