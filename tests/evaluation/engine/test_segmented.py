from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtl.errors import ConfigError, DataError
from medtl.evaluation import Block, Results, RunContext, SegmentationRules, VoxelTable
from medtl.evaluation.engine.evaluate import evaluate_cases
from medtl.evaluation.statistics.arrays import seed_from
from medtl.evaluation.statistics.estimate import STATUSES
from medtl.evaluation.statistics.resample import expanded_tail, patient_counts
from medtl.report.terminal import summary_rows

Maker = Callable[..., pd.DataFrame]
RULES = SegmentationRules(
    "mm", "ml", {"nucleus": 2.0, "cytoplasm": 2.0}, "A structure in neither mask: no value."
)


def value(block: Block, name: str, cls: str | None, **where: str | None) -> float:
    measure = block.get(name, cls=cls, **where)
    assert measure is not None
    assert measure.estimate.value is not None
    return measure.estimate.value


@pytest.fixture(scope="module")
def frame(segmented: Maker) -> pd.DataFrame:
    return segmented(per_patient=2)


@pytest.fixture(scope="module")
def results(frame: pd.DataFrame) -> Results:
    return evaluate_cases(frame, rules=RULES, replicates=300)


def test_mean_dice_and_its_interval_are_those_of_a_direct_computation(
    frame: pd.DataFrame, results: Results
) -> None:
    own = frame[(frame.model == "dann") & (frame.domain == "target") & (frame.structure == "nucleus")]
    by_seed = own.pivot(index="case", columns="seed", values="dice").sort_index()
    patients = own.drop_duplicates("case").set_index("case").patient.loc[by_seed.index]
    names, patient = np.unique(patients.to_numpy().astype(str), return_inverse=True)
    draw = seed_from(0, "target", "test", "lab_b", "segmentation")
    counts = np.concatenate(list(patient_counts(np.zeros(len(names), int), 300, draw, len(patients))))
    drawn = []
    for times in counts:
        rows = np.repeat(np.arange(len(patient)), times[patient].astype(int))
        drawn.append(by_seed.to_numpy()[rows].mean(axis=0).mean())
    tail = expanded_tail(20, 0.95)
    block = results.main_blocks("dann", "target")[0]
    found = block.get("dice", cls="nucleus", kind=None)
    assert found is not None
    assert found.estimate.value == pytest.approx(by_seed.mean().mean(), abs=1e-12)
    limits = (found.estimate.lo, found.estimate.hi)
    assert limits == pytest.approx(np.quantile(drawn, [tail, 1 - tail]), abs=1e-12)
    assert (found.estimate.n, found.estimate.num_patients) == (40, 20)
    assert found.per_seed == pytest.approx(by_seed.mean().to_dict())
    median = block.get("dice", cls="nucleus", kind="median")
    assert median is not None
    assert median.estimate.value == pytest.approx(by_seed.mean(axis=1).median())
    assert median.estimate.lo is None


def test_paired_differences_are_taken_on_the_same_resamples(frame: pd.DataFrame, results: Results) -> None:
    twin = frame[frame.model == "source_only"].assign(model="twin")
    twin["dice"] += 0.01
    both = pd.concat([frame[frame.model == "source_only"], twin])
    found = evaluate_cases(both, rules=RULES, replicates=200).differences
    d = next(d for d in found if (d.domain, d.name, d.cls) == ("target", "dice", "nucleus"))
    assert d.estimate.value == pytest.approx(0.01)
    assert (d.estimate.lo, d.estimate.hi) == pytest.approx((0.01, 0.01))
    assert d.verdict == "gain"


def test_gain_on_one_structure_and_harm_on_the_other(results: Results) -> None:
    found = {
        (d.name, d.cls): d.verdict
        for d in results.differences
        if d.model == "dann" and d.domain == "target" and d.site is not None
    }
    assert found["dice", "nucleus"] == "gain"
    assert found["dice", "cytoplasm"] == "harm"
    assert found["hd95", "nucleus"] == "gain"  # a smaller distance
    assert found["hd95", "cytoplasm"] == "harm"


