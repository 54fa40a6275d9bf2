"""Lightning's Trainer, loggers and messages for a run."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy

from medtl.training.settings import FitConfig


def make_trainer(
    config: FitConfig,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Any] = (),
    **options: Any,
) -> pl.Trainer:
    """A Trainer as `fit` needs it, to be changed and handed to it (`fit(..., trainer=trainer)`).

    Args:
        config: settings of the training.
        folder: folder of the model.
        callbacks: Lightning's callbacks.
        loggers: Lightning's loggers.
        options: arguments of the Trainer that replace ours.
    """
    ours: list[Callback] = [TQDMProgressBar()] if config.progress_bar else []
    board = tensorboard(folder) if config.tensorboard else False
    several = config.devices * config.num_nodes > 1
    settings: dict[str, Any] = {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        # On one machine spawned, not started as further copies of the command: one process owns the run folder.
        "strategy": DDPStrategy(
            start_method="spawn" if config.num_nodes == 1 else "popen", find_unused_parameters=True
        )
        if several
        else "auto",
        "precision": config.precision,
        "max_epochs": config.epochs,
        "callbacks": [*ours, *callbacks],
        "logger": [*([board] if board else []), *loggers] or False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "enable_progress_bar": config.progress_bar,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "accumulate_grad_batches": config.accumulate,
        "reload_dataloaders_every_n_epochs": 1,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**settings, **options})


def tensorboard(folder: Path) -> Any:
    """A logger that writes to `folder/tb`, or False if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return False
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="tb", version="")


def hide_host(folder: Path) -> None:
    """Removes the machine's name from the names of TensorBoard's files."""
    for number, file in enumerate(sorted((folder / "tb").glob("events.out.tfevents.*"))):
        file.rename(file.with_name(f"events.out.tfevents.{number}"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Lightning's advertisements and hints about loaders off the terminal."""
    names = ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    levels = {n: logging.getLogger(n).level for n in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*")
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start.*")
            warnings.filterwarnings("ignore", message=".*`weights_only`.*")
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
