"""Settings of a training: what each of them changes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from medtl.adapters import Adapter, Batch, Facts, build_adapter
from medtl.checkpoints import read_header
from medtl.data.cases.table import Case
from medtl.data.tensors.batch import collate
from medtl.errors import ConfigError, DataError
from medtl.training.fit import fit
from medtl.training.lightning import make_trainer
from medtl.training.settings import OPTIMIZERS, SCHEDULES, FitConfig
from tests.adapters.toys import network
from tests.helpers.toydata import ToyData

QUICK: dict[str, Any] = {"batch_size": 8, "steps_per_epoch": 4, "accelerator": "cpu", "tensorboard": False}


def run(folder: Path, adapter: Adapter | None = None, settings: dict[str, Any] | None = None, **given: Any):
    adapter = adapter or build_adapter("dann", network(), seed=0)
    config = FitConfig(**{**QUICK, "epochs": 1, **(settings or {})})
    target = ToyData("target", 16, labelled=False)
    return fit(adapter, ToyData("source", 24), target, folder=folder, config=config, **given), adapter


class Seen(Callback):
    """Keeps what the optimiser did."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[dict[str, float]] = []
        self.kind = ""
        self.steps = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.kind, self.steps = type(optimizer).__name__, self.steps + 1
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        parts = {"model": pl_module.adapter.model, "discriminator": pl_module.adapter.discriminator}
        gradients = {k: [p.grad for p in m.parameters() if p.grad is not None] for k, m in parts.items()}
        self.norms.append({k: float(nn.utils.get_total_norm(found)) for k, found in gradients.items()})


