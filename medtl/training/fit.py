"""The one training loop: a LightningModule around any adapter, and Lightning's Trainer.

All randomness of a step derives from (seed, stream, epoch or step) alone, and so do learning rate and
progress. A killed run that continues from its last epoch therefore ends with the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medtl.adapters.contract.adapter import Adapter, Unlabelled, unlabelled
from medtl.adapters.contract.facts import Facts
from medtl.adapters.contract.phase import Phase
from medtl.checkpoints import load_weights, save_weights
from medtl.data.seeds import derive_seed
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.dataset import CaseData, CaseDataset, EpochSampler
from medtl.errors import ConfigError, DataError
from medtl.models.device import default_device
from medtl.runs import MetricsLog
from medtl.strategies.contract.strategy import Strategy
from medtl.training.keeper import Keeper, SafetensorsIO, last_epoch
from medtl.training.lightning import hide_host, make_trainer, quiet
from medtl.training.loaders import AheadLoader
from medtl.training.settings import FitConfig
from medtl.training.validation import Validation

__all__ = ["FitConfig", "FitResult", "fit"]

logger = logging.getLogger(__name__)

MIN_STEPS_PER_EPOCH = 10
"""Small folders are repeated until an epoch has this many steps, so that `epochs` means about the same for all."""
FEW_LABELS, ORACLE = "few_labels", "oracle"
"""Stamps of a training that read labels of the target: to learn from them, or to choose by them."""


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        epochs: number of epochs run.
        best_epoch: the epoch whose weights are kept.
        losses: means of the adapter's losses over the last epoch, by name.
        path: file of the model's weights, with its header.
        stamps: what it read of the target's labels: `few_labels` if it learnt from some, `oracle` if it chose by them.
    """

    epochs: int
    best_epoch: int
    losses: dict[str, float]
    path: Path
    stamps: tuple[str, ...] = ()


def fit(
    adapter: Adapter,
    source: CaseData | None,
    target: CaseData | None = None,
    *,
    folder: Path,
    config: FitConfig | None = None,
    labelled_target: CaseData | None = None,
    validation: CaseData | None = None,
    target_plain: CaseData | None = None,
    header: Mapping[str, Any] | None = None,
    metrics: MetricsLog | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Any] = (),
    trainer: pl.Trainer | None = None,
) -> FitResult:
    """Trains `adapter` and writes `folder/model.safetensors`; continues where a killed run stopped.

    A method without phases (AdaBN, at test time) takes no steps: its model is finished and saved.

    Args:
        adapter: its `needs` decide which data sets it gets.
        source: labelled cases.
        target: cases of the target, in any number: the shorter domain is repeated. Labels are taken off its batches.
        folder: folder of this model alone, for the checkpoint of the last epoch and the final weights.
        config: see `FitConfig`.
        labelled_target: the few labelled cases of the target that training may use; stamps the result `few_labels`.
        validation: labelled source cases, for the log and for `patience`. With cases of the target, `patience` chooses
            the epoch by the target's labels, which stamps the result `oracle`.
        target_plain: the target without augmentation, for `on_epoch_start` and `on_fit_end`.
        header: the facts needed to use the weights, as JSON values.
        metrics: log that receives one row per value and epoch.
        callbacks: Lightning's callbacks, beside ours.
        loggers: Lightning's loggers (MLflow, Weights & Biases, ...), beside ours.
        trainer: a Trainer, best made by `make_trainer` and then changed; its own settings hold, and `callbacks` and
            `loggers` are given to it.

    Raises:
        ConfigError: the adapter needs data that was not given, or settings exclude each other.
        DataError: the loss is not finite; the message gives the step and the parts.
    """
    config = config or FitConfig()
    final = folder / "model.safetensors"
    given = {"source": source, "target": target, "labelled_target": labelled_target}
    used = {role: data for role, data in given.items() if role in adapter.needs and data is not None}
    _check(adapter, config, given, used, validation, trainer, callbacks, loggers)
    adapter.check()
    used = _one_numbering(used)
    plain = target_plain if target_plain is not None or target is None else _plain(target)
    stamps = _stamps(used, validation, config)
    module = _Module(adapter, used, config, given, plain, metrics)
    adapter.on_data(module.facts)
    if final.exists():
        return _load(adapter, folder, stamps)

    folder.mkdir(parents=True, exist_ok=True)
    if not adapter.trains:
        return _finish_untrained(adapter, module, folder, stamps, header)
    keeper = Keeper(adapter, folder, config.patience)
    with quiet(), _threads(config.threads), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if trainer is None:
            trainer = make_trainer(config, folder, callbacks=callbacks, loggers=loggers)
        trainer.callbacks.append(keeper)  # type: ignore[attr-defined]
        trainer.strategy.checkpoint_io = SafetensorsIO()
        trainer.fit_loop.max_epochs = config.epochs
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        resumed = last_epoch(folder)
        loader = _plain_loader(validation, config) if validation is not None and len(validation) else None
        if resumed is not None:
            logger.info("Resuming %s from %s", folder.name, resumed.stem)
        elif config.epochs:
            module.start(trainer.strategy.root_device)
        if (
            metrics is not None
        ):  # also without a checkpoint: a kill may fall between an epoch's row and its checkpoint
            metrics.truncate(-1 if resumed is None else int(resumed.stem.split("-")[1]))
        if config.epochs:
            trainer.fit(
                module,
                val_dataloaders=loader,
                ckpt_path=str(resumed) if resumed is not None else None,
                weights_only=True,
            )
    hide_host(folder)
    adapter.to(trainer.strategy.root_device)
    epochs = keeper.restore() if config.epochs else 0
    adapter.finish(module.plain_loaders())
    result = _save(
        adapter, folder, FitResult(epochs, keeper.best_epoch, keeper.losses, final, stamps), header
    )
    keeper.clean()
    return result


