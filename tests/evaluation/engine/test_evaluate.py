from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from medtl.errors import ConfigError
from medtl.evaluation import MEASURES, PredictionTable, Results, RunContext, evaluate
from medtl.evaluation.context import hide_folders
from medtl.report import write_report
from tests.helpers.work import calls, peak

Maker = Callable[..., pd.DataFrame]
FAST = {"replicates": 200}


@pytest.fixture(scope="module")
def frame(binary: Maker) -> pd.DataFrame:
    return binary()


@pytest.fixture(scope="module")
def results(frame: pd.DataFrame) -> Results:
    return evaluate(PredictionTable.from_frame(frame), prevalence=0.1, **FAST)


def numbers(results: Results) -> dict[str, object]:
    """The results without the time they were made."""
    return dataclasses.asdict(dataclasses.replace(results, created=""))


def test_values_are_those_of_scikit_learn(frame: pd.DataFrame, results: Results) -> None:
    block = results.block("dann", "target")
    assert block is not None
    rows = frame[(frame.model == "dann") & (frame.domain == "target")]
    expected: dict[str, list[float]] = {"auroc": [], "brier": [], "nll": [], "balanced_accuracy": []}
    for seed, own in rows.groupby("seed"):
        y = (own.label == "lesion").to_numpy()
        margin = (own.logit_lesion - own.logit_normal).to_numpy()
        p = 1 / (1 + np.exp(-margin))
        point = next(s for s in results.settings if (s.model, s.seed) == ("dann", seed)).operating_point
        assert point is not None
        expected["auroc"].append(roc_auc_score(y, margin))
        expected["brier"].append(brier_score_loss(y, p))
        expected["nll"].append(log_loss(y, p))
        expected["balanced_accuracy"].append(balanced_accuracy_score(y, margin >= point.threshold))
    for name, values in expected.items():
        measure = block.get(name, stage="before") or block.get(name)
        assert measure is not None
        assert list(measure.per_seed.values()) == pytest.approx(values, rel=1e-9)
        assert measure.estimate.value == pytest.approx(np.mean(values), rel=1e-9)
    assert np.sum(block.confusion) == pytest.approx(len(rows) / 2)


def test_four_classes(four: Maker) -> None:
    frame = four()
    results = evaluate(PredictionTable.from_frame(frame), **FAST)
    block = results.block("dann", "target")
    assert block is not None
    rows = frame[(frame.model == "dann") & (frame.domain == "target") & (frame.seed == "0")]
    logits = rows[[f"logit_{c}" for c in results.classes]].to_numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    auroc, brier = block.get("auroc"), block.get("brier", stage="before")
    assert auroc is not None
    assert brier is not None
    assert auroc.per_seed["0"] == pytest.approx(roc_auc_score(rows.label, p, multi_class="ovr"))
    truth = np.array(results.classes)[None, :] == rows.label.to_numpy()[:, None]
    assert brier.per_seed["0"] == pytest.approx(((p - truth) ** 2).sum(axis=1).mean())
    assert results.positive is None
    assert {m.cls for m in block.measures if m.name == "recall"} == set(results.classes)
    assert block.get("sensitivity") is None
    assert len([c for c in block.curves if c.name == "roc"]) == 4
    # No separate internal test cases: the tuning cases speak for the source, and the report says so.
    assert results.main_blocks("dann", "source")[0].split == "validation"
    assert any("they flatter" in text for text in results.limitations)


def test_intervals_hold_their_values(results: Results) -> None:
    checked = 0
    for block in results.blocks:
        for m in block.measures:
            e = m.estimate
            if e.value is not None and e.lo is not None and e.hi is not None:
                checked += 1
                assert e.lo - 1e-9 <= e.hi
                if MEASURES[m.name].interval in ("auroc", "proportion"):
                    assert 0 <= e.lo <= e.value <= e.hi <= 1
    assert checked > 100


