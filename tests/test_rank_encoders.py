"""The recipe rank_encoders: candidates, files, page, and that nothing of a place is in them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from medtl.cli import load_recipe, main
from medtl.encoders.source_head import source_head
from medtl.models import build_encoder
from medtl.models.weights.load import packaged_available

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
    assert set(found) == {"ranking", "depths", "distances", "advice"}
    assert (
        found["ranking"]["rows"][0]["scores"]["logme"]["num_patients"] == 32
    )  # the 8 of the test split are not seen
    page = (run / "report" / "index.html").read_text()
    assert found["advice"]["strategy"] in page
    assert "conventions" in page


def test_no_place_is_in_the_run(run: Path) -> None:
    for file in run.rglob("*"):
        if file.is_file():
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


class TestSourceHead:
    def test_is_found_in_a_file_behind_a_prefix(self, tmp_path: Path) -> None:
        encoder = build_encoder("test_resnet", weights="random")
        weight, bias = torch.randn(7, encoder.num_features), torch.randn(7)
        state = {f"model.{k}": v.contiguous() for k, v in encoder.network.state_dict().items()}
        save_file(state | {"model.fc.weight": weight, "model.fc.bias": bias}, tmp_path / "w.safetensors")
        head = source_head(encoder, str(tmp_path / "w.safetensors"))
        assert head is not None
        x = torch.randn(2, encoder.num_features)
        torch.testing.assert_close(head(x), x @ weight.T + bias)

    def test_is_none_where_there_is_none(self, tmp_path: Path) -> None:
        encoder = build_encoder("test_resnet", weights="random")
        save_file(
            {k: v.contiguous() for k, v in encoder.network.state_dict().items()}, tmp_path / "w.safetensors"
        )
        assert source_head(encoder, "random") is None
        assert source_head(encoder, str(tmp_path / "w.safetensors")) is None

    @pytest.mark.skipif(not packaged_available(), reason="the extra offline is not installed")
    def test_packaged_head_gives_the_networks_logits(self) -> None:
        import timm

        from medtl.encoders.source_head import _state

        name = "tf_efficientnet_lite0"
        encoder = build_encoder(name).eval()
        head = source_head(encoder, "imagenet")
        assert head is not None
        whole = timm.create_model(name).eval()
        whole.load_state_dict(_state(name, "imagenet"))
        image = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = whole((image - encoder.mean) / encoder.std)
            torch.testing.assert_close(head(encoder(image)), expected, rtol=1e-4, atol=1e-4)


def test_pairs_name_files_without_folders() -> None:
    module = load_recipe("rank_encoders")
    config = SimpleNamespace(encoders="a,b=/far/away/w.pth,c=random", weights="imagenet", smoke=False)
    assert module.candidates(config) == {
        "a": ("a", "imagenet"),
        "b=w.pth": ("b", "/far/away/w.pth"),
        "c=random": ("c", "random"),
    }