def _check(
    adapter: Adapter,
    config: FitConfig,
    given: Mapping[str, CaseData | None],
    used: Mapping[str, CaseData],
    validation: CaseData | None,
    trainer: pl.Trainer | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[Any],
) -> None:
    """Refuses what cannot be trained, before anything is written."""
    name = type(adapter).__name__
    if missing := [role for role in given if role in adapter.needs and role not in used]:
        what = " and ".join(role.replace("_", " ") for role in missing)
        more = " (--few-labels)" if "labelled_target" in missing else ""
        raise ConfigError(f"Method {name} needs {what} scans{more}, which were not given.")
    if config.balance == "classes" and getattr(given["source"], "labels", None) is None:
        raise ConfigError("Sampling balanced over classes needs the classes of the source, and it has none.")
    if config.balance == "sites" and not any(len(_sites(data)) > 1 for data in used.values()):
        raise ConfigError(
            "Sampling balanced over sites needs several sites in the source or the target, and there is one each."
        )
    if config.patience is not None and validation is None:
        raise ConfigError("patience needs source validation, and no validation cases were given.")
    if config.accumulate > 1 and len(adapter.phases) > 1:
        raise ConfigError(
            f"{name} takes several turns in each step, and gradients are not accumulated across them: leave accumulate "
            "at 1 and choose a larger batch size."
        )
    if len(adapter.phases) > 1 and str(config.precision).startswith("16") and config.clip is not None:
        raise ConfigError(
            f"{name} takes several turns in each step, and with precision={config.precision} its gradients are scaled, "
            "so that they cannot be clipped between the turns: choose precision=bf16-mixed, or clip=none."
        )
    if trainer is not None and (callbacks or loggers):
        raise ConfigError(
            "fit got a trainer and callbacks or loggers: give these to make_trainer, or leave the trainer out."
        )


def _stamps(used: Mapping[str, CaseData], validation: CaseData | None, config: FitConfig) -> tuple[str, ...]:
    """What the training reads of the target's labels, from the data itself."""
    learns = "labelled_target" in used or _of_target(used.get("source"))
    chooses = config.patience is not None and _of_target(validation)
    return (*((FEW_LABELS,) if learns else ()), *((ORACLE,) if chooses else ()))


def _of_target(data: CaseData | None) -> bool:
    return any(case.domain == "target" for case in getattr(data, "cases", ()))


def _plain(data: CaseData) -> CaseData:
    """The data set without augmentation; one of a user's own may have none to leave out."""
    return data.plain() if hasattr(data, "plain") else data


def _sites(data: CaseData) -> tuple[str, ...]:
    return tuple(getattr(data, "sites", ()))


def _one_numbering(used: Mapping[str, CaseData]) -> dict[str, CaseData]:
    """The same data sets, with one numbering of sites for `Batch.site`."""
    every = tuple(dict.fromkeys(site for data in used.values() for site in _sites(data)))
    result: dict[str, CaseData] = {}
    for role, data in used.items():
        if isinstance(data, CaseDataset) and data.sites != every:
            data = copy.copy(data)
            data.sites = every
        result[role] = data
    return result


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Within it, torch computes with so many threads."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prefix(adapter: Adapter) -> str:
    """The name under which the adapter's state holds the network that predicts."""
    names = (name for name, module in adapter.named_modules() if module is adapter.predictor)
    return f"{next(names)}."


