"""Names, ids, birth dates and accession numbers in paths: no command writes or prints one that a header holds."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtl.cli import command_names, load_recipe, main, recipe_names
from medtl.config import TrainingConfig
from medtl.data.cases.collect import collect_cases
from medtl.runs import Run
from medtl.scans.catalog import scan_folder
from medtl.scans.privacy import Identifiers, Owner
from tests.helpers.sites import write_site as write_plain_site
from tests.hostile.people import PEOPLE, Person, folded, leaks, texts_below, write_site

pytestmark = pytest.mark.usefixtures("undrawn")

FLAGS = ["--weights", "random", "--image-size", "32", "--batch-size", "8"]
WITHOUT_SCANS = {"copy", "doctor", "list"}
"""Commands that read no scan."""
NAMED = PEOPLE[0].files[0]


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, their masks and their labels, with names everywhere."""
    root = tmp_path_factory.mktemp("in")
    write_site(
        root / "inbox" / f"{PEOPLE[3].files[0]}_a", masks=root / "inbox" / f"masks {PEOPLE[6].files[0]}"
    )
    write_site(
        root / "inbox" / f"{PEOPLE[2].files[0]}-1942-03-12",
        shade=50,
        masks=root / f"{PEOPLE[9].files[0]} masks",
    )
    return root


