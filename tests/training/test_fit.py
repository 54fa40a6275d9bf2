"""The loop: steps, pairing, resuming after SIGKILL, stopping early, refusals."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from medtl.adapters import Adapter, Batch, adapter_class, available, build_adapter
from medtl.adapters.contract.adapter import warm_cosine
from medtl.checkpoints import load_weights, read_header, restore_weights
from medtl.config import TrainingConfig
from medtl.data.cases.table import Case
from medtl.errors import CheckpointError, ConfigError, DataError
from medtl.runs import MetricsLog
from medtl.training.fit import FitConfig, fit
from medtl.training.keeper import SafetensorsIO
from tests.adapters.toys import network
from tests.helpers.toydata import ToyData

QUIET = {"tensorboard": False, "accelerator": "cpu"}


def train(
    folder: Path, method: str = "dann", *, epochs: int = 2, patience: int | None = None, **options: object
):
    adapter = build_adapter(method, network(), seed=0)
    config = FitConfig(epochs=epochs, batch_size=16, lr=3e-3, patience=patience, **(QUIET | options))
    result = fit(
        adapter,
        ToyData("source", 24),
        ToyData("target", 50, labelled=False),
        folder=folder,
        config=config,
        validation=ToyData("source", 40, offset=1),
        target_plain=ToyData("target", 50, labelled=False),
        header={"kind": "test"},
        metrics=MetricsLog(folder.parent / "metrics.csv", method, 0),
    )
    return adapter, result


def test_leaves_the_model_and_nothing_else(tmp_path: Path) -> None:
    adapter, result = train(tmp_path / "dann")
    assert sorted(p.name for p in (tmp_path / "dann").iterdir()) == [
        "adapter.safetensors",
        "model.safetensors",
    ]
    header, weights = load_weights(result.path)
    assert header["kind"] == "test"
    assert header["fit"]["epochs"] == 2
    assert all(torch.equal(v, weights[k]) for k, v in adapter.model.state_dict().items())
    last = pd.read_csv(tmp_path / "metrics.csv").query("epoch == 1").set_index("metric").value
    assert result.losses["loss"] == pytest.approx(last["loss"], rel=1e-4)
    assert set(result.losses) == {"loss", "source_loss", "domain_loss", "domain_accuracy", "lambda"}
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert set(rows.epoch) == {0, 1}
    assert {"loss", "validation_loss", "validation_balanced_accuracy"} <= set(rows.metric)
    assert rows.step.max() == 20  # 50 target images in batches of 16 are 4 steps; an epoch has at least 10


def test_tensorboard_files_do_not_name_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "dann", epochs=1, tensorboard=True)
    assert [p.name for p in (tmp_path / "dann" / "tb").glob("events*")] == ["events.out.tfevents.0"]


@pytest.mark.parametrize("method", ["dann", "finetune"])
def test_finished_training_is_read_not_repeated(tmp_path: Path, method: str) -> None:
    first, _ = train(tmp_path / method, method)
    before = (tmp_path / method / "model.safetensors").stat().st_mtime_ns
    second, result = train(tmp_path / method, method)
    assert (tmp_path / method / "model.safetensors").stat().st_mtime_ns == before
    assert result.epochs == 2
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_random_state_outside_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train(tmp_path / "dann", epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_frozen_norms_stand_still_in_fit(tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in network().named_buffers()}
    adapter = build_adapter("finetune", network(), norm="frozen")
    config = FitConfig(epochs=2, batch_size=8, accelerator="cpu", tensorboard=False)
    fit(adapter, ToyData("source", 24), folder=tmp_path / "m", config=config, validation=ToyData("source", 8))
    assert all(torch.equal(value, before[key]) for key, value in adapter.model.named_buffers())


@pytest.mark.parametrize("method", [m for m in available() if not adapter_class(m).phases])
def test_a_method_without_phases_takes_no_steps(tmp_path: Path, method: str) -> None:
    train(tmp_path / "source_only", "finetune")
    model = network()
    if "binary" not in adapter_class(method).tasks:
        pytest.skip(f"{method} is for masks")
    restore_weights(model, tmp_path / "source_only")
    before = {k: v.clone() for k, v in model.named_parameters()}
    adapter = build_adapter(method, model, seed=0)
    assert adapter_class(method).starts_from == "source_only"
    target = ToyData("target", 50, labelled=False)
    result = fit(
        adapter, ToyData("source", 24), target, folder=tmp_path / "end", config=FitConfig(epochs=3, **QUIET)
    )
    assert result.epochs == 0
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    if method == "adabn":
        every = torch.stack([target[n].image for n in range(50)])
        first, norm = model.module[0], model.module[1]
        var, mean = torch.var_mean(first(every), dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


class StopError(Exception):
    """Raised by a test in the middle of an epoch."""


@pytest.mark.parametrize("method", ["finetune", "dann"])
def test_resumed_weights_are_bit_equal(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SECONDS", 0.0)  # after every epoch
    whole, _ = train(tmp_path / "whole" / method, method, epochs=4)
    calls = 0

    def stop_in_the_last_epoch(self: Adapter) -> None:
        nonlocal calls
        calls += 1
        if calls == 35:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "on_step_end", stop_in_the_last_epoch)
        with pytest.raises(StopError):
            train(tmp_path / "cut" / method, method, epochs=4)
    assert sorted(p.name for p in (tmp_path / "cut" / method).iterdir()) == [
        "epoch-0002.safetensors",
        "epoch-0002.state.pt",
    ]
    resumed, result = train(tmp_path / "cut" / method, method, epochs=4)
    assert result.epochs == 4
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert read_header(tmp_path / "cut" / method / "model.safetensors") == read_header(
        tmp_path / "whole" / method / "model.safetensors"
    )
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("share", "seconds", "expected"), [(1e-9, 0, [0, 4]), (1e9, 0, [0, 1, 2, 3, 4]), (1e9, 60, [4])]
)
@pytest.mark.slow
def test_fast_epochs_are_not_all_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, seconds: float, expected: list[int]
) -> None:
    ticks = itertools.count()  # a clock that moves by a second whenever it is read
    monkeypatch.setattr("medtl.training.keeper.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SHARE", share)
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SECONDS", seconds)
    written = []
    save = SafetensorsIO.save_checkpoint
    monkeypatch.setattr(
        SafetensorsIO,
        "save_checkpoint",
        lambda self, c, p, **o: (written.append(Path(p).stem), save(self, c, p)),
    )
    train(tmp_path / "dann", epochs=5)
    assert written == [f"epoch-{epoch:04d}" for epoch in expected]


def test_killed_between_the_first_row_and_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("medtl.training.keeper.SafetensorsIO.save_checkpoint", _raise_stop)
        with pytest.raises(StopError):
            train(tmp_path / "dann", epochs=1)
    train(tmp_path / "dann", epochs=1)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert not rows.duplicated(["model", "seed", "epoch", "metric"]).any()


SCRIPT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import medtl.checkpoints
from medtl.adapters import Adapter
from tests.training.test_fit import train
medtl.training.keeper.CHECKPOINT_SECONDS = 0
if sys.argv[2] == "slow":
    Adapter.on_step_end = lambda self: time.sleep(0.05)
train(Path(sys.argv[1]), epochs=4)
"""


