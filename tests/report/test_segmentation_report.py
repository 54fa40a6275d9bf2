from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtl.cli import main
from medtl.evaluation import (
    Cost,
    LearningCurve,
    Results,
    RunContext,
    SegmentationRules,
    SegmentationTable,
    VoxelTable,
    evaluate,
)
from medtl.evaluation.engine.evaluate import evaluate_cases
from medtl.report import images_of, worst_overlays, write_report
from tests.helpers.figures import leave_out
from tests.report.test_report import HOSTILE, Page, values

Maker = Callable[..., pd.DataFrame]
RULES = SegmentationRules(
    "mm",
    "ml",
    {"nucleus": 1.0, "cytoplasm": 2.0},
    "A structure in neither mask: no value.",
    band="voxels within 5 mm",
)
UNDRAWN = pytest.mark.usefixtures("undrawn")
KEEP = {"model": "dann", "reason": "Its masks are surer.", "evidence": []}


@pytest.fixture(scope="module")
def results(segmented: Maker, voxels: Callable[[pd.DataFrame], VoxelTable]) -> Results:
    models = ("source_only", "dann", "mean_teacher", "target_trained")
    frame = segmented(models=models, validation=8)
    context = RunContext(
        title="lab_a to lab_b",
        keep=KEEP,
        target_trained=("target_trained",),
        target_seen_unlabelled=True,
        command="medtl run x --source /home/ann/a",
        seeds=(0, 1, 2),
    )
    return evaluate_cases(frame, rules=RULES, voxels=voxels(frame), context=context, replicates=200)


@pytest.fixture(scope="module")
def out(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("report") / "report").parent


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text())


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_files(out: Path) -> None:
    names = sorted(p.name for p in (out / "figures").iterdir())
    assert names == [
        "calibration.svg",
        "dice.svg",
        "differences.svg",
        "seeds.svg",
        "sites.svg",
        "volumes.svg",
    ]


def test_numbers_on_the_page_are_those_of_the_results(out: Path, page: Page) -> None:
    known = set(values(json.loads((out / "results.json").read_text())))
    assert len(page.cells) > 250
    for attrs, text in page.cells:
        numbers = {k: float(attrs[f"data-{k}"] or "") for k in ("value", "lo", "hi") if f"data-{k}" in attrs}
        assert set(numbers.values()) <= known
        shown = re.findall(r"[+\N{MINUS SIGN}]?\d+(?:\.\d+)?", text.rpartition(": ")[2])
        printed = [float(s.replace("\N{MINUS SIGN}", "-")) for s in shown]
        assert len(printed) == len(numbers)
        for p, s, number in zip(printed, shown, numbers.values(), strict=True):
            assert abs(p - number) <= 0.5 * 10 ** -len(s.partition(".")[2]) + 1e-12


def test_every_main_measure_is_on_the_page(results: Results, page: Page) -> None:
    shown = {float(attrs["data-value"] or "") for attrs, _ in page.cells}
    blocks = [b for m in results.models for d in ("source", "target") for b in results.main_blocks(m, d)]
    measures = [m for block in blocks for m in block.measures if m.estimate.value is not None]
    assert {block.domain for block in blocks} == {"source", "target"}
    assert len(measures) > 20
    for m in measures:
        assert m.estimate.value in shown, (m.name, m.cls)


def test_the_page_says_gain_and_harm_structure_by_structure(page: Page) -> None:
    text = text_of(page)
    for expected in (
        "dann: nucleus gain, cytoplasm harm",
        "The rule would keep dann, but external testing shows that it harms cytoplasm there",
        "upper bound: uses target labels, not a candidate",
        "missed",
        "Tolerance of the surface Dice (NSD): nucleus 1 mm, cytoplasm 2 mm.",
        "The larger of the two directed 95th percentiles",
        "A structure in neither mask: no value.",
        "Band: voxels within 5 mm",
        "Pictures of the scans are left out",
        "Segmentation of nucleus, cytoplasm",
    ):
        assert expected in text, expected
    assert "ground truth" not in text.lower()


def test_upper_bounds_are_stamped_in_every_table(out: Path) -> None:
    html = (out / "index.html").read_text()
    for table in re.findall(r"<table>.*?</div>", html, flags=re.DOTALL):
        if "target_trained" in table:
            assert "upper bound" in table.lower()
    for figure in re.findall(r"<figcaption>.*?</figcaption>", html, flags=re.DOTALL):
        assert "uses target labels" in figure
    card = (out / "report.md").read_text()
    assert "target\\_trained (upper bound: uses target labels, not a candidate)" in card
    assert "\n\n\n" not in card


