"""Segmentation as a user types it: runs, their figures against other libraries, prediction, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medtl import Adapter, FitResult, adapt_cases, build_segmenter, fit
from medtl.checkpoints import load_weights
from medtl.cli import main
from medtl.data.tensors.dataset import CaseDataset
from tests.cli.test_cli import error_of
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site

TINY = [
    "--encoder", "test_resnet", "--weights", "random", "--image-size", "32", "--epochs", "1", "--batch-size", "8",
]  # fmt: skip


METHODS = ["advent", "fda", "histogram", "dann", "mean_teacher", "shot", "tent", "consistency"]

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def two_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_masked_site(tmp_path / "a")
    write_masked_site(tmp_path / "b", 6, offset=100, shade=60)
    return tmp_path


def adapt(*more: str, out: str = "run") -> list[str]:
    flags = ["--source", "a", "--masks", "a/masks", "--target", "b", "--target-masks", "b/masks"]
    return ["run", "adapt", *flags, *TINY, "--out", out, *more]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sites")
    write_masked_site(root / "a")
    write_masked_site(root / "b", 6, offset=100, shade=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        assert main(adapt("--seeds", "2", "--target-trained")) == 0
    return root


@pytest.fixture(scope="module")
def made_by_every_method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites and one run of all other methods, whose models share the source-only one."""
    root = tmp_path_factory.mktemp("methods")
    write_masked_site(root / "a")
    write_masked_site(root / "b", 6, offset=100, shade=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        assert main(adapt("--method", *METHODS, "--hparams", "tent.lr=0.01")) == 0
    return root


@pytest.fixture
def finished(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one finished run and its sites, in the working directory."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


class TestRun:
    def test_folder_is_whole(self, finished: Path) -> None:
        found = {p.name for p in finished.iterdir()}
        assert {
            "predictions.csv",
            "predictions",
            "references",
            "voxels.csv",
            "labels.json",
            "cases.csv",
        } <= found
        assert {"DONE", "calibration.json", "decision.json", "metrics.csv", "report"} <= found
        table = pd.read_csv(finished / "predictions.csv")
        assert set(table.model) == {"source_only", "adabn", "target_trained"}
        assert all((finished / path).is_file() for column in ("mask", "reference") for path in table[column])
        assert set(table[table.model == "target_trained"].domain) == {"target"}

    def test_masks_hold_the_users_values_in_the_users_grid(self, finished: Path) -> None:
        table = pd.read_csv(finished / "predictions.csv")
        for row in table.itertuples():
            site = "a" if row.domain == "source" else "b"
            mask = np.asarray(Image.open(finished / row.mask))
            original = np.asarray(Image.open(finished.parent / site / "masks" / f"{row.case}.png"))
            assert mask.shape == original.shape
            assert set(np.unique(mask)) <= {0, 128, 255}
            assert np.array_equal(np.asarray(Image.open(finished / row.reference)), original)

    def test_the_bound_is_no_candidate(self, finished: Path) -> None:
        evidence = json.loads((finished / "decision.json").read_text())["evidence"]
        assert all("target_trained" not in e["values"] for e in evidence)
        assert len(list((finished / "checkpoints").glob("target_trained_*"))) == 4  # two halves, two seeds

    @pytest.mark.slow
    def test_the_bound_never_saw_what_it_is_judged_on(
        self, two_sites: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learnt: list[set[str]] = []
        judged: list[set[str]] = []

        def fits(
            adapter: Adapter, source: CaseDataset, *more: object, folder: Path, **options: object
        ) -> object:
            if folder.name.startswith("target_trained"):
                learnt.append({case.case for case in source.cases})
            return fit(adapter, source, *more, folder=folder, **options)

        def segments(adapter: Adapter, data: CaseDataset, **options: Any) -> object:
            if len(learnt) > len(judged):
                judged.append({case.case for case in data.cases})
            return adapt_cases(adapter, data, **options)

        monkeypatch.setattr("medtl.tasks.study.fit", fits)
        monkeypatch.setattr("medtl.tasks.segmentation.adapt_cases", segments)
        assert main(adapt("--target-trained")) == 0
        assert len(learnt) == len(judged) == 2
        assert all(not a & b for a, b in zip(learnt, judged, strict=True))
        assert judged[0] | judged[1] == {f"c{n}" for n in range(100, 106)}

    def test_masks_of_the_target_change_no_weight_and_no_choice(self, two_sites: Path) -> None:
        assert main(adapt(out="with")) == 0
        for path in (two_sites / "b" / "masks").glob("*.png"):
            Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
        assert main(adapt(out="without")) == 0
        for name in ("decision.json", "metrics.csv"):
            assert (two_sites / "with" / name).read_bytes() == (two_sites / "without" / name).read_bytes()
        one, two = (
            (two_sites / out / "checkpoints" / "adabn-seed0" / "model.safetensors").read_bytes()
            for out in ("with", "without")
        )
        assert one == two

    def test_report_of_the_runs_own_table_gives_its_figures(self, finished: Path) -> None:
        assert (
            main(["report", str(finished / "predictions.csv"), "--out", "again", "--replicates", "2000"]) == 0
        )
        old, new = (
            json.loads((p / "results.json").read_text()) for p in (finished / "report", Path("again"))
        )
        assert [b["measures"] for b in old["blocks"]] == [b["measures"] for b in new["blocks"]]

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["mean_teacher", "shot"])
    def test_resume_after_a_stop_gives_the_same_run(
        self, two_sites: Path, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        flags = ["--method", method, "--epochs", "2"]
        assert main(adapt(*flags)) == 0
        calls = []

        def stops(adapter: Adapter, *arguments: object, **options: object) -> FitResult:
            calls.append(adapter)
            if len(calls) > 1:  # source-only is trained, the adapted model is not
                raise KeyboardInterrupt
            return fit(adapter, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("medtl.tasks.study.fit", stops)
            assert main(adapt(*flags, out="cut")) == 130
        assert main(["run", "adapt", "--resume", "cut"]) == 0
        for name in ("predictions.csv", "decision.json", "voxels.csv"):
            assert Path("cut", name).read_bytes() == Path("run", name).read_bytes()
        one, two = (
            Path(run, "checkpoints", f"{method}-seed0", "model.safetensors").read_bytes()
            for run in ("run", "cut")
        )
        assert one == two

    def test_worst_cases_are_drawn_on_request_alone(self, finished: Path) -> None:
        words = [
            "report",
            "run/predictions.csv",
            "--replicates",
            "100",
            "--overlays",
            "3",
            "--scans",
            "a",
            "b",
        ]
        assert main([*words, "--out", "drawn"]) == 0
        assert Path("drawn/index.html").read_text().count("data:image/png") == 3
        assert "data:image/png" not in (finished / "report" / "index.html").read_text()

    def test_no_full_path_anywhere(self, made_once: Path) -> None:
        kinds = {".csv", ".json", ".txt", ".yaml", ".html", ".md"}
        files = [path for path in (made_once / "run").rglob("*") if path.suffix in kinds]
        assert {path.suffix for path in files} == kinds
        for path in files:
            assert str(made_once) not in path.read_text(encoding="utf-8"), path.name

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # MONAI's, of its own calls
    def test_every_case_in_the_report_equals_monai(self, finished: Path) -> None:
        """Mean Dice, HD95 and NSD of a structure, from the files, by another library."""
        import torch
        from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

        results = json.loads((finished / "report" / "results.json").read_text())
        table = pd.read_csv(finished / "predictions.csv", dtype=str)
        rows = table[(table.model == "source_only") & (table.domain == "target")]
        own: dict[str, list[float]] = {"dice": [], "hd95": [], "nsd": []}
        for row in rows.itertuples():
            called, truth = (
                torch.from_numpy(np.asarray(Image.open(finished / p)) == 255)[None, None].float()
                for p in (row.mask, row.reference)
            )
            assert truth.any()
            own["dice"].append(float(compute_dice(called, truth)))
            if called.any():
                own["hd95"].append(
                    float(compute_hausdorff_distance(called, truth, include_background=True, percentile=95))
                )
                own["nsd"].append(float(compute_surface_dice(called, truth, [2.0], include_background=True)))
            else:
                own["hd95"].append(float(np.hypot(*truth.shape[2:])))
                own["nsd"].append(0.0)
        block = next(b for b in results["blocks"] if b["model"] == "source_only" and b["domain"] == "target")
        for name, values in own.items():
            found = next(m for m in block["measures"] if m["name"] == name and m["cls"] == "core")
            by_seed = pd.Series(values, index=rows.seed).groupby(level=0).mean()
            assert found["estimate"]["value"] == pytest.approx(by_seed.mean(), abs=1e-5), name


class TestPredict:
    def test_images(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["predict", "run", "b/scans", "--out", "new", "--maps", "--rules", "largest", "fill_holes"]
        assert main([*words, "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done["cases"] == 6
        assert done["seeds averaged"] == 2
        assert len(list(Path("new/masks").glob("*.png"))) == 6
        assert len(list(Path("new/maps").glob("*/*.png"))) == 12
        assert len(pd.read_csv("new/volumes.csv")) == 12

    def test_an_unknown_rule_writes_nothing(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["predict", "run", "b/scans", "--out", "new", "--rules", "biggest"]
        assert "largest" in error_of(words, capsys, 2)
        assert not Path("new").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["dann", "tent"])  # tent adapts again
    def test_one_seed_gives_the_masks_of_the_run(
        self, made_by_every_method: Path, tmp_path: Path, model: str
    ) -> None:
        run, scans, new = made_by_every_method / "run", made_by_every_method / "b" / "scans", tmp_path / "new"
        assert main(["predict", str(run), str(scans), "--out", str(new), "--model", model]) == 0
        paths = list((new / "masks").glob("*.png"))
        assert len(paths) == 6
        for path in paths:
            same = run / "predictions" / f"{model}-seed0" / path.name
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(same)))

    def test_options_for_masks_with_a_classifier(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from tests.helpers.sites import write_site

        write_site(two_sites / "c")
        words = [
            "run",
            "finetune",
            "--source",
            "c",
            "--labels",
            "c/labels.csv",
            *TINY,
            "--out",
            "k",
        ]
        assert main(words) == 0
        text = error_of(["predict", "k", "c", "--out", "new", "--maps"], capsys, 2)
        assert "classifier" in text
        assert not Path("new").exists()


@pytest.mark.slow
def test_every_method_runs(made_by_every_method: Path) -> None:
    run = made_by_every_method / "run"
    assert set(pd.read_csv(run / "predictions.csv").model) == {"source_only", *METHODS}
    steps = pd.read_csv(run / "metrics.csv")
    assert np.isfinite(steps.value).all()


class TestVolumes:
    def write(self, folder: Path, num: int, shade: float, shape: tuple[int, int, int] = (20, 24, 9)) -> None:
        """NIfTI volumes of a bright ball, every third of another depth, and their masks."""
        (folder / "masks").mkdir(parents=True)
        rng = np.random.default_rng(num)
        for number in range(num):
            size = (*shape[:2], shape[2] + 2 * (number % 3))
            grid = np.indices(size)
            centre = np.array(size) * rng.uniform(0.4, 0.6, 3)
            ball = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, (5, 5, 3), strict=True)) < 1
            image = rng.normal(100 + shade, 10, size) + 80 * ball
            affine = np.array([[0, -1.1, 0, 30], [1.1, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])
            name = f"{folder.name}{number:02d}.nii.gz"
            nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / name)
            nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), folder / "masks" / name)

    @pytest.mark.parametrize(
        "network", [pytest.param(n, marks=pytest.mark.slow) for n in ("unet_2.5d", "unet_3d", "unet")]
    )
    def test_volumes_smaller_than_the_patch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        self.write(tmp_path / "a", 6, 0)
        self.write(tmp_path / "b", 4, 60)
        words = [*adapt("--structures", "ball=1", "--network", network), "--image-size", "48"]
        assert main(words) == 0
        for row in pd.read_csv("run/predictions.csv").itertuples():
            scan = nib.load(Path("a" if row.domain == "source" else "b") / f"{row.case}.nii.gz")
            mask = nib.load(Path("run") / row.mask)
            assert mask.shape == scan.shape
            assert np.array_equal(mask.affine, scan.affine)
            assert mask.get_data_dtype().kind in "ui"


class TestStrategies:
    @pytest.mark.slow
    def test_what_is_frozen_stays_and_the_report_says_how_it_went(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["run", "finetune", "--source", "a", "--masks", "a/masks", *TINY, "--out", "r"]
        assert main([*words, "--strategy", "last:1", "--epochs", "2"]) == 0
        assert "encoder stem" in capsys.readouterr().out
        trained = load_weights(two_sites / "r/checkpoints/finetune-seed0/model.safetensors")[1]
        model = build_segmenter("test_resnet", 2, weights="random", in_channels=1)
        stages = model.parameter_stages()
        start = build_segmenter("test_resnet", 2, weights="random", in_channels=1, seed=0).state_dict()
        assert all(torch.equal(trained[n], start[n]) for stage in stages[:-1] for n in stage)
        assert not all(torch.equal(trained[n], start[n]) for n in stages[-1])
        context = json.loads((two_sites / "r/report/results.json").read_text())["context"]
        (cost,), (curve,) = context["costs"], context["learning"]
        assert 0 < cost["trained_parameters"] < cost["parameters"]
        assert cost["predict_seconds_per_case"] > 0
        assert 0 <= curve["train_accuracy"] <= 1
        assert curve["validation_accuracy"] == pytest.approx(
            curve["validation_accuracies"][curve["kept_epoch"] - 1], abs=1e-6
        )
        assert "Strategy last:1" in (two_sites / "r/report/index.html").read_text()
        assert main(["predict", "r", "b", "--out", "p"]) == 0
        assert len(list((two_sites / "p/masks").iterdir())) == 6

    def test_probe_is_refused_before_anything_is_written(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["run", "finetune", "--source", "a", "--masks", "a/masks", *TINY, "--out", "r"]
        text = error_of([*words, "--strategy", "probe"], capsys, 2)
        assert "take head" in text
        assert "medtl list strategies" in text
        assert not (two_sites / "r").exists()


class TestBadInput:
    def test_what_does_not_end_a_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Images of unequal size, masks of another geometry, a mask of zeros; at the target colour, and no core."""
        monkeypatch.chdir(tmp_path)
        write_masked_site(tmp_path / "a", sizes=(32, 40, 27))
        write_masked_site(tmp_path / "b", 6, offset=100, shade=60, sizes=(64, 50))
        for name in ("c000", "c001"):
            Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a" / "masks" / f"{name}.png")
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a" / "masks" / "c003.png")
        for path in (tmp_path / "b" / "scans").glob("*.png"):
            Image.open(path).convert("RGB").save(path)
        for path in (tmp_path / "b" / "masks").glob("*.png"):
            array = np.asarray(Image.open(path))
            Image.fromarray(np.where(array == 255, 128, array).astype(np.uint8)).save(path)
        assert main(adapt()) == 0
        text = capsys.readouterr().out
        assert "2 mask_geometry" in text
        assert "1 of the 8 masks" in text
        cases = pd.read_csv("run/cases.csv")
        assert set(cases[cases.reason == "mask_geometry"].case) == {"c000", "c001"}
        results = json.loads(Path("run/report/results.json").read_text())
        assert results["task"] == "segmentation"

    def test_a_structure_that_no_mask_has(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = error_of(adapt("--structures", "rim=128", "core=255", "vessel=7"), capsys, 1)
        assert "vessel" in text

    def test_no_masks(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (two_sites / "empty").mkdir()
        words = ["run", "adapt", "--source", "a", "--masks", "empty", "--target", "b", *TINY]
        assert "mask" in error_of(words, capsys, 1)

    def test_unknown_names(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unet_3d" in error_of(adapt("--network", "unet3d"), capsys, 2)
        assert "--network unet" in error_of(adapt("--network", "unet_2.5d"), capsys, 2)
        assert "dice_ce" in error_of(adapt("--loss", "dice-ce"), capsys, 2)
        assert not (two_sites / "run").exists()

    def test_a_structure_that_labels_json_does_not_name(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "core" in error_of(adapt("--structures", "cores"), capsys, 1)
