from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from medtl.data.cases.collect import COLUMNS, collect_cases
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.spec import Preprocess
from medtl.errors import ConfigError, DataError
from tests.scans.make_scans import (
    random_image,
    write_dicom,
    write_image,
    write_nifti,
    write_series,
    write_site,
)


def faults_of(**arguments):
    with pytest.raises(DataError) as caught:
        collect_cases(**arguments)
    return str(caught.value)


def by_case(table):
    return {case.case: case for case in table.cases}


def test_the_whole_way(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y", "y", "x"] * 5 + [None, "z"])
    target, target_labels = write_site(tmp_path / "b", ["x", "y", None, "q"], first_seed=50)
    table = collect_cases(
        source=[source], labels=labels, target=target, target_labels=target_labels, classes=("y", "x")
    )
    cases = by_case(table)
    assert table.classes == ("y", "x")
    assert (cases["a020"].status, cases["a020"].reason, cases["a020"].split) == ("excluded", "no_label", "")
    assert (cases["a021"].status, cases["a021"].reason) == ("excluded", "label_not_in_classes")
    assert [(cases[f"b00{n}"].split, cases[f"b00{n}"].label) for n in range(4)] == [
        ("test", "x"),
        ("test", "y"),
        ("test", None),
        ("test", None),
    ]
    assert {c.domain for c in table.cases if c.site == "b"} == {"target"}
    assert len(table.select(domain="source", split="validation")) == 5
    assert len(table.select(domain="source", split="train")) == 15
    assert len(table.items()) == 24
    assert any("1 target cases have a label that is not among" in w for w in table.warnings)
    assert any("1 of 22 source cases have no label" in w for w in table.warnings)
    assert any("20 cases" not in w and "have no patient id" in w for w in table.warnings)
    assert table.flow() == {
        "a": {
            "files": 22,
            "volumes": 22,
            "cases": 20,
            "patients": 20,
            "rejected": {},
            "excluded": {"label_not_in_classes": 1, "no_label": 1},
        },
        "b": {"files": 4, "volumes": 4, "cases": 4, "patients": 4, "rejected": {}, "excluded": {}},
    }


def test_target_labels_change_nothing_but_the_label(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 6)
    target, target_labels = write_site(tmp_path / "b", ["y", "x", "odd"], first_seed=50)
    blind = collect_cases(source=[source], labels=labels, target=target)
    seeing = collect_cases(source=[source], labels=labels, target=target, target_labels=target_labels)
    for one, two in zip(blind.cases, seeing.cases, strict=True):
        assert (one.case, one.patient, one.split, one.status) == (
            two.case,
            two.patient,
            two.split,
            two.status,
        )


def test_csv_has_the_promised_columns_and_no_identifier(tmp_path):
    for number in range(6):
        write_series(
            tmp_path / "a" / f"MRN55{number}",
            random_image(number, (2, 6, 6)),
            patient_id=f"MRN55{number}",
            patient_name=f"Roe^Mary{number}",
            series=f"1.5.{number}",
        )
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\n" + "".join(f"MRN55{n},{'xy'[n % 2]}\n" for n in range(6)))
    table = collect_cases(source=[tmp_path / "a"], labels=labels)
    table.to_csv(tmp_path / "out" / "cases.csv")
    text = (tmp_path / "out" / "cases.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["label"] for row in rows] == [c.label for c in table.cases]
    assert len({row["patient"] for row in rows}) == 6
    assert all(re.fullmatch("p[a-z2-7]{8}", row["patient"]) for row in rows)
    for secret in ("MRN55", "mrn55", "Roe", "Mary", "1.5.", str(tmp_path)):
        assert secret not in text + repr(table) + repr(table.flow())


def test_labels_are_text_and_found_by_stem_path_patient_or_series(tmp_path):
    for number in range(3):
        write_image(tmp_path / "a" / "deep" / f"00{number}.png", random_image(number))
    for number in range(3, 8):
        write_series(
            tmp_path / "a" / f"s{number}",
            random_image(number, (2, 6, 6)),
            patient_id=f"PID{number}",
            series=f"1.5.{number}",
        )
    labels = tmp_path / "l.csv"
    rows = ["000,x", "deep/001.png,x", "a/deep/002,y", "PID3,x", "1.5.4,y", "s5,y", "./s6,x", "S7,y"]
    labels.write_text("\ufeffCase ; Label\n" + "\n".join(r.replace(",", ";") for r in rows[:-1]) + "\ns7;y\n")
    found = {
        name: case.label
        for name, case in by_case(collect_cases(source=[tmp_path / "a"], labels=labels)).items()
    }
    assert [found[n] for n in ("000", "001", "002")] == ["x", "x", "y"]
    assert sorted(found.values()) == ["x"] * 4 + ["y"] * 4


def test_a_patient_id_labels_all_scans_of_the_patient_and_they_stay_together(tmp_path):
    for number in range(24):
        write_dicom(
            tmp_path / "a" / f"ct{number:02d}.dcm",
            random_image(number, (6, 6)),
            patient_id=f"Q77{number // 3}",
            series=f"1.6.{number}",
        )
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\n" + "".join(f"Q77{n},{'xy'[n % 2]}\n" for n in range(8)))
    for seed in range(5):
        table = collect_cases(source=[tmp_path / "a"], labels=labels, test_fraction=0.25, seed=seed)
        splits = {}
        for case in table.cases:
            splits.setdefault(case.patient, set()).add(case.split)
        assert len(splits) == 8
        assert all(len(found) == 1 for found in splits.values())
        for split in ("train", "validation", "test"):
            assert {c.label for c in table.select(split=split)} == {"x", "y"}


def test_sites_groups_and_names_that_clash(tmp_path):
    for site, seed in (("a", 0), ("b", 100)):
        for number in range(6):
            write_image(tmp_path / site / f"00{number}.png", random_image(seed + number))
    labels = tmp_path / "l.csv"
    lines = ["case,label,site,group_sex"]
    lines += [f"00{n},{'xy'[n % 2]},{s},{'FM'[n % 2]}" for s in "ab" for n in range(6)]
    labels.write_text("\n".join(lines))
    table = collect_cases(source=[tmp_path / "a", tmp_path / "b"], labels=labels)
    cases = by_case(table)
    assert len(cases) == 12
    assert cases["a/001"].groups == {"group_sex": "M"}
    assert cases["b/000"].site == "b"
    labels.write_text(
        "\n".join(line.replace(",site", "").replace(",a,", ",").replace(",b,", ",") for line in lines[:7])
    )
    text = faults_of(source=[tmp_path / "a", tmp_path / "b"], labels=labels)
    assert "names cases that are in several places (lines 2, 3, 4, 5, 6 and 1 more)" in text
    assert "column 'site'" in text


def test_confounded_label_and_site_is_a_warning(tmp_path):
    one, _ = write_site(tmp_path / "a", ["x"] * 8)
    two, _ = write_site(tmp_path / "b", ["y"] * 8, first_seed=50)
    labels = tmp_path / "l.csv"
    labels.write_text((tmp_path / "a.csv").read_text() + (tmp_path / "b.csv").read_text().split("\n", 1)[1])
    (warning,) = [w for w in collect_cases(source=[one, two], labels=labels).warnings if "confounded" in w]
    assert "V 1.00; x: a 8, b 0; y: a 0, b 8" in warning


def test_assumed_geometry_is_a_warning(tmp_path):
    for number in range(4):
        volume = random_image(number, (3, 5, 6))
        write_nifti(tmp_path / "a" / f"v{number}.nii", volume, sform_code=int(number > 1))
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\nv0,x\nv1,y\nv2,x\nv3,y\n")
    warnings = collect_cases(source=[tmp_path / "a"], labels=labels).warnings
    assert "2 scans of 'a': neither sform nor qform: orientation unknown." in warnings


def test_duplicates_and_their_labels(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    (source / "copy.png").write_bytes((source / "a003.png").read_bytes())
    given = labels.read_text()
    labels.write_text(given + "copy,y\n")
    table = collect_cases(source=[source], labels=labels)
    assert "a.csv labels 1 scans that were left out (1 duplicate)." in table.warnings
    labels.write_text(given + "copy,x\n")
    text = faults_of(source=[source], labels=labels)
    assert "two equal files different labels (lines 5, 10, case 'a003')" in text
    labels.write_text(given.replace("a003,y\n", "") + "copy,y\n")
    assert by_case(collect_cases(source=[source], labels=labels))["a003"].label == "y"


def test_a_truncated_scan_among_good_ones_is_left_out_and_said(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    (source / "a003.png").write_bytes((source / "a003.png").read_bytes()[:60])
    table = collect_cases(source=[source], labels=labels)
    assert "a.csv labels 1 scans that were left out (1 truncated)." in table.warnings
    assert table.flow()["a"]["rejected"] == {"truncated": 1}
    assert len(table.select()) == 7


def test_scans_that_fail_at_decoding_are_excluded(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    table = collect_cases(source=[source], labels=labels)
    path = source / "a003.png"
    data = bytearray(path.read_bytes())
    data[60:120] = bytes(60)
    path.write_bytes(data)
    cache = VolumeCache(tmp_path / "cache", Preprocess(8, channels=3, intensity="unit"))
    after = table.exclude(cache.prepare(table.items()))
    case = by_case(after)["a003"]
    assert (case.status, case.reason, case.split) == ("excluded", "undecodable", "")
    assert after.flow()["a"]["excluded"] == {"undecodable": 1}
    assert len(after.select()) == 7
    for path in source.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(
        DataError, match="8 scans could not be decoded, and nothing is left of class 'x' in train"
    ):
        table.exclude(cache.prepare(table.items()))


def test_faults_are_reported_together(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    labels.write_text(labels.read_text() + "a000,y\na001,y\nghost,x\nphantom,y\n")
    empty = tmp_path / "hollow"
    empty.mkdir()
    text = faults_of(source=[source, empty], labels=labels, target=tmp_path / "nowhere")
    assert text.startswith("The data cannot be used for 4 reasons: (1) ")
    assert "the folder 'hollow' holds no scan that can be used (it is empty)" in text
    assert "no folder 'nowhere'" in text
    assert (
        "labels 2 cases for which there is no scan (lines 12, 13); the cases found are 'a000', 'a001'" in text
    )
    assert "labels 2 cases more than once (lines 2, 3, 10, 11); case 'a000' has different labels" in text
    assert "ghost" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"name,label\n1,x\n", "has no column case in its first line"),
        (b"case,lable\n1,x\n", "no column label in its first line. Perhaps you meant 'lable'."),
        (b"", "no column case and no column label in its first line. The file is empty."),
        (b"case,label\n", "has a header and no rows"),
        (b"case,label\na,\xe9t\xe9\n", "is not UTF-8 (line 2)"),
        (b"case,label,label\na000,x,y\n", "two columns of one name: label"),
        (b"case,label\na000,x,y\na001\n", "another number of columns than its header in lines 2, 3"),
        (b"case,label,site\na000,x,nowhere\n", "names the site 'nowhere' (line 2), the folders are 'a'"),
        (b"case,label\n0,x\n1,y\n", "labels 2 cases for which there is no scan (lines 2, 3)"),
        (b"case,label\na000,x\na001,x\na002,x\n", "all 3 labelled source cases have the label 'x'"),
        (b"case,label\na000,\na001,\n", "no source case has a label"),
        (
            b"case,label\na000,x\na001,x\na002,y\na003,y\na004,z\n",
            "too few have 'z' 1: leave it out with --classes x y, or add cases",
        ),
        (
            b"case,label,patient\na000,x,1\na001,x,2\na002,y,7\na003,y,7\n",
            "too few have 'y' 1: add cases",
        ),
        (
            b"case,label,patient\n"
            + b"".join(b"a00%d,%s,77\n" % (n, b"xy"[n % 2 : n % 2 + 1]) for n in range(8)),
            "all 8 cases of 'a' have the same patient id",
        ),
    ],
)
def test_faults_of_the_labels(tmp_path, content, text):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    labels.write_bytes(content)
    assert text in faults_of(source=[source], labels=labels)


def test_lost_zeros_get_a_hint(tmp_path):
    for number in range(4):
        write_image(tmp_path / "a" / f"00{number + 1}.png", random_image(number))
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\n1,x\n2,y\n")
    assert "leading zeros were lost" in faults_of(source=[tmp_path / "a"], labels=labels)


def test_a_patient_whose_scan_was_left_out_is_no_fault(tmp_path):
    for number in range(6):
        series = {"patient_id": f"PID{number}", "series": f"1.5.{number}"}
        paths = write_series(tmp_path / "a" / f"s{number}", random_image(number, (3, 6, 6)), **series)
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\n" + "".join(f"PID{n},{'xy'[n % 2]}\n" for n in range(6)))
    table = collect_cases(source=[tmp_path / "a"], labels=labels)
    assert len(table.select()) == 5
    assert any("that were left out (1 incomplete_series, 1 truncated)" in w for w in table.warnings)


def test_labels_of_single_slices_are_refused(tmp_path):
    for number in range(4):
        write_series(tmp_path / "a" / f"s{number}", random_image(number, (3, 6, 6)), series=f"1.5.{number}")
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\ns0/001.dcm,x\ns1,y\ns2/000,x\n")
    text = faults_of(source=[tmp_path / "a"], labels=labels)
    assert "labels single files of a series (lines 2, 4): a series is one case, named like its folder" in text


def test_a_mask_is_not_the_scan_of_a_label(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    write_image(source / "masks" / "a099.png", random_image(99))
    labels.write_text(labels.read_text() + "a099,x\n")
    assert "labels 1 cases for which there is no scan (line 10)" in faults_of(source=[source], labels=labels)


def test_one_patient_in_two_sites(tmp_path):
    for site, base in (("a", 0), ("b", 4)):
        for number in range(4):
            write_dicom(
                tmp_path / site / f"{site}{number}.dcm",
                np.full((6, 6), base + number, np.uint8),
                patient_id=f"SECRET{number if number == 2 else base + number}",
                series=f"1.8.{base + number}",
            )
    labels = tmp_path / "l.csv"
    labels.write_text("case,label\na0,x\na1,y\na2,x\na3,y\n")
    text = faults_of(source=[tmp_path / "a"], labels=labels, target=tmp_path / "b")
    assert "1 patient is in more than one site (case 'a2' of 'a' and case 'b2' of 'b'" in text
    assert "SECRET" not in text


def test_folder_and_argument_faults(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 4)
    twin, _ = write_site(tmp_path / "deep" / "a", ["x", "y"], first_seed=70)
    assert "is given twice" in faults_of(source=[source, source], labels=labels)
    assert "two folders are called 'a'" in faults_of(source=[source], labels=labels, target=twin)
    assert "give --labels CSV" in faults_of(source=[source], labels=None)
    assert "cannot be opened (No such file" in faults_of(source=[source], labels=tmp_path / "no.csv")
    assert "label 'xx' of --classes. Perhaps you meant 'x'" in faults_of(
        source=[source], labels=labels, classes=["xx", "y"]
    )
    with pytest.raises(ConfigError, match="no folder"):
        collect_cases(source=[], labels=None)
    with pytest.raises(ConfigError, match="leave cases to train on"):
        collect_cases(source=[source], labels=labels, val_fraction=0.6, test_fraction=0.5)


def test_a_target_alone_needs_no_labels(tmp_path):
    target, _ = write_site(tmp_path / "a", ["x", "y"])
    table = collect_cases(source=[], labels=None, target=target)
    assert table.classes == ()
    assert [case.split for case in table.cases] == ["test", "test"]