def _load(adapter: Adapter, folder: Path, stamps: tuple[str, ...]) -> FitResult:
    """A model that is already there."""
    final = folder / "model.safetensors"
    saved, weights = load_weights(final)
    own = load_weights(folder / "adapter.safetensors")[1]
    prefix = _prefix(adapter)
    adapter.load_state_dict({**{f"{prefix}{k}": v for k, v in weights.items()}, **own})
    record = saved["fit"]
    return FitResult(
        record["epochs"], record["best_epoch"], record["losses"], final, tuple(record.get("stamps", stamps))
    )


def _finish_untrained(
    adapter: Adapter,
    module: _Module,
    folder: Path,
    stamps: tuple[str, ...],
    header: Mapping[str, Any] | None,
) -> FitResult:
    adapter.to(default_device())
    module.start(default_device())
    adapter.finish(module.plain_loaders())
    return _save(adapter, folder, FitResult(0, 0, {}, folder / "model.safetensors", stamps), header)


def _save(adapter: Adapter, folder: Path, result: FitResult, header: Mapping[str, Any] | None) -> FitResult:
    record = {
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "losses": result.losses,
        "stamps": list(result.stamps),
    }
    # What the adapter holds beside the predictor (a discriminator, the source's statistics) comes first: the model ends
    # the folder.
    prefix = _prefix(adapter)
    own = {k: v for k, v in adapter.state_dict().items() if not k.startswith(prefix)}
    save_weights(folder / "adapter.safetensors", own, {"kind": "adapter"})
    save_weights(result.path, adapter.predictor.state_dict(), {**(header or {}), "fit": record})
    return result