@pytest.mark.slow
def test_survives_sigkill(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    victim = subprocess.Popen([*command, str(tmp_path / "cut" / "dann"), "slow"], env=environment, cwd=root)
    give_up = time.monotonic() + 600  # only so that a fault does not wait for ever
    while not list((tmp_path / "cut" / "dann").glob("epoch-*.safetensors")):
        assert victim.poll() is None
        assert time.monotonic() < give_up, "no checkpoint"
        time.sleep(0.02)
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "cut" / "dann" / "model.safetensors").exists()
    train(tmp_path / "cut" / "dann", epochs=4)
    train(tmp_path / "whole" / "dann", epochs=4)
    files = [(tmp_path / part / "dann" / "model.safetensors").read_bytes() for part in ("cut", "whole")]
    assert files[0] == files[1]


def test_stops_early_and_keeps_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.3, 0.9, 0.9, 0.2])
    original = Adapter.supervised_loss

    def scripted(self: Adapter, logits: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        loss = original(self, logits, label)
        return loss if self.training else torch.tensor(next(losses))

    monkeypatch.setattr(Adapter, "supervised_loss", scripted)
    _, result = train(tmp_path / "finetune", "finetune", epochs=5, patience=2)
    assert (result.epochs, result.best_epoch) == (4, 1)
    assert read_header(result.path)["fit"]["best_epoch"] == 1


def test_stopped_early_then_killed_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last epoch's checkpoint and the final weights."""
    monkeypatch.setattr(Adapter, "supervised_loss", _rising(Adapter.supervised_loss))
    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "on_fit_end", _raise_stop)
        with pytest.raises(StopError):
            train(tmp_path / "finetune", "finetune", epochs=6, patience=2)
    _, result = train(tmp_path / "finetune", "finetune", epochs=6, patience=2)
    assert (result.epochs, result.best_epoch) == (3, 0)


