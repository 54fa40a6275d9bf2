"""The commands as a user types them: what they print, exit codes, errors of one paragraph, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtl import runs
from medtl.cli import command_names, main, recipe_names, table
from tests.helpers.sites import write_site

TINY = [
    "--encoder",
    "test_resnet",
    "--weights",
    "random",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "8",
]


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def two_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path / "a")
    write_site(tmp_path / "b", 12, offset=100, shade=60)
    return tmp_path


def adapt(*more: str, out: str = "run") -> list[str]:
    flags = ["--source", "a", "--labels", "a/labels.csv", "--target", "b", "--target-labels", "b/labels.csv"]
    return ["run", "adapt", *flags, *TINY, "--out", out, *more]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Runs a command that must fail; returns its one paragraph."""
    assert main(words) == code
    text = capsys.readouterr().err
    errors = text[text.index("error: ") :]
    assert "Traceback" not in text
    assert "\n\n" not in errors.strip()
    return " ".join(errors.split())


class TestHelp:
    def test_imports_are_cheap(self) -> None:
        """`medtl --help` and --version load no scientific library; counted, not timed."""
        script = "import sys; from medtl.cli import main; main(sys.argv[1:]); print(sorted(sys.modules))"
        for flag in ("--help", "--version"):
            done = subprocess.run(
                [sys.executable, "-c", script, flag], capture_output=True, text=True, check=True
            )
            loaded = set(re.findall(r"'([a-z_]+)", done.stdout.splitlines()[-1]))
            assert not loaded & {
                "torch",
                "numpy",
                "pandas",
                "monai",
                "timm",
                "matplotlib",
                "pydicom",
                "tyro",
                "yaml",
            }

    def test_recipe_help_needs_no_torch(self) -> None:
        script = "import sys; from medtl.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
        words = ["run", "adapt", "--help"]
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith("False")
        for flag in (
            "--source",
            "--labels",
            "--target-labels",
            "--method",
            "--hparams",
            "--seeds",
            "--resume",
            "--smoke",
        ):
            assert flag in done.stdout

    def test_the_list_of_recipes_loads_no_torch(self) -> None:
        script = (
            "import sys; from medtl.cli import main; main(['list', 'recipes']); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("False")
        assert "rank_encoders" in done.stdout

    def test_every_command_is_in_the_overview(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in command_names())

    @pytest.mark.parametrize("command", command_names())
    def test_every_command_has_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, "--help"]) == 0
        assert "usage" in capsys.readouterr().out