class TestOptimiser:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_by_name(self, name: str, tmp_path: Path) -> None:
        seen = Seen()
        run(tmp_path / "m", settings={"optimizer": name}, callbacks=[seen])
        assert seen.kind.lower() == name

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_schedules(self, name: str, tmp_path: Path) -> None:
        seen = Seen()
        run(tmp_path / "m", settings={"schedule": name, "lr": 1.0e-3}, callbacks=[seen])
        assert seen.rates == pytest.approx([1e-3 * SCHEDULES[name](step / 4) for step in range(4)])

    def test_of_ones_own(self, tmp_path: Path) -> None:
        seen = Seen()

        def make(groups: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
            return torch.optim.RMSprop(groups, lr=lr, weight_decay=weight_decay)

        run(tmp_path / "m", settings={"optimizer": make, "schedule": lambda p: 1 - p / 2}, callbacks=[seen])
        assert seen.kind == "RMSprop"
        assert seen.rates[2] == pytest.approx(3e-4 * 0.75)

    def test_each_network_is_clipped_by_itself(self, tmp_path: Path) -> None:
        """A discriminator with a large gradient does not scale down the model's."""
        seen, free = Seen(), Seen()
        run(tmp_path / "clipped", settings={"clip": 1e-3}, callbacks=[seen])
        run(tmp_path / "free", settings={"clip": None}, callbacks=[free])
        assert all(norm == pytest.approx(1e-3, rel=1e-3) for found in seen.norms for norm in found.values())
        assert all(found["model"] > 1e-3 for found in free.norms)

    def test_a_parameter_without_a_network_is_clipped(self, tmp_path: Path) -> None:
        kind = type(build_adapter("finetune", network()))

        class Scaled(kind):  # type: ignore[valid-type,misc]
            def __init__(self) -> None:
                super().__init__(network())
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
                return {"loss": 1e3 * self.scale * super().forward(*args, **kwargs)["loss"]}

        norms: list[float] = []

        class Scale(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
                norms.append(float(pl_module.adapter.scale.grad.abs()))

        run(tmp_path / "m", Scaled(), settings={"clip": 0.5}, callbacks=[Scale()])
        assert norms
        assert max(norms) <= 0.5 + 1e-6

    def test_accumulation(self, tmp_path: Path) -> None:
        seen = Seen()
        ended = 0

        class Counting(type(build_adapter("dann", network()))):  # type: ignore[misc]
            def on_step_end(self) -> None:
                nonlocal ended
                ended += 1

        run(tmp_path / "m", Counting(network()), settings={"accumulate": 2}, callbacks=[seen])
        assert seen.steps == ended == 2


class TestOthersLoops:
    def test_loggers_get_a_row_an_epoch(self, tmp_path: Path) -> None:
        board = CSVLogger(str(tmp_path), name="log", version="")
        result, _ = run(tmp_path / "m", settings={"epochs": 2}, loggers=[board])
        rows = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
        assert "domain_loss" in rows[0]
        assert len(rows) == 3
        assert result.epochs == 2

    def test_a_trainer_of_ones_own(self, tmp_path: Path) -> None:
        whole, first = run(tmp_path / "whole", settings={"epochs": 2})
        config = FitConfig(**QUICK, epochs=2)
        trainer = make_trainer(config, tmp_path / "own")
        seen = Seen()
        trainer.callbacks.append(seen)  # as a patch from outside does
        result, second = run(tmp_path / "own", settings={"epochs": 2}, trainer=trainer)
        assert seen.steps == 8
        assert result.losses == whole.losses
        assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
        with pytest.raises(ConfigError, match="leave the trainer out"):
            run(tmp_path / "x", trainer=make_trainer(config, tmp_path / "x"), callbacks=[seen])

    def test_threads(self, tmp_path: Path) -> None:
        found: list[int] = []

        class Threads(Callback):
            def on_train_start(self, *_: Any) -> None:
                found.append(torch.get_num_threads())

        before = torch.get_num_threads()
        run(tmp_path / "m", settings={"threads": 2}, callbacks=[Threads()])
        assert found == [2]
        assert torch.get_num_threads() == before


class Sited(ToyData):
    """With cases, of one or of several sites."""

    def __init__(
        self, role: str, num: int, sites: list[str], domain: str | None = None, **options: Any
    ) -> None:
        super().__init__(role, num, **options)
        self.sites = tuple(sorted(set(sites)))
        self.cases = [
            Case(case=str(n), patient=str(n), site=site, domain=domain or role, path=str(n))
            for n, site in enumerate(sites)
        ]

    def __getitem__(self, index: int) -> Batch:
        batch = super().__getitem__(index)
        batch.site = torch.tensor(self.sites.index(self.cases[int(index)].site))
        return batch


class TestData:
    def test_sites_are_drawn_equally_often(self, tmp_path: Path) -> None:
        seen: list[int] = []

        class Looks(Callback):
            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
                seen.extend(batch["source"].site.tolist())

        source = Sited("source", 24, ["big"] * 21 + ["small"] * 3)
        adapter = build_adapter("finetune", network())
        config = FitConfig(**QUICK, epochs=1, balance="sites")
        fit(adapter, source, folder=tmp_path / "m", config=config, callbacks=[Looks()])
        assert (seen.count(0), seen.count(1)) == (16, 16)
        with pytest.raises(ConfigError, match="several sites"):
            run(tmp_path / "x", settings={"balance": "sites"})

    def test_facts(self, tmp_path: Path) -> None:
        told: list[Facts] = []
        adapter = build_adapter("dann", network())
        adapter.on_data = told.append  # type: ignore[method-assign]
        source, target = Sited("source", 20, ["a"] * 20), Sited("target", 6, ["b", "c"] * 3, labelled=False)
        source.sites = target.sites = ("a", "b", "c")
        fit(adapter, source, target, folder=tmp_path / "m", config=FitConfig(**QUICK, epochs=2))
        facts = told[0]
        assert (facts.sites, facts.source_sites, facts.target_sites) == (("a", "b", "c"), ("a",), ("b", "c"))
        assert (facts.num_source, facts.num_target, facts.num_steps) == (20, 6, 8)
        assert facts.shares == pytest.approx([float((source.labels == k).float().mean()) for k in (0, 1)])

    def test_a_method_never_sees_the_targets_labels(self, tmp_path: Path) -> None:
        """Whatever is handed to fit as the target."""
        seen: list[Any] = []

        class Peeps(Adapter):
            needs = frozenset({"source", "target"})

            def on_epoch_start(self, loaders: Any) -> None:
                seen.extend(batch.label for batch in loaders["target"])

            def on_fit_start(self, loaders: Any) -> None:
                seen.extend(batch.label for batch in loaders["target"])

            def forward(self, source: Any, target: Any, *, progress: float) -> Any:
                seen.append(target.label)
                return {"loss": self.supervised_loss(self.forward_source(source).logits, source.label)}

        labelled = ToyData("target", 16)
        config = FitConfig(**QUICK, epochs=1)
        fit(Peeps(network()), ToyData("source", 24), labelled, folder=tmp_path / "m", config=config)
        assert len(seen) > 4
        assert all(label is None for label in seen)

    def test_stamps_come_from_the_data(self, tmp_path: Path) -> None:
        source, of_target = Sited("source", 24, ["a"] * 24), Sited("target", 8, ["b"] * 8)
        config = FitConfig(**QUICK, epochs=1)

        def stamps(
            name: str,
            adapter: str = "finetune",
            first: Any = source,
            patience: int | None = None,
            **given: Any,
        ) -> tuple[str, ...]:
            settings = FitConfig(**QUICK, epochs=1, patience=patience)
            made = build_adapter(adapter, network())
            result = fit(made, first, folder=tmp_path / name, config=settings, **given)
            assert read_header(result.path)["fit"]["stamps"] == list(result.stamps)
            again = fit(
                build_adapter(adapter, network()), first, folder=tmp_path / name, config=settings, **given
            )
            assert again.stamps == result.stamps
            return result.stamps

        assert stamps("plain") == ()
        assert stamps("looked at, not chosen by", validation=of_target) == ()
        assert stamps("chosen", validation=of_target, patience=1) == ("oracle",)
        assert stamps("few", "few_labels", labelled_target=of_target) == ("few_labels",)
        assert stamps("not used", "finetune", labelled_target=of_target) == ()
        assert stamps("as the source", first=of_target) == ("few_labels",)
        assert config.patience is None
        with pytest.raises(ConfigError, match="--few-labels"):
            fit(build_adapter("few_labels", network()), source, folder=tmp_path / "none", config=config)


class TestLabels:
    """What torch would say as an IndexError is told in a sentence."""

    def loss(self, logits: torch.Tensor, label: torch.Tensor | None) -> Any:
        return build_adapter("finetune", network()).supervised_loss(logits, label)

    def test_one_logit(self) -> None:
        with pytest.raises(ConfigError, match="one logit"):
            self.loss(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))

    def test_a_class_beyond_the_network(self) -> None:
        with pytest.raises(DataError, match="hold class 2, and the network has 2 classes"):
            self.loss(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1]))
        with pytest.raises(DataError, match="hold class 5"):
            self.loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 5))

    def test_float_classes(self) -> None:
        with pytest.raises(ConfigError, match="float32 of shape"):
            self.loss(torch.zeros(4, 2), torch.tensor([0.0, 1.0, 0.0, 1.0]))

    def test_other_shapes(self) -> None:
        with pytest.raises(DataError, match="do not agree"):
            self.loss(torch.zeros(4, 2), torch.tensor([0, 1]))

    def test_other_integers_are_classes(self) -> None:
        label = torch.tensor([0, 1, 0, 1])
        expected = self.loss(torch.eye(2)[label], label)
        for dtype in (torch.int32, torch.uint8, torch.int16):
            torch.testing.assert_close(self.loss(torch.eye(2)[label], label.to(dtype)), expected)

    def test_whose_labels_are_missing(self) -> None:
        adapter = build_adapter("few_labels", network())
        source = collate([ToyData("source", 4)[n] for n in range(4)])
        with pytest.raises(DataError, match="labels in the labelled target batch"):
            adapter(source, labelled_target=Batch(image=source.image), progress=0.0)


class TestFlags:
    def test_key_and_value(self) -> None:
        given = FitConfig.parse(
            ["optimizer=sgd", "clip=none", "accumulate=2", "balance=sites", "precision=bf16-mixed"]
        )
        assert given == {
            "optimizer": "sgd",
            "clip": None,
            "accumulate": 2,
            "balance": "sites",
            "precision": "bf16-mixed",
        }

    @pytest.mark.parametrize(
        ("pair", "message"),
        [
            ("optimiser=sgd", "no hyper-parameter 'optimiser'. Perhaps you meant 'optimizer'"),
            ("lr=1", "no hyper-parameter 'lr'"),
            ("clip=x", "expected a value of type float"),
            ("sgd", "--fit takes key=value"),
        ],
    )
    def test_mistakes(self, pair: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            FitConfig.parse([pair])

    @pytest.mark.parametrize(
        "wrong", [{"optimizer": "sdg"}, {"schedule": "cos"}, {"clip": 0.0}, {"accumulate": 0}, {"threads": 0}]
    )
    def test_values(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            FitConfig(**wrong)