def test_rows_may_stand_in_any_order(frame: pd.DataFrame, results: Results) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    # The models keep their order of appearance, which is all that the order of rows decides.
    shuffled = pd.concat([shuffled[shuffled.model == "source_only"], shuffled[shuffled.model == "dann"]])
    again = evaluate(PredictionTable.from_frame(shuffled), prevalence=0.1, **FAST)
    for first, second in zip(results.blocks, again.blocks, strict=True):
        for m in first.measures:
            other = second.get(m.name, cls=m.cls, stage=m.stage, kind=m.kind)
            assert other is not None
            for field in ("value", "lo", "hi"):
                a, b = getattr(m.estimate, field), getattr(other.estimate, field)
                assert (a is None and b is None) or a == pytest.approx(b, rel=1e-9, abs=1e-12)


def test_same_seed_same_numbers_and_other_models_leave_them(frame: pd.DataFrame, results: Results) -> None:
    assert numbers(evaluate(PredictionTable.from_frame(frame), prevalence=0.1, **FAST)) == numbers(results)
    third = frame[frame.model == "dann"].assign(model="third")
    more = evaluate(PredictionTable.from_frame(pd.concat([frame, third])), prevalence=0.1, **FAST)
    for domain in ("source", "target"):
        assert more.block("dann", domain) == results.block("dann", domain)


def test_a_model_against_its_twin_differs_by_nothing(frame: pd.DataFrame) -> None:
    twin = pd.concat([frame[frame.model == "dann"], frame[frame.model == "dann"].assign(model="twin")])
    results = evaluate(PredictionTable.from_frame(twin), **FAST)
    assert results.reference_model == "dann"
    assert results.reference_reason == "the first model of the table"
    assert results.differences
    for d in results.differences:
        assert (d.estimate.value, d.estimate.lo, d.estimate.hi, d.verdict) == (0, 0, 0, "no clear difference")


def test_gain_and_harm_are_named(frame: pd.DataFrame, results: Results) -> None:
    gain = next(d for d in results.differences if (d.domain, d.site, d.name) == ("target", None, "auroc"))
    assert gain.verdict == "gain"
    assert gain.estimate.lo is not None
    assert gain.estimate.lo > 0
    loss = next(d for d in results.differences if (d.domain, d.site, d.name) == ("target", None, "nll"))
    assert (loss.better, loss.verdict) == ("lower", "gain")
    assert loss.estimate.value is not None
    assert loss.estimate.value < 0
    context = RunContext(reference_model="dann")
    turned = evaluate(PredictionTable.from_frame(frame), context=context, **FAST)
    assert turned.models == ("dann", "source_only")
    harm = next(d for d in turned.differences if (d.domain, d.site, d.name) == ("target", None, "auroc"))
    assert (harm.model, harm.verdict) == ("source_only", "harm")


def test_operating_point_and_temperature_ignore_the_target(frame: pd.DataFrame, results: Results) -> None:
    broken = frame.copy()
    away = broken.domain == "target"
    broken.loc[away, ["logit_lesion", "logit_normal"]] *= -3
    again = evaluate(PredictionTable.from_frame(broken), prevalence=0.1, **FAST)
    assert again.settings == results.settings


def test_a_calibration_split_takes_the_temperature(frame: pd.DataFrame) -> None:
    split = frame.copy()
    some = (split.split == "validation") & (split.patient < "q0030")
    split.loc[some, "split"] = "calibration"
    results = evaluate(PredictionTable.from_frame(split), **FAST)
    s = results.settings[0]
    assert s.operating_point is not None
    assert s.temperature_cases == len(split[some]) / 4
    assert s.operating_point.num_cases == (split.split == "validation").sum() / 4


def test_without_validation_defaults_stand(binary: Maker) -> None:
    results = evaluate(PredictionTable.from_frame(binary(validation=0)), **FAST)
    for s in results.settings:
        assert (s.temperature, s.temperature_status, s.operating_status) == (
            None,
            "no_validation",
            "no_validation",
        )
        assert s.operating_point is not None
        assert s.operating_point.probability == 0.5
    block = results.block("dann", "target")
    assert block is not None
    assert block.get("nll", stage="after") is None
    assert any("No operating point could be fitted" in text for text in results.limitations)