def test_no_network_no_script_no_path_no_patient(out: Path, page: Page) -> None:
    html = (out / "index.html").read_text()
    assert "http" not in html
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object")
        assert not [name for name in attrs if name.startswith("on")]
    for path in out.rglob("*.*"):
        text = path.read_text()
        assert "/home" not in text
        assert "-p00" not in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_reads_from_disk_alone(out: Path, tmp_path: Path) -> None:
    again = write_report(Results.load(out / "results.json"), tmp_path / "again")
    assert again.read_text() == (out / "index.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        {"referenced": False},
        {"structures": ("nucleus",), "cases": 1},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"models": ("one",), "seeds": ("7",), "drawn": False},
                {"sites": (), "drawn": False},
                {"sites": (), "internal": 0, "validation": 5, "drawn": False},
                {"sites": ("b", "c", "d"), "cases": 6, "unit": "px", "drawn": False},
                {"structures": tuple(f"organ {k}" for k in range(9)), "seeds": ("0",), "cases": 8},
            )
        ),
    ],
)
def test_poor_and_rich_tables_still_make_a_report(
    segmented: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    if not options.get("drawn", True):
        leave_out(monkeypatch)
    frame = segmented(**{"seeds": ("0", "1")} | {k: v for k, v in options.items() if k != "drawn"})
    unit = str(options.get("unit", "mm"))
    rules = SegmentationRules(
        unit, "ml" if unit == "mm" else "px", dict.fromkeys(frame.structure, 2.0), "Rule."
    )
    html = write_report(evaluate_cases(frame, rules=rules, replicates=100), tmp_path / "r").read_text()
    seen = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)
    assert "None" not in seen
    assert "nan" not in seen.lower().split()
    if unit == "px":
        assert "Areas" in seen
        assert "The images carry no pixel size" in seen


