from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from medtl.evaluation import PredictionTable, Results, RunContext, evaluate
from medtl.evaluation.statistics.estimate import decimals, format_number
from medtl.report import write_report

Maker = Callable[..., pd.DataFrame]
KEEP = {
    "model": "dann",
    "reason": "The class shares fit better.",
    "evidence": [
        {"name": "Internal accuracy", "values": {"source_only": 0.8125, "dann": 0.8251}, "verdict": "even"}
    ],
}
FLOW = {"home": {"files": 4321, "patients": 120, "rejected": {"truncated": 7}, "excluded": {"no_label": 5}}}


class Page(HTMLParser):
    """Collects what a browser would see: elements, text, and the cells with numbers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cells: list[tuple[dict[str, str | None], str]] = []
        self.depth: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if "data-value" in dict(attrs):
            self.cells.append((dict(attrs), ""))
            self.depth = [tag]
        elif self.depth:
            self.depth.append("style" if tag == "sup" else tag)

    def handle_endtag(self, tag: str) -> None:
        if self.depth:
            self.depth.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.depth and self.depth[-1] != "style":
            attrs, text = self.cells[-1]
            self.cells[-1] = (attrs, text + data)


def values(tree: Any) -> Iterator[float]:
    """Every number of a JSON document."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from values(item)
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield float(tree)


@pytest.fixture(scope="module")
def results(binary: Maker) -> Results:
    context = RunContext(
        title="Lesions, north", keep=KEEP, flow=FLOW, target_seen_unlabelled=True, command="medtl x"
    )
    return evaluate(PredictionTable.from_frame(binary()), context=context, prevalence=0.1, replicates=200)


@pytest.fixture(scope="module")
def out(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "report"
    assert write_report(results, folder) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text())


def test_files(out: Path) -> None:
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == [
        "figures/calibration.svg",
        "figures/differences.svg",
        "figures/roc.svg",
        "figures/seeds.svg",
        "figures/shares.svg",
        "figures/sites.svg",
        "index.html",
        "report.md",
        "results.json",
    ]


def test_numbers_on_the_page_are_those_of_the_results(out: Path, page: Page) -> None:
    known = set(values(json.loads((out / "results.json").read_text())))
    assert len(page.cells) > 150
    for attrs, text in page.cells:
        numbers = {k: float(attrs[f"data-{k}"] or "") for k in ("value", "lo", "hi") if f"data-{k}" in attrs}
        assert set(numbers.values()) <= known
        shown = re.findall(r"[+\N{MINUS SIGN}]?\d+(?:\.\d+)?", text.rpartition(": ")[2])
        printed = [float(s.replace("\N{MINUS SIGN}", "-")) for s in shown]
        assert len(printed) == len(numbers)
        for p, s, number in zip(printed, shown, numbers.values(), strict=True):
            places = len(s.partition(".")[2])
            assert abs(p - number) <= 0.5 * 10**-places + 1e-12


def test_every_main_measure_is_on_the_page(results: Results, page: Page) -> None:
    shown = {float(attrs["data-value"] or "") for attrs, _ in page.cells}
    blocks = [b for m in results.models for d in ("source", "target") for b in results.main_blocks(m, d)]
    measures = [m for block in blocks for m in block.measures if m.estimate.value is not None]
    assert {block.domain for block in blocks} == {"source", "target"}
    assert len(measures) > 20
    for m in measures:
        assert m.estimate.value in shown, m.name


def test_the_page_reads_from_disk_alone(results: Results, out: Path, tmp_path: Path) -> None:
    again = write_report(Results.load(out / "results.json"), tmp_path / "again")
    assert again.read_text() == (out / "index.html").read_text()
    assert (tmp_path / "again/figures/roc.svg").read_text() == (out / "figures/roc.svg").read_text()


def test_no_network_and_no_script(out: Path, page: Page) -> None:
    html = (out / "index.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")


def test_identifiers_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        if "href" in attrs:
            assert (attrs["href"] or "")[1:] in ids


