"""Methods that a user would write, each a file of its own in `outside`: they train, resume, and are predicted from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from medtl.adapters import Adapter, Batch, TestTimeAdapter, adapter_class, build_adapter
from medtl.cli import main
from medtl.training.fit import FitConfig, fit
from tests.adapters.toys import domains, masks, network, segmenter, shift
from tests.helpers.figures import leave_out
from tests.helpers.sites import write_site

OUTSIDE = Path(__file__).parent / "outside"
METHODS = sorted(path.stem for path in OUTSIDE.glob("*.py") if path.stem != "__init__")
TRAINED = [m for m in METHODS if adapter_class(str(OUTSIDE / f"{m}.py")).phases]
TASKS = {"classification": (network, domains), "segmentation": (segmenter, masks)}


class Data:
    """A toy data set of one site, with or without labels."""

    def __init__(self, batch: Batch, labels: Tensor | None, site: str, sites: tuple[str, ...]) -> None:
        self.batch, self.labels, self.site, self.sites = batch, labels, site, sites

    def plain(self) -> Data:
        return self

    def set_epoch(self, epoch: int) -> None:
        """Nothing is augmented."""

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Batch:
        place = int(index)
        label = None if self.labels is None else self.labels[place]
        site = torch.tensor(self.sites.index(self.site))
        return Batch(image=self.batch.image[place], label=label, index=torch.tensor(place), site=site)


def data(task: str) -> dict[str, Data]:
    source, target, _ = TASKS[task][1](24, 3)
    sites = ("a", "b")
    few = Batch(image=shift(source.image[:4]))
    return {
        "source": Data(source, source.label, "a", sites),
        "target": Data(target, None, "b", sites),
        "labelled_target": Data(few, source.label[:4], "b", sites),
    }


def made(name: str, task: str, strategy: str = "full") -> Adapter:
    file = str(OUTSIDE / f"{name}.py")
    if ("segmentation" if task == "segmentation" else "binary") not in adapter_class(file).tasks:
        pytest.skip(f"{name} is not defined for {task}")
    return build_adapter(file, TASKS[task][0](), strategy=strategy, seed=2)


def trained(name: str, task: str, folder: Path, epochs: int = 3) -> Adapter:
    adapter, given = made(name, task), data(task)
    few = given["labelled_target"] if "labelled_target" in type(adapter).needs else None
    config = FitConfig(
        epochs=epochs, batch_size=8, steps_per_epoch=3, lr=1e-2, accelerator="cpu", tensorboard=False
    )
    fit(adapter, given["source"], given["target"], labelled_target=few, folder=folder, config=config)
    return adapter


@pytest.mark.parametrize("name", METHODS)
def test_each_is_short(name: str) -> None:
    assert len((OUTSIDE / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_training_is_bit_equal(
    name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SECONDS", 0.0)
    start = made(name, task)
    whole = trained(name, task, tmp_path / "whole")
    calls, end_step = 0, Adapter.end_step

    def stop(self: Adapter) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("stopped")
        end_step(self)

    monkeypatch.setattr(Adapter, "end_step", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        trained(name, task, tmp_path / "cut")
    monkeypatch.setattr(Adapter, "end_step", end_step)
    again = trained(name, task, tmp_path / "cut")
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    begin = start.model.state_dict()
    assert any(not torch.equal(v, begin[k]) for k, v in whole.model.state_dict().items())


class TestPhases:
    def test_each_phase_moves_what_learns_in_it(self) -> None:
        """MCD: all; the heads; the encoder."""
        adapter = made("mcd", "classification").train()
        source, target, _ = domains(8, 0)
        for phase in adapter.phases:
            before = copy.deepcopy(dict(adapter.named_parameters()))
            optimizer = torch.optim.SGD(adapter.param_groups(0.1), lr=0.1)
            adapter(source, target, progress=0.5, phase=phase.name)["loss"].backward()
            adapter.keep_gradients(phase)
            optimizer.step()
            weights = {k for k, p in before.items() if p.ndim > 1}  # a bias before BatchNorm has no gradient
            moved = {k for k, p in adapter.named_parameters() if not torch.equal(p, before[k])}
            heads = {k for k in before if k.startswith(("second", "model.module.8"))}
            wanted = {"source": weights, "heads": weights & heads, "encoder": weights - heads}[phase.name]
            assert moved & weights == wanted, phase.name

    def test_the_encoder_takes_four_steps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        phases: list[str] = []
        call = Adapter.__call__

        def counted(self: Adapter, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            phases.append(kwargs["phase"])
            return call(self, *args, **kwargs)

        monkeypatch.setattr(Adapter, "__call__", counted)
        trained("mcd", "classification", tmp_path / "m", epochs=1)
        assert phases == ["source", "heads", *["encoder"] * 4] * 3

    @pytest.mark.slow
    def test_the_source_is_learnt(self, tmp_path: Path) -> None:
        adapter = trained("mcd", "classification", tmp_path / "m", epochs=40).eval()
        source, _, _ = domains(200, 9)
        assert float((adapter.model(source.image).logits.argmax(1) == source.label).float().mean()) > 0.8

    def test_adda_keeps_the_source_and_the_head(self, tmp_path: Path) -> None:
        adapter = trained("adda", "classification", tmp_path / "m")
        assert torch.equal(adapter.of_source.head.weight, adapter.model.head.weight)
        assert not torch.equal(adapter.of_source.module[0].weight, adapter.model.module[0].weight)
        start = network().parameters()
        assert all(torch.equal(p, q) for p, q in zip(adapter.of_source.parameters(), start, strict=True))


class TestTestTime:
    @pytest.mark.parametrize("name", ["cotta", "eata"])
    def test_reset_returns_everything(self, name: str) -> None:
        adapter = made(name, "classification")
        assert isinstance(adapter, TestTimeAdapter)
        start = copy.deepcopy(adapter.state_dict())
        outputs = []
        for _ in range(2):
            adapter.reset()
            for seed in range(3):
                last = adapter.adapt_batch(domains(16, seed)[1].image).logits
            outputs.append(last)
        assert torch.equal(*outputs)
        assert any(not torch.equal(v, start[k]) for k, v in adapter.state_dict().items())
        adapter.reset()
        assert all(torch.equal(v, start[k]) for k, v in adapter.state_dict().items())

    def test_the_teacher_predicts_and_is_saved(self, tmp_path: Path) -> None:
        adapter = made("cotta", "classification")
        assert adapter.predictor is adapter.teacher
        for seed in range(5):
            adapter.adapt_batch(domains(16, seed)[1].image)
        student, teacher = adapter.model.state_dict(), adapter.teacher.state_dict()
        assert any(not torch.equal(v, teacher[k]) for k, v in student.items())

    def test_what_was_kept_goes_on(self) -> None:
        """Adapting to two batches at once, or to one, keeping, and to the other, ends in the same place."""
        whole, first, second = (made("cotta", "classification") for _ in range(3))
        for seed in (0, 1):
            whole.adapt_batch(domains(16, seed)[1].image)
        first.adapt_batch(domains(16, 0)[1].image)
        first.keep()
        second.kept = first.kept
        assert second.resume()
        second.adapt_batch(domains(16, 1)[1].image)
        assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_discriminator_is_made_for_the_sites(tmp_path: Path) -> None:
    adapter = trained("sites", "classification", tmp_path / "m")
    assert adapter.names == ("a", "b")
    assert adapter.discriminator[-1].out_features == 2


FEW = ("mme",)
"""Methods that take a few labels of the target, and with them a run of their own."""


@pytest.fixture(scope="module")
def made_by_the_command_line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, one run of the methods without labels of the target and one of those with a few."""
    root = tmp_path_factory.mktemp("outside")
    write_site(root / "a", 16)
    write_site(root / "b", 14, offset=100, shade=40)
    (root / "few.csv").write_text("case,label\nc100,class0\nc101,class1\n")
    words = ["run", "adapt", "--source", "a", "--labels", "a/labels.csv", "--target", "b"]
    words += ["--target-labels", "b/labels.csv", "--encoder", "test_resnet", "--weights", "random"]
    words += ["--image-size", "32", "--epochs", "1", "--batch-size", "8"]
    others = [str(OUTSIDE / f"{name}.py") for name in METHODS if name not in FEW]
    few = [str(OUTSIDE / f"{name}.py") for name in FEW]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        assert main([*words, "--method", *others, "--out", "run"]) == 0
        assert main([*words, "--method", *few, "--few-labels", "few.csv", "--out", "run_few"]) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_predicts_with_it(
    name: str, made_by_the_command_line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run holds no code: what adapts while predicting, or has a head of its own, is named again."""
    run = made_by_the_command_line / ("run_few" if name in FEW else "run")
    predict = ["predict", str(run), str(made_by_the_command_line / "b"), "--model", name]
    adapts = name in ("cotta", "eata", "mme")
    assert main([*predict, "--out", str(tmp_path / "first")]) == (1 if adapts else 0)
    if adapts:
        assert f"--method {name}.py" in capsys.readouterr().err
    file = str(OUTSIDE / f"{name}.py")
    assert main([*predict, "--method", file, "--out", str(tmp_path / "second")]) == 0
    found = pd.read_csv(tmp_path / "second" / "predictions.csv").set_index("case")
    table = (
        pd.read_csv(run / "predictions.csv")
        .query(f"model == '{name}' and domain == 'target'")
        .set_index("case")
    )
    if name != "cotta":  # goes on from where the run ended
        calls = table[["logit_class0", "logit_class1"]].to_numpy().argmax(1)
        order = found.loc[table.index][["prob_class0", "prob_class1"]].to_numpy().argmax(1)
        assert (calls == order).all()
    kept = run / "checkpoints" / f"{name}-seed0" / "state.safetensors"
    assert kept.is_file() == (name in ("cotta", "eata"))
    assert len(table) == (12 if name in FEW else 14)
    config = (run / "config.yaml").read_text()
    assert ("stamps: [few_labels]" in config) == (name in FEW)
    page = (run / "report" / "index.html").read_text()
    assert ("Few labels:" in page) == (name in FEW)
