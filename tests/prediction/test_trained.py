"""A model's files are data: what they name is looked up, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medtl.adapters import build_adapter
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.checkpoints import load_weights, save_weights
from medtl.data.tensors.spec import Preprocess
from medtl.errors import CheckpointError, ConfigError
from medtl.models import build_classifier
from medtl.prediction.trained import STATE, load_adapter, model_header, save_state

ENCODER = "test_resnet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that Tent adapted to one batch."""
    folder = tmp_path_factory.mktemp("tent")
    model = build_classifier(ENCODER, 2, weights="random")
    adapter = build_adapter("tent", model, reset="never")
    assert isinstance(adapter, TestTimeAdapter)
    adapter.adapt_batch(torch.rand(4, 3, 32, 32))
    adapter.keep()
    save_state(adapter, folder)
    header = model_header(adapter, ("a", "b"), Preprocess(), hparams={"reset": "never"})
    save_weights(folder / "model.safetensors", model.state_dict(), header)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model.safetensors"


def altered(path: Path, **changes: Any) -> None:
    header, weights = load_weights(path)
    save_weights(path, weights, {**header, **changes})


def test_it_comes_back_with_its_state(run: Path) -> None:
    _, adapter = load_adapter(run)
    assert isinstance(adapter, TestTimeAdapter)
    assert adapter.resume()
    assert int(adapter.step) == 1


@pytest.mark.parametrize("own_file", [False, True])
@pytest.mark.parametrize("named", ["theirs/evil.py", "evil.py", "evil", "{folder}/evil.py", "os", ""])
def test_no_file_that_a_header_names_is_run(
    run: Path, named: str, own_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "theirs").mkdir()
    for file in (run.parent / "evil.py", run.parent / "theirs" / "evil.py"):
        file.write_text(f"open({str(run.parent / 'ran')!r}, 'w').close()\n")
    altered(run, method=named.format(folder=run.parent), own_file=own_file)
    with pytest.raises(CheckpointError):
        load_adapter(run)
    with pytest.raises((CheckpointError, ConfigError)):
        load_adapter(run, "mine.py")
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize("change", ["missing", "more", "shape", "place", "moment"])
def test_a_state_of_another_model_is_refused(run: Path, change: str) -> None:
    path = run.with_name(STATE)
    header, kept = load_weights(path)
    name = next(k for k in kept if k.endswith("weight") and kept[k].ndim == 1)
    if change == "missing":
        del kept[name]
    elif change == "shape":
        kept[name] = torch.zeros(3)
    else:
        key = {"more": "other", "place": "optimizer.9999.step", "moment": "optimizer.0.exp_avg"}[change]
        kept[key] = torch.zeros(3)
    save_weights(path, kept, header)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapter(run)