def test_figures_keep_text_as_text(out: Path) -> None:
    root = ElementTree.fromstring((out / "figures" / "roc.svg").read_text())
    texts = {e.text for e in root.iter() if e.tag.endswith("}text")}
    assert {"source_only", "dann", "External testing", "Sensitivity"} <= texts
    assert root.get("role") == "img"


def test_what_a_reader_looks_for(page: Page) -> None:
    text = " ".join(" ".join(page.text).split())
    for expected in (
        "Keep dann",
        "The class shares fit better.",
        "Gain: dann is better than source_only",
        "External testing",
        "Internal testing",
        "reference standard",
        "operating point",
        "truncated 7",
        "no label 5",
        "Limitations",
        "Definitions",
        "Reproducibility",
        "stated prevalence of 10 %",
        "saw the scans of the external site",
        "not a medical device",
    ):
        assert expected in text, expected
    assert "ground truth" not in text.lower()


def test_no_patient_and_no_case_in_any_file(out: Path) -> None:
    files = list(out.rglob("*.*"))
    assert {"index.html", "report.md", "results.json"} <= {path.name for path in files}
    for path in files:
        text = path.read_text()
        assert "q0001" not in text
        assert "case-q" not in text


def test_markdown_card(out: Path) -> None:
    card = (out / "report.md").read_text()
    assert "# Lesions, north\n" in card
    assert "**Keep: dann.** The class shares fit better." in card
    assert (
        "\n| Site | Files | Patients | Rejected | Excluded |\n| --- | --- | --- | --- | --- |\n| home | 4321 |"
        in card
    )
    assert "source\\_only" in card
    assert "![roc](figures/roc.svg)" in card
    assert "\n\n\n" not in card
    assert " \n" not in card


@pytest.mark.usefixtures("undrawn")
def test_harm_is_as_plain_as_gain(binary: Maker, tmp_path: Path) -> None:
    frame = binary()
    frame["model"] = frame["model"].map({"source_only": "dann", "dann": "source_only"})
    results = evaluate(PredictionTable.from_frame(frame), context=RunContext(keep=KEEP), replicates=200)
    text = write_report(results, tmp_path / "r").read_text()
    assert "Harm: dann is worse than source_only" in text
    assert "external testing shows that it is worse than source_only there. The rule was wrong" in text


@pytest.mark.usefixtures("undrawn")
def test_upper_bounds_are_stamped(binary: Maker, tmp_path: Path) -> None:
    frame = binary(seeds=("0",), models=("source_only", "dann", "target_trained"))
    context = RunContext(keep=KEEP, target_trained=("target_trained",))
    results = evaluate(PredictionTable.from_frame(frame), context=context, replicates=100)
    html = write_report(results, tmp_path / "r").read_text()
    for table in re.findall(r"<table>.*?</div>", html, flags=re.DOTALL):
        if "target_trained" in table and "Item" not in table:
            assert "Upper bound: uses target labels; not a candidate." in table
    for figure in re.findall(r"<figcaption>.*?</figcaption>", html, flags=re.DOTALL):
        assert "uses target labels" in figure
    assert "Upper bound (uses target labels, not a candidate). Gain: target_trained is better" in html


HOSTILE = '<script>alert(1)</script>"\' onload=x & $x_1$ | `a` ${{7*7}} {{ 7 * 7 }} url(#x) id="y"'


