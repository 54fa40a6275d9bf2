"""Reports on encoders by strategies, on growing numbers of labelled patients, and on a run's training and costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from medtl.evaluation import Cost, LearningCurve, PredictionTable, Results, RunContext, evaluate
from medtl.evaluation.names import Name, many, pairings, size_groups, split_name
from medtl.report import Cell, Section, TableBuilder, interval_figure, plain, write_page, write_report
from medtl.report.view import View
from tests.helpers.work import calls
from tests.report.test_report import HOSTILE, Page, values

ENCODERS, STRATEGIES = ("resnet50", "vgg16", "efficientnet_b0"), ("probe", "full", "lp_ft")
NINE = tuple(f"{e}/{s}" for e in ENCODERS for s in STRATEGIES)
LEARNED = {model: 0.3 + 0.15 * (k % 3) + 0.3 * (k // 3) for k, model in enumerate(NINE)}


def make(
    skill: dict[str, float], *, target: bool = True, seeds: tuple[str, ...] = ("0", "1")
) -> pd.DataFrame:
    """Cases of a home and a foreign site, as models of different skill see them."""
    rng = np.random.default_rng(4)
    rows = []
    places = [
        ("validation", "source", "home", 40),
        ("test", "source", "home", 40),
        ("test", "target", "south", 50),
    ]
    for split, domain, site, patients in places[: 3 if target else 2]:
        for i in range(patients):
            sick, noise = i % 2, rng.normal()
            for model, strength in skill.items():
                for seed in seeds:
                    z = strength * (2 * sick - 1) + 0.7 * noise + rng.normal(0, 0.6)
                    rows.append(
                        {"case": f"{site}{split}{i}", "patient": f"{site}{split}{i}", "split": split}
                        | {"domain": domain, "site": site, "model": model, "seed": seed}
                        | {"label": ("normal", "lesion")[sick], "logit_lesion": z, "logit_normal": -z}
                    )
    return pd.DataFrame(rows)


def learned(model: str, train: float, validation: float, seed: str = "0") -> LearningCurve:
    return LearningCurve(model, seed, (1, 2, 3), (0.9, 0.5, 0.2), (0.9, 0.7, 0.8), 2, train, validation, 40)


def context_of(models: tuple[str, ...], **more: Any) -> RunContext:
    return RunContext(
        learning=tuple(learned(m, 0.99 if "full" in m else 0.75, 0.7, s) for m in models for s in ("0", "1")),
        costs=tuple(
            Cost(m, 3.0 + 90 * k, 0.004 * (k + 1), 700.0 * (k + 1), 10**7, 4098) for k, m in enumerate(models)
        ),
        methods=dict.fromkeys(models, "Focal loss: probabilities are pulled towards one half."),
        **more,
    )


@pytest.fixture(scope="module")
def nine() -> Results:
    keep = {
        "model": "vgg16/lp_ft",
        "reason": "Best at home.",
        "evidence": [{"name": "At home", "values": dict.fromkeys(NINE, 0.8), "verdict": "vgg16/lp_ft"}],
    }
    context = context_of(NINE, reference_model="resnet50/probe", keep=keep)
    return evaluate(PredictionTable.from_frame(make(LEARNED)), context=context, replicates=200)


@pytest.fixture(scope="module")
def out(nine: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(nine, tmp_path_factory.mktemp("nine") / "report").parent


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text())


def sized(strategies: tuple[str, ...] = ("probe", "full")) -> Results:
    skill = {
        f"{s}@{n}": (0.8 if s == "probe" else 0.3) + (0.1 if s == "probe" else 0.6) * k
        for s in strategies
        for k, n in enumerate((100, 5, 20))
        for k in [(5, 20, 100).index(n)]
    }
    return evaluate(PredictionTable.from_frame(make(skill)), replicates=200)


def text_of(path: Path) -> str:
    return " ".join(" ".join(Page(path.read_text()).text).split())


def table_of(path: Path, caption: str) -> list[list[str]]:
    """The cells of the first table whose caption starts so."""
    html = path.read_text()
    start = re.search(rf"<caption>(?:<b>Table \d+\.</b> )?{re.escape(caption)}", html)
    assert start, caption
    rows = re.findall(
        r"<tr>(.*?)</tr>", html[start.start() : html.index("</table>", start.start())], flags=re.DOTALL
    )
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]*>|\s+", " ", c).strip() for c in row] for row in cells]


def test_names_have_parts() -> None:
    assert split_name("resnet50/last:2@20") == Name("resnet50", "last:2", 20)
    assert split_name("probe@5").group == "probe"
    assert split_name("hf-hub:timm/vit/full") == Name("hf-hub:timm/vit", "full", None)
    for odd in ("me@home", "@5", "source_only"):
        assert split_name(odd) == Name("", odd, None)


def test_what_is_compared_with_what() -> None:
    assert pairings(("a", "b"), {}, "a") == {}
    assert pairings(("a", "b", "c"), {}, "b") == {"reference": {"a": "b", "c": "b"}}
    names = ("probe@5", "probe@20", "full@20", "full@50", "other")
    assert size_groups(names, {}) == {
        "probe": {5: "probe@5", 20: "probe@20"},
        "full": {20: "full@20", 50: "full@50"},
    }
    assert pairings(names, {}, "probe@5") == {
        "same_size": {"full@20": "probe@20"},
        "previous_size": {"probe@20": "probe@5", "full@50": "full@20"},
    }
    assert size_groups(("a", "b"), {"a": 7, "b": 7}) == {}


@pytest.mark.usefixtures("undrawn")
def test_round_trip_and_older_files(nine: Results, tmp_path: Path) -> None:
    path = nine.save(tmp_path / "results.json")
    assert Results.load(path) == nine
    content = json.loads(path.read_text())
    del content["comparisons"]
    for key in ("learning", "costs", "sizes", "methods"):
        del content["context"][key]
    path.write_text(json.dumps(content))
    old = Results.load(path)
    assert (old.comparisons, old.context.learning, old.context.sizes) == ((), (), {})
    assert write_report(old, tmp_path / "old").exists()


def test_comparisons_rank_by_skill(nine: Results) -> None:
    found = {(c.domain, c.split, c.name): c for c in nine.comparisons}
    assert set(found) == {
        (d, s, n)
        for d, s in (("target", "test"), ("source", "test"), ("source", "validation"))
        for n in ("balanced_accuracy", "auroc")
    }
    rows = found["target", "test", "auroc"].rows
    assert [r.rank for r in rows] == list(range(1, 10))
    assert LEARNED[rows[0].model] > 0.9
    assert LEARNED[rows[-1].model] < 0.5
    apart = {
        (d.model, d.name): d.estimate for d in nine.differences if d.domain == "target" and d.cls is None
    }
    for row in rows:
        if row.difference is None:
            assert row.model == nine.reference_model
            continue
        alone = apart[row.model, "auroc"]
        assert row.difference.value == pytest.approx(alone.value)
        assert row.difference.hi - row.difference.lo > 0.95 * (alone.hi - alone.lo)  # type: ignore[operator]


def test_numbers_on_the_page_are_those_of_the_results(out: Path, page: Page) -> None:
    known = set(values(json.loads((out / "results.json").read_text())))
    assert len(page.cells) > 200
    for attrs, text in page.cells:
        numbers = {k: float(attrs[f"data-{k}"] or "") for k in ("value", "lo", "hi") if f"data-{k}" in attrs}
        assert set(numbers.values()) <= known
        shown = re.findall(r"[+\N{MINUS SIGN}]?\d+(?:\.\d+)?", text.rpartition(": ")[2])
        assert len(shown) == len(numbers)


def test_no_table_grows_with_models_times_measures(out: Path) -> None:
    html = (out / "index.html").read_text()
    tables = re.findall(r"<tbody>(.*?)</tbody>", html, flags=re.DOTALL)
    assert max(len(re.findall("<tr>", t)) for t in tables) < 2 * len(NINE)
    assert len(tables) < 26


def test_one_ranked_row_each(nine: Results, out: Path) -> None:
    head, *rows = table_of(out / "index.html", "External testing, the best first")
    assert head == [
        "Model",
        "Balanced accuracy",
        "Difference from resnet50/probe",
        "AUROC",
        "Balanced accuracy, internal testing",
        "Training",
        "Trained parameters",
    ]
    assert len(rows) == 9
    assert [r[0].split(" ")[0] for r in rows] == list(View(nine).models)
    assert sum("(reference)" in r[0] for r in rows) == sum("(kept)" in r[0] for r in rows) == 1
    first = [float(r[1].split()[0]) for r in rows]
    assert first == sorted(first, reverse=True)


def test_what_a_reader_looks_for(out: Path) -> None:
    text = text_of(out / "index.html")
    for expected in (
        "of 8 models compared with resnet50/probe",
        "single-step max-t from the patient bootstrap",
        "so its value is optimistic",
        "Large gap between training and validation",
        "What may help",
        "Cost beside quality",
        "No model that trains as fast as",
        "Focal loss: probabilities are pulled towards one half.",
        "At home speaks for: vgg16/lp_ft.",
    ):
        assert expected in text, expected
    names = sorted(p.stem for p in (out / "figures").iterdir())
    assert names == ["calibration", "costs", "learning", "ranked", "roc", "seeds", "shares"]


def test_encoders_by_strategies(nine: Results, out: Path) -> None:
    head, *rows = table_of(out / "index.html", "Balanced accuracy: encoders and strategies")
    shown = {f"{row[0]}/{s}": cell for row in rows for s, cell in zip(head[1:], row[1:], strict=True)}
    assert set(shown) == set(NINE)
    for model, cell in shown.items():
        block = nine.block(model, "target")
        assert block is not None
        assert cell == f"{block.get('balanced_accuracy').estimate.value:.2f}"  # type: ignore[union-attr]


def test_curves_of_some_models_in_colours_that_differ(nine: Results, out: Path) -> None:
    view = View(nine)
    shown = view.drawn
    assert {"resnet50/probe", "vgg16/lp_ft"} <= set(shown)
    assert len({split_name(m).strategy for m in shown if m != "resnet50/probe"}) == len(shown) - 1
    assert len({view.colour(m) for m in shown}) == len(shown) <= 5
    assert "With so many models, some are drawn" in (out / "report.md").read_text()


def test_a_learning_curve_each(out: Path) -> None:
    drawn = (out / "figures" / "learning.svg").read_text()
    for model in NINE:
        assert model in drawn
    rows = table_of(out / "index.html", "Balanced accuracy of the kept weights")
    assert rows[0] == ["Model", "Kept epoch", "Training", "Validation", "Gap", "Reads as"]
    reads = {r[0]: r[-1] for r in rows[1:]}
    assert {m for m, word in reads.items() if word == "large"} == {m for m in NINE if "full" in m}
    assert rows[1][1] == "2, 2 of 3"


@pytest.mark.usefixtures("undrawn")
def test_without_a_target_models_are_ranked_at_home(tmp_path: Path) -> None:
    frame = make(LEARNED, target=False, seeds=("0",))
    results = evaluate(PredictionTable.from_frame(frame), context=context_of(NINE), replicates=100)
    out = write_report(results, tmp_path / "r")
    assert table_of(out, "Internal testing, the best first")[1][0] == View(results).models[0]
    assert "What internal testing shows" in text_of(out)
    tuning = frame[frame.split == "validation"]
    results = evaluate(PredictionTable.from_frame(tuning), replicates=100)
    assert table_of(write_report(results, tmp_path / "v"), "Internal, tuning cases, the best first")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("gone", ["vgg16/full", "resnet50/probe"])
def test_a_model_that_never_went_abroad(gone: str, tmp_path: Path) -> None:
    frame = make(LEARNED, seeds=("0",))
    frame = frame[(frame.model != gone) | (frame.domain == "source")]
    context = RunContext(reference_model="resnet50/probe")
    results = evaluate(PredictionTable.from_frame(frame), context=context, replicates=100)
    assert results.block(gone, "target") is None
    assert results.block(gone, "source") is not None
    away = [c for c in results.comparisons if c.domain == "target"]
    assert len(away) == (0 if gone == "resnet50/probe" else 2)
    text = text_of(write_report(results, tmp_path / "r"))
    assert "External testing: 50 patients, 50 cases, south" in text


@pytest.mark.usefixtures("undrawn")
def test_two_models_one_abroad(tmp_path: Path) -> None:
    frame = make({"a": 1.0, "b": 1.2}, seeds=("0",))
    frame = frame[(frame.model == "b") | (frame.domain == "source")]
    results = evaluate(PredictionTable.from_frame(frame), replicates=100)
    assert not [d for d in results.differences if d.domain == "target"]
    assert write_report(results, tmp_path / "r").exists()


@pytest.mark.usefixtures("undrawn")
def test_upper_bounds_are_no_candidates(tmp_path: Path) -> None:
    bound = "efficientnet_b0/full"
    context = RunContext(target_trained=(bound,), reference_model="resnet50/probe")
    results = evaluate(
        PredictionTable.from_frame(make(LEARNED, seeds=("0",))), context=context, replicates=100
    )
    assert all(bound not in [r.model for r in c.rows] for c in results.comparisons)
    assert View(results).models[-1] == bound
    rows = table_of(write_report(results, tmp_path / "r"), "External testing, the best first")
    assert rows[-1][0].endswith("upper bound")


def test_sizes_are_compared_step_by_step(tmp_path: Path) -> None:
    results = sized()
    assert many(results)
    found = {(c.kind, c.domain, c.split): c for c in results.comparisons if c.name == "balanced_accuracy"}
    steps = {r.model: r.reference for r in found["previous_size", "target", "test"].rows if r.reference}
    assert steps == {
        "probe@20": "probe@5",
        "probe@100": "probe@20",
        "full@20": "full@5",
        "full@100": "full@20",
    }
    same = {r.model: r for r in found["same_size", "target", "test"].rows if r.reference}
    assert set(same) == {"full@5", "full@20", "full@100"}
    assert same["full@5"].verdict == "harm"
    out = write_report(results, tmp_path / "r")
    rows = table_of(out, "Balanced accuracy, external testing")
    assert [r[0] for r in rows] == ["Labelled training patients", "5", "20", "100"]
    steps_shown = table_of(out, "Balanced accuracy, external testing: what more patients brought")
    assert [r[0] for r in steps_shown[1:]] == ["5 to 20", "20 to 100"]
    text = text_of(out)
    assert "The last step, from 20 to 100, brought" in text
    assert "Neither alone is the whole uncertainty" in text
    drawn = (out.parent / "figures" / "sizes.svg").read_text()
    assert "Labelled training patients" in drawn
    assert "All models against the reference" not in text


@pytest.mark.usefixtures("undrawn")
def test_one_strategy_over_sizes(tmp_path: Path) -> None:
    results = sized(("probe",))
    assert {c.kind for c in results.comparisons} == {"previous_size"}
    assert "with as many patients" not in text_of(write_report(results, tmp_path / "r"))


@pytest.mark.usefixtures("undrawn")
def test_sizes_from_the_context(tmp_path: Path) -> None:
    frame = make({"small": 0.6, "large": 1.5}, seeds=("0",))
    context = RunContext(sizes={"small": 8, "large": 90})
    results = evaluate(PredictionTable.from_frame(frame), context=context, replicates=100)
    assert "How many labelled patients" not in text_of(
        write_report(results, tmp_path / "r")
    )  # one size a name


@pytest.mark.usefixtures("undrawn")
def test_few_models_keep_their_page_and_gain_sections(tmp_path: Path) -> None:
    models = ("probe", "full")
    frame = make({"probe": 0.8, "full": 1.3})
    results = evaluate(PredictionTable.from_frame(frame), context=context_of(models), replicates=100)
    assert results.comparisons == ()
    out = write_report(results, tmp_path / "r")
    text = text_of(out)
    for expected in ("Paired differences from probe", "Learning curves", "Cost beside quality", "Focal loss"):
        assert expected in text
    assert sorted(p.stem for p in (out.parent / "figures").iterdir())[:4] == [
        "calibration",
        "costs",
        "differences",
        "learning",
    ]


@pytest.mark.usefixtures("undrawn")
def test_missing_costs_and_losses(tmp_path: Path) -> None:
    curve = LearningCurve("probe", "0", (1, 2), (None, 0.5), (), None)
    context = RunContext(
        learning=(curve,), costs=(Cost("probe"), Cost("full", train_seconds=2.0), Cost("gone", 9.0))
    )
    frame = make({"probe": 0.8, "full": 1.3}, seeds=("0",))
    results = evaluate(PredictionTable.from_frame(frame), context=context, replicates=100)
    out = write_report(results, tmp_path / "r")
    html = re.sub(r"<style>.*?</style>|<[^>]*>", " ", out.read_text(), flags=re.DOTALL)
    assert "None" not in html.replace("None were found", "")
    assert table_of(out, "Cost beside quality")[1][0] == "full"


@pytest.mark.usefixtures("undrawn")
def test_hostile_names_stay_text(tmp_path: Path) -> None:
    skill = {f"{m}{HOSTILE}": s for m, s in LEARNED.items()}
    context = context_of(tuple(skill))
    results = evaluate(PredictionTable.from_frame(make(skill, seeds=("0",))), context=context, replicates=100)
    out = write_report(results, tmp_path / "r").parent
    assert "<script" not in (out / "index.html").read_text().lower()
    card = (out / "report.md").read_text()
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_several_findings(tmp_path: Path) -> None:
    frame = make(LEARNED, seeds=("0",))
    other = frame.assign(finding="mass", logit_lesion=-frame.logit_lesion, logit_normal=-frame.logit_normal)
    table = PredictionTable.from_frame(pd.concat([frame.assign(finding="edema"), other]))
    results = evaluate(table, positive="lesion", context=context_of(NINE), replicates=100)
    text = text_of(write_report(results, tmp_path / "r"))
    assert "Differences from resnet50/probe, external testing, mass" in text


@pytest.mark.slow
def test_work_grows_with_the_models_not_with_their_pairs() -> None:
    def evaluation(number: int) -> Callable[[], object]:
        names = [f"{e}/{s}" for e in (*ENCODERS, "vit") for s in STRATEGIES]
        skill = {name: 1.0 + 0.1 * k for k, name in enumerate(names[:number])}
        table = PredictionTable.from_frame(make(skill, seeds=("0",)))
        return lambda: evaluate(table, replicates=100)

    six, twelve = evaluation(6), evaluation(12)
    six()
    assert calls(twelve) < 2.4 * calls(six)


def test_a_page_without_predictions(tmp_path: Path) -> None:
    table = TableBuilder("Encoders", ("Encoder", "LogME"))
    table.row("resnet50", plain(0.412))
    table.row(Cell("<b>vgg</b>"), plain(None))
    sections = [Section("rank", "Ranking", text=("Two <i>were</i> scored.",), tables=(table.build(),))]
    out = write_page(
        "Encoders | site A", sections, tmp_path / "p", lead=("resnet50 is first.",), byline=("site A",)
    )
    text = text_of(out)
    for expected in (
        "Encoders | site A",
        "resnet50 is first.",
        "<b>vgg</b>",
        "0.412",
        "Two <i>were</i> scored.",
    ):
        assert expected in text
    assert "results.json" not in text
    assert sorted(p.name for p in out.parent.iterdir()) == ["index.html", "report.md"]
    card = (out.parent / "report.md").read_text()
    assert "# Encoders \\| site A\n" in card
    assert "| resnet50 | 0.412 |" in card
    ids = [a["id"] for _, a in Page(out.read_text()).tags if "id" in a]
    assert ids == ["summary", "rank"]


def test_a_page_with_a_figure(tmp_path: Path) -> None:
    rows = [("resnet50", 0.41, 0.35, 0.46), (f"vgg{HOSTILE}", 0.36, None, None)]
    figure = interval_figure("logme", rows, xlabel="LogME", caption="Higher is better.")
    out = write_page("T", [Section("a", "A", figures=(figure,))], tmp_path / "p")
    drawn = out.parent / "figures" / "logme.svg"
    texts = {e.text for e in ElementTree.fromstring(drawn.read_text()).iter() if e.tag.endswith("}text")}
    assert {"resnet50", "LogME"} <= texts
    html = out.read_text()
    assert "<svg" in html
    assert "<script" not in html.lower()
    assert "![logme](figures/logme.svg)" in (out.parent / "report.md").read_text()