@pytest.fixture
def work(inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders."""
    shutil.copytree(inbox, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(work: Path) -> tuple[str, str]:
    """The two sites; the second one's whole path."""
    a, b = (work / "inbox" / f"{PEOPLE[3].files[0]}_a", work / "inbox" / f"{PEOPLE[2].files[0]}-1942-03-12")
    return a.relative_to(work).as_posix(), str(b)


def recipe_words(name: str, work: Path, task: str = "labels") -> list[str]:
    """A tiny run of a recipe over the folders, with every flag for a path that the recipe has."""
    fields = {f.name for f in dataclasses.fields(load_recipe(name).Config)}
    a, b = places(work)
    words = ["--source", a, *FLAGS]
    if task == "masks":
        words += [f"--masks=inbox/masks {PEOPLE[6].files[0]}", "--structures", "stripe=1"]
        more = {"target_masks": str(work / f"{PEOPLE[9].files[0]} masks")}
    else:
        words += [f"--labels={a}/{NAMED}.csv"]
        more = {"target_labels": f"{b}/{NAMED}.csv"}
    more |= {"target": b, "epochs": "1", "encoder": "test_resnet", "encoders": "test_resnet", "halves": "5"}
    more |= {"method": "adabn", "sizes": "4"}
    for field, value in more.items():
        words += [f"--{field.replace('_', '-')}", value] if field in fields else []
    return ["run", name, *words]


def check(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, logged or written that names someone."""
    printed = capfd.readouterr()
    texts = {"stdout": printed.out, "stderr": printed.err, **texts_below(folder)}
    assert len(texts) > 2
    assert leaks(texts) == []


@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name.split("^")[0])
def test_every_spelling_of_a_person_is_found(person: Person) -> None:
    known = Identifiers()
    known.add(Owner(person.patient_id, person.name, None, (person.accession,), person.birth))
    year, month, day = person.birth[:4], person.birth[4:6], person.birth[6:]
    dates = [
        f"{day}.{month}.{year}",
        f"{month}{day}{year}",
        f"{year}-{month}-{day}",
        f"geb {day}{month}{year[2:]}",
    ]
    accession = f"{person.accession[:4]}-{person.accession[4:]}"
    for text in (*person.files, *dates, person.patient_id.lower(), accession, f"dob_{person.birth}"):
        assert known.names_someone(text), text
        shown = known.safe_path(f"scans/{text}.nii.gz")
        assert re.fullmatch(r"scans/[0-9a-f]{8}\.nii\.gz", shown), shown


@pytest.mark.parametrize(
    "name",
    [
        *(
            "slice_001.dcm",
            "chest-ct",
            "T1w",
            "2024-03-01",
            "IM-0001-0002.dcm",
            "sub-01_ses-02_T1w.nii.gz",
            "IMG_0023",
        ),
        *(
            "1.2.840.113619.2.55.3.604688119.969.1268071029.320",
            "axial",
            "series_12",
            "test",
            "train",
            "labels.csv",
        ),
        *(
            "site_a",
            "hospital",
            "lung_left",
            "li",
            "bo",
            "lib_ox",
            "430918",
            "dose",
            "王",
            "imagesTr",
            "CT0001",
        ),
    ],
)
def test_ordinary_names_stay(name: str) -> None:
    known = Identifiers()
    for person in PEOPLE:
        known.add(Owner(person.patient_id, person.name, None, (person.accession,), person.birth))
    known.add(Owner("1", "Anonymous^Patient", None, ("1", "0000"), "19000101"))
    known.add(Owner("0000", "Test^Ct"))
    assert known.safe_path(name) == name


def test_a_header_that_does_not_say_its_encoding(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "s")
    for path in folder.rglob("*.dcm"):
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 100"))
    assert leaks({"catalog": repr(scan_folder(folder))}) == []


def test_a_name_in_bytes_of_another_code_page(tmp_path: Path) -> None:
    known = Identifiers()
    known.add(Owner("1", "Zqmüller^Änneliq"))
    assert known.names_someone("zqmüller".encode("latin-1").decode(errors="surrogateescape"))


def test_every_command_is_tried_or_reads_no_scan() -> None:
    assert set(command_names()) == {"inspect", "predict", "report", "run"} | WITHOUT_SCANS


def test_inspect(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = work / f"found_{NAMED}"
    for more in ([], ["--json"], ["--out", str(out)]):
        assert main(["inspect", *places(work), *more]) == 0
    assert set(pd.read_csv(out / "volumes.csv").folder) == {"site_1", "site_2"}
    assert main(["inspect", *places(work), "--sites", "north", "south", "--json"]) == 0
    assert main(["inspect", *places(work), "--out", str(out)]) == 2
    check(out, capfd)


def test_adapt_then_predict_and_report(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = work / f"run-{PEOPLE[1].files[0]}"
    assert main([*recipe_words("adapt", work), "--out", out.name]) == 0
    assert set(pd.read_csv(out / "cases.csv").site) == {"site_1", "site_2"}
    check(out, capfd)
    for name, more in ("p", []), (f"p {PEOPLE[7].files[0]}", ["--site", "north"]):
        assert main(["predict", out.name, places(work)[1], "--out", name, *more]) == 0
        assert set(pd.read_csv(work / name / "cases.csv").site) == {"north" if more else "site_1"}
        printed = capfd.readouterr()
        assert "predictions.csv" in printed.out
        assert leaks({"stdout": printed.out, "stderr": printed.err, **texts_below(work / name)}) == []
    assert main(["report", f"{out.name}/predictions.csv", "--out", "r"]) == 0
    capfd.readouterr()
    assert leaks(texts_below(work / "r")) == []


def test_masks_and_what_is_said_of_them(work: Path) -> None:
    """Paths of masks, of those that cannot be used, and of those that belong to no scan."""
    a, masks = Path(places(work)[0]), work / "inbox" / f"masks {PEOPLE[6].files[0]}"
    files = sorted(masks.rglob("*.png"))
    files[0].write_bytes(b"x")
    files[1].rename(files[1].with_name(f"{PEOPLE[8].files[0]}_other.png"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(files[2])
    table = collect_cases(source=[a], masks=[masks], structures=["stripe=1"])
    table.to_csv(work / "out" / "cases.csv")
    said = {"warnings": "\n".join(table.warnings), "repr": repr(table), "flow": repr(table.flow())}
    assert all(word in said["warnings"] for word in ("mask_geometry", "mask_unreadable", "belong to no scan"))
    assert sum(case.mask is not None for case in table.cases) > 10
    assert leaks(said | texts_below(work / "out")) == []


def test_the_default_folder_and_names_that_are_given(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*recipe_words("extract_features", work)]
    assert main(words) == 0
    (made,) = (work / "runs" / "extract_features").glob("[0-9]*")
    assert made.name.endswith("-site-1")
    assert "site_1" in (made / "cases.csv").read_text(encoding="utf-8")
    (made / "DONE").unlink()
    assert main(["run", "extract_features", "--resume", str(made)]) == 0
    check(made, capfd)
    assert main([*words, "--sites", "north", "south", "--out", "named"]) == 0
    assert set(pd.read_csv(work / "named" / "cases.csv").site) == {"north", "south"}
    assert main([*words, "--sites", "north", "--out", "few"]) == 2
    assert not (work / "few").exists()


def test_errors_name_nobody(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = places(work)
    for words in (
        ["--source", a, a, "--labels", f"{a}/{NAMED}.csv"],
        ["--source", a, "--labels", f"{b}/report_{NAMED}.pdf"],
        ["--source", a, "--labels", f"{a}/{NAMED}-absent.csv"],
        ["--source", a, "--masks", a, f"{PEOPLE[9].files[0]} masks"],
        ["--source", a, "--masks", b],
        ["--source", a, "--labels", f"{a}/{NAMED}.csv", "--target", f"inbox/{NAMED} absent"],
    ):
        assert main(["run", "finetune", *words, *FLAGS, "--encoder", "test_resnet", "--out", "x"]) != 0
    printed = capfd.readouterr()
    assert "error: " in printed.err
    assert leaks({"stdout": printed.out, "stderr": printed.err}) == []
    assert not (work / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["labels", "masks"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe(name: str, task: str, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = work / "runs" / f"x {PEOPLE[4].files[0]}"
    assert main([*recipe_words(name, work, task), "--out", str(out)]) == 0
    assert (out / "DONE").exists()
    check(out, capfd)


def test_pseudonyms_are_those_of_the_project_and_follow_no_order(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a, b = map(Path, places(work))
    first, again = collect_cases(source=[], target=a), collect_cases(source=[], target=a)
    assert first.cases == again.cases
    monkeypatch.setenv("MEDTL_SECRET_FILE", str(tmp_path / "other"))
    other = collect_cases(source=[], target=a)
    assert {c.patient for c in first.cases}.isdisjoint(c.patient for c in other.cases)
    assert {c.case for c in first.cases}.isdisjoint(c.case for c in other.cases)
    assert [c.draw for c in first.cases] == [c.draw for c in other.cases]
    assert [c.item for c in first.cases if c.item] == [
        dataclasses.replace(c.item, name=d.item.name, path=d.item.path)
        for c, d in zip(other.cases, first.cases, strict=True)
        if c.item and d.item
    ]
    by_id = sorted(first.cases, key=lambda c: c.draw)
    assert [c.patient for c in by_id] != sorted(c.patient for c in by_id)
    both = collect_cases(source=[a], labels=a / f"{NAMED}.csv", target=b)
    assert {c.patient for c in both.cases if c.domain == "source"} >= {
        c.patient for c in other.cases if c.label
    }


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_secret_where_names_are_hashed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = []
    for name in ("one", "two"):
        monkeypatch.setenv("MEDTL_SECRET_FILE", str(work / f"{name}.secret"))
        assert main([*recipe_words("adapt", work), "--out", name]) == 0
        table = pd.read_csv(work / name / "predictions.csv", dtype={"case": str})
        logits.append(table.drop(columns=["case", "patient"]))
    pd.testing.assert_frame_equal(*logits)


def test_settings_that_are_called_like_a_patient_stay(work: Path) -> None:
    config = TrainingConfig(source=(Path("x/Adam"),), fit=("optimizer=adam",), out=work / "r")
    command = ["--fit", "optimizer=adam", "--source", "x/Adam", "--method", "adam"]
    with Run(work / "r", "adapt", config).open(command, _no_adam) as run:
        assert run.command == "medtl run adapt --fit optimizer=adam --source x/HIDDEN --method adam"
        text = (work / "r" / "config.yaml").read_text(encoding="utf-8")
    assert "optimizer=adam" in text
    assert "Adam" not in text


def _no_adam(path: str) -> str:
    return "/".join("HIDDEN" if "adam" in part.lower() else part for part in path.split("/"))


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain_site(tmp_path / "a")
    write_plain_site(tmp_path / "b", 12, offset=100, shade=60)
    words = ["--source", "a", "--labels", "a/labels.csv", "--target", "b", "--target-labels", "b/labels.csv"]
    tables, results = [], []
    for name in ("one", "two"):
        monkeypatch.setenv("MEDTL_SECRET_FILE", str(tmp_path / f"{name}.secret"))
        more = ["--encoder", "test_resnet", "--epochs", "1", "--method", "adabn", "--out", name]
        assert main(["run", "adapt", *words, *FLAGS, *more]) == 0
        tables.append(pd.read_csv(tmp_path / name / "predictions.csv"))
        results.append(json.loads((tmp_path / name / "report" / "results.json").read_text(encoding="utf-8")))
    assert not set(tables[0].patient) & set(tables[1].patient)
    pd.testing.assert_frame_equal(*(table.drop(columns="patient") for table in tables))
    assert results[0]["blocks"] == results[1]["blocks"]
    assert (tmp_path / "one/decision.json").read_text() == (tmp_path / "two/decision.json").read_text()


def test_folding_of_the_tests_is_not_empty() -> None:
    assert leaks({"x": "a ZQMÜLLER b"}) == ["x: zqmuller"]
    assert {leak[3:] for leak in leaks({"x": " ".join(f for p in PEOPLE for f in p.files)})} > {
        "li_bo",
        "철수",
        "小明",
    }
    assert folded("Łękawqska") == "lekawqska"
