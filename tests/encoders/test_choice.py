"""Ranking encoders, by labels and by masks: candidates, files, page, and that nothing of a place is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from medtl.cli import main
from medtl.encoders import Pretrained, parse_candidates, rank
from medtl.errors import ConfigError
from medtl.models import build_encoder
from tests.encoders.masked import Sees, masked_cohort
from tests.helpers.masks import write_masked_site

LINES = ["--encoders", "test_resnet=random", "--image-size", "48", "--halves", "5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    torch.manual_seed(0)
    weights = build_encoder("test_resnet", weights="random").network.state_dict()
    (folder / "hidden_place").mkdir()
    file = folder / "hidden_place" / "mine.safetensors"
    save_file({f"module.{k}": v.contiguous() for k, v in weights.items()}, file)
    words = ["--source", str(sample_data / "site_a"), "--labels", str(sample_data / "site_a" / "labels.csv")]
    words += ["--target", str(sample_data / "site_b"), *LINES, "--out", str(folder / "r")]
    words[words.index("test_resnet=random")] += f",test_resnet={file}"
    assert main(["run", "rank_encoders", *words]) == 0
    return folder / "r"


def test_writes_table_json_and_page(run: Path) -> None:
    table = pd.read_csv(run / "ranking.csv")
    assert sorted(table.candidate) == ["test_resnet=mine.safetensors", "test_resnet=random"]
    assert table["first"].sum() == pytest.approx(1)
    assert (table.logme_lo < table.logme).all()
    assert table.domain_auc.between(0, 1).all()
    found = json.loads((run / "ranking.json").read_text())
    assert set(found) == {"task", "scored", "ranking", "depths", "distances", "advice"}
    assert (
        found["ranking"]["rows"][0]["scores"]["logme"]["num_patients"] == 32
    )  # the 8 of the test split are not seen
    page = (run / "report" / "index.html").read_text()
    assert found["advice"]["strategy"] in page
    assert "conventions" in page


def test_no_place_is_in_the_run(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"index.html", "config.yaml", "log.txt"} <= {path.name for path in files}
    for file in files:
        assert "hidden_place" not in file.read_text(encoding="utf-8"), file.name


def test_two_candidates_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--encoders", "test_resnet=a/w.pth,test_resnet=/b/w.pth,test_resnet=/c/w.pth"]
    assert main(["run", "rank_encoders", *words]) == 2
    assert "rename one" in " ".join(capsys.readouterr().err.split())


def test_other_weights_stop_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sample_data: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    site = sample_data / "site_a"
    words = [
        "--source",
        str(site),
        "--labels",
        str(site / "labels.csv"),
        "--encoders",
        "test_resnet=w.safetensors",
    ]
    assert main(["run", "rank_encoders", *words, "--out", "r"]) == 1
    assert "w.safetensors" in capsys.readouterr().err
    assert not Path("r").exists()


def test_candidates_name_files_without_folders() -> None:
    assert parse_candidates(["a", "b=/far/away/w.pth", "c=random"]) == {
        "a": ("a", "imagenet"),
        "b=w.pth": ("b", "/far/away/w.pth"),
        "c=random": ("c", "random"),
    }
    assert set(parse_candidates(["a", "b=w.pth"], smoke=True).values()) == {("a", "random"), ("b", "random")}
    with pytest.raises(ConfigError, match="no candidate"):
        parse_candidates([])


@pytest.mark.parametrize("score", ["leep", "logm"])
def test_a_score_that_cannot_be_had_stops_before_anything_is_written(
    score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "rank_encoders", "--smoke", "--encoders", "test_resnet", "--score", score, "--out", "r"]
    assert main(words) == 2
    assert "logme" in capsys.readouterr().err
    assert not Path("r").exists()


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    site = write_masked_site(folder / "site", 12)
    other = write_masked_site(folder / "other", 10, offset=50, shade=60)
    words = [
        "--source",
        str(site),
        "--masks",
        str(site / "masks"),
        "--target",
        str(other),
    ]
    words += [*LINES, "--out", str(folder / "r")]
    assert main(["run", "rank_encoders", *words]) == 0
    return folder / "r"


@pytest.mark.parametrize("words", [["--slices", "4"], ["--classes", "a"]])
def test_flags_of_labels_are_refused_with_masks(
    words: list[str], sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = sample_data / "site_a"
    given = ["--source", str(site), "--masks", str(site / "masks"), "--out", str(tmp_path / "r")]
    assert main(["run", "rank_encoders", *given, *LINES, *words]) == 2
    assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


class TestMasks:
    """Candidates on places in scans."""

    def test_writes_table_json_and_page(self, masked_run: Path) -> None:
        run = masked_run
        found = json.loads((run / "ranking.json").read_text())
        assert found["task"] == "masks"
        assert set(found["ranking"]["rows"][0]["scores"]) == {"logme", "h_score", "knn"}
        page = (run / "report" / "index.html").read_text()
        assert "square of 4 x 4 pixels" in page
        assert {row["name"] for row in found["depths"]["test_resnet=random"]["rows"]} == {
            *(f"stage{k}" for k in range(1, 6)),
            "all stages",
        }
        assert 0 <= found["distances"]["test_resnet=random"]["auc"]["value"] <= 1
        assert "rarest structure" in found["advice"]["reasons"][0]

    def test_a_run_that_was_stopped_goes_on_with_its_own_candidates(self, masked_run: Path) -> None:
        before = (masked_run / "ranking.csv").read_text()
        for name in ("DONE", "ranking.csv"):
            (masked_run / name).unlink()
        assert main(["run", "rank_encoders", "--resume", str(masked_run)]) == 0
        assert (masked_run / "ranking.csv").read_text() == before
        assert "test_resnet=random" in before

    def test_the_same_seed_gives_the_same_ranking(self, tmp_path: Path) -> None:
        cohort = masked_cohort(tmp_path)
        again = [
            rank({"a": Pretrained(Sees())}, cohort, tmp_path / "f", halves=3, seed=seed)  # type: ignore[arg-type]
            for seed in (0, 0, 1)
        ]
        assert again[0].ranking == again[1].ranking != again[2].ranking

    def test_maps_that_show_the_structures_come_first(self, tmp_path: Path) -> None:
        """Two encoders, one whose maps are the image and one whose maps are noise."""
        both = {"blind": Pretrained(Sees(blind=True)), "sees": Pretrained(Sees())}  # type: ignore[arg-type]
        found = rank(both, masked_cohort(tmp_path), tmp_path / "f", halves=5)
        assert [row.name for row in found.ranking.rows] == ["sees", "blind"]
        assert found.ranking.rows[0].first == 1
        assert found.verdict[0].startswith("sees comes first")
        assert found.rows()[0]["candidate"] == "sees"
        knn = found.ranking.rows[0].scores["knn"].value
        assert knn is not None
        assert knn > 0.8

    def test_leep_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="whole scan"):
            rank({"a": Pretrained(Sees())}, masked_cohort(tmp_path), tmp_path / "f", score="leep")  # type: ignore[arg-type]