def test_mean_over_structures_is_the_mean_of_their_means(results: Results) -> None:
    block = results.main_blocks("dann", "target")[0]
    for name in ("dice", "nsd", "hd95"):
        each = [value(block, name, c, kind=None) for c in results.classes]
        assert value(block, name, None) == pytest.approx(np.mean(each))
    assert block.get("volume_bias", cls=None) is None


def test_limits_of_agreement(frame: pd.DataFrame, results: Results) -> None:
    own = frame[(frame.model == "dann") & (frame.domain == "target") & (frame.structure == "nucleus")]
    difference = (own.volume_predicted - own.volume_reference).groupby(own.seed)
    bias, spread = difference.mean(), difference.std(ddof=1)
    block = results.main_blocks("dann", "target")[0]
    assert value(block, "volume_bias", "nucleus") == pytest.approx(bias.mean())
    assert value(block, "volume_lower", "nucleus") == pytest.approx((bias - 1.96 * spread).mean())
    assert value(block, "volume_upper", "nucleus") == pytest.approx((bias + 1.96 * spread).mean())


def test_statuses_are_counted_and_do_not_drop_out(frame: pd.DataFrame, results: Results) -> None:
    own = frame[(frame.model == "dann") & (frame.domain == "target") & (frame.structure == "cytoplasm")]
    block = results.main_blocks("dann", "target")[0]
    expected = own.status.value_counts().to_dict()
    assert {k: v for k, v in block.statuses["cytoplasm"].items() if v} == expected
    assert sum(block.statuses["cytoplasm"].values()) == 40 * 3
    assert expected["pred_empty"] > 0
    present = own[own.seed == "0"].status.isin(["ok", "pred_empty"])
    assert block.class_cases["cytoplasm"] == present.sum()
    dice = block.get("dice", cls="cytoplasm", kind=None)
    assert dice is not None
    assert dice.estimate.value == pytest.approx(own.groupby("seed").dice.mean().mean())


def test_weights_of_cases(segmented: Maker) -> None:
    frame = segmented(models=("one",), seeds=("0",), internal=0, cases=12)
    frame["weight"] = np.where(frame.case.str.endswith(("0", "1")), 3.0, 1.0)
    own = frame[frame.structure == "nucleus"]
    block = evaluate_cases(frame, rules=RULES, replicates=100).main_blocks("one", "target")[0]
    assert value(block, "dice", "nucleus", kind=None) == pytest.approx(
        np.average(own.dice, weights=own.weight)
    )


def test_cases_without_a_reference_are_counted_apart(segmented: Maker) -> None:
    results = evaluate_cases(segmented(referenced=False), rules=RULES, replicates=100)
    block = results.main_blocks("dann", "target")[0]
    assert (block.num_cases, block.num_labelled) == (40, 0)
    assert block.statuses["nucleus"]["no_reference"] == 120
    assert not block.measures
    assert not [d for d in results.differences if d.domain == "target"]
    assert any("no reference standard" in line for line in results.limitations)


def test_models_are_ranked_over_all_structures_and_on_each(results: Results) -> None:
    found = {c.cls: c for c in results.comparisons if (c.domain, c.site) == ("target", "lab_b")}
    assert list(found) == [None, "nucleus", "cytoplasm"]
    for structure, comparison in found.items():
        assert (comparison.name, comparison.kind) == ("dice", "reference")
        assert {row.model for row in comparison.rows} == set(results.models)
        values = [row.estimate.value for row in comparison.rows]
        assert values == sorted(values, key=lambda v: -(v or 0))
        assert sum(row.first for row in comparison.rows) == pytest.approx(1)
        for row in comparison.rows:
            block = results.block(row.model, "target")
            assert block is not None
            measure = block.get("dice", cls=structure, kind=None)
            assert measure is not None
            assert row.estimate == measure.estimate
            if row.difference is not None:
                alone = next(
                    d.estimate
                    for d in results.differences
                    if (d.model, d.domain, d.name, d.cls) == (row.model, "target", "dice", structure)
                )
                assert row.difference.value == pytest.approx(alone.value)
    verdicts = {c: {r.model: r.verdict for r in found[c].rows}["dann"] for c in ("nucleus", "cytoplasm")}
    assert verdicts == {"nucleus": "gain", "cytoplasm": "harm"}