def test_an_unlabelled_target_gives_shares_only(binary: Maker) -> None:
    results = evaluate(PredictionTable.from_frame(binary(labelled=False)), **FAST)
    block = results.block("dann", "target")
    assert block is not None
    assert {m.name for m in block.measures} == {"predicted_share"}
    assert (block.num_labelled, block.confusion, block.curves) == (0, None, ())
    assert not [d for d in results.differences if d.domain == "target"]
    assert any("no reference standard" in text for text in results.limitations)


def test_predictive_values_are_those_of_bayes(results: Results) -> None:
    block = results.block("dann", "target")
    assert block is not None
    for seed in ("0", "1"):
        sens, spec, ppv = (block.get(n).per_seed[seed] for n in ("sensitivity", "specificity", "ppv"))  # type: ignore[union-attr]
        assert ppv == pytest.approx(0.1 * sens / (0.1 * sens + 0.9 * (1 - spec)))  # type: ignore[operator]


def test_perfect_separation_is_told(frame: pd.DataFrame) -> None:
    perfect = frame.copy()
    sign = np.where(perfect.label == "lesion", 1.0, -1.0)
    size = 1 + np.abs(perfect.logit_lesion)
    perfect["logit_lesion"], perfect["logit_normal"] = sign * size, -sign * size
    results = evaluate(PredictionTable.from_frame(perfect), prevalence=0.1, **FAST)
    block = results.block("dann", "target")
    assert block is not None
    by_name = {m.name: m.estimate for m in block.measures if m.stage is None}
    assert by_name["auroc"].status == "separated"
    assert by_name["sensitivity"].status == "boundary"
    assert by_name["ppv"].status == "boundary"
    for name in ("auroc", "sensitivity", "balanced_accuracy", "ppv"):
        e = by_name[name]
        assert e.hi == 1
        assert e.lo is not None
        assert 0.2 < e.lo < 1
    slope = block.get("calibration_slope", stage="before")
    assert slope is not None
    assert (slope.estimate.value, slope.estimate.status) == (None, "undefined")


def test_weights_of_two_are_repeated_rows(frame: pd.DataFrame) -> None:
    one = frame[frame.model == "dann"]
    heavy = one.assign(weight=np.where(one.label == "lesion", 2, 1))
    copy = one[one.label == "lesion"].assign(case=lambda f: f.case + "-copy")
    first = evaluate(PredictionTable.from_frame(heavy), **FAST).block("dann", "target")
    second = evaluate(PredictionTable.from_frame(pd.concat([one, copy])), **FAST).block("dann", "target")
    assert first is not None
    assert second is not None
    for name in ("auroc", "accuracy", "observed_share"):
        a, b = first.get(name), second.get(name)
        assert a is not None
        assert b is not None
        assert a.estimate.value == pytest.approx(b.estimate.value, rel=1e-9)


def test_multilabel_findings_are_tasks_of_their_own(frame: pd.DataFrame) -> None:
    one = frame[frame.seed == "0"].drop(columns="seed")
    other = one.assign(finding="mass", logit_lesion=-one.logit_lesion, logit_normal=-one.logit_normal)
    table = PredictionTable.from_frame(pd.concat([one.assign(finding="edema"), other]))
    results = evaluate(table, positive="lesion", **FAST)
    edema = results.block("dann", "target", finding="edema")
    mass = results.block("dann", "target", finding="mass")
    assert edema is not None
    assert mass is not None
    a, b = edema.get("auroc"), mass.get("auroc")
    assert a is not None
    assert b is not None
    assert a.estimate.value == pytest.approx(1 - b.estimate.value)  # type: ignore[operator]
    assert set(results.calibration()["models"]["dann"]["single"]) == {"edema", "mass"}


def test_positive_class(frame: pd.DataFrame) -> None:
    table = PredictionTable.from_frame(frame)
    chosen = evaluate(table, **FAST)
    assert (chosen.positive, chosen.positive_reason) == ("lesion", "its counterpart is called normal")
    assert evaluate(table, positive="normal", **FAST).positive == "normal"
    renamed = frame.rename(columns={"logit_lesion": "logit_a", "logit_normal": "logit_b"})
    renamed["label"] = renamed.label.map({"lesion": "a", "normal": "b"})
    last = evaluate(PredictionTable.from_frame(renamed), **FAST)
    assert (last.positive, last.positive_reason) == ("b", "it is the last of the two score columns")