@UNDRAWN
def test_hostile_names_stay_text(segmented: Maker, tmp_path: Path) -> None:
    frame = segmented(models=("source_only", "dann"), seeds=("0",), cases=6, internal=0, sites=("b", "c"))
    names = {"b": f"s{HOSTILE}", "dann": f"m{HOSTILE}", "nucleus": f"c{HOSTILE}"}
    frame = frame.replace({"site": names, "model": names, "structure": names})
    frame["case"] = "k" + HOSTILE + frame.case
    rules = SegmentationRules("mm", "ml", dict.fromkeys(frame.structure, 2.0), HOSTILE, band=HOSTILE)
    context = RunContext(title=HOSTILE, target_trained=(f"m{HOSTILE}",))
    out = write_report(
        evaluate_cases(frame, rules=rules, context=context, replicates=100), tmp_path / "r"
    ).parent
    html = (out / "index.html").read_text()
    assert "<script" not in html.lower()
    assert not [a for _, attrs in Page(html).tags for a in attrs if a.startswith("on")]
    card = (out / "report.md").read_text()
    assert "<script" not in card
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def write_masks(folder: Path, *, image: bool = True, volumes: bool = True) -> Path:
    """Balls and what two models make of them: the second finds the inner structure and loses the outer."""
    import nibabel
    from PIL import Image

    rng = np.random.default_rng(2)
    rows = []
    shape = (10, 40, 48) if volumes else (1, 40, 48)
    z, y, x = np.indices(shape)
    for i in range(8):
        far = np.hypot(np.hypot((z - shape[0] // 2) * 2, y - 20 - i), x - 24)
        domain, site = ("target", "b") if i > 2 else ("source", "a")
        maps = {"reference": np.where(far < 6, 1, np.where(far < 12, 2, 0))}
        maps["source_only"] = np.where(far < 4, 1, np.where(far < 11, 2, 0))
        maps["dann"] = np.where(far < 6, 1, np.where(far < 8 - (i == 7) * 1.2, 2, 0))
        maps["image"] = (200 - 8 * far + rng.normal(0, 6, shape)).clip(0, 255)
        names = {}
        for name, own in maps.items():
            array = own.astype(np.uint8)
            if volumes:
                names[name] = f"{name}-{i}.nii.gz"
                affine = np.diag([0.8, 0.8, 2.0, 1.0])
                nibabel.save(nibabel.Nifti1Image(array.T, affine), folder / names[name])
            else:
                names[name] = f"{name}-{i}.png"
                Image.fromarray(array[0]).save(folder / names[name])
        for model in ("source_only", "dann"):
            row = {"case": f"case-{i}", "patient": f"p{i}", "split": "test", "domain": domain, "site": site}
            row |= {"model": model, "mask": names[model], "reference": names["reference"]}
            rows.append(row | ({"image": names["image"]} if image else {}))
    (folder / "labels.json").write_text('{"background": 0, "core": 1, "rim": 2}')
    pd.DataFrame(rows).to_csv(folder / "masks.csv", index=False)
    return folder / "masks.csv"


@UNDRAWN
def test_an_upper_bound_that_was_tried_at_the_target_alone(
    segmented: Maker, voxels: Callable[[pd.DataFrame], VoxelTable], tmp_path: Path
) -> None:
    frame = segmented(
        models=("target_trained", "source_only", "dann"), validation=6, cases=9, seeds=("0", "1")
    )
    frame = frame[(frame.model != "target_trained") | (frame.domain == "target")]
    context = RunContext(target_trained=("target_trained",))
    results = evaluate_cases(frame, rules=RULES, voxels=voxels(frame), context=context, replicates=100)
    assert results.models == ("source_only", "dann", "target_trained")
    assert not [b for b in results.blocks if (b.model, b.domain) == ("target_trained", "source")]
    assert results.main_blocks("target_trained", "target")[0].num_labelled == 9
    found = [d for d in results.differences if d.model == "target_trained" and d.name == "dice"]
    assert {d.domain for d in found} == {"target"}
    entry = results.calibration()["models"]["target_trained"]["0"]["nucleus"]
    assert (entry["temperature"], entry["temperature_status"]) == (None, "no_validation")
    html = write_report(results, tmp_path / "r").read_text()
    assert "None" not in re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)


@UNDRAWN
@pytest.mark.parametrize("volumes", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_overlays_on_request(tmp_path: Path, volumes: bool) -> None:
    import io

    from PIL import Image

    path = write_masks(tmp_path, volumes=volumes)
    table = SegmentationTable.from_csv(path)
    results = evaluate(table, replicates=100)
    assert results.segmentation is not None
    assert results.segmentation.unit == ("mm" if volumes else "px")
    drawn = worst_overlays(results, table, images_of(path), 3)
    assert (drawn[0].case, drawn[0].model, drawn[0].structure) == ("case-7", "dann", "rim")
    assert ("slice" in drawn[0].caption) is volumes
    picture = np.asarray(Image.open(io.BytesIO(drawn[0].png)).convert("RGB"))
    for ink in ((0, 214, 201), (255, 122, 26)):
        assert (picture == ink).all(axis=2).any()
    assert max(picture.shape) < 800
    html = write_report(results, tmp_path / "r", overlays=drawn).read_text()
    images = [attrs for tag, attrs in Page(html).tags if tag == "img"]
    assert len(images) == 3
    assert all((attrs["src"] or "").startswith("data:image/png;base64,") for attrs in images)
    assert "show patients' scans" in text_of(Page(html))
    assert "base64" not in (tmp_path / "r/results.json").read_text()


@UNDRAWN
@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_masks(tmp_path))
    out = ["--replicates", "100", "--out"]
    assert main(["report", path, *out, str(tmp_path / "a"), "--tolerance", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"dann +external testing +rim .* harm", shown)
    assert "<img" not in (tmp_path / "a/index.html").read_text()
    assert Results.load(tmp_path / "a/results.json").segmentation.tolerance == {"core": 1.0, "rim": 1.0}
    assert main(["report", path, *out, str(tmp_path / "b"), "--overlays", "2"]) == 0
    assert (tmp_path / "b/index.html").read_text().count("<img") == 2
    capsys.readouterr()
    assert main(["report", path, *out, str(tmp_path / "c"), "--prevalence", "0.1"]) == 2
    assert "are for classification" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c").exists()


def test_flags_that_do_not_fit(tmp_path: Path, binary: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    classes = tmp_path / "p.csv"
    binary(seeds=("0",), sites=()).to_csv(classes, index=False)
    for flag, words in (
        ("--tolerance", "for the surfaces of segmentations"),
        ("--overlays", "for segmentations"),
    ):
        assert main(["report", str(classes), "--out", str(tmp_path / "r"), flag, "2"]) == 2
        assert words in capsys.readouterr().err
    masks = write_masks(tmp_path, image=False)
    assert main(["report", str(masks), "--out", str(tmp_path / "r"), "--overlays", "2"]) == 2
    assert "a column image" in capsys.readouterr().err


@UNDRAWN
def test_learning_curves_and_costs_of_segmentations(segmented: Maker, tmp_path: Path) -> None:
    for structures in (("nucleus",), ("nucleus", "cytoplasm")):
        frame = segmented(models=("source_only", "dann"), seeds=("0",), structures=structures, validation=12)
        curve = LearningCurve("dann", "0", (1, 2), (0.8, 0.3), (0.9, 0.7), 2, 0.97, 0.6, 12)
        context = RunContext(learning=(curve,), costs=(Cost("dann", 300.0), Cost("source_only", 200.0)))
        results = evaluate_cases(frame, rules=RULES, context=context, replicates=100)
        out = write_report(results, tmp_path / str(len(structures)))
        text = text_of(Page(out.read_text()))
        assert (
            "Large gap between training and validation (mean Dice): dann 0.97 on its training cases" in text
        )
        assert "Mean Dice of the kept weights" in text
        assert "Cost beside quality, external testing" in text
        assert {"learning.svg", "costs.svg"} <= {p.name for p in (out.parent / "figures").iterdir()}