def test_labelled_patients_are_compared_size_by_size(segmented: Maker) -> None:
    models = ("probe@5", "probe@20", "full@5", "full@20")
    frame = segmented(models=models, seeds=("0",), structures=("nucleus",), cases=12, internal=0)
    found = evaluate_cases(frame, rules=RULES, replicates=100).comparisons
    assert {(c.kind, c.cls) for c in found} == {("same_size", "nucleus"), ("previous_size", "nucleus")}
    pairs = {(c.kind, r.model): r.reference for c in found for r in c.rows if r.reference}
    assert pairs["same_size", "full@20"] == "probe@20"
    assert pairs["previous_size", "full@20"] == "full@5"


def test_upper_bounds_are_never_kept_and_stand_last(frame: pd.DataFrame) -> None:
    ours = RunContext(target_trained=("mean_teacher",), reference_model="")
    found = evaluate_cases(frame, rules=RULES, context=ours, replicates=100)
    assert found.models == ("source_only", "dann", "mean_teacher")
    assert any("upper bound" in line for line in found.limitations)
    kept = dataclasses.replace(ours, keep={"model": "mean_teacher"})
    with pytest.raises(ConfigError, match="'mean_teacher' was trained with target labels"):
        evaluate_cases(frame, rules=RULES, context=kept, replicates=100)
    unknown = RunContext(target_trained=("nobody",))
    with pytest.raises(ConfigError, match="not in the table"):
        evaluate_cases(frame, rules=RULES, context=unknown, replicates=100)


def test_pixels_and_millimetres_are_not_averaged(segmented: Maker) -> None:
    frame = segmented(models=("one",), seeds=("0",), internal=0)
    first = frame.case == frame.case.iloc[0]
    mixed = evaluate_cases(frame.assign(unit=np.where(first, "px", "mm")), rules=RULES, replicates=100)
    assert mixed.segmentation is not None
    assert mixed.segmentation.mixed_units == 1
    block = mixed.main_blocks("one", "target")[0]
    dice, far = block.get("dice", cls="nucleus"), block.get("hd95", cls="nucleus")
    assert dice is not None
    assert far is not None
    assert (dice.estimate.n, far.estimate.n) == (40, 39)


def test_temperatures_come_from_the_source_and_reach_the_target(
    segmented: Maker, voxels: Callable[[pd.DataFrame], VoxelTable]
) -> None:
    frame = segmented(validation=10, seeds=("0", "1"), models=("source_only", "dann"))
    results = evaluate_cases(frame, rules=RULES, voxels=voxels(frame), replicates=100)
    entry = results.calibration()["models"]["dann"]["1"]["nucleus"]
    assert entry["temperature"] == pytest.approx(2.0, abs=0.25)
    assert (entry["temperature_status"], entry["temperature_cases"]) == ("fitted", 10)
    home, away = (results.main_blocks("dann", d)[0] for d in ("source", "target"))
    for block, better in ((home, True), (away, True)):
        before, after = (value(block, "voxel_nll", "nucleus", stage=s) for s in ("before", "after"))
        assert (after < before) is better
    assert value(home, "voxel_ece", "nucleus", stage="after") < 0.03
    assert value(away, "voxel_ece", "nucleus", stage="after") > 0.03  # the shift took the calibration along
    curve = next(c for c in home.curves if (c.cls, c.stage) == ("nucleus", "after"))
    assert np.abs(np.array(curve.x) - curve.y).max() < 0.08
    assert sum(curve.histogram) == pytest.approx(1, abs=1e-5)


def test_without_probabilities_no_temperature_is_made_up(results: Results) -> None:
    entry = results.calibration()["models"]["dann"]["0"]["nucleus"]
    assert (entry["temperature"], entry["temperature_status"]) == (None, "no_probabilities")
    assert any("voxels.csv" in line for line in results.limitations)