def test_wrong_options(frame: pd.DataFrame, four: Maker) -> None:
    table = PredictionTable.from_frame(frame)
    for options, expected in (
        ({"positive": "leson"}, "Perhaps you meant 'lesion'"),
        ({"rule": "best"}, "expected 'youden'"),
        ({"prevalence": 10.0}, "between 0 and 1"),
        ({"replicates": 10}, "At least 100 resamples"),
        ({"level": 95.0}, "for instance 0.95"),
        ({"context": RunContext(reference_model="source-only")}, "Perhaps you meant 'source_only'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            evaluate(table, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for tasks with two classes; this table has 4"):
        evaluate(PredictionTable.from_frame(four()), rule="sens>=0.9")
    with pytest.raises(ConfigError, match="but the table has 4 classes"):
        evaluate(PredictionTable.from_frame(four()), positive="monocyte")


def test_limitations_follow_from_the_results(binary: Maker) -> None:
    frame = binary(external=8, seeds=("0",), sites=("north",))
    frame["patient"] = frame["case"]
    context = RunContext(stamps=("oracle",), target_seen_unlabelled=True)
    text = " ".join(evaluate(PredictionTable.from_frame(frame), context=context, **FAST).limitations)
    for expected in (
        "oracle run",
        "fewer than 10",
        "is wide",
        "names no patients",
        "saw the scans of the external site",
        "one training run",
        "One external site",
    ):
        assert expected in text


def test_command_lines_lose_their_folders() -> None:
    assert hide_folders("medtl report /home/ann/p.csv --out ~/x/y") == "medtl report …/p.csv --out …/y"
    assert hide_folders(r"medtl report C:\Users\ann\p.csv") == "medtl report …/p.csv"
    assert hide_folders("medtl report sub/p.csv --lr 1/2") == "medtl report sub/p.csv --lr 1/2"


def test_work_grows_no_faster_than_cases_and_resamples(binary: Maker) -> None:
    def evaluation(cases: int, replicates: int) -> Callable[[], object]:
        frame = binary(seeds=("0",), models=("a",), external=cases, test=cases, validation=cases)
        table = PredictionTable.from_frame(frame)
        return lambda: evaluate(table, replicates=replicates)

    small, more_cases, more_resamples = evaluation(75, 100), evaluation(150, 100), evaluation(75, 200)
    small()
    assert calls(more_cases) < 1.2 * calls(small)  # no loop over cases
    assert calls(more_resamples) < 2 * calls(small)
    assert peak(more_cases) < 2.4 * peak(small)  # no array of cases by cases


def test_no_temperature_is_told_from_cases_that_are_all_called_right(binary: Maker, tmp_path: Path) -> None:
    """The likelihood has no maximum then: T = 1 stands. One case called wrong, and there is one."""
    frame = binary(seeds=("0",), validation=40)
    tuned = (frame.split == "validation") & (frame.model == "dann")
    sign = np.where(frame.label[tuned] == "lesion", 1.0, -1.0)
    size = np.abs(frame.logit_lesion[tuned]) + 0.1
    frame.loc[tuned, "logit_lesion"], frame.loc[tuned, "logit_normal"] = sign * size, -sign * size
    results = evaluate(PredictionTable.from_frame(frame), **FAST)
    found = {s.model: (s.temperature, s.temperature_status) for s in results.settings}
    assert found["dann"] == (1.0, "separated")
    assert found["source_only"][1] == "fitted"
    block = results.block("dann", "target")
    before, after = (block.get("nll", stage=stage).estimate.value for stage in ("before", "after"))
    assert before == after
    write_report(results, tmp_path / "r")
    page = (tmp_path / "r" / "index.html").read_text()
    assert "none: all called right" in page
    assert "No temperature can be fitted for dann where all tuning cases are called right" in page
    wrong = frame.index[tuned][0]
    frame.loc[wrong, ["logit_lesion", "logit_normal"]] *= -1
    settings = evaluate(PredictionTable.from_frame(frame), **FAST).settings
    assert next(s for s in settings if s.model == "dann").temperature_status == "fitted"