def test_hostile_names_stay_text(binary: Maker, tmp_path: Path) -> None:
    frame = binary()
    names = {"south": f"s{HOSTILE}", "dann": f"m{HOSTILE}", "lesion": f"c{HOSTILE}"}
    frame = frame.replace({"site": names, "model": names, "label": names})
    frame = frame.rename(columns={"logit_lesion": f"logit_c{HOSTILE}"})
    keep = KEEP | {"model": f"m{HOSTILE}", "reason": HOSTILE}
    context = RunContext(title=HOSTILE, keep=keep, notes=(HOSTILE,), flow={HOSTILE: {HOSTILE: {HOSTILE: 1}}})
    table = PredictionTable.from_frame(frame)
    out = write_report(evaluate(table, context=context, replicates=100), tmp_path / "r").parent
    html = (out / "index.html").read_text()
    page = Page(html)
    assert "<script" not in html.lower()
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert f"m{HOSTILE}" in "".join(page.text)
    assert "49" not in re.findall(r"\$\{?\{?(\d+)", "".join(page.text))
    for path in (out / "figures").iterdir():
        root = ElementTree.fromstring(path.read_text())
        assert not [e for e in root.iter() if e.tag.endswith("script")]
    drawn = ElementTree.fromstring((out / "figures" / "roc.svg").read_text())
    assert any((e.text or "").startswith("m<script>alert(1)") for e in drawn.iter())
    card = (out / "report.md").read_text()
    assert "<script" not in card
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    assert len(tables) > 8
    for block in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block


def test_names_that_no_font_holds(binary: Maker, tmp_path: Path) -> None:
    frame = binary(seeds=("0",)).replace({"site": {"south": "南病院"}, "model": {"dann": "適応"}})
    results = evaluate(PredictionTable.from_frame(frame), replicates=100)
    assert "南病院" in write_report(results, tmp_path / "r").read_text()


@pytest.mark.parametrize(
    "options",
    [
        {"labelled": False},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"validation": 0}, {"models": ("one",)}, {"external": 3})
        ),
    ],
)
def test_poor_tables_still_make_a_report(binary: Maker, tmp_path: Path, options: dict[str, Any]) -> None:
    results = evaluate(PredictionTable.from_frame(binary(seeds=("0",), **options)), replicates=100)
    html = write_report(results, tmp_path / "r").read_text()
    assert "None" not in re.sub(r"<[^>]*>", " ", html).replace("None were found", "")
    assert "nan" not in re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).lower().split()


@pytest.mark.usefixtures("undrawn")
def test_source_only_tables_and_four_classes(binary: Maker, four: Maker, tmp_path: Path) -> None:
    alone = evaluate(PredictionTable.from_frame(binary(sites=())), replicates=100)
    assert "There is no external site in this table" in write_report(alone, tmp_path / "a").read_text()
    page = Page(
        write_report(evaluate(PredictionTable.from_frame(four()), replicates=100), tmp_path / "b").read_text()
    )
    text = " ".join(page.text)
    for expected in ("Recall, monocyte", "neutrophil against the rest", "tuning cases"):
        assert expected in text


@pytest.mark.usefixtures("undrawn")
def test_findings_stand_side_by_side(binary: Maker, tmp_path: Path) -> None:
    one = binary(seeds=("0",))
    other = one.assign(finding="mass", logit_lesion=-one.logit_lesion, logit_normal=-one.logit_normal)
    table = PredictionTable.from_frame(pd.concat([one.assign(finding="edema"), other]))
    results = evaluate(table, positive="lesion", replicates=100)
    page = Page(write_report(results, tmp_path / "r").read_text())
    text = " ".join(page.text)
    for expected in ("dann, edema", "dann, mass", "Balanced accuracy for mass", "Findings present"):
        assert expected in text


@pytest.mark.usefixtures("undrawn")
def test_a_failed_drawing_leaves_the_old_report(results: Results, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "r"
    old = write_report(results, out).read_text()
    changed = dataclasses.replace(results, context=dataclasses.replace(results.context, title="New"))
    monkeypatch.setattr("medtl.report.write.make_sections", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(changed, out)
    assert (out / "index.html").read_text() == old
    assert json.loads((out / "results.json").read_text())["context"]["title"] == "Lesions, north"


def test_numbers_without_interval_have_three_digits() -> None:
    assert format_number(0.08, decimals(0.08, None, None)) == "0.080"
    assert format_number(1.234, decimals(1.234, None, None)) == "1.23"
    assert format_number(0.0, decimals(0.0, None, None)) == "0.00"