def test_worst_cases(frame: pd.DataFrame, results: Results) -> None:
    own = [w for w in results.worst if w.model == "dann"]
    assert len(own) == 5
    mean = (
        frame[(frame.model == "dann") & (frame.domain == "target")].groupby(["case", "structure"]).dice.mean()
    )
    assert mean[own[0].case, own[0].structure] == mean.min()
    row = frame.query("case == @own[0].case and model == 'dann' and seed == @own[0].seed")
    assert own[0].dice == row[row.structure == own[0].structure].dice.item()
    assert len({w.case for w in own}) == 5


def test_json_round_trip(
    segmented: Maker, voxels: Callable[[pd.DataFrame], VoxelTable], tmp_path: Path
) -> None:
    frame = segmented(validation=6, cases=9, internal=0, seeds=("0",))
    results = evaluate_cases(frame, rules=RULES, voxels=voxels(frame), replicates=100)
    path = results.save(tmp_path / "results.json")
    assert Results.load(path) == results
    text = path.read_text()
    assert "NaN" not in text
    assert "-p00" not in text  # no patient
    document = json.loads(text)
    del document["worst"], document["segmentation"], document["context"]["target_trained"]
    path.write_text(json.dumps(document))
    assert Results.load(path).worst == ()  # documents of before these fields existed stay readable


def test_every_estimate_has_a_known_status(results: Results) -> None:
    statuses = {m.estimate.status for b in results.blocks for m in b.measures}
    assert statuses <= set(STATUSES)


@pytest.mark.parametrize(("cases", "status"), [(1, "one_patient"), (5, "few_patients")])
def test_few_patients(segmented: Maker, cases: int, status: str) -> None:
    frame = segmented(models=("one",), structures=("nucleus",), internal=0, cases=cases)
    block = evaluate_cases(frame, rules=RULES, replicates=100).main_blocks("one", "target")[0]
    measure = block.get("dice", cls="nucleus", kind=None)
    assert measure is not None
    assert measure.estimate.status == status
    assert (measure.estimate.lo is None) is (cases == 1)


def test_intervals_hold_what_they_promise_with_few_patients() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"case": f"c{k}-{i}", "patient": f"p{k}-{i}", "site": f"s{k}", "domain": "target", "split": "test"}
        | {"model": "m", "seed": "0", "structure": "a", "status": "ok", "unit": "mm", "dice": x}
        | dict.fromkeys(("hd95", "nsd", "iou", "assd", "sensitivity", "precision"), 1.0)
        | {"volume_reference": 1.0, "volume_predicted": 1.0}
        for k in range(150)
        for i, x in enumerate(rng.beta(8, 3, 12))
    ]
    found = evaluate_cases(pd.DataFrame(rows), rules=RULES, replicates=400)
    blocks = [b.get("dice", cls="a", kind=None) for b in found.blocks if b.site is not None]
    held = [m.estimate.lo <= 8 / 11 <= m.estimate.hi for m in blocks if m is not None]
    assert len(held) == 150
    assert np.mean(held) > 0.9


def test_faults(segmented: Maker) -> None:
    frame = segmented(cases=4, internal=0)
    with pytest.raises(DataError, match="no segmented case"):
        evaluate_cases(frame[:0], rules=RULES)
    with pytest.raises(ConfigError, match="At least 100 resamples"):
        evaluate_cases(frame, rules=RULES, replicates=10)
    with pytest.raises(DataError, match="lack the columns hd95, nsd"):
        evaluate_cases(frame.drop(columns=["hd95", "nsd"]), rules=RULES)
    with pytest.raises(DataError, match="Model 'source_only', seed 0, has 3 rows for the 4 cases"):
        evaluate_cases(frame.drop(index=frame.index[0]), rules=RULES)


def test_summary_table(results: Results) -> None:
    rows = summary_rows(results)
    row = next(r for r in rows if (r["model"], r["structure"]) == ("dann", "cytoplasm"))
    assert row["tested on"] == "external testing"
    assert row["Dice against source_only"] == "harm"
    assert {"Dice", "NSD (2 mm)", "HD95 (mm)"} <= set(row)