class TestWrongUsage:
    def test_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "'report'" in error_of(["reprot"], capsys, 2)

    def test_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "'adapt'" in error_of(["run", "adpt"], capsys, 2)

    def test_flag(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "adapt", "--epoch", "3"]) == 2
        assert "--epochs" in capsys.readouterr().err

    def test_method(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "'dann'" in error_of(adapt("--method", "dan"), capsys, 2)
        assert not (two_sites / "run").exists()

    def test_hyper_parameter(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "'weight'" in error_of(adapt("--hparams", "weigth=1"), capsys, 2)

    def test_key_of_a_configuration_file(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (two_sites / "c.yaml").write_text("epoch: 3\n")
        assert "'epochs'" in error_of(adapt("--config", "c.yaml"), capsys, 2)

    def test_no_source(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--source" in error_of(["run", "adapt"], capsys, 2)


OF_BOTH_TASKS = ["tent", "shot", "mean_teacher", "histogram", "fda"]


@pytest.fixture(scope="module")
def made_by_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites and one run of several methods, whose models share the source-only one."""
    root = tmp_path_factory.mktemp("methods")
    write_site(root / "a")
    write_site(root / "b", 12, offset=100, shade=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(adapt("--method", *OF_BOTH_TASKS)) == 0
    return root


class TestOwnMethod:
    def test_a_file_is_a_method(self, two_sites: Path) -> None:
        (two_sites / "half_dann.py").write_text(
            "from medtl.adapters import DANN\n\n\n"
            'class HalfDANN(DANN):\n    """DANN with half the weight."""\n\n'
            "    def __init__(self, model, *, weight: float = 0.5):\n        super().__init__(model, weight=weight)\n"
        )
        assert main(adapt("--method", "./half_dann.py", "--hparams", "weight=0.4")) == 0
        assert set(pd.read_csv(two_sites / "run" / "predictions.csv").model) == {"source_only", "half_dann"}

    @pytest.mark.slow
    @pytest.mark.parametrize("method", OF_BOTH_TASKS)
    def test_methods_of_both_tasks(self, made_by_methods: Path, tmp_path: Path, method: str) -> None:
        run, new = made_by_methods / "run", tmp_path / "new"
        table = pd.read_csv(run / "predictions.csv")
        target = table[table.domain == "target"].set_index(["model", "case"])["logit_class0"].unstack(0)
        assert not np.allclose(target[method], target["source_only"])
        assert (
            main(["predict", str(run), str(made_by_methods / "b"), "--out", str(new), "--model", method]) == 0
        )

    def test_a_method_for_masks_alone(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "segmentation" in error_of(adapt("--method", "advent"), capsys, 2)
        assert not (two_sites / "run").exists()

    def test_absent_file(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no method file 'gone.py'" in error_of(adapt("--method", "gone.py"), capsys, 2)


class TestBadData:
    """Each is one paragraph, exit code 1, and no run folder."""

    def fails(self, root: Path, capsys: pytest.CaptureFixture[str], *more: str, code: int = 1) -> str:
        text = error_of(adapt(*more), capsys, code)
        assert not (root / "run").exists()
        assert str(root) not in text
        assert "Secret" not in text
        return text

    def test_empty_folder(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for file in (two_sites / "b").iterdir():
            file.unlink()
        (two_sites / "labels_b.csv").write_text("case,label\n")
        text = self.fails(two_sites, capsys, "--target-labels", "labels_b.csv")
        assert "'b'" in text
        assert "empty" in text

    def test_labels_of_absent_cases(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (two_sites / "a" / "labels.csv").open("a") as file:
            file.write("c999,Patient^SecretX,class1\n")
        text = self.fails(two_sites, capsys)
        assert "line 18" in text

    def test_one_class(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = two_sites / "a" / "labels.csv"
        path.write_text(path.read_text().replace("class1", "class0"))
        assert "two classes" in self.fails(two_sites, capsys)

    def test_patient_in_both_sites(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = two_sites / "b" / "labels.csv"
        path.write_text(path.read_text().replace("Secret100", "Secret0"))
        text = self.fails(two_sites, capsys)
        assert "'c000'" in text
        assert "'c100'" in text

    def test_absent_folder(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nowhere" in self.fails(two_sites, capsys, "--target", "nowhere")

    def test_all_faults_at_once(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (two_sites / "a" / "labels.csv").open("a") as file:
            file.write("c999,x,class1\n")
        text = self.fails(two_sites, capsys, "--target", "nowhere")
        assert "line 18" in text
        assert "nowhere" in text

    def test_absent_weights(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "weights" in self.fails(two_sites, capsys, "--weights", "gone.safetensors")

    def test_no_weights_without_a_network(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        text = self.fails(two_sites, capsys, "--encoder", "resnet10t", "--weights", "imagenet")
        assert "could not be downloaded" in text
        assert "medtl[offline]" in text


class TestTruncatedFile:
    def test_good_ones_are_used_and_the_bad_one_is_listed(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = two_sites / "b" / "c105.png"
        bad.write_bytes(bad.read_bytes()[:60])
        labels = two_sites / "b" / "labels.csv"
        assert main(adapt("--smoke")) == 0
        out = capsys.readouterr().out
        assert re.search(r"^b +\d+ +11 +11 .*1 (truncated|unreadable)", out, re.MULTILINE)
        cases = pd.read_csv(two_sites / "run" / "cases.csv")
        assert "c105" not in set(cases[cases.status == "used"].case)
        assert labels.exists()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites and one finished run; what a test changes, it changes in a copy."""
    root = tmp_path_factory.mktemp("sites")
    write_site(root / "a")
    write_site(root / "b", 12, offset=100, shade=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(adapt()) == 0
    return root


@pytest.fixture
def finished(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run and its sites, in the working directory."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


class TestRun:
    def test_folder_is_whole(self, finished: Path) -> None:
        names = {p.name for p in finished.iterdir()}
        assert {
            "config.yaml",
            "command.txt",
            "env.json",
            "cases.csv",
            "log.txt",
            "metrics.csv",
            "checkpoints",
            "predictions.csv",
            "calibration.json",
            "report",
            "DONE",
        } <= names
        assert {p.name for p in (finished / "report").iterdir()} >= {
            "index.html",
            "report.md",
            "results.json",
            "figures",
        }
        predictions = pd.read_csv(finished / "predictions.csv")
        assert set(predictions.model) == {"source_only", "dann"}
        assert set(predictions.domain) == {"source", "target"}
        assert list(pd.read_csv(finished / "cases.csv").columns) == [
            "case", "patient", "site", "domain", "path", "label", "mask", "split", "status", "reason", "remark",
        ]  # fmt: skip

    def test_no_identifier_and_no_full_path_anywhere(self, made_once: Path) -> None:
        files = [path for path in (made_once / "run").rglob("*") if path.is_file()]
        assert {"index.html", "cases.csv", "config.yaml", "log.txt"} <= {path.name for path in files}
        for file in files:
            content = file.read_bytes()
            assert b"Secret" not in content, file.name
            assert str(made_once).encode() not in content, file.name

    @pytest.mark.slow
    def test_no_full_path_of_weights_or_folders_elsewhere(
        self, two_sites: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Absolute paths outside the working directory: names alone, and the run can be resumed all the same."""
        import timm
        from safetensors.torch import save_file

        elsewhere = tmp_path_factory.mktemp("jane_doe")
        weights = elsewhere / "w.safetensors"
        save_file(
            {k: v.contiguous() for k, v in timm.create_model("test_resnet").state_dict().items()}, weights
        )
        write_site(elsewhere / "c", offset=300)
        more = [
            "--weights",
            str(weights),
            f"--target={elsewhere / 'c'}",
            "--target-labels",
            str(elsewhere / "c/labels.csv"),
        ]
        assert main(adapt(*more)) == 0
        for file in (two_sites / "run").rglob("*"):
            assert not file.is_file() or b"jane_doe" not in file.read_bytes(), file.name
        (two_sites / "run" / "DONE").unlink()
        assert main(["run", "adapt", "--resume", "run", "--target", str(elsewhere / "c")]) == 0

    def test_target_labels_change_no_weight_and_no_choice(self, finished: Path) -> None:
        path = finished.parent / "b" / "labels.csv"
        text = path.read_text()
        path.write_text(text.replace("class0", "x").replace("class1", "class0").replace("x", "class1"))
        assert main(adapt(out="flipped")) == 0
        other = finished.parent / "flipped"
        for weights in finished.glob("checkpoints/*/model.safetensors"):
            assert weights.read_bytes() == (other / weights.relative_to(finished)).read_bytes()
        assert (finished / "decision.json").read_text() == (other / "decision.json").read_text()
        assert (finished / "calibration.json").read_text() == (other / "calibration.json").read_text()

    def test_same_seed_same_predictions(self, finished: Path) -> None:
        assert main(adapt(out="again")) == 0
        again = finished.parent / "again" / "predictions.csv"
        assert again.read_bytes() == (finished / "predictions.csv").read_bytes()

    def test_existing_folder_is_refused(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
        text = error_of(adapt(), capsys, 1)
        assert "never overwritten" in text
        assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}

    def test_finished_run_is_not_resumed(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = error_of(["run", "adapt", "--resume", "run"], capsys, 1)
        assert "complete" in text

    def test_resume_after_a_stop(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr("medtl.tasks.classification.recommend", full)
            text = error_of(adapt(out="cut"), capsys, 1)
        assert "disk is full" in text
        cut = finished.parent / "cut"
        assert not (cut / "DONE").exists()
        assert "differ" in error_of(["run", "adapt", "--resume", "cut", "--lr", "0.1"], capsys, 2)
        assert main(["run", "adapt", "--resume", "cut"]) == 0
        assert (cut / "DONE").exists()
        assert (cut / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()

    @pytest.mark.slow
    def test_configuration_file_makes_the_same_run(self, finished: Path) -> None:
        words = ["run", "adapt", "--config", "run/config.yaml", "--out", "again"]
        assert main(words) == 0
        again = finished.parent / "again"
        assert (again / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()

    def test_predict(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_site(finished.parent / "new", 6, offset=500)
        assert main(["predict", "run", "new", "--out", "p", "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done["cases"] == 6
        assert sorted(f.name for f in (finished.parent / "p").iterdir()) == [
            "DONE",
            "cases.csv",
            "predictions.csv",
        ]
        rows = pd.read_csv(finished.parent / "p" / "predictions.csv")
        assert rows[["prob_class0", "prob_class1"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
        assert "not empty" in error_of(["predict", "run", "new", "--out", "p"], capsys, 2)

    def test_predict_gives_the_probabilities_of_the_run(self, finished: Path) -> None:
        """One reader and one preprocessing: the target predicted anew equals the run's own, after temperature."""
        import numpy as np
        from scipy.special import softmax

        assert main(["predict", "run", "b", "--out", "p", "--model", "dann"]) == 0
        new = pd.read_csv(finished.parent / "p" / "predictions.csv").set_index("case")
        old = pd.read_csv(finished / "predictions.csv")
        old = old[(old.model == "dann") & (old.domain == "target")].set_index("case").loc[new.index]
        frozen = json.loads((finished / "calibration.json").read_text())["models"]["dann"]["0"]
        expected = softmax(
            old[["logit_class0", "logit_class1"]].to_numpy() / (frozen["temperature"] or 1.0), axis=1
        )
        point = frozen["operating_point"]
        raw = softmax(old[["logit_class0", "logit_class1"]].to_numpy(), axis=1)[
            :, ["class0", "class1"].index(point["positive"])
        ]
        clear = np.abs(raw - point["probability"]) > 1e-5
        assert ((new.predicted == point["positive"]) == (raw >= point["probability"]))[clear].all()
        np.testing.assert_allclose(new[["prob_class0", "prob_class1"]].to_numpy(), expected, atol=1e-5)

    def test_report_of_the_runs_table(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", "run/predictions.csv", "--out", "r", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["schema"].startswith("medtl.results/")

    def test_predict_with_an_unfinished_run(
        self, two_sites: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (two_sites / "half").mkdir()
        assert "not a finished run" in error_of(["predict", "half", "b", "--out", "p"], capsys, 1)


class TestFullDisk:
    def test_while_a_file_is_written(
        self, two_sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The disk fills up at the tenth flush: finished files are whole, no temporary file is left."""
        flushes = 0

        def full(descriptor: int) -> None:
            nonlocal flushes
            flushes += 1
            if flushes >= 10:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("medtl.files.os.fsync", full)
        text = error_of(adapt(), capsys, 1)
        assert "disk is full" in text
        assert not list(two_sites.rglob("*.tmp"))


class TestOtherCommands:
    def test_inspect(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", "a", "b", "--json", "--out", "i"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [f["num_volumes"] for f in found["folders"]] == [16, 12]
        assert found["folders"][0]["rejected"][0]["reason"] == "not_a_scan"
        assert len(pd.read_csv(two_sites / "i" / "volumes.csv")) == 28

    def test_inspect_text(self, sample_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(sample_data / "site_b")]) == 0
        assert "40 volumes" in capsys.readouterr().out

    def test_doctor(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("| what | found |")
        assert str(Path.home()) not in text
        assert os.uname().nodename not in text

    def test_copy(self, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["copy", "adapt", "mine.py"]) == 0
        assert main(["run", "mine.py", "--help"]) == 0
        assert "not overwritten" in error_of(["copy", "adapt", "mine.py"], capsys, 2)

    def test_report_of_sample_data(self, sample_data: Path, tmp_path: Path) -> None:
        words = [
            "report",
            str(sample_data / "predictions.csv"),
            "--out",
            str(tmp_path / "r"),
            "--replicates",
            "200",
        ]
        assert main(words) == 0
        assert (tmp_path / "r" / "index.html").stat().st_size > 10_000


def test_unexpected_faults_show_no_values(
    two_sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("Patient^Secret")

    monkeypatch.setattr(runs.Run, "plan", broken)
    text = error_of(adapt(), capsys, 1)
    assert "KeyError" in text
    assert "Secret" not in text


def test_table_aligns() -> None:
    text = table([{"name": "a", "n": 1}, {"name": "bcd", "n": 20}])
    assert text.splitlines() == ["name   n", "----  --", "a      1", "bcd   20"]


def test_all_recipes_are_found() -> None:
    assert {"adapt", "finetune"} <= set(recipe_names())