def _raise_stop(*_: object, **__: object) -> None:
    raise StopError


def _rising(original):
    """A validation loss that rises from epoch to epoch."""
    losses = iter(range(1, 100))

    def loss(self: Adapter, logits: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return original(self, logits, label) if self.training else torch.tensor(float(next(losses)))

    return loss


def test_learning_rate_warms_up_and_falls() -> None:
    assert warm_cosine(0.0) == pytest.approx(0.1)
    assert warm_cosine(0.1) == pytest.approx(1.0)
    assert warm_cosine(0.55) == pytest.approx(0.5)
    assert warm_cosine(1.0) == pytest.approx(0.0, abs=1e-12)


def test_missing_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target"):
        fit(build_adapter("dann", network()), ToyData("source", 8), folder=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    adapter = build_adapter("finetune", network())
    with torch.no_grad():
        adapter.model.module[8].weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite at step 0"):
        fit(adapter, ToyData("source", 8), folder=tmp_path / "x", config=FitConfig(**QUIET))


def test_a_loss_that_is_not_finite_names_the_case_that_spoils_it(tmp_path: Path) -> None:
    class Spoilt(ToyData):
        cases = tuple(Case(f"c{n}", "p", "a", "source", "x") for n in range(8))

        def __getitem__(self, index: int) -> Batch:
            sample = super().__getitem__(index)
            sample.index = torch.tensor(int(index))
            if index == 3:
                sample.image[0, 0, 0] = torch.nan
            return sample

    adapter = build_adapter("finetune", network())
    with pytest.raises(DataError, match="The cause is in the input: values that are no numbers in case 'c3'"):
        fit(adapter, Spoilt("source", 8), folder=tmp_path / "x", config=FitConfig(**QUIET))


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(TrainingConfig):
    epochs: int = 2


def test_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        FitConfig(epochs=-1)
    with pytest.raises(ConfigError, match="lr"):
        FitConfig(lr=0.0)
    with pytest.raises(ConfigError, match="epochs is 0; expected at least 1"):
        FitConfig.of_recipe(TrainingRecipe(epochs=0))


def test_checkpoint_that_is_cut_short(tmp_path: Path) -> None:
    _, result = train(tmp_path / "dann", epochs=1)
    data = result.path.read_bytes()
    result.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_weights(result.path)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """DDP by Lightning: the waiting process ends with the trained weights, and the files are as with one."""
    root = Path(__file__).parents[2]
    site = root / "sample_data" / "site_a"
    words = [
        "run",
        "finetune",
        "--smoke",
        "--encoder",
        "test_resnet",
        "--devices",
        "2",
        "--out",
        "r",
    ]
    command = [
        sys.executable,
        "-m",
        "medtl.cli",
        *words,
        "--source",
        str(site),
        "--labels",
        str(site / "labels.csv"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "DONE").exists()
    assert len(pd.read_csv(tmp_path / "r" / "metrics.csv").epoch.unique()) == 1