class _Module(pl.LightningModule):
    """Feeds batches and progress to an adapter, and logs what it returns."""

    def __init__(
        self,
        adapter: Adapter,
        data: Mapping[str, CaseData],
        config: FitConfig,
        given: Mapping[str, CaseData | None],
        target_plain: CaseData | None,
        metrics: MetricsLog | None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = config
        self.automatic_optimization = len(adapter.phases) < 2
        self.last_losses: dict[str, float] = {}
        self._data = data
        self._target_plain = target_plain
        self._metrics = metrics
        # Counted over both domains: source-only takes as many steps as the adapted model.
        longest = max(
            (len(d) for role, d in given.items() if d is not None and role != "labelled_target"), default=1
        )
        steps = max(math.ceil(longest / config.batch_size), MIN_STEPS_PER_EPOCH)
        self._drawn = (config.steps_per_epoch or steps) * config.batch_size
        self._set_steps(1)
        self._sums: dict[str, float] = {}
        self._phase_parameters: dict[str, list[nn.Parameter]] = {}

    def _set_steps(self, processes: int) -> None:
        """Divides the steps of an epoch among several processes."""
        self.steps_per_epoch = math.ceil(self._drawn / self.config.batch_size / processes)
        self.num_steps = self.steps_per_epoch * self.config.epochs

    @property
    def facts(self) -> Facts:
        """What the adapter is told about the data."""
        source, few = self._data.get("source"), self._data.get("labelled_target")
        target = self._data.get("target") or self._target_plain
        sites = {role: _used_sites(data) for role, data in (("source", source), ("target", target or few))}
        labels, classes = getattr(source, "labels", None), tuple(getattr(source, "classes", ()))
        shares: tuple[float, ...] = ()
        counts = None if labels is None else torch.as_tensor(labels)
        if counts is not None and counts.ndim == 1 and not counts.is_floating_point():
            counts = torch.bincount(counts[counts >= 0], minlength=len(classes)).double()
            shares = tuple((counts / counts.sum()).tolist())
        every = next((_sites(data) for data in self._data.values()), ())
        return Facts(
            sites=every,
            source_sites=sites["source"],
            target_sites=sites["target"],
            classes=classes,
            shares=shares,
            num_source=0 if source is None else len(source),
            num_target=0 if target is None else len(target),
            num_labelled_target=0 if few is None else len(few),
            num_steps=self.num_steps,
        )

    def start(self, device: torch.device) -> None:
        """Calls what a strategy and a method do before the first step, if they do anything."""
        adapter = self.adapter
        hooks = (type(adapter).on_fit_start, type(adapter.strategy).on_fit_start)
        if hooks == (Adapter.on_fit_start, Strategy.on_fit_start):
            return
        adapter.to(device)
        loaders = {role: _plain_loader(_plain(data), self.config) for role, data in self._data.items()}
        adapter.begin(loaders)

    def on_fit_start(self) -> None:
        """Counts the steps of this process."""
        self._set_steps(self.trainer.world_size)

    def train_dataloader(self) -> CombinedLoader:
        """Loaders of this epoch: their order derives from (seed, stream, epoch) alone."""
        loaders = {}
        for role, data in self._data.items():
            sampler = EpochSampler(
                len(data),
                seed=self.config.seed,
                stream=role,
                length=self._drawn,
                classes=_balanced(self.config.balance, role, data),
            )
            sampler.set_epoch(self.current_epoch)
            data.set_epoch(self.current_epoch)
            loaders[role] = _loader(data, self.config, sampler=sampler)
        return CombinedLoader(loaders, mode="min_size")

    def plain_loaders(self) -> dict[str, Iterable[Batch]]:
        """Yields every target case once, in order, without augmentation and labels."""
        if self._target_plain is None:
            return {}
        return {"target": Unlabelled(_plain_loader(self._target_plain, self.config))}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over the adapter's groups; each keeps its own peak learning rate."""
        groups = self.adapter.param_groups(self.config.lr)
        optimizer = self.config.make_optimizer(groups)
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        learning = [p for group in optimizer.param_groups for p in group["params"]]
        for phase in self.adapter.phases:
            self._phase_parameters[phase.name] = phase.parameters(self.adapter, learning)
            if not self._phase_parameters[phase.name]:
                raise ConfigError(
                    f"Nothing learns in phase {phase.name} of {type(self.adapter).__name__} with the strategy "
                    f"{type(self.adapter.strategy).__name__}: choose another strategy."
                )
        return optimizer

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of the model's gradient, and apart from it that of each further network."""
        if gradient_clip_val is not None:  # of a Trainer that was handed in
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        if self.config.clip is None:
            return
        for parameters in self._networks():
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)

    def _networks(self) -> Iterator[list[nn.Parameter]]:
        model = [*self.adapter.model.parameters(), *self.adapter.strategy.parameters()]
        yield model
        taken = {id(p) for p in model}
        for each in (*self.adapter.children(), self.adapter):  # the adapter: what it holds without a network
            if own := [p for p in each.parameters() if id(p) not in taken]:
                taken |= {id(p) for p in own}
                yield own

    def on_train_epoch_start(self) -> None:
        """Puts the adapter into training mode, in which frozen parts stay in eval mode, and calls its hook."""
        self.adapter.train()
        if type(self.adapter).on_epoch_start is not Adapter.on_epoch_start:
            with self.adapter.strategy.applied():
                self.adapter.on_epoch_start(self.plain_loaders())

    def _step(self, batch_idx: int) -> int:
        """The number of the step, which depends on the epoch and the batch alone."""
        return self.current_epoch * self.steps_per_epoch + batch_idx

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets learning rate and random state from the step number alone."""
        if batch_idx == 0:
            self._sums = {}
        step = self._step(batch_idx)
        seed = derive_seed(self.config.seed, "step", step)
        # On a CPU, torch's own call spends a millisecond on unused accelerators.
        seeded = torch.default_generator if self.device.type == "cpu" else torch
        seeded.manual_seed(seed)
        optimizer = self.optimizers()
        progress = step / self.num_steps
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            rate = self.config.rate(progress)
            if rate is None:
                rate = self.adapter.learning_rate(group, progress)
            group["lr"] = group["peak_lr"] * rate

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:
        """Calls the adapter once; or in each of its phases, each of which takes its own step."""
        if self.automatic_optimization:
            return self._loss(batch, batch_idx)
        optimizer = cast("Any", self.optimizers())
        alone = self.trainer.world_size == 1
        for phase in self.adapter.phases:
            chosen = self._phase_parameters[phase.name]
            kept = {id(p) for p in chosen}
            for _ in range(phase.repeats):
                loss = self._loss(batch, batch_idx, phase)
                optimizer.zero_grad()
                self.manual_backward(loss, **({"inputs": chosen} if alone else {}))
                for parameter in self.adapter.parameters():
                    if id(parameter) not in kept:
                        parameter.grad = None
                self.configure_gradient_clipping(optimizer)
                optimizer.step()
        return None

    def _loss(self, batch: dict[str, Batch], batch_idx: int, phase: Phase | None = None) -> Tensor:
        target, few = batch.get("target"), batch.get("labelled_target")
        streams: dict[str, Any] = {} if few is None else {"labelled_target": few}
        if phase is not None:
            streams["phase"] = phase.name
        if target is not None:
            target = unlabelled(target)
        losses = self.adapter(
            batch.get("source"), target, progress=self._step(batch_idx) / self.num_steps, **streams
        )
        if not torch.isfinite(losses["loss"]):
            parts = ", ".join(f"{k}={float(v.detach()):.4g}" for k, v in losses.items())
            raise DataError(
                f"The loss of {type(self.adapter).__name__} is not finite at step {self._step(batch_idx)} ({parts}). "
                f"{_cause(batch, self._data)}"
            )
        share = 1.0 if phase is None else 1 / phase.repeats
        for name, value in losses.items():
            if phase is not None and name == "loss":
                name = f"{phase.name}_loss"
            self._sums[name] = self._sums.get(name, 0.0) + share * float(value.detach())
        if phase is not None:
            self._sums["loss"] = self._sums.get("loss", 0.0) + share * float(losses["loss"].detach())
        loss: Tensor = losses["loss"]
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Calls the hooks after an optimiser step."""
        last = batch_idx + 1 == self.steps_per_epoch
        if not last and (batch_idx + 1) % self.config.accumulate:
            return
        self.adapter.end_step()

    def on_validation_epoch_start(self) -> None:
        """Starts an empty tally."""
        self._validation = Validation(self.adapter.supervised_loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch of source validation."""
        if (label := batch.inner_label) is not None:
            with self.adapter.on_source():
                logits = self.adapter.predictor(batch.image).logits
            self._validation.add(logits, label)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures of source validation."""
        for name, value in self._validation.compute().items():
            self.log(name, value, prog_bar=name != "validation_loss", sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Writes the epoch's means to the metrics file and the log."""
        self.last_losses = {k: v / self.steps_per_epoch for k, v in self._sums.items()}
        values = dict(self.last_losses)
        values |= {
            k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("validation")
        }
        if self._metrics is not None and self.trainer.is_global_zero:
            self._metrics.append(self.current_epoch, self._step(self.steps_per_epoch), values)
        if self.logger is not None:
            self._log(values)
        shown = "  ".join(f"{k} {v:.3f}" for k, v in values.items())
        level = logging.DEBUG if self.config.progress_bar else logging.INFO
        logger.log(level, "epoch %d/%d  %s", self.current_epoch + 1, self.config.epochs, shown)

    def _log(self, values: Mapping[str, float]) -> None:
        for each in self.loggers:
            each.log_metrics(dict(values), step=self._step(self.steps_per_epoch))
            each.save()


def _cause(batch: Mapping[str, Batch], data: Mapping[str, CaseData]) -> str:
    """The cases of a batch whose images hold values that are no numbers; without any, the learning rate is suspect."""
    named = []
    for role, part in batch.items():
        good = torch.isfinite(part.image).flatten(1).all(1).tolist()
        places = range(len(part)) if part.index is None else part.index.tolist()
        cases = getattr(data[role], "cases", ()) if part.index is not None else ()
        named += [
            f"case {cases[place].case!r}" if cases else f"image {place} of the {role}"
            for place, is_good in zip(places, good, strict=True)
            if not is_good
        ]
    if not named:
        return "Lower --lr, or check the scans with `medtl inspect`."
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"The cause is in the input: values that are no numbers in {', '.join(named[:3])}{more}. Leave them out."


def _used_sites(data: CaseData | None) -> tuple[str, ...]:
    """The sites of a data set's own cases, in the order of its numbering."""
    if data is None:
        return ()
    own = {case.site for case in getattr(data, "cases", ())}
    return tuple(site for site in _sites(data) if not own or site in own)


def _balanced(balance: str, role: str, data: CaseData) -> Sequence[int] | None:
    """The class or site of each case, if these are to be drawn equally often."""
    if balance == "classes" and role == "source":
        return data.labels
    if balance == "sites":
        sites, cases = _sites(data), getattr(data, "cases", ())
        return [sites.index(case.site) for case in cases] or None
    return None


def _loader(data: CaseData, config: FitConfig, **options: Any) -> DataLoader[Any]:
    # A user's data set may use the global random state, which must not be shared with a thread.
    kind = AheadLoader if isinstance(data, CaseDataset) else DataLoader
    return kind(
        cast("Dataset[Batch]", data),
        batch_size=config.batch_size,
        collate_fn=collate,
        num_workers=config.num_workers,
        **options,
    )


def _plain_loader(data: CaseData, config: FitConfig) -> DataLoader[Any]:
    return _loader(data, config, shuffle=False)
