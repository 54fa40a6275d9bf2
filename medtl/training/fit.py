"""The one training loop: a LightningModule around any adapter, and Lightning's Trainer.

All randomness of a step derives from (seed, stream, epoch or step) alone, and so do learning rate and
progress. A killed run that continues from its last epoch therefore ends with the same weights, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medtl.adapters.contract.adapter import Adapter
from medtl.checkpoints import load_weights, save_weights
from medtl.data.seeds import derive_seed
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.dataset import CaseData, CaseDataset, EpochSampler
from medtl.errors import ConfigError, DataError
from medtl.runs import MetricsLog
from medtl.training.keeper import Keeper, SafetensorsIO, last_epoch
from medtl.training.lightning import hide_host, quiet, tensorboard
from medtl.training.loaders import AheadLoader
from medtl.training.validation import Validation

logger = logging.getLogger(__name__)

MIN_STEPS_PER_EPOCH = 10
"""Small folders are repeated until an epoch has this many steps, so that `epochs` means about the same for all."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a training; fields with a flag have its name.

    Attributes:
        epochs: passes over the longer of source and target; 0 trains nothing and only finishes a model that is
            already trained.
        batch_size: cases of each domain in a step.
        lr: peak learning rate of AdamW; warms up over 10 % of the steps, then falls as a cosine.
        weight_decay: weight decay of AdamW.
        seed: seed of all randomness.
        patience: stop after this many epochs without a lower source-validation loss and return to the best
            epoch; None trains to the end and keeps the last.
        devices, accelerator, precision: Lightning's.
        num_workers: processes that load data; 0 loads in the training process.
        steps_per_epoch: None derives it from the data.
        balanced: sample every class of the source equally often.
        progress_bar: a bar on the terminal; without it one log line per epoch.
        tensorboard: also log to TensorBoard, if it is installed.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 3e-4
    weight_decay: float = 1e-4
    seed: int = 0
    patience: int | None = None
    devices: int = 1
    accelerator: str = "auto"
    precision: Any = "32-true"
    num_workers: int = 0
    steps_per_epoch: int | None = None
    balanced: bool = False
    progress_bar: bool = False
    tensorboard: bool = True

    @classmethod
    def of_recipe(cls, config: Any, **own: Any) -> FitConfig:
        """Builds the settings from a recipe's flags; `--smoke` means two steps of one epoch.

        Args:
            config: the recipe's configuration, a `medtl.config.TrainingConfig`.
            own: fields that differ from the flags, such as `seed`.
        """
        if config.epochs < 1:
            raise ConfigError(f"epochs is {config.epochs}; expected at least 1.")
        flags = {
            "epochs": 1 if config.smoke else config.epochs,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "devices": config.devices,
            "patience": getattr(config, "patience", None),
            "balanced": getattr(config, "imbalance", "") == "balanced_sampling",
            "steps_per_epoch": 2 if config.smoke else None,
        }
        return cls(**{**flags, **own})

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("devices", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}; expected a number above 0, for example 3e-4.")


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        epochs: number of epochs run.
        best_epoch: the epoch whose weights are kept.
        losses: means of the adapter's losses over the last epoch, by name.
        path: file of the model's weights, with its header.
    """

    epochs: int
    best_epoch: int
    losses: dict[str, float]
    path: Path


def fit(
    adapter: Adapter,
    source: CaseData | None,
    target: CaseData | None = None,
    *,
    folder: Path,
    config: FitConfig | None = None,
    validation: CaseData | None = None,
    target_plain: CaseData | None = None,
    header: Mapping[str, Any] | None = None,
    metrics: MetricsLog | None = None,
) -> FitResult:
    """Trains `adapter` and writes `folder/model.safetensors`; continues where a killed run stopped.

    A test-time method has nothing to train here: its model is saved unchanged.

    Args:
        adapter: its `needs` decide which data sets it gets.
        source: labelled cases.
        target: cases without labels, in any number: the shorter domain is repeated.
        folder: folder of this model alone, for the checkpoint of the last epoch and the final weights.
        config: see `FitConfig`.
        validation: labelled source cases, for the log and for `patience`.
        target_plain: the target without augmentation, for `on_epoch_start` and `on_fit_end`.
        header: the facts needed to use the weights, as JSON values.
        metrics: log that receives one row per value and epoch.

    Raises:
        ConfigError: the adapter needs data that was not given.
        DataError: the loss is not finite; the message gives the step and the parts.
    """
    config = config or FitConfig()
    final = folder / "model.safetensors"
    given = {"source": source, "target": target}
    used = {role: data for role, data in given.items() if role in adapter.needs and data is not None}
    if missing := [role for role in given if role in adapter.needs and role not in used]:
        raise ConfigError(
            f"Method {type(adapter).__name__} needs {' and '.join(missing)} scans, which were not given."
        )
    if config.balanced and getattr(source, "labels", None) is None:
        raise ConfigError("Balanced sampling needs the classes of the source, and it has none.")
    if config.patience is not None and validation is None:
        raise ConfigError("patience needs source validation, and no validation cases were given.")
    if final.exists():
        saved, weights = load_weights(final)
        own = load_weights(folder / "adapter.safetensors")[1]
        adapter.load_state_dict({**{f"model.{k}": v for k, v in weights.items()}, **own})
        return FitResult(saved["fit"]["epochs"], saved["fit"]["best_epoch"], saved["fit"]["losses"], final)

    folder.mkdir(parents=True, exist_ok=True)
    if not adapter.trains:
        adapter.on_fit_start({k: _plain_loader(d.plain(), config) for k, d in used.items()})
        return _save(adapter, folder, FitResult(0, 0, {}, final), header)
    module = _Module(adapter, used, config, given, target_plain, metrics)
    keeper = Keeper(adapter, folder, config.patience)
    callbacks: list[Callback] = [keeper]
    if config.progress_bar:
        callbacks.append(TQDMProgressBar())
    with quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            # Spawned, not started as further copies of the command: one process owns the run folder.
            strategy=DDPStrategy(start_method="spawn", find_unused_parameters=True)
            if config.devices > 1
            else "auto",
            precision=config.precision,
            max_epochs=config.epochs,
            callbacks=callbacks,
            logger=tensorboard(folder) if config.tensorboard else False,
            enable_model_summary=False,
            enable_progress_bar=config.progress_bar,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
            plugins=[SafetensorsIO()],
        )
        resumed = last_epoch(folder)
        loader = _plain_loader(validation, config) if validation is not None and len(validation) else None
        if resumed is not None:
            logger.info("Resuming %s from %s", folder.name, resumed.stem)
        elif config.epochs and type(adapter).on_fit_start is not Adapter.on_fit_start:
            adapter.to(trainer.strategy.root_device)
            adapter.on_fit_start({k: _plain_loader(d.plain(), config) for k, d in used.items()})
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
    adapter.on_fit_end(module.plain_loaders())
    result = _save(adapter, folder, FitResult(epochs, keeper.best_epoch, keeper.losses, final), header)
    keeper.clean()
    return result


def _save(adapter: Adapter, folder: Path, result: FitResult, header: Mapping[str, Any] | None) -> FitResult:
    record = {"epochs": result.epochs, "best_epoch": result.best_epoch, "losses": result.losses}
    # What the adapter holds beside the model (a discriminator, the source's statistics) comes first: the model ends it.
    own = {k: v for k, v in adapter.state_dict().items() if not k.startswith("model.")}
    save_weights(folder / "adapter.safetensors", own, {"kind": "adapter"})
    save_weights(result.path, adapter.model.state_dict(), {**(header or {}), "fit": record})
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
        self.last_losses: dict[str, float] = {}
        self._data = data
        self._target_plain = target_plain
        self._metrics = metrics
        # Counted over both domains: source-only takes as many steps as the adapted model.
        longest = max(len(d) for d in given.values() if d is not None)
        steps = max(math.ceil(longest / config.batch_size), MIN_STEPS_PER_EPOCH)
        self._drawn = (config.steps_per_epoch or steps) * config.batch_size
        self._set_steps(1)
        self._sums: dict[str, float] = {}

    def _set_steps(self, processes: int) -> None:
        """Divides the steps of an epoch among several processes."""
        self.steps_per_epoch = math.ceil(self._drawn / self.config.batch_size / processes)
        self.num_steps = self.steps_per_epoch * self.config.epochs

    def on_fit_start(self) -> None:
        """Counts the steps of this process."""
        self._set_steps(self.trainer.world_size)

    def train_dataloader(self) -> CombinedLoader:
        """Loaders of this epoch: their order derives from (seed, stream, epoch) alone."""
        loaders = {}
        for role, data in self._data.items():
            labels = data.labels if self.config.balanced and role == "source" else None
            sampler = EpochSampler(
                len(data), seed=self.config.seed, stream=role, length=self._drawn, classes=labels
            )
            sampler.set_epoch(self.current_epoch)
            data.set_epoch(self.current_epoch)
            loaders[role] = _loader(data, self.config, sampler=sampler)
        return CombinedLoader(loaders, mode="min_size")

    def plain_loaders(self) -> dict[str, DataLoader[Any]]:
        """Yields every target case once, in order, without augmentation."""
        return (
            {} if self._target_plain is None else {"target": _plain_loader(self._target_plain, self.config)}
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the adapter's groups; each keeps its own peak learning rate."""
        groups = self.adapter.param_groups(self.config.lr)
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return optimizer

    def on_train_epoch_start(self) -> None:
        """Puts the adapter into training mode, in which frozen parts stay in eval mode, and calls its hook."""
        self.adapter.train()
        if type(self.adapter).on_epoch_start is not Adapter.on_epoch_start:
            self.adapter.on_epoch_start(self.plain_loaders())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets learning rate and random state from the step number alone."""
        if batch_idx == 0:
            self._sums = {}
        seed = derive_seed(self.config.seed, "step", self.global_step)
        # On a CPU, torch's own call spends a millisecond on unused accelerators.
        seeded = torch.default_generator if self.device.type == "cpu" else torch
        seeded.manual_seed(seed)
        optimizer = self.optimizers()
        progress = self.global_step / self.num_steps
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = group["peak_lr"] * self.adapter.learning_rate(group, progress)

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Calls the adapter once."""
        losses = self.adapter(
            batch.get("source"), batch.get("target"), progress=self.global_step / self.num_steps
        )
        if not torch.isfinite(losses["loss"]):
            parts = ", ".join(f"{k}={float(v.detach()):.4g}" for k, v in losses.items())
            raise DataError(
                f"The loss of {type(self.adapter).__name__} is not finite at step {self.global_step} ({parts}). "
                "Lower --lr, or check the scans with `medtl inspect`."
            )
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        loss: Tensor = losses["loss"]
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Calls the adapter's hook."""
        self.adapter.on_step_end()

    def on_validation_epoch_start(self) -> None:
        """Starts an empty tally."""
        self._validation = Validation(self.adapter.supervised_loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch of source validation."""
        if batch.label is not None:
            with self.adapter.on_source():
                logits = self.adapter.model(batch.image).logits
            self._validation.add(logits, batch.label)

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
            self._metrics.append(self.current_epoch, self.global_step, values)
        if self.logger is not None:
            self.logger.log_metrics(values, step=self.global_step)
        shown = "  ".join(f"{k} {v:.3f}" for k, v in values.items())
        level = logging.DEBUG if self.config.progress_bar else logging.INFO
        logger.log(level, "epoch %d/%d  %s", self.current_epoch + 1, self.config.epochs, shown)


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
