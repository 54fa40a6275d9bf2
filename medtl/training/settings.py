"""The settings of a training, with their defaults."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch

from medtl.adapters.contract.adapter import warm_cosine
from medtl.discovery import parse_pairs
from medtl.errors import ConfigError, near_matches

Balance = Literal["none", "classes", "sites"]
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options),
}
"""Optimisers by name; `sgd` has a momentum of 0.9 after Nesterov."""
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "warm_cosine": warm_cosine,
    "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
    "linear": lambda p: 1 - p,
    "inverse": lambda p: (1 + 10 * p) ** -0.75,
    "constant": lambda _: 1.0,
}
"""Learning rate as a fraction of its peak, by the fraction of training done; `inverse` is that of Ganin et al. 2016."""
FLAGS = (
    *(
        "optimizer",
        "schedule",
        "weight_decay",
        "clip",
        "precision",
        "accumulate",
        "balance",
        "steps_per_epoch",
    ),
    *("num_nodes", "accelerator", "num_workers", "threads"),
)
"""What the flag `--fit key=value` sets; the other settings have flags of their own."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a training; fields with a flag have its name, and `--fit key=value` sets the others.

    Attributes:
        epochs: passes over the longer of source and target; 0 trains nothing and only finishes a model that is
            already trained.
        batch_size: cases of each domain in a step.
        lr: peak learning rate of the model.
        weight_decay: weight decay of the optimiser; biases and norm scales have none.
        seed: seed of all randomness.
        patience: stop after this many epochs without a lower source-validation loss and return to the best
            epoch; None trains to the end and keeps the last.
        optimizer: a name of `OPTIMIZERS`, or a function `(groups, lr=, weight_decay=) -> Optimizer` of your own.
        schedule: a name of `SCHEDULES`, or a function from the fraction of training done to that of the peak rate; ""
            takes the method's own, a linear warm-up over the first tenth and then half a cosine.
        clip: largest norm of a gradient: of the model's, and apart from it of each further network's, so that a
            discriminator does not scale down the model. None does not clip.
        precision: Lightning's: `32-true`, `16-mixed`, `bf16-mixed`, ...
        accumulate: steps whose gradients are added up before the optimiser takes one.
        balance: `classes` draws every class of the source equally often, `sites` every site of each domain.
        devices: GPUs or processes on each machine.
        num_nodes: machines.
        accelerator: Lightning's: `auto`, `cpu`, `gpu`, ...
        num_workers: processes that load data; 0 loads in the training process.
        threads: threads with which torch computes on a CPU; None keeps torch's choice.
        steps_per_epoch: None derives it from the data.
        progress_bar: a bar on the terminal; without it one log line per epoch.
        tensorboard: also log to TensorBoard, if it is installed.

    Raises:
        ConfigError: a value out of its range, or an unknown name.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 3e-4
    weight_decay: float = 1e-4
    seed: int = 0
    patience: int | None = None
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adamw"
    schedule: str | Callable[[float], float] = ""
    clip: float | None = 1.0
    precision: Any = "32-true"
    accumulate: int = 1
    balance: Balance = "none"
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    num_workers: int = 0
    threads: int | None = None
    steps_per_epoch: int | None = None
    progress_bar: bool = False
    tensorboard: bool = True

    @classmethod
    def of_recipe(cls, config: Any, **own: Any) -> FitConfig:
        """Builds the settings from a recipe's flags; `--smoke` means two steps of one epoch.

        Args:
            config: the recipe's configuration, a `medtl.config.TrainingConfig`.
            own: fields that differ from the flags, such as `seed`.

        Raises:
            ConfigError: a value out of its range.
        """
        if config.epochs < 1:
            raise ConfigError(f"epochs is {config.epochs}; expected at least 1.")
        flags = {
            "epochs": 1 if config.smoke else config.epochs,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "devices": config.devices,
            "patience": getattr(config, "patience", None),
            "balance": "classes" if getattr(config, "imbalance", "") == "balanced_sampling" else "none",
            "steps_per_epoch": 2 if config.smoke else None,
        }
        given = cls.parse(getattr(config, "fit", ()))
        if given.get("balance", "classes") != "classes" and flags["balance"] == "classes":
            raise ConfigError(
                "--imbalance balanced_sampling draws classes equally often, and --fit balance=sites sites: choose one."
            )
        return cls(**{**flags, **given, **own})

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> dict[str, Any]:
        """Turns `["optimizer=sgd", "clip=none"]` into typed settings.

        Args:
            pairs: `key=value`, as on the command line.

        Raises:
            ConfigError: not `key=value`, an unknown key, or a value of the wrong type.
        """
        hints = {**get_type_hints(cls), "optimizer": str, "schedule": str, "precision": str}
        known = {
            f.name: inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
            )
            for f in dataclasses.fields(cls)
            if f.name in FLAGS
        }
        return parse_pairs("The training", known, pairs, "--fit")

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 0),
            ("batch_size", 1),
            ("devices", 1),
            ("num_nodes", 1),
            ("accumulate", 1),
            ("threads", 1),
            ("num_workers", 0),
        ):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}.")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}; expected a number above 0, for example 3e-4.")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; expected a norm above 0, or none.")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"There is no optimizer {self.optimizer!r}. {near_matches(self.optimizer, OPTIMIZERS)}"
            )
        if isinstance(self.schedule, str) and self.schedule and self.schedule not in SCHEDULES:
            raise ConfigError(
                f"There is no schedule {self.schedule!r}. {near_matches(self.schedule, SCHEDULES)}"
            )

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over parameter groups.

        Args:
            groups: as `Adapter.param_groups` returns them.
        """
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(groups, lr=self.lr, weight_decay=self.weight_decay)

    def rate(self, progress: float) -> float | None:
        """Learning rate as a fraction of its peak, or None for the method's own schedule.

        Args:
            progress: fraction of training done.
        """
        if not self.schedule:
            return None
        return (SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule)(progress)
